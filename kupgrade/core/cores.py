"""Which CPUs a new kernel starts on, and in which order the others follow when the old kernel retires.

Cores go as a whole: two kernels on two threads of one core would share its caches, its speed and its side channels.
"""

from __future__ import annotations

from dataclasses import dataclass

from kupgrade.model.machine import CpuSet, Topology
from kupgrade.model.plan import Refusal

NONE = CpuSet()
LAST = 0  # Linux never takes CPU 0 offline: it moves when the old kernel, on its last CPU, jumps away


@dataclass(frozen=True, slots=True)
class CoreChoice:
    """`first`: the new kernel's CPUs, the one that boots it first. `stays`: the old kernel's until it retires.

    `later`: `stays` in the order in which they pass over; the real BSP late, CPU 0 last.
    `offline`: present CPUs that the old kernel does not run on. They wait in its code, so they have to be started
    into another loop before its memory passes over.
    """

    first: tuple[int, ...]
    stays: CpuSet
    later: tuple[int, ...]
    offline: CpuSet

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
    bsp: int | None = LAST,
) -> CoreChoice | Refusal:
    """Choose `cores` whole cores for the new kernel.

    `kept`: CPUs that the old kernel needs until it retires (pinned workloads, interrupts). `isolated`: CPUs outside
    the scheduler's reach (isolcpus=, nohz_full=); each side gets at least one core without any. `cannot`: CPUs that
    cannot go offline. `node`: the NUMA node of the new kernel's memory; its cores come first. Cores with the highest
    numbers are taken first. `bsp`: the real boot-strap processor, which INIT would reset together with the machine. It
    is CPU 0 of a kernel that the firmware started, another one of a kernel that was spawned, None when not known. Its
    core and that of CPU 0 are never among the first.
    """
    if cores < 1:
        return Refusal("cores", f"{cores} cores were asked for", "Give the new kernel at least one core")
    if bsp is None or bsp not in topology.present:
        return Refusal(
            "real-bsp",
            "which CPU is the real boot-strap processor is not known, or it is none of this kernel's",
            "Name it by the APIC ID that the first kernel's CPU 0 had",
        )
    unknown = CpuSet(tuple(cpu.number for cpu in topology.cpus if cpu.online and cpu.apic_id is None))
    held = kept | cannot | unknown | CpuSet.of(LAST, bsp)
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
    return CoreChoice(first, stays, _later(topology, stays, bsp), topology.present - topology.online)


def _last(core: CpuSet) -> int:
    """Sorts cores with the highest CPU numbers first: the low ones carry most interrupts."""
    return -core.numbers[0]


def _later(topology: Topology, stays: CpuSet, bsp: int) -> tuple[int, ...]:
    """Core by core, those of the real BSP and of CPU 0 at the end, and in them these two."""
    cores = (core & stays for core in topology.cores)
    ordered = [cpu for core in sorted(cores, key=lambda core: (LAST in core, bsp in core, core)) for cpu in core]
    return tuple(sorted(ordered, key=lambda cpu: (cpu == LAST, cpu == bsp)))


def _too_few(topology: Topology, wanted: int, free: list[CpuSet], held: dict[str, CpuSet]) -> Refusal:
    why = "; ".join(f"{name}: {cpus}" for name, cpus in held.items() if cpus)
    return Refusal(
        "cores",
        f"{wanted} whole cores are wanted, {len(free)} of {len(topology.cores)} could be given away; "
        f"the cores of CPU {LAST} and of the real BSP stay{'; ' if why else ''}{why}",
        "Use a machine with at least two cores"
        if len(topology.cores) < 2
        else "Ask for fewer cores, or unpin what holds them",
    )
