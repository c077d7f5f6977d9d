"""All ports on the modelled host together, and those of units, boot, crossing and health."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kupgrade.errors import KupgradeError
from kupgrade.model.plan import Allowance, Plan
from kupgrade.model.reboot import RebootWishes, left
from kupgrade.model.workload import FileState, Store, Watched, Workload
from tests.fakes.endings import NEW_ENTRY, OLD_ENTRY, Crossed, Loaded, Restarted
from tests.fakes.hooks import Hooks, Outside
from tests.fakes.machine import Machine
from tests.fakes.ports import Checkpoints, Freezer, Images, Network, Port
from tests.fakes.stopping import Stopping
from tests.fakes.stored import Stored


class Units(Port):
    def hold(self, workload: Workload, upgrade: str, timeout: int) -> None:
        self.m.act(f"hold {workload.name}")
        self.m.holds.add(workload.name)

    def held(self, workload: Workload) -> bool:
        return workload.name in self.m.holds

    def release(self, workloads: Sequence[Workload]) -> None:
        for workload in workloads:
            self.m.act(f"release {workload.name}")
            if workload.name in self.m.holds and self.m.boots > 1:
                self.m.stale_units.add(workload.name)
            self.m.holds.discard(workload.name)
        self.m.act("reload")
        self.m.stale_units.clear()
        # daemon-reload: start jobs that waited for the agent now start the units' own programs.
        for name in sorted(self.m.pending):
            self.m.pending.discard(name)
            self.m.cold_start(name)

    def adopted(self, workload: Workload) -> str:
        copy = self.m.copies.get(workload.name)
        return "" if copy is not None and copy.adopted else "not its unit's"

    def watched(self, workloads: Sequence[Workload]) -> tuple[Watched, ...]:
        return tuple(Watched(w.unit, self.m.watched[w.name]) for w in workloads if w.name in self.m.watched)

    def watch(self, workload: Workload, seconds: float) -> None:
        self.m.act(f"watchdog of {workload.name}: {seconds:g} s")
        if workload.name in self.m.holds and seconds:
            self.m.violate(f"the watchdog of {workload.name} is set, and systemd listens to no word of its unit")
        if not seconds:
            self.m.watched.pop(workload.name, None)
        elif workload.name in self.m.copies:
            self.m.watched[workload.name] = seconds

    def active(self) -> tuple[str, ...]:
        return tuple(sorted(self.m.active))

    def stop(self, units: Sequence[str]) -> None:
        for unit in units:
            self.m.act(f"stop {unit}")
            self.m.active.discard(unit)

    def start(self, units: Sequence[str]) -> None:
        for unit in units:
            self.m.act(f"start {unit}")
            if unit not in self.m.down:
                self.m.active.add(unit)


class Boot(Port):
    def default(self) -> str:
        return self.m.default()

    def stored(self) -> str | None:
        return self.m.stored_default

    def restore_default(self, stored: str | None) -> None:
        self.m.act("restore boot default")
        self.m.stored_default = stored

    def set_default(self, entry: str) -> None:
        self.m.act("set boot default")
        self.m.stored_default = entry

    def entry_for(self, release: str) -> str:
        return NEW_ENTRY if release == self.m.plan.new_release else OLD_ENTRY


class Crossing(Port):
    def stage(self, initrd: str, out: str, pid_floor: int, deadline: int) -> None:
        self.m.act(f"stage {out}")
        self.m.initrds[out] = deadline

    def staged(self, out: str) -> bool:
        return out in self.m.initrds

    def unstage(self, out: str) -> None:
        self.m.act(f"unstage {out}")
        self.m.initrds.pop(out, None)

    def load(self, kernel: str, initrd: str, cmdline: str) -> None:
        self.m.act(f"load {kernel}")
        if initrd not in self.m.initrds:
            raise KupgradeError("The initrd is missing", initrd)
        self.m.loaded = Loaded(kernel, cmdline, self.m.initrds[initrd])

    def loaded(self) -> bool | None:
        return self.m.loaded is not None

    def unload(self) -> None:
        self.m.act("unload")
        self.m.loaded = None

    def cross(self) -> None:
        self.m.act("freeze file systems")
        self.m.filesystems_frozen = True
        self.m.act("jump")
        raise Crossed

    def thaw_filesystems(self) -> None:
        self.m.tick("thaw file systems")  # needs no intent: it changes nothing that anybody sees
        self.m.filesystems_frozen = False

    def arm_watchdog(self, seconds: int) -> str:
        self.m.act("arm watchdog")
        self.m.watchdog = self.m.behaviour.watchdog
        return "watchdog0" if self.m.watchdog else "none"

    def disarm_watchdog(self) -> None:
        self.m.act("disarm watchdog")
        self.m.watchdog = False

    def deadman(self) -> bool:
        return self.m.deadman

    def cancel_deadman(self) -> None:
        self.m.act("cancel dead-man timer")
        self.m.deadman = False

    def panic_timeout(self) -> int:
        return self.m.panic

    def set_panic_timeout(self, seconds: int) -> None:
        self.m.act("set kernel.panic")
        self.m.panic = seconds


class Health(Port):
    def gate(self, workloads: Sequence[Workload], store: Store, allowances: Sequence[Allowance]) -> None:
        self.m.act("ask the gate")
        if self.m.behaviour.gate_says_no:
            raise KupgradeError("The gate says no")
        self.m.gate_passed = True

    def open_files(self, workload: Workload) -> tuple[FileState, ...]:
        return (FileState(workload.name, 1, 1, self.m.files[workload.name], 0, True),)

    def probe(self, workload: Workload) -> None:
        self.m.act(f"probe {workload.name}")
        copy = self.m.copies[workload.name]
        if self.m.lock != "both":
            self.m.violate(f"{workload.name} was probed with an open network")
        copy.stopped = copy.frozen = False
        self.m.probing = workload.name
        self.m.tick(f"probing {workload.name}")
        if self.m.behaviour.probe_fails:
            raise KupgradeError(f"{workload.name} is not healthy")
        self.m.probed.add(workload.name)

    def pause(self, workload: Workload) -> None:
        self.m.act(f"pause {workload.name}")
        if workload.name in self.m.copies:
            self.m.copies[workload.name].frozen = True
        self.m.probing = ""

    def take_back(self, files: Sequence[FileState]) -> None:
        for file in files:
            self.m.act(f"take back {file.path}")
            self.m.files[file.path] = file.size

    def facts(self) -> Mapping[str, str]:
        return {}


class After(Port):
    """The clock stands still but for those who wait; who asks for a restart is forgotten with the boot."""

    def uptime(self) -> float:
        return self.m.uptime

    def wait_until(self, uptime: float) -> None:
        self.m.act("wait")
        self.m.uptime = max(self.m.uptime, uptime)

    def reboot_wishes(self) -> RebootWishes:
        return RebootWishes(bool(self.m.reboot_packages), self.m.reboot_packages or None)

    def settle_reboot(self, release: str, others: Sequence[str]) -> None:
        self.m.act("settle reboot")
        self.m.reboot_packages = tuple(dict.fromkeys((*left(self.m.reboot_packages, release), *others)))


class Host:
    """The ports, each a few lines on the machine."""

    def __init__(self, machine: Machine, outside: Outside | None = None) -> None:
        self.machine = machine
        self.hooks = Hooks(machine, outside or Outside())
        self.images = Images(machine)
        self.checkpoints = Checkpoints(machine)
        self.freezer = Freezer(machine)
        self.network = Network(machine)
        self.units = Units(machine)
        self.boot = Boot(machine)
        self.crossing = Crossing(machine)
        self.health = Health(machine)
        self.after = After(machine)
        self.stopping = Stopping(machine)

    @property
    def descriptors(self) -> Stored:
        """Only a host whose kernels follow each other by kexec has them."""
        return self.machine.stored

    def go_back(self) -> None:
        machine = self.machine
        cross = next(spec.params for spec in machine.plan.steps if spec.kind == "cross")
        if machine.behaviour.back_kexec_fails:
            machine.act("restart")
            raise Restarted
        self.crossing.load(cross["back_kernel"], cross["back_initrd"], cross["back_cmdline"])
        self.crossing.cross()

    def reenter(self, plan: Plan) -> None:
        self.go_back()
