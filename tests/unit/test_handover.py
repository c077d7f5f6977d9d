"""The old kernel watches the new one: when it gives it up, and what it takes back in which order."""

from __future__ import annotations

import contextlib
import errno
import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kupgrade.errors import KernelError, KupgradeError, NeedsHumanError
from kupgrade.kernel import blockfs, sysctl
from kupgrade.kernel.libc import REBOOT_RESTART
from kupgrade.machine import buses, faults, handover, shipping
from kupgrade.machine.handover import Note, RealHandover
from kupgrade.machine.places import Places
from kupgrade.model import standby
from kupgrade.model.codec import decode
from kupgrade.model.ids import UpgradeId
from kupgrade.model.machine import MemoryRange
from kupgrade.model.spawn import Instance
from kupgrade.model.workload import Store, StoreKind
from kupgrade.steps.ports_handover import DiskFound

PANIC = 7
BOX = MemoryRange(1 << 30, 1 << 30)
INSTANCE = Instance(UpgradeId("20261121-041503-9f2c1a"), 1, 1, BOX, BOX, BOX, None, 0, 0, 0, (6, 4), (0, 2), 0)


class Old:
    """The old kernel over a root of files; `calls` in their order. The new one has set its flag, or has not."""

    def __init__(self, root: Path) -> None:
        self.calls: list[str] = []
        self.flag, self.error = False, ""
        self.locks = 0
        self.places = Places(root)
        self.places.run.mkdir(parents=True)
        (root / "proc/sys/kernel").mkdir(parents=True)
        (root / "sys/class/net").mkdir(parents=True)
        sysctl.set_panic_timeout(0, root)
        self.port = RealHandover(self.places, self, self)  # type: ignore[arg-type]
        store = Store(StoreKind.WINDOW, "/images", "tmpfs", "/")
        self.note = Note(INSTANCE, (), store, told=True, deadline=time.monotonic() + 60.0, panic=PANIC)
        (self.places.run / handover.NOTE).write_text("{}")

    # what RealHandover asks

    def reboot(self, how: int) -> None:
        assert how == REBOOT_RESTART
        self.calls.append("restart")

    def lock_memory(self) -> None:
        self.locks += 1

    def unlock_memory(self) -> None:
        self.calls.append("unlock")

    def sync(self) -> None:
        self.calls.append("sync")

    def started(self) -> tuple[Old, Instance]:
        return self, INSTANCE

    def guard(self, _instance: object) -> None:
        pass

    @contextlib.contextmanager
    def watch(self, _instance: object) -> Iterator[Old]:
        yield self

    def fence(self, _instance: object) -> None:
        self.calls.append("fence")

    @property
    def channel(self) -> Old:
        return self

    @property
    def committed(self) -> bool:
        self.calls.append("look")
        return self.flag

    @property
    def device(self) -> Old:
        return self

    def check_alive(self) -> None:
        if self.error:
            raise KupgradeError(self.error)

    def pulse(self, _limit: float) -> Any:
        return SimpleNamespace(check=lambda: None)

    def client(self, _pulse: object = None) -> Old:
        return self

    def ask(self, verb: str, *_: object, **__: object) -> None:
        told = decode(Note, json.loads((self.places.run / handover.NOTE).read_text()), "note").told
        self.calls.append(f"{verb}, told: {told}")
        raise RuntimeError("a bug")

    def take_back(self) -> None:
        self.port._take_back(self, self, self.note, KupgradeError("It panicked"))  # type: ignore[arg-type]

    def attend(self) -> None:
        self.port._attend(self, self, self.note)  # type: ignore[arg-type]


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Old:
    made = Old(tmp_path)
    monkeypatch.setattr(buses, "resume", lambda *_: made.calls.append("resume"))
    monkeypatch.setattr(blockfs, "to_freeze", lambda _root: [SimpleNamespace(mountpoint="/")])
    monkeypatch.setattr(blockfs, "thaw", lambda *_: made.calls.append("thaw"))
    monkeypatch.setattr(RealHandover, "_say", lambda *_: None)
    serve_out = SimpleNamespace(run=lambda: made.calls.append("serve out"))
    monkeypatch.setattr(handover, "ServeOut", lambda *_: serve_out)
    return made


def test_everything_is_taken_back_from_a_kernel_that_cannot_write_any_more(old: Old) -> None:
    """Fenced, then the flag is read, then devices, file systems and kernel.panic; the note goes last."""
    with pytest.raises(KupgradeError, match="did not take over"):
        old.take_back()
    assert old.calls == ["fence", "look", "resume", "thaw"]
    assert sysctl.panic_timeout(old.places.root) == PANIC
    assert not (old.places.run / handover.NOTE).exists()


def test_file_systems_are_thawed_even_if_a_device_does_not_come_back(old: Old, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its disk may have: frozen for ever, not even the failure could be recorded. The note stays for another try."""

    def resume(*_: object) -> None:
        old.calls.append("resume")
        raise KernelError("KSPAWN_RESUME", "0000:01:00.0", errno.EIO)

    monkeypatch.setattr(buses, "resume", resume)
    with pytest.raises(KupgradeError, match="KSPAWN_RESUME"):
        old.take_back()
    assert old.calls == ["fence", "look", "resume", "thaw"]
    assert (old.places.run / handover.NOTE).exists()


def test_nothing_is_taken_back_once_the_flag_is_set(old: Old) -> None:
    """The disk is the new kernel's: this machine has crashed, and is restarted."""
    old.flag = True
    with pytest.raises(NeedsHumanError):
        old.take_back()
    assert old.calls == ["fence", "look", "restart"]


def test_a_commit_that_does_not_come_is_given_up(old: Old) -> None:
    """At the deadline, or when the operator asks."""
    object.__setattr__(old.note, "deadline", time.monotonic() - 1.0)
    with pytest.raises(KupgradeError, match="did not commit in time"):
        old.attend()
    object.__setattr__(old.note, "deadline", time.monotonic() + 60.0)
    old.places.rollback_request.write_text("by hand\n")
    with pytest.raises(KupgradeError, match=r"asked to roll back: by hand"):
        old.attend()
    assert "serve out" not in old.calls


def test_what_fails_after_the_flag_is_no_reason_to_come_back(old: Old, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen dead and committed at once, the new kernel is judged as after its commit."""

    def await_commit(*_: object) -> None:
        old.flag = True
        raise KupgradeError("It wanted a reset")

    monkeypatch.setattr(RealHandover, "_await_commit", await_commit)
    old.attend()
    assert old.calls[-1] == "serve out"


def test_a_root_that_cannot_be_frozen_stays_here(old: Old, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new kernel would go on from a file system in use; nothing has changed hands yet."""
    found = {"/srv": blockfs.FreezeResult.UNSUPPORTED, "/": blockfs.FreezeResult.DONE}
    monkeypatch.setattr(blockfs, "to_freeze", lambda _root: [SimpleNamespace(mountpoint=name) for name in found])
    monkeypatch.setattr(blockfs, "freeze", lambda _libc, path: found[str(path)])
    old.port._freeze()
    found["/"] = blockfs.FreezeResult.UNSUPPORTED
    with pytest.raises(KupgradeError, match="frozen"):
        old.port._freeze()


def test_whatever_goes_wrong_with_file_systems_frozen_is_taken_back(old: Old, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug as well: nothing could be recorded. Frozen before the devices, and noted before the new kernel is told."""
    for module, name in ((buses, "quiesce"), (blockfs, "freeze"), (shipping, "ship_last")):
        monkeypatch.setattr(module, name, lambda *_, name=name: old.calls.append(name))
    monkeypatch.setattr(buses, "find", lambda *_: ())
    monkeypatch.setattr(buses, "table", lambda *_: b"")
    monkeypatch.setattr(faults, "strike", lambda *_: None)
    with pytest.raises(KupgradeError, match="did not take over"):
        old.port.hand_over(old.note.store, DiskFound("uuid", "ext4", ""), (), 60.0)
    told = f"{standby.TAKE_OVER}, told: True"
    back = ["fence", "look", "resume", "thaw", "unlock"]
    assert old.calls == ["ship_last", "sync", "freeze", "quiesce", told, *back]


def test_memory_is_locked_once_and_again_only_after_it_was_unlocked(old: Old, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time costs a fault for each page, in the blackout; but a second handover begins locked as well."""
    for module, name in ((buses, "keep_awake"), (buses, "quiesce"), (blockfs, "freeze"), (shipping, "ship_last")):
        monkeypatch.setattr(module, name, lambda *_: None)
    monkeypatch.setattr(buses, "find", lambda *_: ())
    monkeypatch.setattr(buses, "table", lambda *_: b"")
    monkeypatch.setattr(faults, "strike", lambda *_: None)

    def ask(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Old, "ask", ask)
    for handed in (1, 2):
        for _ in range(2):
            with pytest.raises(RuntimeError):
                old.port.ready((), (), 0, ())
        assert old.locks == handed
        with pytest.raises(KupgradeError):
            old.port.hand_over(old.note.store, DiskFound("uuid", "ext4", ""), (), 60.0)
        assert old.locks == handed
