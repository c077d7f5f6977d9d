"""A rehearsal of this host itself: a copy of its files starts in a virtual machine under the running release, and is
upgraded there as the plan of this host would upgrade it.
"""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from collections.abc import Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kupgrade.errors import KupgradeError, RefusedError
from kupgrade.host import command, kernels
from kupgrade.kernel import blockfs, proc
from kupgrade.model.facts import Facts, WorkloadFacts
from kupgrade.model.kernel import KernelRelease
from kupgrade.model.plan import Plan
from kupgrade.model.policy import Policy, WorkloadPolicy
from kupgrade.model.workload import StoreKind
from kupgrade.rehearsal import (
    forecast,
    inside,
    own_guest,
    own_image,
    own_inside,
    own_live,
    own_machine,
    own_root,
    qemu,
    scenario,
)
from kupgrade.rehearsal.forecast import Workload
from kupgrade.rehearsal.link import Link
from kupgrade.rehearsal.toolbox import Progress, kvm_usable

_BOOT = 240.0  # seconds, times how much slower it may be
_ASK = 30.0
_APPLY = 180.0
_TIMEOUT = 420.0
_SERVICE = ".service"


@dataclass(frozen=True, slots=True)
class Wish:
    """What to rehearse. `plan`: what this host would do; `kernel`: as the operator named it, empty for the plan's.

    `timeout`: seconds for the upgrade in the guest, `memory`: MiB of it; None: computed. `live`: what runs here is
    dumped here, too, and restored in the copy.
    """

    plan: Plan
    facts: Facts
    policy: Policy
    kernel: str = ""
    scratch: Path | None = None
    leave_out: tuple[str, ...] = ()
    memory: int | None = None
    timeout: float | None = None
    keep: Path | None = None
    root: Path = field(default_factory=lambda: Path("/"))
    live: bool = False


def rehearse(wish: Wish, progress: Progress) -> Mapping[str, Any]:
    """The forecast, as forecast.py makes it. Changes nothing on this host; with `live` its workloads stand still.

    Raises RefusedError, with figures, where this host cannot be rehearsed, KupgradeError when the rehearsal fails.
    """
    if wish.plan.engine != "kexec":
        raise RefusedError(
            "Only the engine kexec can be rehearsed on a copy of this host",
            f"the plan's engine is {wish.plan.engine}, which needs this host's own PCI devices",
            "Rehearse it with --engine kexec, or the engine alone: kupgrade rehearse --engine spawn",
        )
    with ExitStack() as stack:
        stack.enter_context(scenario.interruptible())
        program = own_machine.require_tools()
        if wish.keep is not None:
            wish.keep.mkdir(mode=0o700, parents=True, exist_ok=True)  # logs of this host's services
        directory = stack.enter_context(own_image.workplace(wish.root, wish.scratch))
        workloads = taking_part(wish.policy, wish.facts)
        dumped = own_live.chosen(wish.plan, [each.name for each in workloads if not each.why]) if wish.live else ()
        found = own_root.view(blockfs.mounts(wish.root), wish.leave_out, str(directory), _swaps(wish.root))
        since = time.time()
        shape, made = _shape(wish, found, directory, workloads, progress)
        live = None
        if wish.live:
            rounds = wish.policy.engine.kexec.predump_rounds
            wanted = own_live.Wanted(wish.plan, dumped, rounds, since, found.empty)
            slow = own_machine.SLOW[shape.kvm]
            live = own_live.Rehearsing(wanted, directory, shape, made.identity, slow, wish.keep, progress).rehearse()
        own = _yardstick()
        state = qemu.run_directory()
        stack.callback(scenario.put_away, state, wish.keep)
        progress(f"starting the copy under {wish.plan.old_release} ({'KVM' if shape.kvm else 'emulated'})")
        running = qemu.launch([*own_image.gentle(), program], own_machine.arguments(shape, state), state, 60.0)
        stack.callback(running.stop)
        link = stack.enter_context(closing(Link(state / "agent")))
        seen = _Course(wish, link, workloads, own_machine.SLOW[shape.kvm], progress).upgrade(own)
        told = replace(
            seen,
            differs=(
                *own_machine.differences(shape, found.root_type, (wish.plan.store, seen.store), seen.slower),
                *(f"of what was restored from here: {each}" for each in own_live.DIFFERS if wish.live),
            ),
            left_out=found.left_out,
            changed=made.changed,
            machine=_machine(shape, made),
            live=live,
        )
        return forecast.forecast(told)


def _shape(
    wish: Wish, found: own_root.View, directory: Path, workloads: tuple[Workload, ...], progress: Progress
) -> tuple[own_machine.Shape, own_image.Made]:
    """The machine to start, its disk made; everything that can be refused is, before anything is copied."""
    chosen = own_machine.controller((wish.plan.old_release, wish.plan.new_release), wish.root)
    size = sum(each.memory_here for each in workloads if not each.why)
    memory = own_machine.memory(size, wish.memory, proc.meminfo(wish.root)["MemAvailable"])
    old = kernels.locate(KernelRelease(wish.plan.old_release), wish.root)
    if old.initrd is None:
        raise RefusedError(f"There is no initrd of the running {old.release}", "the guest needs it")
    kvm = kvm_usable()
    made = _copy(wish, found, directory, size, workloads, progress)
    shape = own_machine.Shape(
        disk=made.disk,
        controller=chosen,
        kernel=old.kernel,
        initrd=old.initrd,
        append=own_guest.command_line(wish.facts.cmdline, made.identity, own_machine.SLOW[kvm]),
        memory_mib=memory,
        cpus=own_machine.cpus(os.cpu_count() or 1),
        kvm=kvm,
    )
    return shape, made


def _machine(shape: own_machine.Shape, made: own_image.Made) -> Mapping[str, Any]:
    return {
        "accelerator": "kvm" if shape.kvm else "tcg",
        "cpus": shape.cpus,
        "memory_mib": shape.memory_mib,
        "disk": shape.controller.name,
        "copied_bytes": made.copied,
        "copy_seconds": made.seconds,
    }


def taking_part(policy: Policy, facts: Facts) -> tuple[Workload, ...]:
    """Every workload of the policy: the unit that is started for it, or why it has no part."""
    known = {each.name: each for each in facts.workloads}
    found = []
    for each in policy.workloads:
        fact = known.get(each.name)
        unit = _unit(each, fact)
        why = ""
        if fact is None or fact.workload is None:
            why = (fact.absent if fact else "") or "it does not run here"
        elif not unit:
            why = "it belongs to no service that could be started"
        memory = fact.anonymous_bytes + fact.shared_bytes if fact else 0
        found.append(Workload(each.name, unit, why, memory, fate=each.fate))
    return tuple(found)


def _unit(workload: WorkloadPolicy, fact: WorkloadFacts | None) -> str:
    """Its unit; of one that is found by a PID file or cgroup, the service whose cgroup it is."""
    if workload.unit:
        return workload.unit
    named = fact.unit if fact else ""
    last = (fact.workload.cgroup if fact and fact.workload else workload.cgroup).rpartition("/")[2]
    return named or (last if last.endswith(_SERVICE) else "")


def _swaps(root: Path) -> tuple[str, ...]:
    with suppress(OSError):
        return tuple(line.split()[0] for line in (root / "proc/swaps").read_text().splitlines()[1:])
    return ()


def _copy(
    wish: Wish,
    found: own_root.View,
    directory: Path,
    size: int,
    workloads: tuple[Workload, ...],
    progress: Progress,
) -> own_image.Made:
    progress("measuring this host's files")
    files = own_image.measure(found, directory)
    written = 2 * size + (256 << 20)  # images twice, should it fall back, and logs
    own_image.require_room(directory, files, written, own_live.room(size) if wish.live else 0)
    identity = str(uuid.uuid4())
    fstab = wish.root / "etc/fstab"
    links = json.loads(command.run(["ip", "-json", "address", "show"]).stdout)
    settings = own_guest.settings(
        wish.policy,
        tuple(dict.fromkeys(each.unit for each in workloads if not each.why)),
        own_inside.addresses(links),
        _last_pid(wish.facts),
        own_machine.SLOW[kvm_usable()],
        own_root.fstab(fstab.read_text() if fstab.exists() else "", identity),
        own_inside.interfaces(links),
    )
    progress(f"copying {files >> 20} MiB of this host's files")
    laid_over = {**own_guest.volatile_policy(wish.root), **settings}
    made = own_image.make(found, directory, files, written, identity, laid_over)
    progress(f"copied in {made.seconds:.0f} s")
    return made


def _last_pid(facts: Facts) -> int:
    """Just below the PIDs that the workloads have here."""
    pids = [pid for each in facts.workloads if each.workload is not None for pid in each.workload.pids]
    return max(min(pids, default=0) - 50, 300)


def _yardstick() -> float:
    return float(command.run([sys.executable, "-S", "-E", "-c", own_inside.YARDSTICK], timeout=120.0).stdout)


@dataclass(frozen=True, slots=True)
class _Course:
    """The upgrade in the guest. `slow`: how many times slower it may be than this host."""

    wish: Wish
    link: Link
    workloads: tuple[Workload, ...]
    slow: float
    progress: Progress

    def upgrade(self, own: float) -> forecast.Observed:
        """From its boot to what is left afterwards; `own`: the yardstick's seconds on this host."""
        link, plan = self.link, self.wish.plan
        link.wait_boot(_BOOT * self.slow)
        slower = max(own_inside.yardstick(link, self.slow) / own, 0.01)
        self.progress(f"{link.boots[-1].release} answers there, {slower:.1f} times slower than here")
        before = self.look_at(_BOOT * self.slow)
        store = plan.store if plan.store == StoreKind.LUO.value else StoreKind.DISK.value
        self.progress(f"kupgrade apply there: {plan.old_release} to {plan.new_release}")
        answer = own_inside.apply(link, self.wish.kernel or plan.new_release, store, _APPLY * self.slow)
        if answer.outcome == "started":
            timeout = self.wish.timeout or _TIMEOUT * self.slow
            scenario.follow(link, timeout, self.progress, _ASK * min(self.slow, 4.0))
        after: tuple[Workload, ...] = before
        journal: tuple[Mapping[str, Any], ...] = ()
        failed: tuple[str, ...] = ()
        try:
            after = self.look_at(_ASK * self.slow, before)
            journal = scenario.records(inside.journal(link)) if answer.outcome == "started" else ()
            failed = tuple(inside.shell(link, "systemctl --failed --plain --no-legend | cut -d ' ' -f 1").split())
            self.save()
        except (KupgradeError, OSError) as error:
            self.progress(f"afterwards: {error}")
        return forecast.Observed(
            plan=plan,
            store=store,
            answer=answer,
            journal=journal,
            running_release=link.boots[-1].release,
            workloads=after,
            slower=slower,
            machine={},
            differs=(),
            left_out=(),
            failed_units=failed,
        )

    def look_at(self, patience: float, before: tuple[Workload, ...] = ()) -> tuple[Workload, ...]:
        """Every workload that takes part, as soon as it is well or patience is at its end."""
        policies = {each.name: each for each in self.wish.policy.workloads}
        wanted = {each.unit: policies[each.name] for each in self.workloads if not each.why}
        seen = own_inside.ready(self.link, wanted, patience, _ASK * self.slow)
        if before:
            return tuple(replace(each, after=seen.get(each.unit)) for each in before)
        return tuple(replace(each, before=seen.get(each.unit)) for each in self.workloads)

    def save(self) -> None:
        """The guest's log, where logs are to be kept."""
        if self.wish.keep is not None:
            (self.wish.keep / "system.log").write_text(inside.system_log(self.link))
