"""Words for PCI: functions, bridges and their windows, and what a function is needed for."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from kupgrade.model.machine import MemoryRange, PciAddress

# Upper 16 bits of the class code (PCI Code and ID Assignment Specification)
CLASS_BRIDGE_PCI = 0x0604
CLASS_DISPLAY = 0x03  # base class
CLASS_SERIAL = 0x0700


class DomainType(enum.Enum):
    """How an IOMMU group translates (/sys/kernel/iommu_groups/N/type); UNKNOWN when it could not be read."""

    IDENTITY = "identity"
    DMA = "DMA"
    DMA_FQ = "DMA-FQ"
    BLOCKED = "blocked"
    UNMANAGED = "unmanaged"
    AUTO = "auto"
    UNKNOWN = "unknown"


class Need(enum.Enum):
    """What a host needs a PCI function for; each is a reason not to give it away unasked."""

    ROOT = "the root file system"
    BOOT = "/boot"
    SWAP = "swap"
    DEFAULT_ROUTE = "the default route"
    CONSOLE = "the console"


@dataclass(frozen=True, slots=True)
class BridgeWindow:
    """A memory window of a PCI bridge: the addresses it passes on to the bus behind it."""

    range: MemoryRange
    prefetchable: bool


@dataclass(frozen=True, slots=True)
class Bridge:
    """A PCI-to-PCI bridge: the buses behind it, `secondary` to `subordinate`, and its memory windows.

    `root_port`: it stands on a root bus. `windows` is None when its resource file could not be read.
    """

    address: PciAddress
    secondary: int
    subordinate: int
    root_port: bool
    windows: tuple[BridgeWindow, ...] | None


@dataclass(frozen=True, slots=True)
class PciFunction:
    """One PCI function. `class_code`: 24 bits. `driver`: empty for none.

    `path`: the bridges above it, the root port first; empty for a function of a root bus.
    `iommu_group`: None without an IOMMU; then `iommu_type` is None too.
    """

    address: PciAddress
    vendor: int
    device: int
    class_code: int
    driver: str
    path: tuple[PciAddress, ...] = ()
    iommu_group: int | None = None
    iommu_type: DomainType | None = None
    power_control: str = ""  # "on" or "auto"; empty when unknown

    @property
    def root_port(self) -> PciAddress | None:
        """The root port it lies behind; None on a root bus."""
        return self.path[0] if self.path else None

    @property
    def is_bridge(self) -> bool:
        """Whether it is a PCI-to-PCI bridge."""
        return self.class_code >> 8 == CLASS_BRIDGE_PCI


@dataclass(frozen=True, slots=True)
class Movable:
    """A bus below a root port that can change hands as a whole: the port and every function behind it."""

    port: Bridge
    functions: tuple[PciFunction, ...]
