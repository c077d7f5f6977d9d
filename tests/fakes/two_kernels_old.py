"""What lies below the real handover in the old kernel: CPUs, the window, buses, file systems, the retirement."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from kupgrade.errors import KupgradeError
from kupgrade.machine.handover import RealHandover
from kupgrade.machine.pulse import Pulse
from kupgrade.machine.retirement import BusesGivenError
from kupgrade.model import standby as words
from kupgrade.model.ids import Ticket, UpgradeId
from kupgrade.model.spawn import Instance, Standby
from kupgrade.standby import takeover as agent
from kupgrade.standby.verbs import Here
from kupgrade.steps.ports_beside import SpawnOrder
from tests.fakes.beside import FakeBeside
from tests.fakes.two_kernels import Box, box
from tests.fakes.two_kernels_kernel import Kernel
from tests.fakes.two_kernels_parts import OldLeft

DEVICES = ("disk", "net")


class Beside(FakeBeside):
    """CPUs and memory, and the kernel that comes to life on them."""

    instance: Instance | None = None

    def spawn(self, order: SpawnOrder, instance: Instance, timeout: float) -> Standby:
        found = super().spawn(order, instance, timeout)
        self.instance = instance
        here = box()
        here.start_new(str(Ticket(UpgradeId(order.upgrade), order.epoch)), f"boot-new-{len(here.trace)}")
        return found

    def answers(self, instance: Instance) -> bool | None:
        new = box().new
        return bool(super().answers(instance)) and new is not None and new.alive and not (new.dead or new.hung)

    def fence(self, instance: Instance) -> None:
        super().fence(instance)
        box().end_new()

    def give_cpus(self, before: Any) -> None:
        super().give_cpus(before)
        if not self.running:
            box().end_new()

    def started(self) -> tuple[Spawner, Instance]:
        if self.instance is None:
            raise KupgradeError("No kernel was started beside this one")
        return Spawner(self), self.instance


@dataclass
class Spawner:
    """Stops the new kernel, too late by as much as the host's behaviour says."""

    beside: Beside
    device: None = None

    def guard(self, _instance: Instance) -> None:
        pass

    def fence(self, instance: Instance) -> None:
        here = box()
        if here.flag and here.new is not None and here.new.alive and not (here.new.dead or here.new.hung):
            here.violate("it was stopped although the new kernel serves")
        here.old.tick("fence")
        here.steps(here.behaviour.lag)
        self.beside.fence(instance)

    def watch(self, _instance: Instance) -> Watch:
        return Watch()


class Window:
    """The channel, as far as the old kernel reads it for itself."""

    @property
    def committed(self) -> bool:
        return box().flag


class Watch:
    """What the old kernel sees of the new one."""

    window = None

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def channel(self) -> Any:
        return Window()

    def __init__(self, pulse: Pulse | None = None) -> None:
        self._pulse = pulse

    def pulse(self, limit: float) -> Pulse:
        return Pulse(self.beats, limit, lambda: box().clock)

    def client(self, pulse: Pulse | None = None) -> Watch:
        return type(self)(pulse)

    def beats(self) -> int:
        here = box()
        new = here.new
        here.beats += bool(new and new.alive and (new.agent or here.flag) and not (new.dead or new.hung))
        return here.beats

    def check_alive(self) -> None:
        new = box().new
        if new is not None and new.dead:
            raise KupgradeError("The new kernel panicked")

    def ask(self, verb: str, timeout: float = 10.0, **arguments: Any) -> Mapping[str, Any]:
        here = box()
        self.check_alive()
        new = here.new
        if here.corrupt:
            raise KupgradeError("The shared window is damaged")
        if new is not None and not new.agent and not here.told:
            here.clock += 1.0
            new.agent = True  # one that only waits is started again, and asked again
        if new is None or not new.alive or new.hung or not new.agent:
            self._wait(here, timeout)
            raise KupgradeError("The agent in the new kernel does not answer")
        here.current = new
        try:
            return self._answer(here, new, verb, arguments)
        finally:
            here.current = here.old

    def _wait(self, here: Box, timeout: float) -> None:
        here.steps(here.behaviour.lag)
        if here.child is None or here.child.over:
            here.idle += 1
        deadline = here.clock + timeout
        while here.clock < deadline:
            here.clock += 1.0
            if self._pulse is not None:
                self._pulse.check()

    def _answer(self, here: Box, new: Kernel, verb: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        there = Here(None, new.root)  # type: ignore[arg-type]
        match verb:
            case words.MODULES | words.PING:
                return {}
            case words.PREPARE:
                here.old.tick("lock the new kernel's network")
                new.lock = "both"
                return {"criu": ""}
            case words.TAKE_OVER:
                here.old.tick("tell the new kernel")
                here.told, here.told_at = True, here.clock
                return agent.take_over(there, arguments)
            case words.STAGE:
                return agent.stage(there, arguments)
        raise AssertionError(verb)


def ship_rounds(watch: Watch, _top: object, _since: int) -> int:
    return _ship(watch, final=False)


def ship_last(watch: Watch, _top: object) -> int:
    return _ship(watch, final=True)


def _ship(watch: Watch, *, final: bool) -> int:
    here = box()
    here.old.tick("ship all" if final else "ship rounds")
    new = here.new
    if new is None or not new.alive or new.dead or new.hung or here.corrupt:
        raise KupgradeError("The agent in the new kernel does not answer")
    new.agent = True  # one that was killed is started again, and asked again
    new.store_made = new.mounted = True
    new.rounds = set(here.old.rounds)
    if final:
        new.images, new.sealed_in = dict(here.old.images), here.old.sealed_in
    return 1


# Buses and file systems of the old kernel


def quiesce(_device: object, _movables: object, _root: object = None) -> None:
    here = box()
    for name in DEVICES:
        here.old.tick(f"quiesce {name}")
        if not here.old.filesystems_frozen:
            here.violate("a device was made still below a file system that is not frozen")
        if here.drivers[name] is here.old:
            here.drivers[name] = None


def resume(_device: object, _movables: object, _root: object = None) -> None:
    here = box()
    for name in reversed(DEVICES):
        here.old.tick(f"take {name} back")
        if here.new is not None and here.new.alive:
            here.violate(f"{name} was taken back before the new kernel was stopped")
        if here.flag:
            here.violate(f"{name} was taken back after the commit flag")
        here.drivers[name] = here.old


def freeze(_libc: object, _path: object) -> None:
    box().old.tick("freeze file systems")
    box().old.filesystems_frozen = True


def thaw(_libc: object, _path: object) -> None:
    here = box()
    here.old.tick("thaw file systems")
    thawed(here.old)


def thawed(kernel: Kernel) -> None:
    if kernel.filesystems_frozen and kernel.box.drivers["disk"] is not kernel:
        kernel.violate("file systems were thawed without their disk")
    kernel.filesystems_frozen = False


def retire(
    _device: object, _instance: object, _client: object, named: Sequence[object], *last: Callable[[bool], None]
) -> None:
    here = box()
    for part in ("CPUs", "memory", "buses"):
        here.old.tick(f"give {part}")
        if here.behaviour.retire_fails:
            raise KupgradeError("Nothing can be given")
    if named and here.given:
        here.violate("buses were given twice")
    if named:
        last[-1](True)
    here.given = True
    if here.behaviour.retire_failures > here.failed:
        here.failed += 1
        raise BusesGivenError("It is not known whether the last buses have passed")
    here.old.tick("leave")
    here.old.alive = False
    if here.new is not None and here.new.agent:
        here.new.run.files["inherited.json"] = "{}"
    raise OldLeft


class Handover(RealHandover):
    """The real one, silent."""

    def _say(self, text: str) -> None:
        pass


def wiped(_store: object) -> Any:
    def wipe() -> None:
        old = box().old
        old.images.clear()
        old.rounds.clear()
        old.sealed_in = None
        old.store_made = old.mounted = False

    return SimpleNamespace(wipe=wipe)
