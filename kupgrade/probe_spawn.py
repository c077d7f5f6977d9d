"""Facts for a kernel beside this one: CPUs, memory, devices, file systems. Read-only; failures are recorded."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from kupgrade.errors import KernelError, KupgradeError
from kupgrade.host import command, kernels
from kupgrade.kernel import acpi, blockfs, cpu, kspawn, memory_blocks, pci, pci_needs, proc
from kupgrade.kernel.libc import read_text
from kupgrade.model.kernel import CommandLine
from kupgrade.model.machine import CpuSet, Topology
from kupgrade.model.memory import BlockState, MemoryBlock
from kupgrade.model.spawn import BOX_PARAMETER, MODULE
from kupgrade.model.spawn_facts import (
    ModuleState,
    Nic,
    OtherFileSystem,
    RootFileSystem,
    RootPort,
    SpawnFacts,
    Stack,
)

T = TypeVar("T")

# Attribute directories below a device, in which no other device is: not walked, a disk has hundreds of them.
_ATTRIBUTES = frozenset(("power", "queue", "queues", "mq", "msi_irqs", "statistics", "integrity", "trace", "iommu"))
_REMAPPED = re.compile(r"\bIR-(?:PCI|IO-APIC)")
_NOT_REMAPPED = re.compile(r"\b(?:PCI-MSI|IO-APIC)")


class Unknowns(dict[str, str]):
    """Facts that could not be determined, with the reason."""

    def ask(self, name: str, question: Callable[[], T], otherwise: T) -> T:
        """The answer, or `otherwise` with the reason recorded."""
        try:
            return question()
        except (KupgradeError, OSError, ValueError) as error:
            self[name] = str(error)
            return otherwise


@dataclass(frozen=True, slots=True)
class _Memory:
    """Of the memory blocks; bytes and counts."""

    size: int = 0
    online: int = 0
    removable: int = 0
    movable_bytes: int = 0
    longest_run: int = 0


def observe_spawn(root: Path = Path("/")) -> SpawnFacts:
    """Everything about this machine that a second kernel depends on. Needs root; never raises KupgradeError."""
    unknown = Unknowns()
    line = unknown.ask("command line", lambda: proc.cmdline(root), CommandLine(()))
    flags = unknown.ask("CPU flags", lambda: cpu.cpuinfo(root).flags, frozenset[str]())
    info = _info(root)
    topology = unknown.ask("CPUs", lambda: cpu.topology(root=root), None)
    memory = unknown.ask("memory blocks", lambda: _memory(root), _Memory())
    sizes = unknown.ask("memory", lambda: proc.meminfo(root), dict[str, int]())
    mounts = unknown.ask("mounts", lambda: blockfs.mounts(root), tuple[blockfs.Mount, ...]())
    held = blockfs.holding(mounts, "/")
    return SpawnFacts(
        module=unknown.ask(MODULE, lambda: _module(root, unknown), ModuleState.UNKNOWN),
        topology=topology,
        isolated=unknown.ask("isolated CPUs", lambda: _isolated(root), CpuSet()),
        stuck=unknown.ask("CPUs that cannot go offline", lambda: _stuck(topology, root), CpuSet()),
        bsp=_bsp(topology, line, info, unknown),
        smt=cpu.smt_control(root) or "",
        block_size=memory.size,
        blocks_online=memory.online,
        blocks_removable=memory.removable,
        movable_bytes=memory.movable_bytes,
        longest_run=memory.longest_run,
        memory_total=sizes.get("MemTotal", 0),
        memory_available=sizes.get("MemAvailable", 0),
        ports=unknown.ask("PCI", lambda: _ports(root, unknown), ()),
        ecam=unknown.ask("ECAM", lambda: bool(acpi.host_mcfg(root)), None),
        root=unknown.ask("root file system", lambda: _root(held, root, unknown), None) if held else None,
        others=unknown.ask("other file systems", lambda: _others(mounts, held, root), ()),
        swaps=unknown.ask("swap", lambda: _swaps(root), ()),
        nics=unknown.ask("interfaces with addresses", lambda: _nics(root), ()),
        interrupt_remapping=unknown.ask("interrupt remapping", lambda: _remapping(root), None),
        five_levels=info.la57 if info else "la57" in flags,
        x2apic=info.x2apic if info else (None if "x2apic" in flags else False),
        hypervisor="hypervisor" in flags,
        xen=_first_word(root / "sys/hypervisor/type") == "xen",
        encrypted=None if not flags else not info and _encrypted(flags, line),
        ipi_broadcast=line.get("no_ipi_broadcast") not in ("1", "y", "on"),
        spawned=line.has(BOX_PARAMETER),
        unknown=dict(unknown),
    )


def _first_word(path: Path) -> str:
    try:
        return read_text(path).strip()
    except KernelError:
        return ""


def _info(root: Path) -> kspawn.Info | None:
    """What the module says; None when it is not loaded (or its device is not ours to open)."""
    try:
        with kspawn.open_device(root, writable=False) as device:
            return device.info()
    except KernelError:
        return None


def _module(root: Path, unknown: Unknowns) -> ModuleState:
    if (root / "sys/module" / MODULE).is_dir():
        return ModuleState.LOADED
    release = proc.release(root)
    match kernels.modules_present(release, [MODULE], root)[MODULE]:
        case kernels.Presence.MODULE | kernels.Presence.BUILTIN:
            return ModuleState.INSTALLED
        case kernels.Presence.MISSING:
            return ModuleState.MISSING
    unknown[MODULE] = f"the modules of {release} are not installed, or have no index"
    return ModuleState.UNKNOWN


def _isolated(root: Path) -> CpuSet:
    masks = cpu.masks(root)
    return (masks.isolated or CpuSet()) | (masks.nohz_full or CpuSet())


def _stuck(topology: Topology | None, root: Path) -> CpuSet:
    online = topology.online if topology else ()
    return CpuSet(tuple(number for number in online if not cpu.can_go_offline(number, root)))


def _bsp(topology: Topology | None, line: CommandLine, info: kspawn.Info | None, unknown: Unknowns) -> int | None:
    """The CPU that is the real boot-strap processor; CPU 0 only where the firmware started this kernel."""
    told = line.get(f"{MODULE}.bsp")
    apic_id = info.bsp_apic_id if info else None
    if apic_id is None and told and told.isdecimal():
        apic_id = int(told)
    if apic_id is None:
        if not line.has(BOX_PARAMETER):
            return 0
        unknown["real BSP"] = "this kernel was started beside another one and was not told its APIC ID"
        return None
    found = topology.with_apic_id(apic_id) if topology else None
    if found is None:
        unknown["real BSP"] = f"no online CPU has its APIC ID {apic_id}"
        return None
    return found.number


def _memory(root: Path) -> _Memory:
    size, blocks = memory_blocks.block_size(root), memory_blocks.blocks(root)
    online = [each for each in blocks if each.state is BlockState.ONLINE]
    usable = [each for each in online if each.number > 0 and each.removable is not False]
    movable = sum(each.movable for each in online)
    return _Memory(size, len(online), sum(e.removable is True for e in online), movable * size, size * _longest(usable))


def _longest(blocks: list[MemoryBlock]) -> int:
    """How many blocks, at most, adjoin."""
    best = run = 0
    before = -1
    for each in blocks:
        run = run + 1 if each.number == before + 1 else 1
        best, before = max(best, run), each.number
    return best


def _ports(root: Path, unknown: Unknowns) -> tuple[RootPort, ...]:
    found = pci_needs.needs(root)
    if found.unknown:
        unknown["what devices are needed for"] = "; ".join(found.unknown)
    ports = []
    for each in pci.movable(pci.functions(root), pci.bridges(root)):
        needs = {need for f in each.functions for need in found.functions.get(f.address, ())}
        modules = {name for f in each.functions for name in _modules(pci.folder_of(f.address, root).resolve())}
        ports.append(RootPort(each, tuple(sorted(needs, key=lambda n: n.name)), tuple(sorted(modules))))
    return tuple(ports)


def _modules(folder: Path) -> set[str]:
    """The modules of the drivers of a device and of all devices below it; what is compiled in has none."""
    found = set()
    for top, names, _ in os.walk(folder):
        module = Path(top, "driver/module")
        if "driver" in names and module.exists():
            found.add(module.resolve().name)
        names[:] = [name for name in names if name not in _ATTRIBUTES]
    return found


def _port_of(device: Path) -> str:
    """The root port above a device; empty when there is none."""
    path = pci.addresses_in(device.resolve())
    return str(path[0]) if len(path) > 1 else ""


def _root(mount: blockfs.Mount, root: Path, unknown: Unknowns) -> RootFileSystem:
    block = pci_needs.block_of(mount, root)
    stack = _stack(block) if block.exists() else Stack.OTHER
    disks = pci_needs.disks_below(block) or ()
    if not disks and stack is not Stack.OTHER:
        unknown["disks below /"] = f"{mount.source} could not be traced to hardware"
    # Both may say ro or rw, and the mount's word counts; seclabel is printed, but no option.
    names = dict.fromkeys((*mount.options, *(o for o in mount.super_options if o not in ("rw", "ro", "seclabel"))))
    uuid = unknown.ask("root UUID", lambda: _uuid(block, root), "") if block.exists() else ""
    ports = tuple(_port_of(disk) for disk in disks)
    return RootFileSystem(mount.source, mount.fstype, uuid, ",".join(names), stack, ports)


def _stack(block: Path) -> Stack:
    device = block.resolve()
    below = [path.resolve() for path in (device / "slaves").glob("*")]
    if (device / "dm").is_dir():
        plain = len(below) == 1 and _stack(below[0]) is Stack.PLAIN and _whole(device, below[0])
        return Stack.LINEAR if plain else Stack.MAPPED
    disk = device.parent if (device / "partition").exists() else device
    for name, kind in (("md", Stack.RAID), ("loop", Stack.LOOP), ("dm", Stack.MAPPED)):
        if (disk / name).is_dir():
            return kind
    return Stack.PLAIN


def _whole(mapped: Path, below: Path) -> bool:
    """Whether a mapped device is nothing but another name for the whole of the one below it."""
    sectors = read_text(below / "size").strip()
    name = read_text(mapped / "dm/name").strip()
    words = command.run(["dmsetup", "table", name], timeout=10.0).stdout.split()
    return words == ["0", sectors, "linear", read_text(below / "dev").strip(), "0"]


def _uuid(block: Path, root: Path) -> str:
    """The file system's UUID, by udev's links, else by asking blkid."""
    device = block.resolve()
    same = {device.name, *(path.name for path in (device / "slaves").glob("*"))}
    links = root / "dev/disk/by-uuid"
    for link in sorted(links.iterdir()) if links.is_dir() else ():
        if link.is_symlink() and link.readlink().name in same:
            return link.name
    argv = ["blkid", "-p", "-s", "UUID", "-o", "value", str(root / "dev" / device.name)]
    return command.run(argv, timeout=10.0).stdout.strip()


def _others(mounts: tuple[blockfs.Mount, ...], held: blockfs.Mount | None, root: Path) -> tuple[OtherFileSystem, ...]:
    """Each file system once, by its first mount."""
    found: dict[str, OtherFileSystem] = {}
    for each in mounts:
        here = held is not None and (each.device == held.device or each.source == held.source)
        if here or not each.block_backed or each.fstype.startswith("fuse.") or each.source in found:
            continue
        ports = tuple(_port_of(disk) for disk in pci_needs.disks_of(each, root) or ())
        found[each.source] = OtherFileSystem(each.mountpoint, each.source, each.fstype, each.writable, ports)
    return tuple(found.values())


def _swaps(root: Path) -> tuple[str, ...]:
    """Swap areas on disks and in files; compressed memory needs nothing to be carried over."""
    return tuple(name for name, _ in pci_needs.swaps(root) if not Path(name).name.startswith("zram"))


def _nics(root: Path) -> tuple[Nic, ...]:
    links = json.loads(command.run(["ip", "-json", "address", "show"], timeout=10.0).stdout or "[]")
    through: dict[str, list[str]] = {}
    ports: dict[str, str] = {}
    for link in links:
        name = link["ifname"].partition("@")[0]
        if name == "lo" or not any(each.get("scope") == "global" for each in link.get("addr_info", ())):
            continue
        for device in pci_needs.devices_below(name, root) or ():
            physical = device.parent.name
            ports[physical] = _port_of(device)
            through.setdefault(physical, []).extend([name] if name != physical else [])
    macs = {each: _first_word(root / "sys/class/net" / each / "address") for each in ports}
    return tuple(Nic(each, macs[each], ports[each], tuple(sorted(through[each]))) for each in sorted(ports))


def _remapping(root: Path) -> bool | None:
    """By the names of the interrupt controllers in use; None when none is named."""
    text = read_text(root / "proc/interrupts")
    if _REMAPPED.search(text):
        return True
    return False if _NOT_REMAPPED.search(text) else None


def _encrypted(flags: frozenset[str], line: CommandLine) -> bool:
    guest = "tdx_guest" in flags or ("hypervisor" in flags and bool(flags & {"sev", "sev_es", "sev_snp"}))
    return guest or ("sme" in flags and line.get("mem_encrypt") == "on")
