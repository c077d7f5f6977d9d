"""Facts for a kernel beside this one: CPUs, memory, devices, file systems. Read-only; failures are recorded."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from kupgrade import probe_storage
from kupgrade.errors import KernelError
from kupgrade.host import command, kernels
from kupgrade.kernel import acpi, blockfs, cpu, kspawn, memory_blocks, pci, pci_host, pci_needs, proc
from kupgrade.kernel.libc import read_text
from kupgrade.model.facts import Unknowns
from kupgrade.model.kernel import CommandLine
from kupgrade.model.machine import CpuSet, Topology
from kupgrade.model.memory import BlockState, MemoryBlock
from kupgrade.model.spawn import BOX_PARAMETER, MODULE
from kupgrade.model.spawn_facts import (
    ModuleState,
    Nic,
    RootPort,
    SpawnFacts,
)

# Attribute directories below a device, in which no other device is: not walked, a disk has hundreds of them.
_ATTRIBUTES = frozenset(("power", "queue", "queues", "mq", "msi_irqs", "statistics", "integrity", "trace", "iommu"))
_REMAPPED = re.compile(r"\bIR-(?:PCI|IO-APIC)")
_NOT_REMAPPED = re.compile(r"\b(?:PCI-MSI|IO-APIC)")


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
        root=unknown.ask("root file system", lambda: probe_storage.root_file_system(held, root, unknown), None)
        if held
        else None,
        others=unknown.ask("other file systems", lambda: probe_storage.others(mounts, held, root), ()),
        swaps=unknown.ask("swap", lambda: probe_storage.swaps(root), ()),
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
    # Isolated partitions of cpuset (Linux 6.7) are not among isolcpus=.
    partitions = CpuSet.parse(_first_word(root / "sys/fs/cgroup/cpuset.cpus.isolated"))
    return (masks.isolated or CpuSet()) | (masks.nohz_full or CpuSet()) | partitions


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
    functions = pci.functions(root)
    for each in (*pci.movable(functions, pci.bridges(root)), *pci_host.movable(functions, root)):
        needs = {need for f in each.functions for need in found.functions.get(f.address, ())}
        modules = {name for f in each.functions for name in _modules(pci.folder_of(f.address, root).resolve(), root)}
        ports.append(RootPort(each, tuple(sorted(needs, key=lambda n: n.name)), tuple(sorted(modules))))
    return tuple(ports)


def _modules(folder: Path, root: Path) -> set[str]:
    """The modules of the drivers of a device and of all devices below it.

    What is compiled in here may be a module of another kernel. It has no link to a module, so it is known by the
    driver's name, where that is a module's name.
    """
    found, linkless = set(), set()
    for top, names, _ in os.walk(folder):
        driver = Path(top, "driver")
        if "driver" in names and (driver / "module").exists():
            found.add((driver / "module").resolve().name)
        elif "driver" in names:
            linkless.add(driver.resolve().name.replace("-", "_"))
        names[:] = [name for name in names if name not in _ATTRIBUTES]
    present = kernels.modules_present(proc.release(root), linkless, root) if linkless else {}
    return found | {name for name, where in present.items() if where is kernels.Presence.BUILTIN}


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
            ports[physical] = probe_storage.port_of(device)
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
