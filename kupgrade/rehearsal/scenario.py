"""A whole rehearsal: build, boot, load, upgrade (once, or from kernel to kernel), follow, judge."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from kupgrade.errors import KupgradeError
from kupgrade.journal import decode_line
from kupgrade.rehearsal import fault_port, inside, judge, qemu, resources, virtual_host
from kupgrade.rehearsal.client import Clients
from kupgrade.rehearsal.faults import BESIDE_WHOLE, Fault
from kupgrade.rehearsal.link import Link
from kupgrade.rehearsal.network import Network
from kupgrade.rehearsal.options import Options, Trial, cpus, kernel_line, machine_memory
from kupgrade.rehearsal.toolbox import Progress

PORT = 7070
_BOOT_TIMEOUT = 240.0  # seconds
_POLL = 2.0


@dataclass(frozen=True, slots=True)
class Result:
    """The judged object, the client's latencies (since its start, each in seconds), the journal, what happened when.

    Of several upgrades: the last one's object and journal; every object stands in `generations` of it.
    """

    judged: Mapping[str, Any]
    latencies: tuple[tuple[float, float], ...]
    journal: tuple[Mapping[str, Any], ...]
    marks: tuple[tuple[float, str], ...] = ()


def rehearse(options: Options, progress: Progress) -> Result:
    """Run it. Raises KupgradeError when the lab itself fails; a failed upgrade is a result."""
    wanted = (options.new, *options.further)
    line = kernel_line(options)
    with ExitStack() as stack:
        stack.enter_context(interruptible())
        host = virtual_host.build(options.old, wanted, progress, boot=options.boot, line=line, kspawn=options.beside)
        state = qemu.run_directory()
        stack.callback(put_away, state, options.keep)
        network = Network.create()
        stack.callback(network.close)
        stubborn = options.fault is not None and options.fault.kind == "device-refuses"
        machine = replace(
            host.machine(machine_memory(options), cpus(options)),
            stubborn=stubborn,
            taken=options.measured,
            disk_rate=options.disk_rate,
        )
        progress(f"booting {host.old_release}")
        tap = network.tap()
        stack.callback(os.close, tap)
        running = qemu.start(host.tools, machine, state, tap)
        stack.callback(running.stop)
        link = stack.enter_context(closing(Link(state / "agent")))
        fault_port.watch(state, running, progress)
        link.wait_boot(_BOOT_TIMEOUT)
        if options.fault is not None and options.fault.kind == "panic-old-kernel":
            threading.Thread(target=fault_port.panic_old, args=(state, link, progress), daemon=True).start()
        return _generations(options, host, network, link, progress, running)


@dataclass(frozen=True, slots=True)
class _Course:
    """What all upgrades of a rehearsal share: one virtual host, the connections of one client."""

    options: Options
    network: Network
    link: Link
    client: Clients
    progress: Progress
    running: qemu.Qemu

    def spent_on_snapshot(self, fault: Fault | None, *, committed: bool) -> bool:
        """Whether the fault's file was taken away where the new kernel wrote, and all that was given up."""
        return self.options.beside and fault is not None and fault.kind in BESIDE_WHOLE and not committed

    def look(self) -> judge.WorkloadSeen:
        return inside.look(self.link, lambda: self.network.connect(PORT, 30.0), inside.memory_patience(self.options))

    def count(self) -> Mapping[str, Any] | None:
        return inside.count_resources(self.link) if self.options.beside else None


def _generations(
    options: Options,
    host: virtual_host.VirtualHost,
    network: Network,
    link: Link,
    progress: Progress,
    running: qemu.Qemu,
) -> Result:
    progress("starting the workload and a client outside")
    inside.prepare(link, options)
    course = _Course(options, network, link, _client(options, network), progress, running)
    begun, begun_wall = time.monotonic(), time.time()
    evidence: list[judge.Evidence] = []
    judged: list[Mapping[str, Any]] = []
    latencies: list[tuple[float, float]] = []
    old = host.old_release
    for new in host.new_releases:
        for trial in (Trial(),) if judged else options.trials:
            if evidence and evidence[-1].cold_expected:
                course = replace(course, client=_client(options, network))
            elif judged:
                course.client.go_on()
            again = any(each.new_release == new and each.fault for each in evidence)
            evidence.append(_upgrade(course, old, new, trial, again=again))
            judged.append(judge.judge(evidence[-1]))
            if evidence[-1].cold_expected:
                latencies += course.client.stop(0.0).latencies()
            if judged[-1]["outcome"] not in ("rolled-back", "refused"):
                break
        if judged[-1]["outcome"] != "committed":
            break
        old = new
    if not evidence[-1].cold_expected:
        latencies += course.client.stop(30.0).latencies()
    clocks = {boot.boot_id: boot.ahead for boot in link.boots}
    last = _with_leaks(options, evidence, judged[-1])
    if missing := options.trials[len(judged) :]:
        last = {**last, "not_made": [str(trial) for trial in missing]}
    if len(judged) > 1:
        last = {**last, "generations": [*judged[:-1], last]}
    journal = evidence[-1].journal
    since = tuple((round(sent - begun, 3), round(took, 4)) for sent, took in latencies)
    return Result(last, since, journal, judge.marks(journal, clocks, begun_wall))


def _client(options: Options, network: Network) -> Clients:
    return Clients(network.connect(PORT, 30.0) for _ in range(options.connections))


def _with_leaks(options: Options, evidence: list[judge.Evidence], judged: Mapping[str, Any]) -> Mapping[str, Any]:
    """The last result; of many cycles it tells what the old kernel lost in all of them together."""
    taken_back = evidence[: options.cycles]
    if not options.beside or len(taken_back) < 2:
        return judged
    before, after = taken_back[0].resources_before, taken_back[-1].resources_after
    if before is None or after is None:
        return judged
    lost = resources.leaks(before, after)
    counted = {"cycles": len(taken_back), "before": before, "after": after, "lost": lost}
    if not lost:
        return {**judged, "leaks": counted}
    return {**judged, "leaks": counted, "outcome": "failed", "findings": [*judged["findings"], *lost]}


def _upgrade(course: _Course, old: str, new: str, trial: Trial, *, again: bool) -> judge.Evidence:
    """One upgrade from start to end, and everything that was seen of it."""
    options, link, progress = course.options, course.link, course.progress
    fault = trial.fault
    inside.prepare_trial(link, trial, new)
    boots = len(link.boots) - 1
    before, resources, told = course.look(), course.count(), fault_port.Told.now(course.running)
    time.sleep(1.0)
    progress(f"kupgrade apply: {old} to {new}" + _with(fault))
    answer = inside.apply(link, options, new, again=again)
    begun = answer == inside.Answer()
    if begun:
        follow(link, options.timeout, progress)
    progress("waiting for the client's last answers")
    recording = course.client.pause(30.0)
    after: judge.WorkloadSeen | None = None
    journal: tuple[Mapping[str, Any], ...] = ()
    leftovers: tuple[str, ...] = ()
    resources_after: Mapping[str, Any] | None = None
    running_release = "unknown"
    try:
        after = course.look()
        journal = records(inside.journal(link)) if begun else ()
        committed = any(record["kind"] == "committed" for record in journal)
        struck = told.struck_since(fault, course.running, committed=committed)
        struck = struck or course.spent_on_snapshot(fault, committed=committed)
        lost = tuple(f"a fault that struck nobody: {text}" for text in told.lost_since(course.running))
        uncut = ("a power cut that never came",) if told.uncut_since(fault, course.running) else ()
        leftovers = (*inside.leftovers(link, struck=struck), *lost, *uncut)
        resources_after = course.count()
        running_release = link.boots[-1].release
        if options.keep is not None:
            options.keep.mkdir(parents=True, exist_ok=True)
            (options.keep / "system.log").write_text(inside.system_log(link))
    except (KupgradeError, OSError) as error:
        progress(f"afterwards: {error}")
    plans = [r["data"]["plan"] for r in journal if r["kind"] == "planned"]
    store = str((plans[0].get("store") if plans else "") or options.store)
    return judge.Evidence(
        engine=options.engine,
        store=store,
        old_release=old,
        new_release=new,
        running_release=running_release,
        boot_ids=tuple(boot.boot_id for boot in link.boots[boots:]),
        before=before,
        after=after,
        client=recording,
        journal=journal,
        leftovers=leftovers,
        fault=str(fault or ""),
        fatal=fault is not None and fault.fatal,
        refused=answer.refused,
        broke=answer.broke,
        rollback=trial.rollback,
        cold_expected=fault is not None and fault.costs_the_run(beside=options.beside, in_memory=store == "luo"),
        resources_before=resources,
        resources_after=resources_after,
    )


def _with(fault: Fault | None) -> str:
    return f", with the fault {fault}" if fault else ""


def follow(link: Link, timeout: float, progress: Progress, patience: float = 10.0) -> None:
    """Until no upgrade is open, or hands are off, or time is up. Boots in between are expected.

    `patience`: seconds for one answer.
    """
    deadline = time.monotonic() + timeout
    seen, boots = "", len(link.boots)
    while time.monotonic() < deadline:
        time.sleep(_POLL)
        try:
            state, last = inside.standing(link, patience)
        except KupgradeError:
            continue  # crossing, booting, or busy
        if len(link.boots) != boots:
            boots = len(link.boots)
            progress(f"{link.boots[-1].release} answers")
        if last != seen:
            seen = last
            progress(f"journal: {last}")
        if state != "open" or last == "hands-off":
            return
    progress(f"not over after {timeout:g} s")


def records(data: bytes) -> tuple[Mapping[str, Any], ...]:
    """The journal's records; a torn tail is left out."""
    found = []
    for line in data.splitlines(keepends=True):
        try:
            value = decode_line(line)
        except ValueError:
            break
        if "kind" in value:
            found.append(value)
    return tuple(found)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and a closed terminal end a rehearsal as Ctrl-C does, so that the machine is always stopped."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, interrupt)}
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def put_away(state: Path, keep: Path | None) -> None:
    """Copy the logs to `keep`, if it is wanted, and remove the machine's directory."""
    try:
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            for name in ("serial.log", "serial2.log", "qemu.log", "qemu.command"):
                with contextlib.suppress(OSError):
                    shutil.copy(state / name, keep / name)
    finally:
        shutil.rmtree(state, ignore_errors=True)


def write_evidence(result: Result, keep: Path) -> None:
    """Journal, result and what the client saw as files beside the serial log."""
    keep.mkdir(parents=True, exist_ok=True)
    (keep / "journal.json").write_text(json.dumps(list(result.journal), indent=1) + "\n")
    (keep / "result.json").write_text(json.dumps(dict(result.judged), indent=1) + "\n")
    client = {"latencies": result.latencies, "marks": result.marks}
    (keep / "client.json").write_text(json.dumps(client) + "\n")
