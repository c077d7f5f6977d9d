"""The predicted blackout of one workload: terms in seconds, each with the figure it rests on."""

from __future__ import annotations

from collections.abc import Iterable

from kupgrade.model.facts import Facts, WorkloadFacts
from kupgrade.model.plan import EXPERIENCE, HOOKS, Allowance, BlackoutTerm, Budget
from kupgrade.model.workload import StoreKind, Workload

# Shares of a reference machine that checksums 1 GB/s; a slower one takes proportionally longer. From published and own
# measurements of small TCP servers: 10-20 ms to dump, 50-70 ms to restore, about 1 GB/s to copy memory back.
_REFERENCE_RATE = 1e9
_DUMP_FIXED = 0.05
_RESTORE_FIXED = 0.15
_COPY_RATE = 1e9
_USERSPACE = 0.6
_DEVICES = 0.3  # freeze, quiesce, probe, snapshot, mount, addresses; and the merge at the commit
_DIRTY_SHARE = 0.05


DUMP = "freeze and final dump"


def allowances(
    facts: Facts,
    workloads: Iterable[Workload],
    deadline: float,
    *,
    beside: bool = False,
    placed: bool = False,
    hooks: float = 0.0,
    store: StoreKind | None = None,
) -> tuple[Allowance, ...]:
    """What is left of each limited workload's blackout for freeze and dump, by the prediction of the rest."""
    by_name = {workload.name: workload for workload in facts.workloads}
    found = []
    for workload in workloads:
        if workload.max_blackout is None:
            continue
        seen = by_name[workload.name]
        whole = budget(facts, seen, deadline, beside=beside, placed=placed, hooks=hooks, store=store)
        rest = sum(term.seconds for term in whole.terms if term.name != DUMP)
        found.append(Allowance(workload.name, round(workload.max_blackout - rest, 3), workload.max_blackout))
    return tuple(found)


def images_on(facts: Facts, kind: StoreKind, *, placed: bool = False) -> float | None:
    """Seconds of the blackout in which images are written to a store and read from it; None: it cannot be told.

    By what was measured here: how fast memory is summed, how fast the disk is read. `placed`: see `budget`.
    """
    size = sum(_DIRTY_SHARE * _memory(each) + _read(each, placed=placed) for each in facts.workloads)
    rate: float | None = facts.checksum_rate
    if kind is StoreKind.DISK:
        rate = None if facts.stores.disk_rate is None else min(facts.stores.disk_rate, facts.checksum_rate)
    return None if not rate else round(size / rate, 3)


def _memory(workload: WorkloadFacts) -> int:
    return workload.anonymous_bytes + workload.shared_bytes


def _read(workload: WorkloadFacts, *, placed: bool) -> float:
    """Bytes of images that are read in the blackout: all, or what the last dump holds and what cannot be placed."""
    return workload.anonymous_bytes * _DIRTY_SHARE + workload.shared_bytes if placed else _memory(workload)


def budget(
    facts: Facts,
    workload: WorkloadFacts,
    deadline: float,
    *,
    beside: bool = False,
    placed: bool = False,
    hooks: float = 0.0,
    store: StoreKind | None = None,
) -> Budget:
    """Prediction for a crossing by kexec; all workloads share the boot, each has its own memory.

    `beside`: the new kernel runs and waits already, with all but the last images; then nothing is booted. `placed`:
    memory of its own is filled while it runs. `hooks`: seconds that those called in the blackout may take together.
    `store`: where the images are; those on a disk are read no faster than it.
    """
    slow = max(1.0, _REFERENCE_RATE / facts.checksum_rate)
    size, read = _memory(workload), _read(workload, placed=placed)
    memory = f"{int(read) >> 20} MiB{', the rest while it runs' if placed else ''}"
    rate = f"this host checksums {facts.checksum_rate / 1e6:.0f} MB/s"
    boot = facts.boot_seconds or min(deadline, 10.0 * slow)
    basis = "this boot's kernel and initrd took that long" if facts.boot_seconds else "no measurement of this boot"
    between: tuple[BlackoutTerm, ...] = (
        BlackoutTerm("kernel and initrd", boot, basis),
        BlackoutTerm("agent in the new kernel", _USERSPACE * slow, rate),
    )
    if beside:
        between = (BlackoutTerm("devices and root file system", _DEVICES * slow, rate),)
    terms: tuple[BlackoutTerm, ...] = (
        BlackoutTerm(DUMP, slow * (_DUMP_FIXED + size * _DIRTY_SHARE / _COPY_RATE), rate),
        *between,
        BlackoutTerm("restore", slow * (_RESTORE_FIXED + 2 * read / _COPY_RATE), f"{memory}; {rate}"),
        *_from_disk(facts, read, slow, store),
        *((BlackoutTerm(HOOKS, hooks, "if each takes all of its time"),) if hooks else ()),
    )
    if facts.lateness > 1.0:
        longer = (facts.lateness - 1.0) * sum(term.seconds for term in terms if term.name != HOOKS)
        basis = f"those of this kind here took {facts.lateness:.1f} times what was predicted"
        terms = (*terms, BlackoutTerm(EXPERIENCE, longer, basis))
    limit = workload.workload.max_blackout if workload.workload else None
    return Budget(workload.name, tuple(BlackoutTerm(t.name, round(t.seconds, 3), t.basis) for t in terms), limit)


def _from_disk(facts: Facts, read: float, slow: float, store: StoreKind | None) -> tuple[BlackoutTerm, ...]:
    """What a disk takes longer than memory to give the images; nothing is in memory yet in the next boot."""
    rate = facts.stores.disk_rate
    if store is not StoreKind.DISK or not rate:
        return ()
    longer = read / rate - slow * read / _COPY_RATE
    return (BlackoutTerm("images from disk", longer, f"it reads {rate / 1e6:.0f} MB/s"),) if longer > 0 else ()
