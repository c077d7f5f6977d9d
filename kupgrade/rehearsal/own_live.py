"""Real images of what runs on this host, restored on the target kernel in a machine with the copy of its files.

The dump is the product's own, in a service of its own (live_images/), and leaves everything running. The images hold
secrets: they stay in the rehearsal's directory, are put onto a disk, and are overwritten on every way out; what the
machine itself writes goes to a file without a name.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kupgrade.core.allocate import pid_floor
from kupgrade.core.stakes import DUMP
from kupgrade.errors import ExitCode, KupgradeError, RefusedError
from kupgrade.host import command, early_init, initramfs
from kupgrade.kernel import proc
from kupgrade.model.codec import decode, encode
from kupgrade.model.live_images import (
    DumpAnswer,
    Dumped,
    DumpRequest,
    LiveSeen,
    Restored,
    RestoreRequest,
)
from kupgrade.model.plan import Plan
from kupgrade.model.workload import Store, StoreKind, Workload
from kupgrade.rehearsal import inside, own_guest, own_image, own_machine, qemu, scenario
from kupgrade.rehearsal.link import Link
from kupgrade.rehearsal.toolbox import Progress

LABEL = "kupgrade-live"
PLACE = "/var/lib/kupgrade/live"  # of the disk of images, in the machine
DIFFERS = (
    "their connections lead nowhere: what is sent is lost, and nobody answers",
    "files that changed between the copy and the dump, and that nobody had open, are as they were when copied",
    "they are restored one after the other, memory is copied before they run, and no hook is called",
)
_LONGEST = 1800  # seconds of the dumping service
_END = 120  # seconds for it to end once it is told to
_BOOT, _RESTORE, _SETTLE = 240.0, 120.0, 2.0  # seconds, times how much slower it may be
_SLOWEST = 1e6  # bytes a second, when the disk is made
_STORE = "images"
_UNITS = Path("/run/systemd/system")
_LOAD = "load-kernel"  # the step that names the target's files


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to dump, and from what on files of this host are not as they were copied (seconds of the epoch).

    `rounds`: as the policy says; `absent`: directories of which the copy has nothing.
    """

    plan: Plan
    workloads: tuple[Workload, ...]
    rounds: int
    since: float
    absent: tuple[str, ...]


def chosen(plan: Plan, names: Sequence[str]) -> tuple[Workload, ...]:
    """The kept workloads that take part, as the plan dumps them. Raises RefusedError when there is none."""
    found = next((spec.params["workloads"] for spec in plan.steps if spec.kind == DUMP), ())
    kept = tuple(each for each in decode(tuple[Workload, ...], found, "dump.workloads") if each.name in names)
    if not kept:
        raise RefusedError(
            "There is nothing to dump",
            "no workload of the policy that is kept runs here as a service",
            "Rehearse without --live-images",
        )
    return kept


def room(memory: int) -> int:
    """Bytes that images of so much memory take: once as criu writes them, and once on a disk."""
    return int(2.4 * memory) + (512 << 20)


@dataclass(frozen=True, slots=True)
class Rehearsing:
    """One dump and its restore, in the rehearsal's `directory`. `slow`: how many times slower it may be there."""

    wanted: Wanted
    directory: Path
    shape: own_machine.Shape  # of the rehearsal itself
    identity: str  # of its root file system
    slow: float
    keep: Path | None
    progress: Progress

    def rehearse(self) -> tuple[LiveSeen, ...]:
        """Raises KupgradeError when the dump was refused; whatever else goes wrong is told of the workloads."""
        with ExitStack() as stack:
            stack.callback(own_image.wipe_images, self.directory)
            answer = self._dump()
            dumped = {each.name: each for each in answer.dumped}
            for each in answer.dumped:
                self.progress(f"{each.name} stood still for {max(each.pauses, default=0.0):.2f} s; it runs on")
            restored: tuple[Restored, ...] = ()
            why = ""
            try:
                ok = tuple(w for w in self.wanted.workloads if w.name in dumped and not dumped[w.name].error)
                restored = self._restored(ok, answer) if ok else ()
                for end in restored:  # told at once: the rehearsal of the upgrade, which follows, may break off
                    word = f"NOT restored there: {end.error}" if end.error else "restored there"
                    self.progress(f"{end.name}: {word}")
            except (KupgradeError, OSError) as error:
                why = str(error)
                self.progress(f"the images: {error}")
            return seen(self.wanted.workloads, dumped, restored, why)

    def _dump(self) -> DumpAnswer:
        """On this host, by a service that outlives this process and lets everybody go however it ends."""
        live = self.directory / own_image.LIVE
        live.mkdir(mode=0o700)
        (live / "late").mkdir(mode=0o700)
        request = DumpRequest(
            store=Store(StoreKind.DISK, str(live / _STORE)),
            workloads=self.wanted.workloads,
            rounds=self.wanted.rounds,
            late=str(live / "late"),
            since=self.wanted.since,
            absent=self.wanted.absent,
            reserve=own_image.RESERVE,
            lock=str(self.directory / "lock"),
            old_release=self.wanted.plan.old_release,
            new_release=self.wanted.plan.new_release,
        )
        (self.directory / "live-request.json").write_text(json.dumps(encode(request)))
        self.progress(f"dumping {', '.join(each.name for each in self.wanted.workloads)} on this host")
        unit = f"kupgrade-live-images-{os.getpid()}.service"
        texts = units(self.directory, unit)
        try:
            _UNITS.mkdir(parents=True, exist_ok=True)
            for name, text in texts.items():
                (_UNITS / name).write_text(text)
            done = command.run(["systemctl", "start", unit], timeout=_LONGEST + _END, check=False)
        finally:  # interrupted: it ends by itself, and is waited for; as a rule nobody is held then
            command.run(["systemctl", "stop", unit], timeout=_END + 30.0, check=False)
            release = [*texts][-1]
            if command.run(["systemctl", "start", release], timeout=_END + 30.0, check=False).status != 0:
                self.progress(f"WARNING: a service may still be held; see journalctl -u {release}")
            for name in texts:
                (_UNITS / name).unlink(missing_ok=True)
        return heard(self.directory / "live-answer.json", done, self.wanted.workloads)

    def _restored(self, workloads: tuple[Workload, ...], answer: DumpAnswer) -> tuple[Restored, ...]:
        disk = self._disk()
        with ExitStack() as stack:
            state = qemu.run_directory()
            stack.callback(scenario.put_away, state, None if self.keep is None else self.keep / "live")
            self.progress(f"starting the copy under {self.wanted.plan.new_release}, with the images")
            words = own_machine.arguments(self._machine(disk), state)
            program = [*own_image.gentle(), own_machine.require_tools()]
            running = qemu.launch(program, words, state, 60.0, scratch=self.directory)
            stack.callback(running.stop)
            link = stack.enter_context(closing(Link(state / "agent")))
            link.wait_boot(_BOOT * self.slow)
            return self._ask(link, workloads, answer)

    def _disk(self) -> Path:
        """The images and late files on a file system of their own; where they were first they are wiped."""
        live, place = self.directory / own_image.LIVE, self.directory / own_image.LIVE_DISK
        place.mkdir(mode=0o700)
        disk = place / "images.img"
        size = sum(path.stat().st_size + 8192 for path in live.rglob("*"))
        with disk.open("wb") as file:
            disk.chmod(0o600)
            file.truncate((int(size * 1.1) + (64 << 20)) >> 20 << 20)
        options = ["-L", LABEL, "-m", "0", "-O", "^has_journal", "-E", "lazy_itable_init=0", "-d", str(live)]
        command.run(["mkfs.ext4", "-q", "-F", *options, str(disk)], timeout=600.0 + size / _SLOWEST)
        own_image.wipe_tree(live)
        return disk

    def _machine(self, disk: Path) -> own_machine.Shape:
        """With the target's kernel and an initrd that keeps the PIDs free, as that of a crossing does."""
        load, stage = target(self.wanted.plan)
        staged = self.directory / "live-initrd"
        pids = [pid for each in self.wanted.workloads for pid in each.pids]
        floor = pid_floor(pids, proc.pid_max(Path("/")))
        initramfs.append_cpio(Path(stage), early_init.early_entries(floor, 0), staged)
        line = own_guest.command_line(str(load["cmdline"]), self.identity, self.slow)
        words = f"rdinit={early_init.INIT} systemd.unit={own_guest.LIVE_TARGET} {own_guest.LIVE_WORD}"
        return replace(self.shape, kernel=Path(load["kernel"]), initrd=staged, append=f"{line} {words}", images=disk)

    def _ask(self, link: Link, workloads: tuple[Workload, ...], answer: DumpAnswer) -> tuple[Restored, ...]:
        """Have them restored, and wait for what comes of it."""
        release = link.boots[-1].release
        if release != self.wanted.plan.new_release:
            raise KupgradeError(f"{release} runs there, expected {self.wanted.plan.new_release}")
        inside.shell(link, f"mkdir -p -m 0700 {PLACE} && mount LABEL={LABEL} {PLACE}", 60.0 * self.slow)
        slower = tuple(replace(w, probe=replace(w.probe, timeout=w.probe.timeout * self.slow)) for w in workloads)
        request = RestoreRequest(
            store=Store(StoreKind.DISK, f"{PLACE}/{_STORE}"),
            workloads=slower,
            late=f"{PLACE}/late",
            files=tuple(file for each in answer.dumped if not each.error for file in each.late),
            new_release=release,
            timeout=_RESTORE * self.slow,
            settle=_SETTLE * min(self.slow, 5.0),
        )
        link.write("/run/kupgrade-live.json", json.dumps(encode(request)).encode(), 0o600)
        self.progress(f"restoring {', '.join(each.name for each in workloads)} there")
        probes = sum(2 * each.probe.timeout for each in slower)
        patience = (request.timeout + request.settle) * len(workloads) + probes + 60.0 * self.slow
        words = [sys.executable, "-sP", "-m", "kupgrade.live_images.restore", "/run/kupgrade-live.json"]
        done = link.run(words, timeout=patience)
        if done.status != 0:
            raise KupgradeError("The restore in the copy broke off", (done.stderr or done.stdout).strip()[-1500:])
        return decode(tuple[Restored, ...], json.loads(done.stdout.splitlines()[-1]), "restored")


def target(plan: Plan) -> tuple[Mapping[str, Any], str]:
    """The parameters of the step that loads the new kernel, and the initrd as its distribution made it."""
    load = next(spec.params for spec in plan.steps if spec.kind == _LOAD)
    stage = next(str(each.params["initrd"]) for each in plan.steps if each.params.get("out") == load["initrd"])
    return load, stage


def units(directory: Path, name: str) -> Mapping[str, str]:
    """The unit `name` that dumps, and the one that lets the workloads go whatever ended it, even SIGKILL.

    Only the main process is ended: a criu that is killed at its work may take those along that it works on. What lets
    go is a unit of its own, and no ExecStopPost=: what is started in a cgroup that was killed as a whole (cgroup.kill)
    is killed at once by some kernels (seen with 6.12.107).
    """
    python = f'"{sys.executable.replace("%", "%%").replace("$", "$$")}" -sP -m kupgrade.live_images'
    head = "# Of a rehearsal with --live-images, which removes it at its end; it ends with this boot anyway.\n[Unit]\n"
    release = name.replace(".service", "-release.service")
    dump = f"""{head}Description=Images of workloads that run on
CollectMode=inactive-or-failed
OnFailure={release}
[Service]
Type=oneshot
WorkingDirectory={str(directory).replace("%", "%%")}
ExecStart={python}.dump live-request.json live-answer.json
KillMode=process
OOMPolicy=continue
TimeoutStartSec={_LONGEST}
TimeoutStopSec={_END}
OOMScoreAdjust=-900
UMask=0077
"""
    again = f"""{head}Description=Workloads whose dump was killed run on
CollectMode=inactive-or-failed
[Service]
Type=oneshot
ExecStart={python}.release
Restart=on-failure
RestartSec=1
OOMScoreAdjust=-900
"""
    return {name: dump, release: again}


def heard(path: Path, done: command.Completed, workloads: Sequence[Workload]) -> DumpAnswer:
    """The answer of the dump. Raises KupgradeError when it was refused, or is not known; a failure is each one's."""
    try:
        answer = decode(DumpAnswer, json.loads(path.read_text()), "the dump's answer")
    except FileNotFoundError:
        why = done.stderr.strip()[-500:] or f"exit status {done.status}"
        remedy = "See its log: journalctl -u 'kupgrade-live-images-*'"
        raise KupgradeError("The dump on this host gave no answer", why, remedy) from None
    failed = answer.failure
    if failed is None:
        return answer
    if failed.code != ExitCode.FAILED:
        raise KupgradeError(failed.what, failed.why, failed.remedy, ExitCode(failed.code))
    return DumpAnswer(tuple(Dumped(each.name, failed.why or failed.what) for each in workloads))


def seen(
    workloads: Sequence[Workload], dumped: Mapping[str, Dumped], restored: Sequence[Restored], why: str
) -> tuple[LiveSeen, ...]:
    """Of each workload. One that could not be dumped could not be restored; `why` there is no word of the others."""
    ends = {each.name: each for each in restored}
    found = []
    for name in (each.name for each in workloads):
        mine, end = dumped.get(name), ends.get(name)
        pauses = mine.pauses if mine else ()
        differs = mine.differs if mine else ()
        if mine is not None and mine.error:
            found.append(LiveSeen(name, restored=False, error=f"not dumped: {mine.error}", pauses=pauses))
        elif end is None:
            found.append(LiveSeen(name, restored=None, error=why or "nothing was heard of it", pauses=pauses))
        else:
            well = not end.error
            found.append(LiveSeen(name, well, end.error, pauses, end.seconds, differs))
    return tuple(found)
