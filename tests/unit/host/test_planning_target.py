"""From a wish to a target: what is wrong with kernel, initrd or modules is told before anything is staged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kupgrade.core.chronicle import HistoryEntry
from kupgrade.errors import BadInputError, ExitCode, KupgradeError, UsageError
from kupgrade.host.initramfs import CpioEntry, write_cpio
from kupgrade.model.workload import StoreKind
from kupgrade.planning import PlanRefused, make_plan, read_target, stores
from kupgrade.statedir import StateDirectory
from tests.fakes import facts as pf

Put = Callable[[str, "str | bytes"], Path]


def initrd(release: str) -> bytes:
    names = (f"usr/lib/modules/{release}/kernel/a.ko", "bin/sh")
    entries = [CpioEntry(name, 0o100644, b"x") for name in names]
    return write_cpio([*entries, CpioEntry("init", 0o100755, b"#!/bin/sh\n")])


@pytest.fixture
def root(tmp_path: Path, put: Put, bzimage: Callable[..., bytes]) -> Path:
    """A root with the old and the new kernel, their initrds, configurations and modules."""
    from kupgrade.host.kernels import NEEDS

    config = "".join(f"{need.option}=y\n" for need in NEEDS)
    for release in (pf.OLD, pf.NEW):
        put(f"boot/vmlinuz-{release}", bzimage(release=release))
        put(f"boot/initrd.img-{release}", initrd(release))
        put(f"boot/config-{release}", config)
        put(f"usr/lib/modules/{release}/modules.dep", "")
        put(f"usr/lib/modules/{release}/modules.builtin", "kernel/fs/ext4/ext4.ko\n")
    put("proc/self/mountinfo", "1 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n")
    return tmp_path


def plan(root: Path, **wanted: object) -> object:
    given = {"kernel": None, "engine": "auto", "store": "auto", "retry_failed": False, "rejected": {}, **wanted}
    return make_plan(pf.policy(), pf.facts(), root=root, **given)  # type: ignore[arg-type]


def test_a_whole_target_becomes_a_plan(root: Path) -> None:
    """The newest installed kernel is taken; the plan names both releases."""
    made = plan(root)
    assert (made.old_release, made.new_release) == (pf.OLD, pf.NEW)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("thread", "session"), [(9_000, 500), (502, 9_000)])
def test_the_next_boots_pids_leave_room_for_threads_too(root: Path, put: Put, thread: int, session: int) -> None:
    """Threads are restored with their numbers, and may have begun long after their process; so are sessions."""
    put("proc/500/stat", f"500 (demo) S 1 500 {session} 0 -1 0 {'0 ' * 10}2 0 7 0 0")
    put("proc/500/status", "Uid:\t0\t0\t0\t0\n")
    put("proc/500/cgroup", "0::/\n")
    for number in (500, thread):
        put(f"proc/500/task/{number}/comm", "demo\n")
    staged = [s for s in plan(root).steps if s.kind == "stage-initrd"]  # type: ignore[attr-defined]
    assert staged and all(int(s.params["pid_floor"]) > 9_000 for s in staged)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.95])
def test_a_truncated_kernel_is_refused(root: Path, share: float) -> None:
    """Cut anywhere, the image is refused and named."""
    image = root / f"boot/vmlinuz-{pf.NEW}"
    data = image.read_bytes()
    image.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(BadInputError, match="vmlinuz"):
        plan(root)


@pytest.mark.parametrize("keep", [0, 50, 300])
def test_a_truncated_initrd_is_refused(root: Path, keep: int) -> None:
    """A cut initrd is refused, or lacks what it must have."""
    image = root / f"boot/initrd.img-{pf.NEW}"
    image.write_bytes(image.read_bytes()[:keep])
    with pytest.raises((BadInputError, PlanRefused)):
        plan(root)


def test_an_initrd_of_another_release_is_refused(root: Path) -> None:
    """Modules of another release inside: refused, with that release named."""
    (root / f"boot/initrd.img-{pf.NEW}").write_bytes(initrd("6.1.0-9-amd64"))
    with pytest.raises(PlanRefused) as caught:
        plan(root)
    assert any("6.1.0-9-amd64" in refusal.fact for refusal in caught.value.refusals)


@pytest.mark.parametrize(
    ("index", "loaded", "missing"),
    [("", False, ()), ("kernel/drivers/net/a_driver.ko:\n", False, ("a_driver",)), ("", True, ("a_driver",))],
    ids=["only ever compiled in", "a module of the running release", "loaded from elsewhere"],
)
def test_a_driver_is_missing_only_where_it_could_be_a_module(
    root: Path, put: Put, index: str, loaded: bool, missing: tuple[str, ...]
) -> None:
    """What no release's index names is no module; what is loaded, or indexed here, must be there in the target."""
    device = root / "sys/devices/pci0/0000:00:04.0/net/eth0"
    device.mkdir(parents=True)
    (root / "sys/module/a_driver").mkdir(parents=True)
    (root / "sys/bus/drivers/a").mkdir(parents=True)
    (root / "sys/bus/drivers/a/module").symlink_to(root / "sys/module/a_driver")
    (device.parents[1] / "driver").symlink_to(root / "sys/bus/drivers/a")
    (device / "device").symlink_to(device.parents[1])
    (root / "sys/class/net").mkdir(parents=True)
    (root / "sys/class/net/eth0").symlink_to(device)
    if index:
        put("usr/lib/modules/" + pf.OLD + "/kernel/drivers/net/a_driver.ko", b"x")
        put("usr/lib/modules/" + pf.OLD + "/modules.dep", index)
    if loaded:
        put("sys/module/a_driver/initstate", "live\n")
    assert read_target(None, pf.facts(), root).missing_modules == missing


def test_missing_modules_and_a_missing_initrd_are_refused(root: Path) -> None:
    """Without its modules, or without an initrd, a kernel cannot come up here."""
    (root / f"usr/lib/modules/{pf.NEW}").rename(root / "away")
    with pytest.raises(BadInputError, match="modules"):
        plan(root, kernel=pf.NEW)
    (root / f"boot/initrd.img-{pf.NEW}").unlink()
    with pytest.raises(BadInputError, match="initrd"):
        plan(root, kernel=pf.NEW)


def test_a_missing_driver_of_this_host_is_refused(root: Path) -> None:
    """The root file system's driver is not in the new kernel: refused by name."""
    (root / f"usr/lib/modules/{pf.NEW}/modules.builtin").write_text("")
    with pytest.raises(PlanRefused) as caught:
        plan(root)
    assert any("ext4" in refusal.fact for refusal in caught.value.refusals)


def test_an_option_that_criu_needs_is_missed(root: Path) -> None:
    """A kernel without CONFIG_UNIX_DIAG is refused for that option."""
    config = root / f"boot/config-{pf.NEW}"
    config.write_text(config.read_text().replace("CONFIG_UNIX_DIAG=y", "# CONFIG_UNIX_DIAG is not set"))
    assert "CONFIG_UNIX_DIAG" in read_target(pf.NEW, pf.facts(), root).missing_options


def test_the_running_release_is_refused_when_named_and_nothing_to_do_when_not(root: Path) -> None:
    """Named: refused. Not named and nothing newer installed: exit 0."""
    with pytest.raises(PlanRefused) as caught:
        plan(root, kernel=pf.OLD)
    assert "already runs" in caught.value.why
    (root / f"boot/vmlinuz-{pf.NEW}").unlink()
    with pytest.raises(KupgradeError) as nothing:
        plan(root)
    assert nothing.value.code is ExitCode.DONE


def test_all_reasons_are_told_at_once(root: Path) -> None:
    """An operator sees every refusal in one go, not one a try."""
    given = {"engine": "auto", "store": "auto", "retry_failed": False, "rejected": {pf.NEW: "panicked"}}
    with pytest.raises(PlanRefused) as caught:
        make_plan(pf.policy(), pf.facts(nft=False, root_user=False), kernel=pf.NEW, root=root, **given)  # type: ignore[arg-type]
    assert len(caught.value.refusals) == 3


@pytest.mark.parametrize(("engine", "store"), [("teleport", "auto"), ("kexec", "tape")])
def test_an_unknown_engine_or_store_is_a_usage_error(root: Path, engine: str, store: str) -> None:
    """Not a guess, not a traceback."""
    with pytest.raises(UsageError):
        plan(root, engine=engine, store=store)


def test_a_kernel_by_a_relative_path_is_found_from_everywhere(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker is a service whose working directory is /: the plan names the path from there."""
    monkeypatch.chdir(root / "boot")
    made = plan(root, kernel=f"./vmlinuz-{pf.NEW}")
    assert f"load {root}/boot/vmlinuz-{pf.NEW} for kexec" in [
        step.describe
        for step in made.steps  # type: ignore[attr-defined]
    ]


def test_a_newer_kernel_without_an_initrd_is_named(root: Path) -> None:
    """It is why nothing can be done, and not that the older one runs already."""
    (root / f"boot/initrd.img-{pf.NEW}").unlink()
    with pytest.raises(BadInputError, match=f"There is no initrd for {pf.NEW}"):
        plan(root)


@pytest.mark.parametrize("missing", [[pf.NEW], [pf.OLD], [pf.OLD, pf.NEW]])
def test_a_missing_initrd_is_told_with_how_to_make_it(root: Path, missing: list[str]) -> None:
    """The target's, the way back's, or all: on hosts with dracut there is no update-initramfs."""
    for release in missing:
        (root / f"boot/initrd.img-{release}").unlink()
    with pytest.raises(BadInputError) as caught:
        read_target(None if len(missing) > 1 else pf.NEW, pf.facts(), root)
    assert "update-initramfs" in caught.value.remedy and "dracut" in caught.value.remedy


@pytest.mark.parametrize("fstype", ["tmpfs", "ramfs"])
def test_a_store_on_disk_that_lies_in_memory_is_refused(root: Path, fstype: str) -> None:
    """The images would end with the old kernel, and the workloads with them: /tmp is in memory on some hosts."""
    made = plan(root, store="disk")
    assert made.store == "disk"  # type: ignore[attr-defined]
    with (root / "proc/self/mountinfo").open("a") as mounts:
        mounts.write(f"2 1 0:40 / /var/lib/kupgrade rw - {fstype} none rw\n")
    with pytest.raises(PlanRefused) as caught:
        plan(root, store="disk")
    assert [each.rule for each in caught.value.refusals] == ["/var/lib/kupgrade/images outlives the kernel"]
    assert plan(root).store == "pmem"  # type: ignore[attr-defined]
    first = replace(pf.policy().engine.kexec, stores=(StoreKind.DISK, StoreKind.PMEM))
    policy = replace(pf.policy(), engine=replace(pf.policy().engine, kexec=first))
    made = make_plan(
        policy, pf.facts(), root=root, kernel=None, engine="auto", store="auto", retry_failed=False, rejected={}
    )
    assert made.store == "pmem" and any("store disk passed over" in each for each in made.fallbacks)
    assert stores(pf.facts(), pf.policy(), None, root)[1]["disk"] == caught.value.refusals


@pytest.mark.parametrize("length", [1500, 1990])
def test_a_command_line_that_no_kernel_takes_is_refused(root: Path, length: int) -> None:
    """With what the crossing adds to the host's own: kexec would only say no when the image is loaded."""
    facts = pf.facts(cmdline=f"root=/dev/vda ro console={'x' * (length - 26)}")
    given: Any = {"kernel": None, "engine": "kexec", "store": "auto", "retry_failed": False, "rejected": {}}
    if length < 1600:
        assert make_plan(pf.policy(), facts, root=root, **given)
        return
    with pytest.raises(PlanRefused) as caught:
        make_plan(pf.policy(), facts, root=root, **given)
    assert "2047" in caught.value.refusals[0].fact and caught.value.refusals[0].remedy


@pytest.mark.parametrize(("engine", "longer"), [("kexec", True), ("spawn", False)])
def test_a_plan_learns_from_this_hosts_earlier_upgrades(
    root: Path, monkeypatch: pytest.MonkeyPatch, engine: str, longer: bool
) -> None:
    """Those of the same engine; what they took longer than predicted is predicted now."""
    first = plan(root)
    earlier = HistoryEntry("u", "committed", engine=engine, blackout={"demo": 30.0}, predicted={"demo": 10.0})
    monkeypatch.setattr(StateDirectory, "history", lambda _: (earlier,))
    made = plan(root)
    factor = 3.0 if longer else 1.0
    assert made.budgets[0].predicted == pytest.approx(factor * first.budgets[0].predicted, rel=0.01)  # type: ignore[attr-defined]


def test_a_link_into_memory_is_seen(root: Path) -> None:
    """What counts is where the directory really is."""
    (root / "run/images").mkdir(parents=True)
    (root / "var/lib").mkdir(parents=True)
    (root / "var/lib/kupgrade").symlink_to("../../run")
    with (root / "proc/self/mountinfo").open("a") as mounts:
        mounts.write("2 1 0:40 / /run rw - tmpfs none rw\n")
    with pytest.raises(PlanRefused, match="outlives the kernel"):
        plan(root, store="disk")


@pytest.mark.parametrize("store", ["disk", "pmem", "luo"])
def test_an_engine_takes_only_its_own_stores(root: Path, store: str) -> None:
    """Beside the old kernel images go through shared memory: another store is not planned with, nor left out."""
    with pytest.raises(UsageError, match="spawn"):
        plan(root, engine="spawn", store=store)


def test_the_newest_of_the_running_flavour_is_taken(root: Path, put: Put, bzimage: Callable[..., bytes]) -> None:
    """A kernel for real-time that is installed besides is for who asks for it."""
    other = f"{pf.NEW}-rt"
    put(f"boot/vmlinuz-{other}", bzimage(release=other))
    put(f"boot/initrd.img-{other}", initrd(other))
    assert plan(root).new_release == pf.NEW  # type: ignore[attr-defined]
    (root / f"boot/vmlinuz-{pf.NEW}").unlink()
    put(f"usr/lib/modules/{other}/modules.dep", "")
    put(f"usr/lib/modules/{other}/modules.builtin", "kernel/fs/ext4/ext4.ko\n")
    put(f"boot/config-{other}", (root / f"boot/config-{pf.NEW}").read_text())
    assert plan(root).new_release == other  # type: ignore[attr-defined]
