"""The kexec engine: the new kernel replaces the old one in place; the state waits on a store that outlives both.

Order and its reasons (each line is also a crash window, see core/recovery.py):
  prepare-store … gate      nothing that a workload notices, but services that are not kept are stopped here
  stop-units                before all other services: one that watches them must not see them go; and before memory is
                            copied and the gate is asked: a slow stop makes neither of them stale
  hold-descriptors          after the services whose stores they are in have been stopped: nothing changes them any more
  call-hooks                gate: first of all, and again before the gate; pre-dump: before memory is copied; post-dump,
                            pre-restore, pre-resume: around dump and restore, in the blackout
  pause-watchdogs           before the freeze: systemd would kill who says nothing; before hold-units: its undo needs a
                            unit that has its own configuration back
  hold-units                from now on no boot starts a kept unit a second time
  arm-watchdog              a new kernel that hangs before user space ends in a reset
  lock-network              before the freeze, so that the peers' last segments are acknowledged or not sent
  freeze, dump              the originals stay, frozen: until the jump rollback is a thaw
  preserve-images           store luo only: the images stay in memory, in a session that ends with its holder
  cross                     the old copy ends with the old kernel; the images are all there is
  restore, probe, disarm    in the dark: network locked both ways, tasks stopped
  (commit)                  recorded by the loop, before anything is let go
  thaw … unstage-initrd     output commit, then tidying; mark-good after the workloads serve (with a soak time: last)
  return-descriptors        before the agent ends, and with it the time in which no service has been started
  fill-memory               memory in place only: the images are needed, and nothing is good, before all is placed
  start-units               last of what others notice: until now no boot has started them, whichever it was
  tell-hooks                post-resume when they serve, commit after mark-good: nobody can say no any more
"""

from __future__ import annotations

from kupgrade.core.checks import host_refusals
from kupgrade.core.hooks import blackout_seconds
from kupgrade.core.live_update import memory_misread, with_appended
from kupgrade.core.memory_mode import in_place, known_in_place
from kupgrade.core.planner import STATE
from kupgrade.core.predict import allowances
from kupgrade.core.preserve_checks import preserve_refusals
from kupgrade.core.preserved import expected, preserved, session_of, strict_units
from kupgrade.engines.base import (
    CROSSING_TARGET,
    Order,
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
from kupgrade.model.facts import Facts
from kupgrade.model.hook import HookPoint
from kupgrade.model.ids import TICKET_PARAMETER, Ticket
from kupgrade.model.kernel import CommandLine
from kupgrade.model.plan import Phase, Refusal, Scope, Side, StepSpec
from kupgrade.model.policy import Policy
from kupgrade.model.workload import ProbeKind, StoreKind
from kupgrade.steps.base import spec
from kupgrade.steps.bootentry import PinBootDefault
from kupgrade.steps.checkpoint import Dump, PreDump, Restore, Thaw
from kupgrade.steps.crossing import ArmWatchdog, Cross, Disarm, LoadKernel
from kupgrade.steps.descriptors import HoldDescriptors, ReturnDescriptors
from kupgrade.steps.freeze import Freeze
from kupgrade.steps.health import Gate, ProbeWorkloads
from kupgrade.steps.images import PrepareStore, Preserve, WipeImages
from kupgrade.steps.network import LockNetwork, UnlockNetwork
from kupgrade.steps.services import HoldUnits, ReleaseUnits, StopServices
from kupgrade.steps.staging import StageInitrd, UnstageInitrd

EPOCH = 1
RDINIT = "/kupgrade-init"
# Words of the running command line that belong to one boot, not to the host.
_PER_BOOT = ("BOOT_IMAGE", "initrd", "rdinit", "kexec", "kupgrade.ticket", "kupgrade.return")


class KexecEngine:
    """kexec with images on persistent memory or disk."""

    name = "kexec"

    def refusals(self, facts: Facts, policy: Policy) -> tuple[Refusal, ...]:
        """What this host lacks."""
        return (*host_refusals(facts, policy), *preserve_refusals(facts, policy), *_own_init(facts, policy))

    def stores(self, policy: Policy) -> tuple[StoreKind, ...]:
        """As the policy orders them."""
        return policy.engine.kexec.stores

    def phases(self, order: Order) -> tuple[Phase, ...]:
        """Staging and handing over here; verifying and serving there."""
        return (
            Phase("staging", Side.OLD, self._staging(order)),
            Phase("handing over", Side.OLD, self._handing_over(order), blackout=True),
            Phase("verifying", Side.NEW, self._verifying(order), blackout=True),
            Phase("serving", Side.NEW, self._serving(order)),
        )

    def _staging(self, order: Order) -> tuple[StepSpec, ...]:
        facts, target, policy = order.facts, order.target, order.policy
        deadline = int(policy.deadline)
        steps = [
            *hooks_before_commit(order, HookPoint.GATE),
            spec(PrepareStore(order.store)),
            spec(PinBootDefault(facts.release)),
            spec(StageInitrd(target.initrd.path, staged(order, "new"), order.pid_floor, deadline)),
            spec(StageInitrd(target.back_initrd, staged(order, "back"), order.pid_floor, 0)),
            spec(LoadKernel(target.image.path, staged(order, "new"), crossing_cmdline(order))),
        ]
        steps += stopped_units(order)
        if order.stopped:
            steps.append(spec(StopServices(order.stopped)))
        if stores := preserved(facts, policy):
            session, units = session_of(order.upgrade), tuple(store.unit for store in stores)
            strict = tuple(unit for unit in strict_units(policy) if unit in units)
            steps.append(spec(HoldDescriptors(session, units, strict, expected(stores))))
        steps += hooks_before_commit(order, HookPoint.PRE_DUMP)
        rounds = policy.engine.kexec.predump_rounds
        if rounds:
            steps.append(spec(PreDump(order.store, order.workloads, rounds)))
        steps += hooks_before_commit(order, HookPoint.GATE)
        placed, hooks = known_in_place(policy, target), blackout_seconds(facts, policy)
        kind = order.store.kind
        limits = allowances(facts, order.workloads, policy.deadline, placed=placed, hooks=hooks, store=kind)
        steps.append(spec(Gate(order.workloads, order.store, limits)))
        return tuple(steps)

    def _handing_over(self, order: Order) -> tuple[StepSpec, ...]:
        policy, facts = order.policy, order.facts
        deadline = int(policy.deadline)
        new = str(order.target.image.release)
        units = with_unit(order)
        carried = order.store if order.store.kind is StoreKind.LUO else None
        return (
            *paused_watchdogs(order),
            *((spec(HoldUnits(units, str(order.upgrade), deadline)),) if units else ()),
            spec(ArmWatchdog(deadline)),
            spec(LockNetwork(order.workloads, order.store)),
            spec(Freeze(order.workloads)),
            spec(
                Dump(
                    store=order.store,
                    workloads=order.workloads,
                    upgrade=str(order.upgrade),
                    old_release=facts.release,
                    new_release=new,
                    timeout=policy.deadline,
                )
            ),
            *hooks_before_commit(order, HookPoint.POST_DUMP),
            *((spec(Preserve(order.store)),) if carried else ()),
            spec(
                Cross(
                    epoch=EPOCH,
                    new_release=new,
                    back_kernel=order.target.back_kernel,
                    back_initrd=staged(order, "back"),
                    back_cmdline=back_cmdline(order),
                    carried=carried,
                    descriptors=session_of(order.upgrade) if preserved(facts, policy) else "",
                )
            ),
        )

    def _verifying(self, order: Order) -> tuple[StepSpec, ...]:
        # Disarm last before the commit: a dead-man or watchdog that fires after it would kill serving workloads.
        steps = [
            *hooks_before_commit(order, HookPoint.PRE_RESTORE),
            spec(Restore(order.store, order.workloads, order.policy.deadline, in_place(order.policy, order.target))),
        ]
        probed = tuple(w for w in order.workloads if w.probe.kind is not ProbeKind.NONE)
        if probed:
            steps.append(spec(ProbeWorkloads(probed)))
        steps += hooks_before_commit(order, HookPoint.PRE_RESUME)
        return (*steps, spec(Disarm(order.facts.panic_timeout)))

    def _serving(self, order: Order) -> tuple[StepSpec, ...]:
        units = with_unit(order)
        # Nothing of the workloads' memory lies about while the new kernel soaks.
        soon, late = ((), made_good(order)) if order.policy.soak else (made_good(order), ())
        return (
            spec(Thaw(order.workloads)),
            spec(UnlockNetwork(order.workloads, order.store)),
            *hooks_after_commit(order, HookPoint.POST_RESUME),
            *((spec(ReleaseUnits(units)),) if units else ()),
            *returned(order),
            *filled(order),
            *resumed_watchdogs(order),
            *started_units(order),
            *soon,
            spec(WipeImages(order.store)),
            spec(UnstageInitrd(staged(order, "new"))),
            spec(UnstageInitrd(staged(order, "back"))),
            *late,
        )


def returned(order: Order) -> tuple[StepSpec, ...]:
    """The return of stored descriptors; empty when none were to be preserved."""
    stores = preserved(order.facts, order.policy)
    return (spec(ReturnDescriptors(session_of(order.upgrade), expected(stores))),) if stores else ()


def staged(order: Order, name: str) -> str:
    """Path of a staged initrd."""
    return f"{order.staging}/initrd-{name}"


def host_cmdline(facts: Facts) -> CommandLine:
    """The running command line without what belongs to one boot only.

    A kernel that came by an earlier crossing, or back from one, still has the words of that: its agent's init= and
    target, and while it was new another panic=, instead of which what the host has now is taken.
    """
    line = CommandLine.parse(facts.cmdline)
    if line.has(TICKET_PARAMETER):
        line = line.with_("panic", str(facts.panic_timeout))
    if (line.get("init") or "").startswith(f"{STATE}/"):
        line = line.without("init")
    if line.get("systemd.unit") == CROSSING_TARGET:
        line = line.without("systemd.unit")
    return line.without(*_PER_BOOT)


def crossing_cmdline(order: Order) -> str:
    """The new kernel's command line: the host's own, our early init, the ticket, and panic= for the crossing."""
    line = with_appended(host_cmdline(order.facts), order.policy)
    line = line.with_("rdinit", RDINIT).with_("panic", str(order.policy.panic_timeout))
    line = line.with_("kupgrade.ticket", str(Ticket(order.upgrade, EPOCH)))
    if memory_misread(order.facts, order.target):
        line = line.with_("kho", "off")
    return str(_early(order, line, "new"))


def back_cmdline(order: Order) -> str:
    """The command line of the way back: the old kernel's own and our early init."""
    line = host_cmdline(order.facts).with_("rdinit", RDINIT).with_("kupgrade.return", str(order.upgrade))
    return str(_early(order, line, "back"))


def _early(order: Order, line: CommandLine, name: str) -> CommandLine:
    """The agent beside systemd's own start, where it needs nothing but the root file system.

    An init= of the host's own is left alone: then the agent comes as an ordinary early service.
    """
    if not order.facts.early_agent or line.has("init") or line.has("systemd.unit"):
        return line
    return line.with_("systemd.unit", CROSSING_TARGET).with_("init", f"{order.staging}/init-{name}")


def _own_init(facts: Facts, policy: Policy) -> tuple[Refusal, ...]:
    """A host that starts something else first starts services before the agent could return their descriptors."""
    own = [word for word in ("init", "systemd.unit") if host_cmdline(facts).has(word)]
    if not own or not preserved(facts, policy):
        return ()
    fact = f"{own[0]}= is on this host's command line, so the agent of the next boot starts beside the services"
    remedy = "Boot without it, or take preserve out of the policy"
    return (Refusal("descriptors are returned before any service starts", fact, remedy),)


def scopes() -> tuple[Scope, ...]:
    """Scopes that this engine uses."""
    return (Scope.BOOT, Scope.DISK)
