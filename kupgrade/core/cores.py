"""Which CPUs a new kernel starts on, and in which order the others follow when the old kernel retires.

Cores go as a whole: two kernels on two threads of one core would share its caches, its speed and its side channels.
"""

from __future__ import annotations

from dataclasses import dataclass

from kupgrade.model.machine import CpuSet, Topology
from kupgrade.model.plan import Refusal

NONE = CpuSet()
REAL_BSP = 0  # INIT to the boot-strap processor resets the machine, so it moves only when the old kernel jumps away


@dataclass(frozen=True, slots=True)
class CoreChoice:
    """`first`: the new kernel's CPUs, the one that boots it first. `stays`: the old kernel's until it retires.

    `later`: `stays` in the order in which they pass over; the real BSP last.
    """

    first: tuple[int, ...]
    stays: CpuSet
    later: tuple[int, ...]

    @property
    def given(self) -> CpuSet:
        """`first` as a set."""
        return CpuSet(self.first)


def choose(
    topology: Topology,
    cores: int,
    *,
    kept: CpuSet = NONE,
    isolated: CpuSet = NONE,
    cannot: CpuSet = NONE,
    node: int | None = None,
) -> CoreChoice | Refusal:
    """Choose `cores` whole cores for the new kernel.

    `kept`: CPUs that the old kernel needs until it retires (pinned workloads, interrupts). `isolated`: CPUs outside
    the scheduler's reach (isolcpus=, nohz_full=); each side gets at least one core without any. `cannot`: CPUs that
    cannot go offline. `node`: the NUMA node of the new kernel's memory; its cores come first. Cores with the highest
    numbers are taken first, the core of the real BSP never.
    """
    if cores < 1:
        return Refusal("cores", f"{cores} cores were asked for", "Give the new kernel at least one core")
    unknown = CpuSet(tuple(cpu.number for cpu in topology.cpus if cpu.online and cpu.apic_id is None))
    held = kept | cannot | unknown | CpuSet.of(REAL_BSP)
    free = [core for core in topology.cores if not core & held]
    busy = [core for core in topology.cores if core & held]
    if len(free) < cores:
        return _too_few(topology, cores, free, {"kept": kept, "cannot go offline": cannot, "without APIC ID": unknown})
    free.sort(key=lambda core: (topology.cpu(core.numbers[0]).node != node if node is not None else False, _last(core)))
    housekeeping = [core for core in free if not core & isolated]
    if not housekeeping:
        return Refusal(
            "housekeeping-cores",
            f"every core that could be given away has isolated CPUs ({isolated & topology.online})",
            "Free a core that is not isolated, or shorten isolcpus= and nohz_full=",
        )
    # The housekeeping core comes first: it boots the new kernel and runs everything that is not pinned there.
    taken = [housekeeping[0]]
    taken += [core for core in free if core != housekeeping[0]][: cores - 1]
    left = [core for core in free if core not in taken] + busy
    if all(core & isolated for core in left):
        # All that is left is isolated: exchange one housekeeping core for an isolated one, if there is one to spare.
        spare = [core for core in taken[1:] if not core & isolated]
        substitute = [core for core in left if not core & held]
        if not spare or not substitute:
            return Refusal(
                "housekeeping-cores",
                f"the old kernel would be left with isolated CPUs only ({isolated & topology.online})",
                "Give away fewer cores, or shorten isolcpus= and nohz_full=",
            )
        taken = [core for core in taken if core != spare[-1]] + [substitute[0]]
    first = tuple(cpu for core in taken for cpu in core)
    stays = topology.online - CpuSet(first)
    return CoreChoice(first, stays, _later(topology, stays))


def _last(core: CpuSet) -> int:
    """Sorts cores with the highest CPU numbers first: the low ones carry most interrupts."""
    return -core.numbers[0]


def _later(topology: Topology, stays: CpuSet) -> tuple[int, ...]:
    """Core by core, that of the real BSP at the end and the BSP itself last of all."""
    cores = sorted((core & stays for core in topology.cores if core & stays), key=lambda core: (REAL_BSP in core, core))
    ordered = [cpu for core in cores for cpu in core if cpu != REAL_BSP]
    return (*ordered, *((REAL_BSP,) if REAL_BSP in stays else ()))


def _too_few(topology: Topology, wanted: int, free: list[CpuSet], held: dict[str, CpuSet]) -> Refusal:
    why = "; ".join(f"{name}: {cpus}" for name, cpus in held.items() if cpus)
    return Refusal(
        "cores",
        f"{wanted} whole cores are wanted, {len(free)} of {len(topology.cores)} could be given away; "
        f"CPU {REAL_BSP}'s core stays{'; ' if why else ''}{why}",
        "Use a machine with at least two cores"
        if len(topology.cores) < 2
        else "Ask for fewer cores, or unpin what holds them",
    )
