"""What is asked and done inside of the rehearsal of this host, over the agent's link."""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kupgrade.errors import ExitCode, KupgradeError
from kupgrade.model.policy import WorkloadPolicy
from kupgrade.model.workload import Probe, ProbeKind
from kupgrade.rehearsal.inside import shell
from kupgrade.rehearsal.link import Link

# A yardstick for processors: what a loop of Python takes, the best of three tries.
YARDSTICK = """
import time
def once():
    begun = time.perf_counter()
    total = 0
    for number in range(300000):
        total += number % 7
    return time.perf_counter() - begun
print(min(once() for _ in range(3)))
"""
_POLL = 3.0
_PROBES = {
    ProbeKind.TCP: "import socket; socket.create_connection(('127.0.0.1', {port}), {timeout}).close()",
    ProbeKind.HTTP: "import urllib.request as r; r.urlopen('http://127.0.0.1:{port}{path}', timeout={timeout}).close()",
}
_LOOK = "systemctl show {unit} -p MainPID,ActiveState,SubState,NRestarts,ControlGroup"
_PIDS = 'cat "/sys/fs/cgroup{cgroup}/cgroup.procs" 2>/dev/null || true'


@dataclass(frozen=True, slots=True)
class UnitSeen:
    """A workload's unit at one moment. `healthy`: what its probe says; None without one."""

    state: str
    main_pid: int
    pids: tuple[int, ...]
    restarts: int
    healthy: bool | None

    @property
    def active(self) -> bool:
        """As systemd says."""
        return self.state.startswith("active")


@dataclass(frozen=True, slots=True)
class Answer:
    """What `kupgrade apply` said in the guest: the result's outcome, its reason, refusals, and the plan if any."""

    outcome: str
    reason: str
    refusals: tuple[Mapping[str, str], ...]
    plan: Mapping[str, Any]


def yardstick(link: Link, slow: float) -> float:
    """Seconds that the loop takes there."""
    return float(shell(link, f"python3 -S -E -c {shlex.quote(YARDSTICK)}", 60.0 * slow))


def ready(link: Link, workloads: Mapping[str, WorkloadPolicy], patience: float, ask: float) -> dict[str, UnitSeen]:
    """Every unit once it is active and healthy, or when patience is at its end; by unit. `ask`: for one answer."""
    deadline = time.monotonic() + patience
    seen: dict[str, UnitSeen] = {}
    while time.monotonic() < deadline:
        seen = {unit: look(link, unit, each.probe, ask) for unit, each in workloads.items()}
        if all(each.active and each.healthy is not False for each in seen.values()):
            break
        if all(each.state.startswith("failed") for each in seen.values()):
            break
        time.sleep(_POLL)
    return seen


def look(link: Link, unit: str, probe: Probe, ask: float) -> UnitSeen:
    """One unit, its processes, and whether its probe is answered."""
    text = shell(link, _LOOK.format(unit=shlex.quote(unit)), ask)
    values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    cgroup = values.get("ControlGroup", "")
    pids = shell(link, _PIDS.format(cgroup=cgroup), ask).split() if cgroup else []
    active = values.get("ActiveState", "unknown")
    return UnitSeen(
        state=f"{active} ({values.get('SubState', '')})",
        main_pid=int(values.get("MainPID") or 0),
        pids=tuple(sorted(map(int, pids))),
        restarts=int(values.get("NRestarts") or 0),
        healthy=_healthy(link, probe, ask) if active == "active" else None,
    )


def _healthy(link: Link, probe: Probe, ask: float) -> bool | None:
    match probe.kind:
        case ProbeKind.NONE:
            return None
        case ProbeKind.COMMAND:
            words = list(probe.command)
        case kind:
            code = _PROBES[kind].format(port=probe.port, path=probe.path.replace("'", "%27"), timeout=round(ask))
            words = ["python3", "-S", "-E", "-c", code]
    return link.run(words, timeout=ask).status == 0


def apply(link: Link, release: str, store: str, patience: float) -> Answer:
    """Hand the upgrade to the guest's worker. `release`: as the operator would name it."""
    words = ["kupgrade", "apply", "--json", "--yes", "--no-wait", "--now", "--kernel", release]
    done = link.run([*words, "--engine", "kexec", "--store", store], timeout=patience)
    found = answer(done.stdout)
    if found is None:
        why = (done.stderr or done.stdout).strip()[-1500:] or f"exit status {done.status}"
        raise KupgradeError("kupgrade apply said nothing in the guest", why)
    if found.outcome == "started" and done.status != ExitCode.DONE:
        return Answer("failed", f"exit status {done.status}", (), found.plan)
    return found


def answer(output: str) -> Answer | None:
    """Of the JSON lines that `kupgrade apply` prints: the plan and the result."""
    plan: Mapping[str, Any] = {}
    result: Mapping[str, Any] | None = None
    for line in output.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        match value:
            case {"format": "kupgrade.result/1"}:
                result = value
            case {"format": str(kind)} if kind.startswith("kupgrade.plan/"):
                plan = value
    if result is None:
        return None
    error = result.get("error") or {}
    refusals = tuple({str(k): str(v) for k, v in each.items()} for each in error.get("refusals", ()))
    return Answer(str(result["outcome"]), str(result.get("reason", "")), refusals, plan)


def addresses(links: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Global addresses, with their prefix lengths, of what `ip -json address show` tells."""
    found = [
        f"{address['local']}/{address['prefixlen']}"
        for each in links
        for address in each.get("addr_info", [])
        if address.get("scope") == "global" and "local" in address
    ]
    return tuple(dict.fromkeys(found))


def interfaces(links: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Names of those that have such addresses, besides loopback; not one that a line of `ip -batch` could not hold."""
    return tuple(
        str(each["ifname"])
        for each in links
        if each["ifname"] != "lo" and addresses([each]) and re.fullmatch(r"[\w.@:-]+", each["ifname"])
    )
