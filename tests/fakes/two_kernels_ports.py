"""All ports of one kernel, and the patches that put the model below the real code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from kupgrade.machine import handover as real_handover
from kupgrade.machine import host, serve_out
from kupgrade.machine import takeover as real_takeover
from kupgrade.machine.retirement import BusesGivenError
from kupgrade.model.workload import Workload
from kupgrade.standby import carry_on
from kupgrade.standby import takeover as agent
from tests.fakes import host as one
from tests.fakes import ports
from tests.fakes.endings import Restarted
from tests.fakes.two_kernels import box
from tests.fakes.two_kernels_kernel import Kernel, SpawnLog
from tests.fakes.two_kernels_new import Takeover, disk_taken, merge, prepare, start_child, waitpid
from tests.fakes.two_kernels_old import (
    Beside,
    Handover,
    freeze,
    quiesce,
    resume,
    retire,
    ship_last,
    ship_rounds,
    thaw,
    thawed,
    wiped,
)


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


class Checkpoints(ports.Checkpoints):
    def restore(
        self, store: Any, workloads: Sequence[Workload], timeout: float, *, in_place: bool = False
    ) -> Mapping[str, float | int | str]:
        figures = super().restore(store, workloads, timeout, in_place=in_place)
        for workload in workloads:
            self.m.copies[workload.name].adopted = self.m.ticket is None
        return figures


def old_acts(label: str) -> None:
    box().old.act(label)


class Host(one.Host):
    """All ports of one kernel."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel, kernel.box.outside)  # type: ignore[arg-type]
        here = kernel.box
        if here.beside is None:
            here.beside = Beside(old_acts, silent=here.behaviour.silent)
            here.beside.violations = here.violations
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
    patch.setattr(host, "compose", lambda _plan, places, _terms: Host(places))
    patch.setattr(host, "proc", SimpleNamespace(boot_id=lambda _root: box().current.boot_id))
    patch.setattr(host, "observe_now", lambda state, places, images: places.now(state))
    patch.setattr(host, "keep_pids_free", lambda *_: None)
    patch.setattr(host, "faults", SimpleNamespace(strike=lambda k, step, moment: k.tick(f"{step} {moment}")))
    patch.setattr(real_handover, "time", clock)
    patch.setattr(real_handover, "POLL", 0.005)  # the model's new kernel takes a step at each look
    patch.setattr(real_handover, "ASK_EVERY", 0.02)
    patch.setattr(real_handover, "print", lambda *_, **__: None, **quiet)
    patch.setattr(real_handover, "faults", SimpleNamespace(strike=lambda *_: None, passed_on=lambda: ""))
    found = {name: lambda *_: None for name in ("keep_awake", "check_silence")}
    found |= {"find": lambda *_: (), "table": lambda *_: b"table"}
    patch.setattr(real_handover, "buses", SimpleNamespace(**found, quiesce=quiesce, resume=resume))
    mounts = SimpleNamespace(to_freeze=lambda _root: [SimpleNamespace(mountpoint="/")], freeze=freeze, thaw=thaw)
    patch.setattr(real_handover, "blockfs", mounts)
    patch.setattr(real_handover, "shipping", SimpleNamespace(ship_rounds=ship_rounds, ship_last=ship_last))
    patch.setattr(serve_out, "time", clock)
    patch.setattr(serve_out, "ASK_EVERY", 0.02)
    patch.setattr(serve_out, "retirement", SimpleNamespace(retire=retire, BusesGivenError=BusesGivenError))
    patch.setattr(serve_out, "store_of", wiped)
    patch.setattr(real_takeover, "time", clock)
    patch.setattr(real_takeover, "new_root", SimpleNamespace(prepare=prepare, merge=merge, merged=disk_taken))
    patch.setattr(real_takeover, "going_home", SimpleNamespace(thaw=lambda _libc: None))
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
    patch.setattr(carry_on, "new_root", SimpleNamespace(merged=disk_taken))
    patch.setattr(carry_on, "print", lambda *_, **__: None, **quiet)
    patch.setattr(carry_on, "telling", SimpleNamespace(Teller=lambda otherwise: otherwise))
    patch.setattr(carry_on, "_tell_metrics", lambda: None)
    states = SimpleNamespace(open_current=lambda: SpawnLog(box().current), finish=lambda _upgrade: None)
    patch.setattr(carry_on, "StateDirectory", lambda _root: states)
