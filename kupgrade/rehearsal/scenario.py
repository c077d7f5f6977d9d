"""A whole rehearsal: build, boot, load, upgrade, follow, judge."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from kupgrade.errors import KupgradeError
from kupgrade.journal import decode_line
from kupgrade.rehearsal import inside, judge, qemu, virtual_host
from kupgrade.rehearsal.client import Client
from kupgrade.rehearsal.faults import Fault
from kupgrade.rehearsal.link import Link
from kupgrade.rehearsal.network import Network
from kupgrade.rehearsal.options import Options, cpus, kernel_line, machine_memory

Progress = Callable[[str], None]
PORT = 7070
_BOOT_TIMEOUT = 240.0  # seconds
_POLL = 2.0


@dataclass(frozen=True, slots=True)
class Result:
    """The judged object, the client's latencies (since its start, each in seconds), the journal, what happened when."""

    judged: Mapping[str, Any]
    latencies: tuple[tuple[float, float], ...]
    journal: tuple[Mapping[str, Any], ...]
    marks: tuple[tuple[float, str], ...] = ()


def rehearse(options: Options, progress: Progress) -> Result:
    """Run it. Raises KupgradeError when the lab itself fails; a failed upgrade is a result."""
    wanted = (options.new, *options.further)
    line = kernel_line(options)
    host = virtual_host.build(options.old, wanted, progress, boot=options.boot, line=line, kspawn=options.beside)
    with ExitStack() as stack:
        stack.enter_context(_interruptible())
        state = qemu.run_directory()
        stack.callback(put_away, state, options.keep)
        network = Network.create()
        stack.callback(network.close)
        machine = host.machine(machine_memory(options), cpus(options))
        progress(f"booting {host.old_release}")
        running = qemu.start(host.tools, machine, state, network.tap())
        stack.callback(running.stop)
        link = stack.enter_context(closing(Link(state / "agent")))
        _watch_faults(state, running, progress)
        link.wait_boot(_BOOT_TIMEOUT)
        return _upgrade(options, host, network, link, progress)


def _upgrade(
    options: Options, host: virtual_host.VirtualHost, network: Network, link: Link, progress: Progress
) -> Result:
    progress("starting the workload and a client outside")
    inside.prepare(link, options, host.new_release)
    before = inside.look(link, lambda: network.connect(PORT, 30.0))
    client = Client(network.connect(PORT, 30.0))
    begun, begun_wall = time.monotonic(), time.time()
    time.sleep(1.0)
    progress(f"kupgrade apply: {host.old_release} to {host.new_release}" + _with(options.fault))
    refused = inside.apply(link, options, host.new_release)
    if not refused:
        _follow(link, options.timeout, progress)
    progress("waiting for the client's last answers")
    recording = client.stop(30.0)
    after: judge.WorkloadSeen | None = None
    journal: tuple[Mapping[str, Any], ...] = ()
    leftovers: tuple[str, ...] = ()
    running_release = "unknown"
    try:
        after = inside.look(link, lambda: network.connect(PORT, 30.0))
        journal = records(inside.journal(link))
        leftovers = inside.leftovers(link, options.fault)
        running_release = link.boots[-1].release
        if options.keep is not None:
            options.keep.mkdir(parents=True, exist_ok=True)
            (options.keep / "system.log").write_text(inside.system_log(link))
    except KupgradeError as error:
        progress(f"afterwards: {error}")
    store = next((r["data"]["plan"]["store"] for r in journal if r["kind"] == "planned"), options.store)
    evidence = judge.Evidence(
        engine=options.engine,
        store=store,
        old_release=host.old_release,
        new_release=host.new_release,
        running_release=running_release,
        boot_ids=tuple(boot.boot_id for boot in link.boots),
        before=before,
        after=after,
        client=recording,
        journal=journal,
        leftovers=leftovers,
        fault=str(options.fault or ""),
        refused=refused,
        cold_expected=options.fault is not None and options.fault.ordinary_power_cut,
    )
    latencies = tuple((round(sent - begun, 3), round(took, 4)) for sent, took in recording.latencies())
    clocks = {boot.boot_id: boot.ahead for boot in link.boots}
    return Result(judge.judge(evidence), latencies, journal, judge.marks(journal, clocks, begun_wall))


def _with(fault: Fault | None) -> str:
    return f", with the fault {fault}" if fault else ""


def _follow(link: Link, timeout: float, progress: Progress) -> None:
    """Until no upgrade is open, or hands are off, or time is up. Boots in between are expected."""
    deadline = time.monotonic() + timeout
    seen, boots = "", len(link.boots)
    while time.monotonic() < deadline:
        time.sleep(_POLL)
        try:
            state, last = inside.standing(link)
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


def _watch_faults(state: Path, running: qemu.Qemu, progress: Progress) -> None:
    """A line on the fault port pulls the machine's reset line: nothing that was not synced survives."""
    port = qemu.connect(state / "fault", 20.0)

    def watch() -> None:
        with contextlib.suppress(OSError, KupgradeError), port, port.makefile("rb") as lines:
            for line in lines:
                running.reset()
                progress(f"power cut: {line.decode(errors='replace').strip()}")

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM ends a rehearsal as Ctrl-C does, so that the machine is always stopped."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def put_away(state: Path, keep: Path | None) -> None:
    """Copy the logs to `keep`, if it is wanted, and remove the machine's directory."""
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        for name in ("serial.log", "serial2.log", "qemu.log", "qemu.command"):
            with contextlib.suppress(OSError):
                shutil.copy(state / name, keep / name)
    shutil.rmtree(state, ignore_errors=True)


def write_evidence(result: Result, keep: Path) -> None:
    """Journal and result as files beside the serial log."""
    keep.mkdir(parents=True, exist_ok=True)
    (keep / "journal.json").write_text(json.dumps(list(result.journal), indent=1) + "\n")
    (keep / "result.json").write_text(json.dumps(dict(result.judged), indent=1) + "\n")
