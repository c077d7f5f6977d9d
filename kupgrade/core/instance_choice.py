"""What an instance is given, and what makes it impossible: facts in, CPUs and memory or refusals out. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from kupgrade.core import cores, spawn_checks
from kupgrade.core.blocks import MIB, movablecore
from kupgrade.core.box import SECTION, up
from kupgrade.core.cores import LAST
from kupgrade.core.spawn_choice import INITRAMFS, KERNEL, LEAST_WINDOW, LEFT_OVER, SLACK
from kupgrade.model.facts import Facts
from kupgrade.model.instance import Wish
from kupgrade.model.machine import CpuSet, Topology
from kupgrade.model.plan import Refusal
from kupgrade.model.policy import OnUnknown, Policy
from kupgrade.model.spawn_facts import SpawnFacts

WINDOW = LEAST_WINDOW  # bytes: no images pass through it, only the talk with its agent
NO_WAY = "Nothing can be done about it on this machine"


@dataclass(frozen=True, slots=True)
class InstanceChoice:
    """`cpus`: the one that boots first. `memory` and, of it, `window`: bytes."""

    cpus: tuple[int, ...]
    memory: int
    window: int = WINDOW


def choose(facts: Facts, policy: Policy, wish: Wish, least: int = 0) -> InstanceChoice | tuple[Refusal, ...]:
    """The choice, or every reason against it. `least`: bytes below which its kernel cannot come up, where known."""
    spawn = facts.spawn
    if spawn is None:
        return (Refusal("the machine is known", "its parts were not examined", "Run kupgrade as root"),)
    found = [_own(each) for each in spawn_checks.about_machine(facts, spawn) if each.rule != spawn_checks.REMAPPING]
    chosen = _cpus(spawn, wish.cpus)
    if isinstance(chosen, Refusal):
        found.append(chosen)
    else:
        found += spawn_checks.unreachable(spawn, chosen)
    memory = memory_size(spawn, wish, least)
    found += _memory(spawn, wish, memory, least)
    if policy.on_unknown is OnUnknown.REFUSE and "CPUs" in spawn.unknown:
        found.append(Refusal("the CPUs are known", spawn.unknown["CPUs"], "The policy refuses unknown facts"))
    if found or isinstance(chosen, Refusal):
        return tuple(found)
    return InstanceChoice(chosen, memory)


def _own(refusal: Refusal) -> Refusal:
    """The spawn engine's advice to use another engine is of no use here."""
    return replace(refusal, remedy=NO_WAY) if "kexec" in refusal.remedy else refusal


def memory_size(spawn: SpawnFacts, wish: Wish, least: int = 0) -> int:
    """Bytes of the whole box, in blocks of memory."""
    computed = max(up(KERNEL + INITRAMFS + SLACK, SECTION) + up(WINDOW, SECTION), least)
    return up(wish.memory or computed, max(SECTION, spawn.block_size))


def _cpus(spawn: SpawnFacts, wanted: int | CpuSet) -> tuple[int, ...] | Refusal:
    """By number: whole cores, at least so many CPUs. By name: exactly those, which must be whole cores."""
    topology = spawn.topology
    if topology is None:
        return Refusal("the CPUs are known", spawn.unknown.get("CPUs", "unknown"), NO_WAY)
    if isinstance(wanted, CpuSet):
        return _named(topology, wanted, spawn)
    threads = max((len(core) for core in topology.cores), default=1)
    number = -(-wanted // threads)
    while True:  # cores may differ in their threads
        chosen = cores.choose(topology, number, isolated=spawn.isolated, cannot=spawn.stuck, bsp=spawn.bsp)
        if isinstance(chosen, Refusal):
            return chosen
        if len(chosen.first) >= wanted:
            return chosen.first
        number += 1


def _named(topology: Topology, wanted: CpuSet, spawn: SpawnFacts) -> tuple[int, ...] | Refusal:
    fact = next(_wrong(topology, wanted, spawn), "")
    if fact:
        return Refusal("the CPUs can be given", fact, "Name others (lscpu -e), or say how many: --cpus N")
    # The one with the highest number boots it, as when they are chosen by number.
    return tuple(sorted(wanted, reverse=True))


def _wrong(topology: Topology, wanted: CpuSet, spawn: SpawnFacts) -> Iterator[str]:
    """What is wrong with CPUs that were named."""
    if not wanted:
        yield "none was named"
    if strange := wanted - topology.online:
        yield f"CPU {strange} is not online here; online are {topology.online}"
    if held := wanted & (spawn.stuck | CpuSet.of(LAST)):
        yield f"CPU {held} cannot go offline"
    if spawn.bsp is None:
        yield "which CPU is the real boot-strap processor is not known"
    elif spawn.bsp in wanted:
        yield f"CPU {spawn.bsp} is the real boot-strap processor, which can never be given away"
    for core in topology.cores:
        if core & wanted and not core.issubset(wanted):
            yield f"CPUs {core} are threads of one core, which two kernels must not share"


def _memory(spawn: SpawnFacts, wish: Wish, memory: int, least: int) -> Iterator[Refusal]:
    if not spawn.block_size:
        why = spawn.unknown.get("memory blocks", "this kernel has no memory hotplug")
        yield Refusal("memory can be taken offline", why, "Use a kernel with CONFIG_MEMORY_HOTREMOVE")
        return
    if wish.memory and memory < least:
        fact = f"{memory // MIB} MiB are offered, this kernel with its initrd needs {least // MIB} MiB"
        yield Refusal("the memory suffices", fact, f"--memory {least // MIB}")
    if spawn.longest_run < memory:
        fact = f"{memory // MIB} MiB are wanted in one piece, {spawn.longest_run // MIB} MiB could go offline so"
        yield Refusal("memory can be taken offline", fact, f"Ask for less, or boot with {movablecore(memory)}")
    if spawn.memory_available < memory + LEFT_OVER:
        fact = f"{spawn.memory_available // MIB} MiB are available, {memory // MIB} MiB are wanted"
        remedy = f"Free memory, or ask for less; {LEFT_OVER // MIB} MiB must stay available here"
        yield Refusal("memory can be spared", fact, remedy)
