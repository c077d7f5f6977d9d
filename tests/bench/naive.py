"""The client's gap with kupgrade beside that of a naive script, in one run on the same virtual host.

    packaging/bootstrap run python tests/bench/naive.py [--memory MIB] [--from X] [--to Y] [--store pmem]

The naive script is naive.sh. Prints both gaps and, last, a JSON object with both results and their ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from kupgrade.errors import KupgradeError
from kupgrade.rehearsal import inside, qemu, scenario, virtual_host
from kupgrade.rehearsal.client import Client, Recording
from kupgrade.rehearsal.link import Link
from kupgrade.rehearsal.network import Network
from kupgrade.rehearsal.options import Options, kernel_line, machine_memory

_SCRIPT = Path(__file__).with_name("naive.sh")


def say(text: str) -> None:
    print(text, file=sys.stderr)


def naive(host: virtual_host.VirtualHost, options: Options, keep: Path | None) -> dict[str, Any]:
    """One naive upgrade; the client's figures."""
    with ExitStack() as stack:
        state = qemu.run_directory()
        stack.callback(scenario.put_away, state, keep)
        network = Network.create()
        stack.callback(network.close)
        machine = qemu.Machine(
            host.image,
            host.kernel(host.old_release),
            host.initrd(host.old_release),
            kernel_line(options),
            memory_mib=machine_memory(options),
            taken=options.measured,
            disk_rate=options.disk_rate,
        )
        tap = network.tap()
        stack.callback(os.close, tap)
        running = qemu.start(host.tools, machine, state, tap)
        stack.callback(running.stop)
        link = stack.enter_context(closing(Link(state / "agent")))
        link.wait_boot(240.0)
        inside.prepare(link, options)
        link.write("/run/naive.sh", _SCRIPT.read_bytes())
        client = Client(network.connect(scenario.PORT, 30.0))
        time.sleep(1.0)
        link.run(["systemd-run", "--quiet", "/bin/bash", "/run/naive.sh", host.new_release], timeout=60.0)
        deadline = time.monotonic() + 240.0
        while time.monotonic() < deadline and not _over(link, client):
            time.sleep(1.0)
        recording = client.stop(30.0)
        return {
            "good": good(recording, len(link.boots)),
            "gap_s": round(recording.longest_gap, 3),
            "sent": len(recording.sent),
            "answered": len(recording.answered),
            "boots": len(link.boots),
            "problems": recording.problems[:3],
            "log": "" if len(recording.answered) == len(recording.sent) else _log(link),
        }


def good(recording: Recording, boots: int) -> bool:
    """Whether it came back at all: without that the longest gap between two answers is not how long anybody waited."""
    all_answered = 0 < len(recording.sent) == len(recording.answered)
    return boots > 1 and all_answered and recording.resets == 0


def _over(link: Link, client: Client) -> bool:
    """In the new boot, and answered within the last second."""
    answered = client.recording.answered
    return len(link.boots) > 1 and bool(answered) and time.monotonic() - answered[-1] < 0.5


def _log(link: Link) -> str:
    script = "systemctl status naive-restore --no-pager; tail -n 5 /var/lib/naive/*.log; true"
    try:
        return inside.shell(link, script)
    except KupgradeError as error:
        return str(error)


def main() -> int:
    """Run both, print both, last a JSON object; exit status 1 when either did not end as it should."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--memory", type=int, default=64)
    parser.add_argument("--from", dest="old", default="trixie")
    parser.add_argument("--to", dest="new", default="trixie-backports")
    parser.add_argument("--store", default="pmem")
    parser.add_argument("--keep", type=Path)
    wanted = parser.parse_args()
    options = Options(store=wanted.store, old=wanted.old, new=wanted.new, memory=wanted.memory)
    host = virtual_host.build(wanted.old, wanted.new, say)
    script = naive(host, options, wanted.keep)
    print(f"naive script: gap {script['gap_s']:.2f} s, {script['answered']} of {script['sent']} answered")
    if script["log"]:
        say(script["log"])
    ours = scenario.rehearse(options, say).judged
    gap = ours["client"]["longest_gap_ms"] / 1000
    fine = script["good"] and ours["outcome"] == "committed"
    ratio = round(gap / script["gap_s"], 3) if fine and script["gap_s"] else None
    print(f"kupgrade ({ours['store']}): gap {gap:.2f} s, {ours['outcome']}; ratio {ratio}")
    print(json.dumps({"naive": script, "kupgrade": ours, "ratio": ratio}))
    return int(not fine)


if __name__ == "__main__":
    sys.exit(main())
