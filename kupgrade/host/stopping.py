"""Units that stand still for a while: stopped cleanly and in time, and started by nobody until they are let go.

What keeps a unit down is a drop-in with a condition that fails: a timer, a socket, another unit that wants it, a boot
or a person asks in vain, and nobody fails because of it. It lies in /etc, so that it holds in the next boots, too. The
condition is a path in /run: where that is there the unit can be started before its drop-in is removed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kupgrade.errors import KupgradeError
from kupgrade.host import command
from kupgrade.host.durable import sync_directory, write_durably
from kupgrade.host.systemd import Systemd, parse_show, remove_dropins

DROPIN = "90-kupgrade-stopped.conf"
LET_GO = "run/kupgrade/units-let-go"
UP = ("active", "activating", "reloading", "refreshing")
DOWN = ("inactive", "failed")
_POLL = 0.1  # seconds
# systemd.unit(5), "Mapping of unit properties to their inverses": who is stopped with a unit, and who starts it.
_ALONG = ("RequiredBy", "RequisiteOf", "BoundBy", "ConsistsOf", "PropagatesStopTo", "TriggeredBy")
# No targets: they hold nothing by themselves, and one kept down could take a whole boot along.
_KINDS = (".service", ".socket", ".timer", ".path")
_PROPERTIES = (
    "LoadState",
    "ActiveState",
    "Job",
    "Result",
    "ExecMainStatus",
    "KillSignal",
    "FragmentPath",
    "Transient",
    "RefuseManualStop",
    *_ALONG,
)
_SIGTERM = 15


@dataclass(frozen=True, slots=True)
class StopState:
    """A unit as far as stopping and starting it is concerned. `job`: something is queued for it."""

    name: str
    loaded: bool
    active: str
    job: bool
    result: str
    status: int
    kill_signal: int
    fragment: str
    transient: bool
    refuses: bool
    along: tuple[str, ...]

    @property
    def up(self) -> bool:
        """Whether it runs, or is about to."""
        return self.active in UP

    @property
    def unclean(self) -> str:
        """Why it did not stop cleanly; empty: it did, or still runs.

        A program that ends by the signal that asks it to has stopped cleanly, whatever its kind of service calls that.
        """
        asked = (self.kill_signal, _SIGTERM)
        if self.active != "failed" or self.result in ("", "success"):
            return ""
        if self.result == "signal" and self.status in asked:
            return ""
        if self.result == "exit-code" and self.status - 128 in asked:
            return ""
        if self.result == "timeout":
            return "it did not end within its own TimeoutStopSec=, and systemd killed it"
        return f"its result is {self.result}, its exit status {self.status}"

    @property
    def why_not(self) -> str:
        """Why it cannot be stopped and started again; empty: it can."""
        if not self.loaded:
            return "systemd does not know it"
        if self.transient:
            return "it is a transient unit, which is gone once it is stopped"
        if self.fragment.startswith("/run/systemd/system/"):
            return "its file lies in /run, which ends with the kernel"
        return "it has RefuseManualStop=" if self.refuses else ""


def state_of(name: str, values: Mapping[str, str]) -> StopState:
    """From `systemctl show` properties; what a kind of unit has not is as if it were nothing."""
    return StopState(
        name=name,
        loaded=values.get("LoadState") == "loaded",
        active=values.get("ActiveState", "unknown"),
        job=values.get("Job", "") not in ("", "0"),
        result=values.get("Result", ""),
        status=int(values.get("ExecMainStatus") or 0),
        kill_signal=int(values.get("KillSignal") or _SIGTERM),
        fragment=values.get("FragmentPath", ""),
        transient=values.get("Transient") == "yes",
        refuses=values.get("RefuseManualStop") == "yes",
        along=tuple(word for key in _ALONG for word in values.get(key, "").split() if word.endswith(_KINDS)),
    )


def states(units: Sequence[str]) -> tuple[StopState, ...]:
    """Of each, in this order."""
    if not units:
        return ()
    out = command.run(["systemctl", "show", "--property=" + ",".join(_PROPERTIES), *units]).stdout
    blocks = out.strip("\n").split("\n\n")
    return tuple(state_of(name, parse_show(block)) for name, block in zip(units, blocks, strict=True))


def with_company(units: Sequence[str]) -> tuple[StopState, ...]:
    """`units`, all that stops with them, and all that starts any of these by itself."""
    found: dict[str, StopState] = {}
    wave = tuple(dict.fromkeys(units))
    while wave:
        looked = states(wave)
        found |= {each.name: each for each in looked}
        wave = tuple(dict.fromkeys(name for each in looked for name in each.along if name not in found))
    return tuple(found.values())


def stop(units: Sequence[str], timeouts: Mapping[str, float]) -> None:
    """Stop them together, in the order that systemd gives them; raises KupgradeError.

    `timeouts`: seconds by unit; one that is not named there has as long as the longest.
    """
    command.run(["systemctl", "stop", "--no-block", *units])
    began, longest = time.monotonic(), max(timeouts.values(), default=90.0)
    while True:
        found = states(units)
        if wrong := next((each for each in found if each.unclean), None):
            remedy = "Look at systemctl status of it; with fate = restart it is not asked how it ended"
            raise KupgradeError(f"{wrong.name} did not stop cleanly", wrong.unclean, remedy)
        left = [each for each in found if each.active not in DOWN]
        if not left:
            return
        took = time.monotonic() - began
        for each in left:
            limit = timeouts.get(each.name, longest)
            if took > limit:
                why = f"it is still {each.active} after {limit:g} s"
                raise KupgradeError(
                    f"{each.name} did not stop in time", why, "Give it more: stop_timeout in the policy"
                )
        time.sleep(_POLL)


class KeptDown:
    """The drop-ins that keep units down, below `systemd.root`."""

    def __init__(self, systemd: Systemd) -> None:
        self.systemd = systemd
        self._etc = systemd.root / "etc/systemd/system"

    def dropin(self, unit: str) -> Path:
        """Where that of `unit` lies."""
        return self._etc / f"{unit}.d" / DROPIN

    def units(self) -> tuple[str, ...]:
        """Who is kept down."""
        return tuple(sorted(path.parent.name.removesuffix(".d") for path in self._etc.glob(f"*.d/{DROPIN}")))

    def lay(self, units: Sequence[str], upgrade: str) -> None:
        """Keep them down, durably; systemd reads it at once."""
        text = f"""# Laid by kupgrade for upgrade {upgrade}; removed at its end (commit or rollback).
[Unit]
ConditionPathExists=/{LET_GO}
"""
        (self.systemd.root / LET_GO).unlink(missing_ok=True)
        for unit in units:
            path = self.dropin(unit)
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            write_durably(path, text.encode(), 0o644)
        sync_directory(self._etc)
        self.systemd.reload()

    def let_go(self, units: Sequence[str]) -> tuple[str, ...]:
        """Start `units` in the background, then keep nobody down any more; those that are not on their way then.

        In this order: a machine that restarts in between must still know who is to be started.
        """
        mark = self.systemd.root / LET_GO
        mark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        mark.touch()
        try:
            if units:
                command.run(["systemctl", "start", "--no-block", *units], check=False)
            if remove_dropins(self.dropin(unit) for unit in self.units()):
                sync_directory(self._etc)
                self.systemd.reload()
        finally:
            mark.unlink(missing_ok=True)
        return tuple(each.name for each in states(units) if not each.up and not each.job)
