"""Run as root in a virtual host: a process outside the journal's reach writes, and its stream is handed to journald.

`journal_inside.py restart|insist NAME`: journald runs; it gets the stream at its restart.
`journal_inside.py boot NAME`: started before PID 1 is systemd. `... check NAME`: what the journal has.
Prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from kupgrade.host import journal_state, journal_streams
from kupgrade.host.journal_streams import Offer, StreamPair

RUN = Path("/run/kupgrade")
PAUSE = 0.02  # seconds between lines
BURST = 1500  # lines at once, before anybody reads
JOURNALD = ["systemctl", "restart", "systemd-journald.service"]
PROPERTIES = "NotifyAccess,ExecStartPre,NeedDaemonReload,NFileDescriptorStore,NRestarts"


def unit(name: str) -> str:
    return f"writer-{name}.service"


def call(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def start_writer(name: str, pair: StreamPair, last: int = 0) -> int:
    """A process in the unit's cgroup whose standard output is the client end; SIGTERM ends it between two lines.

    `last`: it ends by itself after as many lines.
    """
    cgroup = Path("/sys/fs/cgroup/system.slice", unit(name))
    cgroup.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if child:
        Path(f"/run/writer-{name}.pid").write_text(str(child))
        return child
    (cgroup / "cgroup.procs").write_text(str(os.getpid()))
    os.setsid()
    os.dup2(pair.client_fd, 1)
    os.dup2(os.open(os.devnull, os.O_RDWR), 2)
    os.closerange(3, 100)
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: ended.append(number))
    number = 0
    while not ended and (number < last or not last):
        os.write(1, f"{name} line {number}\n".encode())
        number += 1
        if number > BURST:
            time.sleep(PAUSE)
    Path(f"/run/writer-{name}.count").write_text(str(number))
    os._exit(0)


def begin(name: str, last: int = 0) -> tuple[Offer, int]:
    pair = journal_streams.make()
    start_writer(name, pair, last)
    stream = journal_state.new_stream(unit(name), f"id {name}")
    return journal_streams.offer(RUN, name, [(pair.server_fd, stream)]), pair.client_fd


def end(*begun: tuple[Offer, int]) -> None:
    for _offer, client in begun:
        os.close(client)
    due = [offer.withdraw() for offer, _client in begun]
    if any(due):
        call("systemctl", "daemon-reload")


def start_took() -> float:
    """Seconds that journald's start waited for what is before its main process."""
    names = ("InactiveExitTimestampMonotonic", "ExecMainStartTimestampMonotonic")
    shown = [call("systemctl", "show", "-P", name, "systemd-journald.service") for name in names]
    return (int(shown[1]) - int(shown[0])) / 1e6


def restart(name: str) -> dict[str, Any]:
    begun = begin(name)
    offer = begun[0]
    call("systemctl", "daemon-reload")
    before = offer.settled()
    began = time.monotonic()
    call(*JOURNALD)
    took = time.monotonic() - began
    settled = offer.await_settled(10.0)
    result = {"before": before, "settled": settled, "stored": offer.stored.is_set(), "restart took": took}
    result["start took"] = start_took()
    end(begun)
    return result


def insist(name: str) -> dict[str, Any]:
    pair = journal_streams.make()
    start_writer(name, pair)
    offer = Offer(RUN, name, [(pair.server_fd, journal_state.new_stream(unit(name), f"id {name}"))], Path("/"))
    began = time.monotonic()
    offer.insist()
    took = time.monotonic() - began
    os.close(pair.client_fd)
    reload = offer.withdraw()
    return {"took": took, "reload": reload}


def boot(name: str) -> dict[str, Any]:
    """PID 1 waits for /run/offered before it executes systemd. A second writer has ended by then."""
    begun = begin(name)
    short = begin("short", 20)
    os.wait()
    offer = begun[0]
    found: dict[str, Any] = {"pid 1": Path("/proc/1/comm").read_text().strip(), "uptime": time.monotonic()}
    time.sleep(0.3)
    Path("/run/offered").touch()
    found["stored"] = offer.stored.wait(200.0)
    found["stored after"] = time.monotonic() - found["uptime"]
    found["settled"] = offer.await_settled(30.0) and short[0].await_settled(5.0)
    found["settled after"] = time.monotonic() - found["uptime"]
    found["cgroup"] = Path("/proc/self/cgroup").read_text().strip()
    found["manager up"] = Path("/run/systemd/private").exists()
    subprocess.run(["systemctl", "is-system-running", "--wait"], capture_output=True)
    found["start took"] = start_took()
    end(begun, short)
    found["left"] = [str(path) for path in (offer.dropin, offer.dropin.parent, offer.socket_path) if path.exists()]
    return found


def check(name: str) -> dict[str, Any]:
    """Ends the writer; the journal has what it wrote, and its stream is forgotten like any other."""
    show = ["systemctl", "show", "systemd-journald.service", f"--property={PROPERTIES}"]
    found: dict[str, Any] = {"journald": call(*show).splitlines()}
    states = set(Path("/run/systemd/journal/streams").iterdir())
    pid = Path(f"/run/writer-{name}.pid").read_text()
    with suppress(ProcessLookupError):
        os.kill(int(pid), signal.SIGTERM)
    count = Path(f"/run/writer-{name}.count")
    while not count.exists() or not count.read_text():
        time.sleep(0.05)
    time.sleep(0.5)
    call("journalctl", "--sync")
    entries = [json.loads(line) for line in call("journalctl", "-b", "-u", unit(name), "-o", "json").splitlines()]
    mine = [entry for entry in entries if entry.get("_TRANSPORT") == "stdout"]
    expected = [f"{name} line {number}" for number in range(int(count.read_text()))]
    said = [entry["MESSAGE"] for entry in mine]
    found["count"], found["complete"] = len(expected), said == expected
    if said != expected:
        found["said"] = [len(said), said[:3], said[-3:], sorted(set(expected) - set(said))[:5]]
    for key in ("_SYSTEMD_UNIT", "_PID", "SYSLOG_IDENTIFIER", "_STREAM_ID", "PRIORITY"):
        found[key] = sorted({entry.get(key, "") for entry in mine})
    found["pid"] = pid
    found["states gone"] = len(states) - len(set(Path("/run/systemd/journal/streams").iterdir()))
    found["journald after"] = call(*show).splitlines()
    found["log"] = call("journalctl", "-b", "-u", "systemd-journald", "-p", "warning", "-o", "cat")[-1500:]
    return found


if __name__ == "__main__":
    verb, who = sys.argv[1:3]
    result = {"restart": restart, "insist": insist, "boot": boot, "check": check}[verb](who)
    sys.stdout.write(json.dumps(result) + "\n")
