"""The ports `Units`, `Freezer` and `Boot`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kupgrade.host import bootloader, unit_watchdog
from kupgrade.host.systemd import Systemd, dropin_text
from kupgrade.kernel import cgroup
from kupgrade.machine import starter
from kupgrade.machine.places import Places
from kupgrade.model.kernel import KernelRelease
from kupgrade.model.workload import Watched, Workload

_FREEZE_TIMEOUT = 10.0  # seconds


@dataclass
class RealUnits:
    """systemd units on this machine."""

    places: Places
    systemd: Systemd

    def hold(self, workload: Workload, upgrade: str, timeout: int) -> None:
        """Lay the drop-in."""
        if workload.unit:
            sandboxed = bool(workload.sandbox)
            argv = starter.start_command(self.places, workload.name, sandboxed=sandboxed)
            pidfile = str(starter.pidfile_path(self.places, workload.name))
            shell = str(Path(starter.SHELL).resolve()) if self._few_executables(workload) else ""
            text = dropin_text(upgrade, argv, pidfile, timeout + 10, sandboxed=sandboxed, executable=shell)
            self.systemd.hold(workload.unit, text)

    def _few_executables(self, workload: Workload) -> bool:
        return bool(workload.sandbox) and self.systemd.show(workload.unit).few_executables

    def held(self, workload: Workload) -> bool:
        """Whether it is there."""
        return bool(workload.unit) and self.systemd.held(workload.unit)

    def release(self, workloads: Sequence[Workload]) -> None:
        """Remove, and let systemd read the units again (in a fallen-back boot it had read the drop-ins)."""
        if self.systemd.release([w.unit for w in workloads if w.unit]):
            self.systemd.reload()

    def adopted(self, workload: Workload) -> str:
        """Empty when all is well."""
        if not workload.unit or not self.systemd.running:
            return ""  # without a system around it there is nobody yet who could own it
        unit = self.systemd.show(workload.unit)
        if unit.active != "active":
            return f"{workload.unit} is {unit.active} ({unit.sub})"
        if unit.main_pid != workload.root_pid:
            return f"{workload.unit} has main PID {unit.main_pid}, not {workload.root_pid}"
        return ""

    def watched(self, workloads: Sequence[Workload]) -> tuple[Watched, ...]:
        """As systemd goes by now."""
        units = [self.systemd.show(each.unit) for each in workloads if each.unit]
        return tuple(Watched(each.name, each.watchdog) for each in units if each.watchdog and each.main_pid)

    def watch(self, workload: Workload, seconds: float) -> None:
        """See the port."""
        unit = self.systemd.show(workload.unit)
        if unit.active == "active" and unit.main_pid:
            unit_watchdog.set_timeout(unit.main_pid, seconds, self.places.root)

    def active(self) -> tuple[str, ...]:
        """Active services."""
        return self.systemd.active_services()

    def stop(self, units: Sequence[str]) -> None:
        """Stop cleanly."""
        self.systemd.stop(units)

    def start(self, units: Sequence[str]) -> None:
        """Start in the background."""
        self.systemd.start(units)


@dataclass
class RealFreezer:
    """The cgroup v2 freezer."""

    def frozen(self, workload: Workload) -> bool | None:
        """None: unknown."""
        match cgroup.state(workload.cgroup):
            case cgroup.FreezerState.FROZEN:
                return True
            case cgroup.FreezerState.THAWED:
                return False
        return None

    def freeze(self, workload: Workload) -> None:
        """Freeze and wait."""
        cgroup.freeze(workload.cgroup, _FREEZE_TIMEOUT)

    def thaw(self, workload: Workload) -> None:
        """Thaw and wait; a cgroup that is gone has nothing to thaw."""
        if cgroup.exists(workload.cgroup):
            cgroup.thaw(workload.cgroup, _FREEZE_TIMEOUT)

    def pids(self, workload: Workload) -> tuple[int, ...]:
        """Members."""
        return cgroup.members(workload.cgroup)


@dataclass
class RealBoot:
    """The boot loader found on this machine."""

    places: Places

    def default(self) -> str:
        """Empty: unknown, or it cannot be set. What is written down where only the boot loader knows what that means.

        It can be put back then, too: a kernel that was removed, @saved, a pattern of which nothing is left.
        """
        found = bootloader.read_default(self.places.root)
        if found.obstacle:
            return ""
        return found.stored or "" if found.entry is None else found.entry.id

    def stored(self) -> str | None:
        """Exactly what is written down."""
        return bootloader.read_default(self.places.root).stored

    def set_default(self, entry: str) -> None:
        """Make it the default."""
        for known in bootloader.entries(self.places.root):
            if known.id == entry:
                bootloader.set_default(known, self.places.root)

    def restore_default(self, stored: str | None) -> None:
        """Put back what was written down."""
        now = bootloader.read_default(self.places.root)
        bootloader.restore_default(dataclasses.replace(now, stored=stored), self.places.root)

    def entry_for(self, release: str) -> str:
        """Empty: unknown, or the default cannot be set anyway."""
        if bootloader.read_default(self.places.root).obstacle:
            return ""
        found = bootloader.entry_for(KernelRelease(release), self.places.root)
        return "" if found is None else found.id
