"""What a new kernel beside this one could be given, and what stands in the way: part of the facts.

What could not be determined has a neutral value here (None, 0, empty) and its reason in `SpawnFacts.unknown`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from kupgrade.model.machine import CpuSet, Topology
from kupgrade.model.pci import Movable, Need


class ModuleState(enum.Enum):
    """Whether this kernel has the module kspawn."""

    LOADED = "loaded"
    INSTALLED = "installed"
    MISSING = "missing"
    UNKNOWN = "unknown"


class Stack(enum.Enum):
    """What lies between a file system and its disk."""

    PLAIN = "a partition or a whole disk"
    LINEAR = "a plain mapping of one partition or disk"  # what an earlier upgrade of this kind leaves behind
    MAPPED = "device mapper"
    RAID = "md"
    LOOP = "a loop device"
    OTHER = "no block device"  # network, overlay, memory
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class RootPort:
    """A root port with one device behind it. `needs`: what this host needs the device for.

    `modules`: the drivers of its functions and of everything that hangs on them, by module name.
    """

    movable: Movable
    needs: tuple[Need, ...] = ()
    modules: tuple[str, ...] = ()

    @property
    def address(self) -> str:
        """The port's PCI address, as sysfs writes it."""
        return str(self.movable.port.address)

    @property
    def drivers(self) -> tuple[str, ...]:
        """The drivers bound to its functions."""
        return tuple(sorted({each.driver for each in self.movable.functions if each.driver}))


@dataclass(frozen=True, slots=True)
class RootFileSystem:
    """`ports`: the root ports of the disks it lies on, one entry a disk, empty text for a disk behind none.

    `options`: as mount(8) takes them. `uuid`: empty when unknown.
    """

    source: str
    fstype: str
    uuid: str
    options: str
    stack: Stack
    ports: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OtherFileSystem:
    """A mounted file system on a block device, besides the root's. `writable`: the file system, not one mount of it."""

    mountpoint: str
    source: str
    fstype: str
    writable: bool
    ports: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Nic:
    """A physical interface that carries addresses of more than the link's scope.

    `port`: its root port's address, empty when it lies behind none. `through`: virtual interfaces (bridge, bond, VLAN)
    that have the addresses instead of it; empty when it has them itself.
    """

    name: str
    mac: str
    port: str
    through: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SpawnFacts:
    """All of it. Sizes in bytes.

    `bsp`: the CPU that is the real boot-strap processor. `isolated`: outside the scheduler's reach. `stuck`: online
    CPUs that cannot go offline. `smt`: as the kernel's smt/control. `longest_run`: of online memory blocks that adjoin,
    without block 0. `movable_bytes`: in ZONE_MOVABLE. `ecam`: configuration space is memory-mapped. `encrypted`: SME,
    SEV or TDX. `ipi_broadcast`: no no_ipi_broadcast=1. `spawned`: this kernel was itself started beside another one.
    """

    module: ModuleState
    topology: Topology | None = None
    isolated: CpuSet = field(default_factory=CpuSet)
    stuck: CpuSet = field(default_factory=CpuSet)
    bsp: int | None = None
    smt: str = ""
    block_size: int = 0
    blocks_online: int = 0
    blocks_removable: int = 0
    movable_bytes: int = 0
    longest_run: int = 0
    memory_total: int = 0
    memory_available: int = 0
    ports: tuple[RootPort, ...] = ()
    ecam: bool | None = None
    root: RootFileSystem | None = None
    others: tuple[OtherFileSystem, ...] = ()
    swaps: tuple[str, ...] = ()
    nics: tuple[Nic, ...] = ()
    interrupt_remapping: bool | None = None
    five_levels: bool = False
    x2apic: bool | None = None
    hypervisor: bool = False
    xen: bool = False
    encrypted: bool | None = None
    ipi_broadcast: bool = True
    spawned: bool = False
    unknown: Mapping[str, str] = field(default_factory=dict)

    def port(self, address: str) -> RootPort | None:
        """The root port with this address; None when there is none with one device behind it."""
        return next((each for each in self.ports if each.address == address), None)

    @property
    def values(self) -> Mapping[str, str]:
        """What a plan rests on, by name; nothing that changes by itself (memory in use, power states)."""
        root = self.root
        return {
            "kspawn for this kernel": str(self.module in (ModuleState.LOADED, ModuleState.INSTALLED)),
            "online CPUs": str(self.topology.online) if self.topology else "",
            "devices behind root ports": "; ".join(f"{each.address} {' '.join(each.drivers)}" for each in self.ports),
            "root file system": f"{root.source} {root.fstype} {root.uuid} {' '.join(root.ports)}" if root else "",
            "interfaces with addresses": " ".join(f"{nic.name}@{nic.port}" for nic in self.nics),
        }
