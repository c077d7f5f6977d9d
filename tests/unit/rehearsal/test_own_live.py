"""Images of what runs here in a rehearsal: who is dumped, what is done with them, and that none is left."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kupgrade.errors import ExitCode, KupgradeError, NotNowError, RefusedError
from kupgrade.host import command
from kupgrade.host.command import Completed
from kupgrade.model.codec import encode
from kupgrade.model.live_images import DumpAnswer, Dumped, Failure, LateFile, LiveSeen, Restored
from kupgrade.model.plan import Phase, Plan, Scope, Side, StepSpec
from kupgrade.model.workload import Probe, ProbeKind, Workload
from kupgrade.rehearsal import inside, own_image, own_live, own_machine, qemu
from kupgrade.rehearsal.own_live import Rehearsing, Wanted

WEB = Workload("web", "web.service", "/web", 700, (700,), probe=Probe(ProbeKind.TCP, port=80, timeout=10.0))
DB = Workload("db", "db.service", "/db", 800, (800, 801))
LATE = LateFile("/var/log/web", "1", 3, 0o644, 0, 0)
OK = DumpAnswer((Dumped("web", "", (0.1, 0.5), (LATE,), ("cut",)), Dumped("db", "", (0.5,))), 10)


def step(kind: str, **params: Any) -> StepSpec:
    return StepSpec(kind, encode(params), Scope.BOOT, "", "")


@pytest.fixture
def plan(plan_with: Callable[..., Plan]) -> Plan:
    """Of an upgrade that keeps two workloads."""
    steps = (
        step("stage-initrd", initrd="/boot/initrd.img-7.3", out="/s/new", pid_floor=9, deadline=9),
        step("stage-initrd", initrd="/boot/initrd.img-6.12", out="/s/back", pid_floor=9, deadline=0),
        step("load-kernel", kernel="/boot/vmlinuz-7.3", initrd="/s/new", cmdline="root=/dev/vda1 quiet init=/s/x"),
        step("dump", workloads=(WEB, DB)),
    )
    return plan_with(old_release="6.12", new_release="7.3", phases=(Phase("all", Side.OLD, steps),))


def test_who_is_kept_and_takes_part_is_dumped(plan: Plan) -> None:
    """As the plan has them; with nobody there is nothing to find out."""
    assert own_live.chosen(plan, ("db", "other")) == (DB,)
    with pytest.raises(RefusedError, match="nothing to dump") as caught:
        own_live.chosen(plan, ("other",))
    assert "--live-images" in caught.value.remedy


def test_everybody_is_let_go_however_the_dump_ends(tmp_path: Path) -> None:
    """By a unit of its own, in a cgroup that nobody has killed, which is tried again when it fails."""
    found = own_live.units(tmp_path / "50% $HOME", "x-7.service")
    dump, release = (text.splitlines() for text in found.values())
    assert [*found] == ["x-7.service", "x-7-release.service"]
    python = f'"{sys.executable}" -sP -m kupgrade.live_images'
    assert "OnFailure=x-7-release.service" in dump
    assert f"ExecStart={python}.dump live-request.json live-answer.json" in dump
    assert "KillMode=process" in dump and "Type=oneshot" in dump
    assert f"WorkingDirectory={tmp_path}/50%% $HOME" in dump
    assert f"ExecStart={python}.release" in release and "Restart=on-failure" in release


@pytest.mark.parametrize(
    ("dumped", "restored", "why", "expected"),
    [
        (Dumped("web", "", (1.0,)), Restored("web", "", 2.0), "", LiveSeen("web", True, "", (1.0,), 2.0)),
        (Dumped("web", "", (1.0,)), Restored("web", "bad size"), "", LiveSeen("web", False, "bad size", (1.0,))),
        (Dumped("web", "io_uring", (1.0,)), None, "", LiveSeen("web", False, "not dumped: io_uring", (1.0,))),
        (Dumped("web", "", (1.0,)), None, "no boot", LiveSeen("web", None, "no boot", (1.0,))),
        (Dumped("web"), None, "", LiveSeen("web", None, "nothing was heard of it")),
        (None, None, "", LiveSeen("web", None, "nothing was heard of it")),
    ],
)
def test_what_is_not_known_is_no_no(
    dumped: Dumped | None, restored: Restored | None, why: str, expected: LiveSeen
) -> None:
    """criu's no is one, here or there; a machine that did not start says nothing of the workload."""
    known = {"web": dumped} if dumped else {}
    assert own_live.seen((WEB,), known, (restored,) if restored else (), why) == (expected,)


@pytest.mark.parametrize(
    ("failure", "raised"),
    [
        (Failure("open", "to 7.3", "wait", ExitCode.NOT_NOW), ExitCode.NOT_NOW),
        (Failure("no criu", "", "install it", ExitCode.REFUSED), ExitCode.REFUSED),
        (Failure("criu failed", "io_uring", "", ExitCode.FAILED), None),
    ],
)
def test_a_refusal_is_raised_and_a_failure_is_of_each(
    tmp_path: Path, failure: Failure, raised: ExitCode | None
) -> None:
    """With its exit code; what criu could not do would fail an upgrade, too."""
    (tmp_path / "answer").write_text(json.dumps(encode(DumpAnswer(failure=failure))))
    if raised is None:
        found = own_live.heard(tmp_path / "answer", Completed(0, "", ""), (WEB, DB))
        assert [(each.name, each.error) for each in found.dumped] == [("web", "io_uring"), ("db", "io_uring")]
        return
    with pytest.raises(KupgradeError, match=failure.what) as caught:
        own_live.heard(tmp_path / "answer", Completed(0, "", ""), (WEB, DB))
    assert caught.value.code is raised


def test_a_dump_without_an_answer_is_an_error(tmp_path: Path) -> None:
    """It was killed; what systemd said stands there."""
    with pytest.raises(KupgradeError, match="no answer") as caught:
        own_live.heard(tmp_path / "answer", Completed(1, "", "Failed to start"), (WEB,))
    assert caught.value.why == "Failed to start"


@dataclass
class Lab:
    """Everything outside of the module: notes what is asked, and fails at one word of it."""

    directory: Path
    answer: DumpAnswer = OK
    fails: str = ""
    error: BaseException = field(default_factory=lambda: KupgradeError("it failed", "why"))
    release: str = "7.3"
    says_no: str = ""
    broken: dict[str, str] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    shape: own_machine.Shape | None = None
    request: Any = None

    def note(self, word: str) -> None:
        self.done.append(word)
        if word == self.fails:
            raise self.error

    def run(self, argv: list[str], **options: Any) -> Completed:
        word = argv[0]
        if word == "systemctl":
            word = "release" if argv[2].endswith("-release.service") else {"start": "dump"}.get(argv[1], argv[1])
        if word == "dump":
            assert f"WorkingDirectory={self.directory}" in (self.directory.parent / argv[2]).read_text()
            images = self.directory / "live/images/web/final"
            images.mkdir(parents=True)
            (images / "pages-1.img").write_text("secret")
            (self.directory / "live-answer.json").write_text(json.dumps(encode(self.answer)))
        if word == "mkfs.ext4":
            assert (self.directory / "live-disk/images.img").stat().st_mode & 0o777 == 0o600
        self.note(word)
        return Completed(int(word == self.says_no), "", "")

    def launch(self, program: Any, words: list[str], state: Path, patience: float, *, scratch: Path) -> Any:
        assert scratch == self.directory
        assert not (self.directory / "live").exists(), "they are on the disk now"
        self.note("launch")
        return SimpleNamespace(stop=lambda: self.done.append("end"))

    # -- the link

    @property
    def boots(self) -> list[Any]:
        return [SimpleNamespace(release=self.release)]

    def wait_boot(self, timeout: float) -> None:
        self.note("boot")

    def write(self, path: str, data: bytes, mode: int) -> None:
        assert mode == 0o600
        self.request = json.loads(data)

    def close(self) -> None:
        self.done.append("close")

    def ask(self, words: list[str], timeout: float) -> Completed:
        self.note("restore")
        found = [Restored(each["name"], self.broken.get(each["name"], ""), 3.0) for each in self.request["workloads"]]
        return Completed(0, f"a warning\n{json.dumps(encode(tuple(found)))}\n", "")


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    found = Lab(tmp_path / "work")
    found.directory.mkdir()
    link = SimpleNamespace(boots=found.boots, wait_boot=found.wait_boot, write=found.write, close=found.close)
    link.run = found.ask
    monkeypatch.setattr(command, "run", found.run)
    monkeypatch.setattr(own_live, "_UNITS", tmp_path)
    monkeypatch.setattr(qemu, "run_directory", lambda: tmp_path / "state")
    monkeypatch.setattr(qemu, "launch", found.launch)
    monkeypatch.setattr(own_live, "Link", lambda path: SimpleNamespace(**{**vars(link), "boots": found.boots}))
    monkeypatch.setattr(own_machine, "require_tools", lambda: "/usr/bin/qemu")
    monkeypatch.setattr(inside, "shell", lambda link, script, timeout: found.note("mount"))
    monkeypatch.setattr(own_live.initramfs, "append_cpio", lambda initrd, entries, out: found.note(f"{initrd}"))
    monkeypatch.setattr(own_live.proc, "pid_max", lambda root: 4194304)
    monkeypatch.setattr(own_machine, "arguments", lambda shape, state: setattr(found, "shape", shape) or [])
    return found


@pytest.fixture
def course(lab: Lab, plan: Plan, tmp_path: Path) -> Rehearsing:
    shape = own_machine.Shape(
        lab.directory / "disk.img", own_machine.CONTROLLERS[0], Path("k"), Path("i"), "x", 1024, 2, kvm=True
    )
    wanted = Wanted(plan, (WEB, DB), 3, 7.0, ("/tmp",))
    return Rehearsing(wanted, lab.directory, shape, "1-2", 4.0, tmp_path / "keep", lambda text: None)


def nothing_left(lab: Lab) -> bool:
    """Neither images nor a unit."""
    there = [path for name in ("live", "live-disk") if (path := lab.directory / name).exists()]
    return not there and not [*lab.directory.parent.glob("*.service")]


def test_what_runs_here_is_dumped_and_restored_on_the_target_kernel(course: Rehearsing, lab: Lab) -> None:
    """The target's kernel, its initrd with PIDs kept free, and a target without workloads; then nothing is left."""
    found = course.rehearse()
    assert [(each.name, each.restored, each.pauses) for each in found] == [
        ("web", True, (0.1, 0.5)),
        ("db", True, (0.5,)),
    ]
    assert found[0].differs == ("cut",)
    wanted = [
        "dump",
        "stop",
        "release",
        "mkfs.ext4",
        "/boot/initrd.img-7.3",
        "launch",
        "boot",
        "mount",
        "restore",
        "close",
        "end",
    ]
    assert lab.done == wanted
    assert lab.shape is not None
    assert (lab.shape.kernel, lab.shape.images) == (Path("/boot/vmlinuz-7.3"), lab.directory / "live-disk/images.img")
    words = lab.shape.append.split()
    assert {"quiet", "root=UUID=1-2", "rdinit=/kupgrade-init", "kupgrade.rehearsal=live"} <= set(words)
    assert "systemd.unit=kupgrade-rehearsal-live.target" in words and "init=/s/x" not in words
    assert lab.request["workloads"][0]["probe"]["timeout"] == 40.0
    assert lab.request["files"] == [encode(LATE)]
    assert nothing_left(lab)


def test_what_cannot_be_dumped_is_not_waited_for(course: Rehearsing, lab: Lab) -> None:
    """The others are restored; without any no machine is started."""
    lab.answer = DumpAnswer((Dumped("web", "io_uring", (0.5,)), Dumped("db", "", (0.5,))))
    assert [(each.name, each.restored) for each in course.rehearse()] == [("web", False), ("db", True)]
    assert [each["name"] for each in lab.request["workloads"]] == ["db"]
    lab.done.clear()
    lab.answer = DumpAnswer((Dumped("web", "io_uring"), Dumped("db", "a raw socket")))
    assert [each.error for each in course.rehearse()] == ["not dumped: io_uring", "not dumped: a raw socket"]
    assert lab.done == ["dump", "stop", "release"]
    assert nothing_left(lab)


@pytest.mark.parametrize("fails", ["mkfs.ext4", "/boot/initrd.img-7.3", "launch", "boot", "mount", "restore"])
def test_what_fails_there_is_unknown_and_leaves_nothing(course: Rehearsing, lab: Lab, fails: str) -> None:
    """It is no word about the workloads; images and machine are gone all the same."""
    lab.fails = fails
    found = course.rehearse()
    assert [(each.restored, each.error) for each in found] == [(None, "it failed: why")] * 2
    assert nothing_left(lab)
    assert ("end" in lab.done) == (fails in ("boot", "mount", "restore"))


def test_another_kernel_than_the_target_says_nothing(course: Rehearsing, lab: Lab) -> None:
    """It fell back, or another one was started."""
    lab.release = "6.12"
    found = course.rehearse()
    assert found[0].restored is None
    assert "6.12 runs there, expected 7.3" in found[0].error


@pytest.mark.parametrize("fails", ["dump", "mkfs.ext4", "launch", "restore"])
def test_an_operator_who_interrupts_leaves_no_images(course: Rehearsing, lab: Lab, fails: str) -> None:
    """The dump is waited for, so that nobody writes any more; then they are wiped."""
    lab.fails, lab.error = fails, KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        course.rehearse()
    assert lab.done[1:3] == ["stop", "release"]
    assert nothing_left(lab)


def test_whoever_may_still_be_held_is_told_of(course: Rehearsing, lab: Lab) -> None:
    """The unit that lets go has failed: the operator has to look."""
    said: list[str] = []
    lab.says_no = "release"
    replace(course, progress=said.append).rehearse()
    assert any("may still be held" in each for each in said)
    lab.says_no = ""
    said.clear()
    replace(course, progress=said.append).rehearse()
    assert not any("may still be held" in each for each in said)


def test_what_became_of_each_is_told_before_the_upgrade_is_rehearsed(course: Rehearsing, lab: Lab) -> None:
    """Should that break off, the operator knows at least this."""
    said: list[str] = []
    lab.broken = {"db": "its socket"}
    replace(course, progress=said.append).rehearse()
    assert said[-2:] == ["web: restored there", "db: NOT restored there: its socket"]


def test_a_refused_dump_ends_the_rehearsal(course: Rehearsing, lab: Lab) -> None:
    """Another upgrade is open: that holds for all of it."""
    lab.answer = DumpAnswer(failure=Failure("An upgrade is open", "to 7.3", "wait", ExitCode.NOT_NOW))
    with pytest.raises(KupgradeError) as caught:
        course.rehearse()
    assert caught.value.code is NotNowError.code
    assert nothing_left(lab)


def test_images_are_overwritten_before_they_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a rehearsal's directory, also that of a killed one; a second name for the file shows what was left."""
    place = tmp_path / own_image.PLACE / "run-1-a"
    for name in (own_image.LIVE, own_image.LIVE_DISK):
        (place / name / "images").mkdir(parents=True)
        (place / name / "images/pages-1.img").write_text("secret")
        (tmp_path / name).hardlink_to(place / name / "images/pages-1.img")
    with own_image.workplace(tmp_path, None):
        assert not place.exists()
        for name in (own_image.LIVE, own_image.LIVE_DISK):
            assert (tmp_path / name).read_bytes() == bytes(6)


def test_images_are_told_among_what_needs_room(tmp_path: Path) -> None:
    """With their own figure."""
    with pytest.raises(RefusedError) as caught:
        own_image.require_room(tmp_path, 1 << 20, 1 << 20, own_live.room(1 << 60))
    assert "MiB for images of what runs here" in caught.value.why
    assert own_live.room(100 << 20) > 200 << 20


@pytest.mark.parametrize("controller", own_machine.CONTROLLERS)
def test_the_disk_of_images_is_driven_as_the_first(tmp_path: Path, controller: own_machine.Controller) -> None:
    """Two drives of one kind, with names of their own; what is written to the first is gone with the machine."""
    shape = own_machine.Shape(tmp_path / "disk.img", controller, Path("k"), Path("i"), "x", 1024, 2, kvm=False)
    alone = own_machine.arguments(shape, tmp_path)
    assert not any("snapshot" in word or "disk1" in word for word in alone)
    both = own_machine.arguments(replace(shape, images=tmp_path / "images.img"), tmp_path)
    drives = [word for word in both if word.startswith("file=")]
    assert "snapshot=on" in drives[0] and str(tmp_path / "images.img") in drives[1]
    devices = [word for word in both if "drive=disk" in word]
    assert len(devices) == len(set(devices)) == 2
    assert devices[0].replace("disk0", "disk1").split(",")[:2] == devices[1].split(",")[:2]
    own = {word for each in devices for word in each.split(",") if word.startswith(("bus=", "serial="))}
    assert len(own) in (0, 2)
