"""The mechanism below the real handover: window, CPUs, buses, file systems, snapshot, first process; and its patches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from kupgrade.errors import KupgradeError
from kupgrade.machine import carry_on, host, standing
from kupgrade.machine import handover as real_handover
from kupgrade.machine import takeover as real_takeover
from kupgrade.machine.handover import RealHandover
from kupgrade.machine.takeover import RealTakeover
from kupgrade.model import standby as words
from kupgrade.model.ids import Ticket, UpgradeId
from kupgrade.model.spawn import Instance, Standby
from kupgrade.model.workload import Workload
from kupgrade.standby import takeover as agent
from kupgrade.standby.verbs import Here
from kupgrade.steps.ports_beside import SpawnOrder
from tests.fakes import machine as one
from tests.fakes.beside import FakeBeside
from tests.fakes.machine import EndError, Kill, Restarted
from tests.fakes.two_kernels import Box, Kernel, OldLeft, Process, SpawnLog

BOX: list[Box] = []  # the machine of the run under way
DEVICES = ("disk", "net")


def box() -> Box:
    return BOX[-1]


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

    def client(self) -> Watch:
        return self

    def beats(self) -> int:
        here = box()
        new = here.new
        here.beats += bool(new and new.alive and new.agent and not (new.dead or new.hung))
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
        if new is None or not new.alive or new.hung or not new.agent:
            here.clock += timeout
            here.steps(here.behaviour.lag)
            if here.child is None or here.child.over:
                here.idle += 1
            if new is not None and not here.told:
                new.agent = True  # one that only waits is started again
            raise KupgradeError("The agent in the new kernel does not answer")
        here.current = new
        try:
            return self._answer(here, new, verb, arguments)
        finally:
            here.current = here.old

    def _answer(self, here: Box, new: Kernel, verb: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        there = Here(None, new.root)  # type: ignore[arg-type]
        match verb:
            case words.MODULES | words.CRIU_CHECK:
                return {}
            case words.PREPARE:
                here.old.tick("lock the new kernel's network")
                new.lock = "both"
                return {"criu": ""}
            case words.TAKE_OVER:
                here.old.tick("tell the new kernel")
                here.told = True
                return agent.take_over(there, arguments)
            case words.STAGE:
                return agent.stage(there, arguments)
        raise AssertionError(verb)


def ship(watch: Watch, _top: object, *, final: bool) -> int:
    here = box()
    here.old.tick("ship all" if final else "ship rounds")
    new = here.new
    if new is None or not new.alive or new.dead or new.hung or not new.agent or here.corrupt:
        raise KupgradeError("The agent in the new kernel does not answer")
    new.store_made = new.mounted = True
    new.rounds = set(here.old.rounds)
    if final:
        new.images, new.sealed_in = dict(here.old.images), here.old.sealed_in
    return 1


# Buses and file systems of the old kernel


def quiesce(_device: object, _movables: object) -> None:
    here = box()
    for name in DEVICES:
        here.old.tick(f"quiesce {name}")
        if not here.old.filesystems_frozen:
            here.violate("a device was made still below a file system that is not frozen")
        if here.drivers[name] is here.old:
            here.drivers[name] = None


def resume(_device: object, _movables: object) -> None:
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


def retire(_device: object, _instance: object, _client: object, *_: object) -> None:
    here = box()
    for part in ("CPUs", "memory", "buses"):
        here.old.tick(f"give {part}")
        if here.behaviour.retire_fails:
            raise KupgradeError("Nothing can be given")
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


# The new kernel


class Takeover(RealTakeover):
    """The real commit, surrender and retirement; the first process is a flag."""

    @contextlib.contextmanager
    def _window(self) -> Iterator[Any]:  # type: ignore[override]
        yield SimpleNamespace(channel=SimpleNamespace(declare_commit=declare))

    def start_system(self, workloads: Sequence[Workload], timeout: float) -> None:
        here = box()
        here.current.act("start the system")
        here.current.system = True
        here.current.active = set(here.services[:-1])

    def system_runs(self) -> bool:
        return box().current.system

    def adopt(self, workloads: Sequence[Workload], timeout: float) -> None:
        for workload in workloads:
            box().current.act(f"adopt {workload.name}")
            box().current.copies[workload.name].adopted = True


def declare() -> None:
    here = box()
    here.current.act("declare the commit")
    if standing.get(here.current).stage is words_failed:  # type: ignore[arg-type]
        here.violate("the commit was declared after the new kernel had given up")
    here.flag = True


words_failed = agent.Stage.FAILED


def merge(_uuid: str, _patience: float) -> float:
    here = box()
    new = here.current
    new.act("merge")
    if new.overlay is None:
        return 0.0
    if not here.flag:
        here.violate("the new kernel writes the disk before its flag")
    if here.behaviour.torn:
        here.disk.torn = True
        new.tick("half merged")
    here.old.cache = here.disk
    here.disk, new.overlay = new.overlay, None
    here.disk.torn = False
    new.tick("merged")
    return 1.0


def start_child(there: Here, order: Any) -> None:
    """What takeover._start does by fork."""
    here, new = box(), box().new
    assert new is not None
    agent.Child.started += 1
    agent.Child.pid = 1

    def life() -> None:
        try:
            enter(here, new)
            carry_on.run()
        except EndError:
            raise
        except BaseException as error:
            standing.fail(new, str(error))  # type: ignore[arg-type]

    here.child = Process(life)


def enter(here: Box, new: Kernel) -> None:
    """Devices come up, the root file system is mounted on its snapshot."""
    for name in DEVICES:
        new.tick(f"drive {name}")
        if here.drivers[name] not in (None, new):
            here.violate(f"{name} is driven by two kernels")
        here.drivers[name] = new
    new.tick("mount the snapshot")
    if not new.root_mounted:
        new.root_mounted = True
        new.overlay = here.disk.copy()


def waitpid(_pid: int, _options: int) -> tuple[int, int]:
    child = box().child
    if child is None or not child.over:
        return 0, 0
    return 1, int(child.killed)


class Units(one.Units):
    def adopted(self, workload: Workload) -> str:
        return super().adopted(workload) if self.m.ticket is None or self.m.system else ""  # type: ignore[attr-defined]


class Crossing(one.Crossing):
    def thaw_filesystems(self) -> None:
        self.m.tick("make sure that file systems are thawed")
        thawed(self.m)  # type: ignore[arg-type]

    def unstage(self, out: str) -> None:
        super().unstage(out)
        self.m.write().built.discard(out)  # type: ignore[attr-defined]


class Checkpoints(one.Checkpoints):
    def restore(self, store: Any, workloads: Sequence[Workload], timeout: float) -> None:
        super().restore(store, workloads, timeout)
        for workload in workloads:
            self.m.copies[workload.name].adopted = self.m.ticket is None


class Host(one.Host):
    """All ports of one kernel."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel)  # type: ignore[arg-type]
        here = kernel.box
        if here.beside is None:
            here.beside = Beside(lambda label: here.current.act(label), silent=here.behaviour.silent)
        libc = SimpleNamespace(
            sync=lambda: None, lock_memory=lambda: None, unlock_memory=lambda: None, syncfs=lambda _: None,
            reboot=_reboot,
        )  # fmt: skip
        self.beside = here.beside
        if kernel is here.old:
            self.beside.built = kernel.disk.built
        self.units, self.crossing = Units(kernel), Crossing(kernel)  # type: ignore[arg-type]
        self.checkpoints = Checkpoints(kernel)  # type: ignore[arg-type]
        self.handover = Handover(kernel, libc, self.beside)  # type: ignore[arg-type]
        places = SimpleNamespace(run=kernel.run, state="", root=kernel.root)
        self.takeover = Takeover(places, libc, None, None, "")  # type: ignore[arg-type]


def _reboot(_how: int) -> None:
    here = box()
    here.old.tick("restart the machine")
    if not here.flag:
        here.violate("the machine was restarted before the commit flag")
    raise Restarted


def planted(patch: pytest.MonkeyPatch) -> None:
    """Put the mechanism below the real code."""
    clock = SimpleNamespace(monotonic=lambda: box().clock, time=lambda: 1.8e9, sleep=lambda s=0.0: box().sleep(s))
    clock.clock_settime, clock.CLOCK_REALTIME = (lambda *_: None), 0
    quiet = {"raising": False}
    patch.setattr(host, "Places", lambda _root: box().current)
    patch.setattr(host, "compose", lambda _plan, places: Host(places))
    patch.setattr(host, "proc", SimpleNamespace(boot_id=lambda _root: box().current.boot_id))
    patch.setattr(host, "observe_now", lambda state, places: places.now(state))
    patch.setattr(host, "keep_pids_free", lambda *_: None)
    patch.setattr(host, "faults", SimpleNamespace(strike=lambda k, step, moment: k.tick(f"{step} {moment}")))
    patch.setattr(real_handover, "time", clock)
    patch.setattr(real_handover, "print", lambda *_, **__: None, **quiet)
    patch.setattr(real_handover, "faults", SimpleNamespace(strike=lambda *_: None, passed_on=lambda: ""))
    found = {"find": lambda *_: (), "keep_awake": lambda *_: None, "table": lambda *_: b"table"}
    patch.setattr(real_handover, "buses", SimpleNamespace(**found, quiesce=quiesce, resume=resume))
    mounts = SimpleNamespace(to_freeze=lambda _root: [SimpleNamespace(mountpoint="/")], freeze=freeze, thaw=thaw)
    patch.setattr(real_handover, "blockfs", mounts)
    patch.setattr(real_handover, "shipping", SimpleNamespace(ship=ship))
    patch.setattr(real_handover, "retirement", SimpleNamespace(retire=retire))
    patch.setattr(real_handover, "store_of", wiped)
    patch.setattr(real_takeover, "time", clock)
    patch.setattr(real_takeover, "new_root", SimpleNamespace(merge=merge, merged=lambda: box().current.overlay is None))
    patch.setattr(agent, "time", clock)
    patch.setattr(agent, "os", SimpleNamespace(waitpid=waitpid, WNOHANG=1, WIFSIGNALED=bool))
    patch.setattr(agent, "_start", start_child)
    patch.setattr(agent, "_enter_too", lambda: None)
    patch.setattr(agent, "streams", SimpleNamespace(make=lambda _store: None))
    patch.setattr(agent, "Places", lambda: box().new)
    patch.setattr(carry_on, "Places", lambda: box().current)
    locks = {"open": lambda *_: 0, "close": lambda _fd: None, "O_RDWR": 0, "O_CREAT": 0, "O_CLOEXEC": 0}
    patch.setattr(carry_on, "os", SimpleNamespace(**locks))
    patch.setattr(carry_on, "fcntl", SimpleNamespace(flock=lambda *_: None, LOCK_EX=0))
    patch.setattr(carry_on, "print", lambda *_, **__: None, **quiet)
    states = SimpleNamespace(open_current=lambda: SpawnLog(box().current), finish=lambda _upgrade: None)
    patch.setattr(carry_on, "StateDirectory", lambda _root: states)


__all__ = ["BOX", "Host", "Kill", "planted"]
