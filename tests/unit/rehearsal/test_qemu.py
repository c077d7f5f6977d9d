"""What is told of a virtual machine that does not start."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from kupgrade.errors import KupgradeError
from kupgrade.rehearsal import qemu


def a_qemu(path: Path, does: str) -> list[str]:
    """One that knows no -run-with, says something and then does as told."""
    path.write_text(f'#!/bin/sh\n[ "$1" = -run-with ] && exit 0\necho "that is deprecated" >&2\n{does}\n')
    path.chmod(0o755)
    return [str(path)]


def test_one_that_ends_is_not_waited_for(tmp_path: Path) -> None:
    """Its last words are told at once, however long its memory might have taken."""
    begun = time.monotonic()
    with pytest.raises(KupgradeError) as caught:
        qemu.launch(a_qemu(tmp_path / "qemu", "exit 1"), [], tmp_path, patience=60.0)
    assert caught.value.why == "it has ended; that is deprecated"
    assert time.monotonic() - begun < 30.0


def test_one_that_does_not_answer_is_ended_and_its_memory_told(tmp_path: Path) -> None:
    """Memory that is taken beforehand can be what it waits for."""
    pid = tmp_path / "pid"
    with pytest.raises(KupgradeError) as caught:
        qemu.launch(a_qemu(tmp_path / "qemu", f"echo $$ > {pid}; exec sleep 60"), [], tmp_path, patience=0.5)
    assert "after 0.5 s; it holds" in caught.value.why and caught.value.why.endswith("that is deprecated")
    assert not Path(f"/proc/{pid.read_text().strip()}").exists()


def test_one_that_is_waited_for_ends_with_the_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C comes before anybody else could stop it."""
    pid = tmp_path / "pid"

    def interrupted(path: Path, patience: float, alive: object) -> socket.socket:
        while not pid.exists() or not pid.read_text().strip():
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(qemu, "connect", interrupted)
    with pytest.raises(KeyboardInterrupt):
        qemu.launch(a_qemu(tmp_path / "qemu", f"echo $$ > {pid}; exec sleep 60"), [], tmp_path)
    assert not Path(f"/proc/{pid.read_text().strip()}").exists()


@pytest.mark.parametrize(
    ("patience", "said"), [(30.0, None), (0.3, "no answer in 0.3 s")], ids=["it is waited for", "it takes too long"]
)
def test_sockets_are_there_before_the_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: float, said: str | None
) -> None:
    """While QEMU takes its memory it listens and says nothing: the first answer has the patience of the start."""
    monkeypatch.setattr(qemu, "ANSWERS", 0.2)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "qmp"))
        listener.listen()

        def answers() -> None:
            link, _ = listener.accept()
            with link:
                link.recv(4096)
                time.sleep(1.0)  # longer than an answer of one that runs may take
                with suppress(OSError):
                    link.sendall(b'{"QMP": {}}\n{"return": {}}\n')
                    link.recv(1)

        served = threading.Thread(target=answers)
        served.start()
        if said is None:
            qemu.Qmp(tmp_path / "qmp", patience=patience).close()
        else:
            with pytest.raises(KupgradeError, match=said):
                qemu.Qmp(tmp_path / "qmp", patience=patience)
        served.join()


@pytest.mark.parametrize("rate", [0, 200_000_000])
def test_a_disk_is_as_fast_as_it_should_be(tmp_path: Path, rate: int) -> None:
    """Both ways; without a rate there is no word of it."""
    machine = qemu.Machine(tmp_path / "image", None, None, "", disk_rate=rate)
    (drive,) = (word for word in qemu.arguments(machine, tmp_path, 9, kvm=False) if word.startswith("file="))
    found = [word for word in drive.split(",") if word.startswith("throttling.")]
    assert found == ([f"throttling.bps-{way}={rate}" for way in ("read", "write")] if rate else [])
