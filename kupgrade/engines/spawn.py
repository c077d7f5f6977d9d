"""The spawn engine: the new kernel starts on freed cores beside the old one and takes over what it has, piece by piece.

Order and its reasons (each line is also a crash window, see core/recovery.py):
  prepare-store … ask-standby   the new kernel boots and waits while the workloads run, on fewer CPUs, in less memory
  stop-units                as with kexec; after the new kernel answers, for what can fail for long comes before it
  pause-watchdogs           as with kexec: here the old system runs on all the time that its services are frozen
  hold-units                from now on no boot starts a kept unit a second time
  lock-network              before the freeze, so that the peers' last segments are acknowledged or not sent
  freeze, dump              the originals stay, frozen: until the commit rollback is to stop the new kernel and to thaw
  hand-over                 disk and network change hands; the old kernel does nothing but watch
  call-hooks, tell-hooks    as with kexec; answer-for-hooks: this kernel undoes those of one that is stopped
  restore, probe            in the dark, on a snapshot of the root file system: no write where the old one mounts it
  (commit)                  recorded by the loop, on that snapshot
  take-disk                 the flag for the old kernel, then the first write: now the commit is on disk
  thaw, unlock-network      output commit
  start-system … wipe       the host's init around running workloads; units, boot default, and the rest of the machine
  fill-memory               memory in place only, before anything is good: the images are needed until all is placed
  start-units               after the host's init has left them alone: it reads from the disk who is kept down
"""

from __future__ import annotations

from kupgrade.core import spawn_checks
from kupgrade.core.checks import KEXEC_RULES, host_refusals
from kupgrade.core.hooks import blackout_seconds
from kupgrade.core.memory_mode import in_place, known_in_place
from kupgrade.core.predict import allowances
from kupgrade.core.preserve_checks import no_preserve
from kupgrade.core.spawn_choice import SpawnChoice, choose
from kupgrade.engines.base import (
    CROSSING_TARGET,
    Order,
    answer_for_hooks,
    filled,
    hooks_after_commit,
    hooks_before_commit,
    made_good,
    paused_watchdogs,
    resumed_watchdogs,
    started_units,
    stopped_units,
    with_unit,
)
from kupgrade.errors import RefusedError
from kupgrade.model.facts import Facts
from kupgrade.model.hook import HookPoint
from kupgrade.model.plan import Phase, Refusal, Side, StepSpec
from kupgrade.model.policy import Policy
from kupgrade.model.workload import ProbeKind, StoreKind
from kupgrade.steps.base import spec
from kupgrade.steps.beside import BuildStandby, LoadSpawnModule, SpawnKernel, TakeCpus, TakeMemory
from kupgrade.steps.bootentry import PinBootDefault
from kupgrade.steps.checkpoint import Dump, PreDump, Restore, Thaw
from kupgrade.steps.freeze import Freeze
from kupgrade.steps.handover import AskStandby, HandOver, ReadyStandby, ShipImages
from kupgrade.steps.health import Gate, ProbeWorkloads
from kupgrade.steps.images import PrepareStore, WipeImages
from kupgrade.steps.network import LockNetwork, UnlockNetwork
from kupgrade.steps.services import HoldUnits, ReleaseUnits, StopServices
from kupgrade.steps.staging import UnstageInitrd
from kupgrade.steps.takeover import AdoptUnits, RetireOld, StartSystem, TakeDisk

EPOCH = 1
SYSTEM_TIMEOUT = 240.0  # seconds until the host's own init answers
ASK_TIMEOUT = 60.0
ADOPT_TIMEOUT = 120.0
RETIRE_TIMEOUT = 120.0
WRITES = 1 << 30  # bytes, at most, of memory for what is written before the commit; only what is written is taken


class SpawnEngine:
    """The new kernel beside the old one; images travel through memory that both see."""

    name = "spawn"

    def refusals(self, facts: Facts, policy: Policy) -> tuple[Refusal, ...]:
        """What this host lacks."""
        host = (each for each in host_refusals(facts, policy) if each.rule not in KEXEC_RULES)
        return (*host, *spawn_checks.refusals(facts, policy), *no_preserve(policy, self.name))

    def stores(self, _policy: Policy) -> tuple[StoreKind, ...]:
        """Memory: the old kernel stays until the commit, so nothing has to outlive it."""
        return (StoreKind.WINDOW,)

    def phases(self, order: Order) -> tuple[Phase, ...]:
        """Staging and handing over here; verifying and serving there. Raises RefusedError as `refusals` would tell."""
        choice = choose(order.facts, order.policy)
        if not isinstance(choice, SpawnChoice):
            raise RefusedError("No kernel can be started beside this one", choice[0].fact, choice[0].remedy)
        return (
            Phase("staging", Side.OLD, self._staging(order, choice)),
            Phase("handing over", Side.OLD, self._handing_over(order, choice), blackout=True),
            Phase("verifying", Side.NEW, self._verifying(order), blackout=True),
            Phase("serving", Side.NEW, self._serving(order, choice)),
        )

    def _staging(self, order: Order, choice: SpawnChoice) -> tuple[StepSpec, ...]:
        options, release = order.policy.engine.spawn, str(order.target.image.release)
        standby = _standby(order)
        steps = [
            *hooks_before_commit(order, HookPoint.GATE),
            spec(PrepareStore(order.store)),
            spec(PinBootDefault(order.facts.release)),
            spec(LoadSpawnModule()),
            spec(BuildStandby(release, standby, choice.modules)),
            spec(TakeCpus(choice.cpus)),
            spec(TakeMemory(choice.memory)),
            spec(
                SpawnKernel(
                    release=release,
                    kernel=order.target.image.path,
                    initrd=standby,
                    upgrade=str(order.upgrade),
                    epoch=EPOCH,
                    cpus=choice.cpus,
                    memory=choice.memory,
                    window=choice.window,
                    extra=_words(order),
                    timeout=options.hello_timeout,
                    serial=options.serial,
                )
            ),
            spec(ReadyStandby(choice.modules, order.workloads, WRITES, choice.handed)),
        ]
        steps += stopped_units(order)
        if order.stopped:
            steps.append(spec(StopServices(order.stopped)))
        steps += hooks_before_commit(order, HookPoint.PRE_DUMP)
        if options.predump_rounds:
            steps.append(spec(PreDump(order.store, order.workloads, 1)))
            steps.append(spec(ShipImages(order.store, order.workloads, options.predump_rounds)))
        steps += hooks_before_commit(order, HookPoint.GATE)
        limits = allowances(
            order.facts,
            order.workloads,
            options.restore_deadline,
            beside=True,
            placed=known_in_place(order.policy, order.target),
            hooks=blackout_seconds(order.facts, order.policy),
        )
        steps.append(spec(Gate(order.workloads, order.store, limits)))
        steps.append(spec(AskStandby(ASK_TIMEOUT)))
        return tuple(steps)

    def _handing_over(self, order: Order, choice: SpawnChoice) -> tuple[StepSpec, ...]:
        options, units = order.policy.engine.spawn, with_unit(order)
        return (
            *answer_for_hooks(order),
            *paused_watchdogs(order),
            *((spec(HoldUnits(units, str(order.upgrade), int(order.policy.deadline))),) if units else ()),
            spec(LockNetwork(order.workloads, order.store)),
            spec(Freeze(order.workloads)),
            spec(
                Dump(
                    store=order.store,
                    workloads=order.workloads,
                    upgrade=str(order.upgrade),
                    old_release=order.facts.release,
                    new_release=str(order.target.image.release),
                    timeout=options.restore_deadline,
                )
            ),
            *hooks_before_commit(order, HookPoint.POST_DUMP),
            spec(
                HandOver(
                    epoch=EPOCH,
                    store=order.store,
                    workloads=order.workloads,
                    ports=choice.handed,
                    uuid=choice.root_uuid,
                    fstype=choice.root_fstype,
                    options=choice.root_options,
                    deadline=options.restore_deadline,
                )
            ),
        )

    def _verifying(self, order: Order) -> tuple[StepSpec, ...]:
        deadline, lazy = order.policy.engine.spawn.restore_deadline, in_place(order.policy, order.target)
        steps = [
            *hooks_before_commit(order, HookPoint.PRE_RESTORE),
            spec(Restore(order.store, order.workloads, deadline, lazy)),
        ]
        probed = tuple(w for w in order.workloads if w.probe.kind is not ProbeKind.NONE)
        if probed:
            steps.append(spec(ProbeWorkloads(probed)))
        steps += hooks_before_commit(order, HookPoint.PRE_RESUME)
        return tuple(steps)

    def _serving(self, order: Order, choice: SpawnChoice) -> tuple[StepSpec, ...]:
        units = with_unit(order)
        retire = order.policy.engine.spawn.retire
        # A soak time is the new kernel's alone, with the whole machine: the old one cannot go on, and has left by then.
        soon, late = ((), made_good(order)) if order.policy.soak else (made_good(order), ())
        return (
            spec(TakeDisk()),
            spec(Thaw(order.workloads)),
            spec(UnlockNetwork(order.workloads, order.store)),
            *hooks_after_commit(order, HookPoint.POST_RESUME),
            spec(StartSystem(order.workloads, SYSTEM_TIMEOUT)),
            *((spec(AdoptUnits(units, ADOPT_TIMEOUT)), spec(ReleaseUnits(units))) if units else ()),
            *filled(order),
            *resumed_watchdogs(order),
            *started_units(order),
            *soon,
            spec(WipeImages(order.store)),
            spec(UnstageInitrd(_standby(order))),
            *((spec(RetireOld(choice.later, RETIRE_TIMEOUT, order.facts.panic_timeout)),) if retire else ()),
            *late,
        )


def _standby(order: Order) -> str:
    """Path of the standby initramfs."""
    return f"{order.staging}/standby"


def _words(order: Order) -> str:
    """More words for the new kernel: PIDs kept free, and what its system starts first."""
    first = f"kupgrade.pids={order.pid_floor} systemd.unit={CROSSING_TARGET}"
    return f"{first} {order.policy.engine.spawn.cmdline_append}".strip()
