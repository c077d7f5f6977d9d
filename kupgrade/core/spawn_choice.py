"""What a new kernel beside this one is given: CPUs, memory, devices at the handover and later, modules. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from kupgrade.core import cores
from kupgrade.core.blocks import MIB, movablecore
from kupgrade.core.box import SECTION, up
from kupgrade.core.cores import CoreChoice
from kupgrade.model.facts import Facts
from kupgrade.model.machine import Topology
from kupgrade.model.pci import CLASS_DISPLAY, DomainType
from kupgrade.model.plan import Refusal
from kupgrade.model.policy import Policy, SpawnOptions
from kupgrade.model.spawn_facts import RootPort, SpawnFacts

# Bytes. The initramfs stands in memory twice: as the archive and unpacked.
KERNEL, INITRAMFS, SLACK = 96 * MIB, 2 * 64 * MIB, 192 * MIB
# Images pass through the window in batches; it is no memory of either kernel, even in the end, so it is kept small.
WINDOW, LEAST_WINDOW, WINDOW_UNIT = 64 * MIB, 8 * MIB, 2 * MIB
# Images wait in the new kernel's memory and, restored, as processes: neither is given back in between. What is written
# between two rounds is there twice.
IN_MEMORY = 2.6
IN_OLD_MEMORY = 1.4  # until the new kernel has them all, images lie in this kernel's memory, too
LEFT_OVER = 128 * MIB  # of available memory, for the old kernel to go on with

# Drivers with callbacks for the phase in which all interrupts are off (freeze_noirq, restore_noirq), or without those
# for hibernation: kspawn refuses their devices. Others may be refused too, which is known only when they are asked.
UNWILLING = frozenset(
    ("xhci_hcd", "ehci-pci", "ohci-pci", "uhci_hcd", "snd_hda_intel", "mlx5_core", "vfio-pci", "pci-stub", "pcieport")
)


@dataclass(frozen=True, slots=True)
class SpawnChoice:
    """`cpus`: the one that boots first. `memory` and, of it, `window`: bytes.

    `handed`, `later`: PCI addresses of root ports, given in the blackout and when the old kernel retires. `modules`:
    what the new kernel needs for them and for the root file system, which `root_*` describe as mount(8) takes it.
    """

    cpus: tuple[int, ...]
    memory: int
    window: int
    handed: tuple[str, ...]
    later: tuple[str, ...]
    modules: tuple[str, ...]
    root_uuid: str
    root_fstype: str
    root_options: str


def choose(facts: Facts, policy: Policy) -> SpawnChoice | tuple[Refusal, ...]:
    """The choice, or why there is not enough to choose from. What else forbids it: see core/spawn_checks."""
    spawn, options = facts.spawn, policy.engine.spawn
    if spawn is None:
        return (Refusal("the machine is known", "its parts were not examined", "Run kupgrade as root"),)
    found: list[Refusal] = []
    chosen = choose_cores(spawn, options)
    if isinstance(chosen, Refusal):
        found.append(chosen)
    window = window_size(options)
    memory = memory_size(facts, options)
    found += _memory_refusals(spawn, memory, int(IN_OLD_MEMORY * workload_bytes(facts)))
    if spawn.root is None:
        why = spawn.unknown.get("root file system", "nothing is mounted on /")
        found.append(Refusal("the root file system is known", why, "Use the kexec engine"))
    if found or isinstance(chosen, Refusal) or spawn.root is None:
        return tuple(found)
    handed = needed_ports(spawn)
    later = tuple(each.address for each in spawn.ports if each.address not in handed and _may_follow(each, options))
    given = [each for each in spawn.ports if each.address in (*handed, *later)]
    return SpawnChoice(
        cpus=chosen.first,
        memory=memory,
        window=window,
        handed=handed,
        later=later,
        modules=tuple(sorted({spawn.root.fstype, *(name for each in given for name in each.modules)})),
        root_uuid=spawn.root.uuid,
        root_fstype=spawn.root.fstype,
        root_options=spawn.root.options,
    )


def choose_cores(spawn: SpawnFacts, options: SpawnOptions) -> CoreChoice | Refusal:
    """The policy's number of whole cores, or half of them."""
    if spawn.topology is None:
        return Refusal("the CPUs are known", spawn.unknown.get("CPUs", "unknown"), "Use the kexec engine")
    wanted = options.cores or max(1, len(spawn.topology.cores) // 2)
    return cores.choose(spawn.topology, wanted, isolated=spawn.isolated, cannot=spawn.stuck, bsp=spawn.bsp)


def apic_ids(topology: Topology, numbers: tuple[int, ...]) -> tuple[int, ...]:
    """The known APIC IDs of these CPUs."""
    return tuple(i for number in numbers if (i := topology.cpu(number).apic_id) is not None)


def needed_ports(spawn: SpawnFacts) -> tuple[str, ...]:
    """The root ports of the root's disks, then of the interfaces with addresses; disks and interfaces behind none
    are left out."""
    disks = spawn.root.ports if spawn.root else ()
    return tuple(dict.fromkeys(port for port in (*disks, *(nic.port for nic in spawn.nics)) if port))


def translated(port: RootPort) -> bool:
    """Whether an IOMMU translates, or may translate, what a function behind it addresses."""
    return any(each.iommu_type not in (None, DomainType.IDENTITY) for each in port.movable.functions)


def _may_follow(port: RootPort, options: SpawnOptions) -> bool:
    display = any(each.class_code >> 16 == CLASS_DISPLAY for each in port.movable.functions)
    driven = port.drivers and not UNWILLING & set(port.drivers)
    return bool(driven) and not display and not translated(port) and not options.keeps(port.address)


def workload_bytes(facts: Facts) -> int:
    """Memory of all workloads that has to be carried over."""
    return sum(each.anonymous_bytes + each.shared_bytes for each in facts.workloads)


def window_size(options: SpawnOptions) -> int:
    """Bytes of shared memory for the channel and for a batch of images."""
    return up(max(options.window or WINDOW, LEAST_WINDOW), WINDOW_UNIT)


def memory_size(facts: Facts, options: SpawnOptions) -> int:
    """Bytes of the whole box, in blocks of memory; the window takes whole sections of it."""
    computed = up(KERNEL + INITRAMFS + SLACK + int(IN_MEMORY * workload_bytes(facts)), SECTION)
    computed += up(window_size(options), SECTION)
    return up(options.memory or computed, max(SECTION, facts.spawn.block_size if facts.spawn else 0))


def _memory_refusals(spawn: SpawnFacts, memory: int, images: int) -> list[Refusal]:
    if not spawn.block_size:
        why = spawn.unknown.get("memory blocks", "this kernel has no memory hotplug")
        return [Refusal("memory can be taken offline", why, "Use a kernel with CONFIG_MEMORY_HOTREMOVE")]
    found = []
    if spawn.longest_run < memory:
        fact = f"{memory // MIB} MiB are wanted in one piece, {spawn.longest_run // MIB} MiB could go offline so"
        remedy = f"Boot with {movablecore(memory)}, or set [engine.spawn] memory lower"
        found.append(Refusal("memory can be taken offline", fact, remedy))
    if spawn.memory_available < memory + images + LEFT_OVER:
        fact = (
            f"{spawn.memory_available // MIB} MiB are available, {memory // MIB} MiB are wanted for the new kernel"
            f" and {images // MIB} MiB for images here"
        )
        remedy = f"Free memory; {LEFT_OVER // MIB} MiB must stay available here"
        found.append(Refusal("memory can be spared", fact, remedy))
    return found
