"""Facts, policy and target in; a stored plan or explained refusals out. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from kupgrade.core import spawn_checks
from kupgrade.core.allocate import pid_floor
from kupgrade.core.checks import losses, store_refusals, target_refusals, warnings, workload_refusals
from kupgrade.core.hooks import blackout_seconds, hook_warnings
from kupgrade.core.live_update import memory_misread
from kupgrade.core.memory_mode import known_in_place
from kupgrade.core.ordering import in_order
from kupgrade.core.predict import budget, images_on
from kupgrade.core.preserve_checks import preserve_target_refusals
from kupgrade.core.preserved import preserved, store_losses, store_notes
from kupgrade.core.stops import stop_orders
from kupgrade.model.facts import Facts
from kupgrade.model.ids import UpgradeId
from kupgrade.model.plan import Phase, Plan, Refusal
from kupgrade.model.policy import Policy
from kupgrade.model.target import Target
from kupgrade.model.workload import Fate, Store, StoreKind, Workload

STATE = "/var/lib/kupgrade"
LUO_MOUNT = "/run/kupgrade/luo"
PMEM_MOUNT = "/run/kupgrade/pmem"
WINDOW_MOUNT = "/run/kupgrade/window"


_LINES = ("cmdline", "back_cmdline")  # parameters of steps that hold a kernel's command line
ONLY_BY_KEXEC = (
    "images in memory (store luo) come through a kexec only: if the new kernel panics or hangs before the commit, or"
    " the power fails, the workloads' units start anew; stores pmem and disk outlive that"
)


def _misread(facts: Facts, target: Target) -> tuple[str, ...]:
    if not memory_misread(facts, target):
        return ()
    why = "; ".join(target.handover)
    return (f"the new kernel is started with kho=off, for it could not read what this one hands over: {why}",)


def kept(facts: Facts, policy: Policy) -> tuple[Workload, ...]:
    """The workloads to be kept, as they run, in the order in which a boot starts them."""
    found = [
        seen
        for entry, seen in zip(policy.workloads, facts.workloads, strict=True)
        if entry.fate is Fate.KEEP and seen.workload is not None
    ]
    running = [seen.workload for seen in found if seen.workload is not None]
    return in_order(running, {seen.unit: seen.after for seen in found})


def to_stop(facts: Facts, policy: Policy) -> tuple[str, ...]:
    """Services to stop cleanly before the blackout: neither kept, nor needed by a kept one, nor the host's own."""
    units = {w.unit for w in kept(facts, policy)} | set(facts.needed_services)
    units |= {each.unit for each in stop_orders(policy)}  # these are stopped before all others
    still = {store.unit for store in preserved(facts, policy)}  # what is in a store must not change any more
    return tuple(
        u
        for u in facts.active_services
        if u not in units and (u in still or (policy.stop_services and not policy.keeps_service(u)))
    )


def store_for(upgrade: UpgradeId, policy: Policy, kind: StoreKind) -> Store:
    """Where this upgrade's images go."""
    options = policy.engine.kexec
    if kind is StoreKind.WINDOW:
        return Store(kind, f"{WINDOW_MOUNT}/{upgrade}", "tmpfs", WINDOW_MOUNT)
    if kind is StoreKind.LUO:
        return Store(kind, f"{LUO_MOUNT}/{upgrade}", "tmpfs", LUO_MOUNT)
    if kind is StoreKind.PMEM:
        return Store(kind, f"{PMEM_MOUNT}/{upgrade}", options.pmem_device, PMEM_MOUNT)
    return Store(kind, f"{options.disk_path}/{upgrade}")


def choose_store(
    facts: Facts, policy: Policy, preferred: tuple[StoreKind, ...], target: Target | None = None
) -> tuple[StoreKind | None, tuple[Refusal, ...], tuple[str, ...]]:
    """The first store that can take the images, the refusals of all when none can, and notes on those passed over."""
    refused: list[Refusal] = []
    notes: list[str] = []
    for kind in preferred:
        found = store_refusals(facts, policy, kind, target)
        if not found:
            return kind, (), (*notes, *_why(facts, policy, kind, preferred, target))
        refused += found
        notes += [f"store {kind.value} passed over: {r.fact}" for r in found]
    return None, tuple(refused), tuple(notes)


def _why(
    facts: Facts, policy: Policy, kind: StoreKind, preferred: tuple[StoreKind, ...], target: Target | None
) -> tuple[str, ...]:
    """Where there was a choice: what was measured speaks for each store that could be taken."""
    able = [each for each in preferred if each is kind or not store_refusals(facts, policy, each, target)]
    if len(able) < 2:
        return ()
    placed = target is not None and known_in_place(policy, target)
    told = {each.value: images_on(facts, each, placed=placed) for each in able}
    seconds = ", ".join(f"{name} {'unknown' if s is None else f'{s:.2f} s'}" for name, s in told.items())
    return (f"store {kind.value} taken, first of those that can; predicted for the images: {seconds}",)


def refusals(
    facts: Facts,
    policy: Policy,
    target: Target,
    rejected: Mapping[str, str],
    *,
    retry_failed: bool,
    taken: Collection[int] = (),
) -> tuple[Refusal, ...]:
    """Everything that forbids this upgrade, host rules of the engine aside. `taken`: PIDs of threads, too."""
    found = [*workload_refusals(facts, policy), *target_refusals(facts, policy, target)]
    found += preserve_target_refusals(facts, policy, target)
    release = str(target.image.release)
    if release in rejected and not retry_failed:
        found.append(
            Refusal(f"{release} was not rolled back before", rejected[release], "Try again with --retry-failed")
        )
    try:
        pid_floor([*taken, *(p for w in kept(facts, policy) for p in w.pids)], facts.pid_max)
    except ValueError as error:
        found.append(Refusal("the workloads' PIDs can be kept free", str(error), "Restart some of the workloads"))
    return tuple(found)


def too_long(phases: Iterable[Phase], target: Target) -> tuple[Refusal, ...]:
    """Why a kernel would not be loaded with its command line; kexec counts the NUL behind it, too."""
    limit = target.image.cmdline_limit - 1
    lines = (text for phase in phases for each in phase.steps for name in _LINES if (text := each.params.get(name)))
    longest = max((len(text.encode(errors="surrogateescape")) for text in lines), default=0)
    if longest <= limit or limit < 0:  # an image that names none
        return ()
    fact = f"with what the crossing needs it has {longest} bytes, and a kernel takes less than {limit + 1}"
    return (Refusal("the command line is short enough", fact, "Boot with fewer words, or shorten cmdline_append"),)


def assemble(
    upgrade: UpgradeId,
    created: float,
    facts: Facts,
    policy: Policy,
    target: Target,
    engine: str,
    store: Store,
    phases: tuple[Phase, ...],
    fallbacks: tuple[str, ...],
    known: tuple[str, ...] = (),
) -> Plan:
    """The plan as it is stored; `known`: warnings of known problems."""
    beside = store.kind is StoreKind.WINDOW
    placed, hooks = known_in_place(policy, target), blackout_seconds(facts, policy)
    workloads = kept(facts, policy)
    names = {w.name for w in workloads}
    return Plan(
        upgrade=upgrade,
        created=created,
        engine=engine,
        store=store.kind.value,
        boot_id=facts.boot_id,
        old_release=facts.release,
        new_release=str(target.image.release),
        facts_digest=facts.digest,
        facts=facts.values,
        phases=phases,
        budgets=tuple(
            budget(facts, w, policy.deadline, beside=beside, placed=placed, hooks=hooks, store=store.kind)
            for w in facts.workloads
            if w.name in names
        ),
        losses=(*store_losses(facts, policy), *losses(facts, policy, to_stop(facts, policy))),
        warnings=(
            *warnings(facts, target, beside=beside),
            *(spawn_checks.warnings(facts) if beside else ()),
            *((ONLY_BY_KEXEC,) if store.kind is StoreKind.LUO else ()),
            *(_misread(facts, target) if engine == "kexec" else ()),
            *store_notes(facts, policy),
            *hook_warnings(facts),
            *known,
        ),
        fallbacks=fallbacks,
        deadline=policy.engine.spawn.restore_deadline if beside else policy.deadline,
        workload_pids=tuple(sorted(p for w in workloads for p in w.pids)),
        workload_cgroups=tuple(w.cgroup for w in workloads),
        network=policy.engine.kexec.network.value,
        network_timeout=policy.engine.kexec.network_timeout,
    )
