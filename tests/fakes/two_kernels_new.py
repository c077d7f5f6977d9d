"""What lies below the real takeover in the new kernel: its child, devices, the snapshot, the first process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

from kupgrade.machine import standing
from kupgrade.machine.takeover import RealTakeover
from kupgrade.model.handover import Stage
from kupgrade.model.workload import Workload
from kupgrade.standby import carry_on
from kupgrade.standby import takeover as agent
from kupgrade.standby.verbs import Here
from tests.fakes.endings import EndError
from tests.fakes.stopping import started_by_boot
from tests.fakes.two_kernels import Box, box
from tests.fakes.two_kernels_kernel import Kernel
from tests.fakes.two_kernels_old import DEVICES
from tests.fakes.two_kernels_parts import Process


class Takeover(RealTakeover):
    """The real commit, surrender and retirement; the first process is a flag."""

    @contextlib.contextmanager
    def _window(self) -> Iterator[Any]:  # type: ignore[override]
        yield SimpleNamespace(channel=SimpleNamespace(declare_commit=declare))

    def start_system(self, workloads: Sequence[Workload], timeout: float) -> None:
        here = box()
        here.current.act("start the system")
        if here.current.system:
            return
        here.current.system = True
        here.current.active = started_by_boot(here.services, here.current.down)
        for workload in here.workloads:
            if workload.name not in here.current.holds:
                here.current.cold_start(workload.name)

    def system_runs(self) -> bool:
        return box().current.system

    def adopt(self, workloads: Sequence[Workload], timeout: float) -> None:
        for workload in workloads:
            box().current.act(f"adopt {workload.name}")
            box().current.copies[workload.name].adopted = True


def declare() -> None:
    here = box()
    here.current.act("declare the commit")
    if standing.get(here.current).stage is Stage.FAILED:  # type: ignore[arg-type]
        here.violate("the commit was declared after the new kernel had given up")
    if not here.current.committed:
        here.violate("the commit was declared before it was recorded")
    here.flag = True


def prepare(*_: object) -> object:
    """The log in the journal, where the host can have one."""
    here = box()
    if not here.behaviour.redo:
        return None
    here.current.act("log what was written")
    return "log"


def merge(_libc: object, _uuid: str, _patience: float, made: object = None) -> float:
    here = box()
    new = here.current
    new.act("merge")
    if new.overlay is None:
        return 0.0
    if not here.flag:
        here.violate("the new kernel writes the disk before its flag")
    if made:
        here.old.cache = here.disk
        here.disk = new.overlay.copy()  # whoever mounts it replays the log
        new.tick("half written home")
    elif here.behaviour.torn:
        here.disk.torn = True
        new.tick("half merged")
    here.old.cache = here.old.cache or here.disk
    here.disk, new.overlay = new.overlay, None
    here.disk.torn = False
    new.tick("merged")
    return 1.0


def disk_taken() -> bool:
    return box().current.overlay is None


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
