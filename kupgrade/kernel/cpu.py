"""CPUs: topology, APIC IDs, taking them offline and bringing them back.

Sources: Documentation/admin-guide/cputopology.rst, Documentation/core-api/cpu_hotplug.rst,
Documentation/ABI/testing/sysfs-devices-system-cpu, arch/x86/kernel/cpu/proc.c (/proc/cpuinfo).
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kupgrade.errors import BadInputError, KernelError
from kupgrade.kernel.libc import read_text, reported, write_text
from kupgrade.model.machine import Cpu, CpuSet, NumaNode, Topology

CPUS = "sys/devices/system/cpu"
NODES = "sys/devices/system/node"


@dataclass(frozen=True, slots=True)
class CpuInfo:
    """What /proc/cpuinfo says: APIC IDs of the online CPUs; flags that all of them have; bits of physical addresses.

    `physical_bits` is None when no line tells.
    """

    apic_ids: Mapping[int, int]
    flags: frozenset[str]
    physical_bits: int | None

    @property
    def gib_pages(self) -> bool:
        """Whether page tables may hold pages of 1 GiB."""
        return "pdpe1gb" in self.flags

    @property
    def five_levels(self) -> bool:
        """Whether the running kernel may use page tables of five levels (it hides the flag when booted with no5lvl)."""
        return "la57" in self.flags

    @property
    def hypervisor(self) -> bool:
        """Whether this is a virtual machine."""
        return "hypervisor" in self.flags


@dataclass(frozen=True, slots=True)
class Masks:
    """The kernel's sets of CPUs. `isolated` (isolcpus=) and `nohz_full`: None when the kernel does not tell."""

    online: CpuSet
    present: CpuSet
    possible: CpuSet
    isolated: CpuSet | None
    nohz_full: CpuSet | None


def parse_cpuinfo(text: str) -> CpuInfo:
    """Read /proc/cpuinfo of x86. Raises BadInputError for numbers that are none and for CPUs without an APIC ID."""
    apic_ids: dict[int, int] = {}
    flags: frozenset[str] | None = None
    bits: int | None = None
    for block in re.split(r"\n\s*\n", text.strip()):
        facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in block.splitlines())}
        if "processor" not in facts:
            continue
        try:
            apic_ids[int(facts["processor"])] = int(facts["apicid"])
        except (ValueError, KeyError) as error:
            raise BadInputError("/proc/cpuinfo cannot be read", f"{block[:60]!r} names no APIC ID") from error
        own = frozenset(facts.get("flags", "").split())
        flags = own if flags is None else flags & own
        if match := re.match(r"([0-9]{1,2}) bits physical", facts.get("address sizes", "")):
            bits = int(match[1]) if bits is None else min(bits, int(match[1]))
    return CpuInfo(apic_ids, flags or frozenset(), bits)


def cpuinfo(root: Path = Path("/")) -> CpuInfo:
    """This machine's. Raises KernelError and BadInputError."""
    return parse_cpuinfo(read_text(root / "proc/cpuinfo"))


def _set(name: str, root: Path) -> CpuSet | None:
    """One of the kernel's masks; None when this kernel has no such file."""
    try:
        return CpuSet.parse(read_text(root / CPUS / name))
    except KernelError as error:
        if error.errno == errno.ENOENT:
            return None
        raise


def masks(root: Path = Path("/")) -> Masks:
    """Raises KernelError (also when online, present or possible is missing) and BadInputError."""
    online, present, possible = (
        CpuSet.parse(read_text(root / CPUS / name)) for name in ("online", "present", "possible")
    )
    return Masks(online, present, possible, _set("isolated", root), _set("nohz_full", root))


def smt_control(root: Path = Path("/")) -> str | None:
    """on, off, forceoff, notsupported, notimplemented, or a number of threads; None when unknown."""
    try:
        return read_text(root / CPUS / "smt/control").strip()
    except KernelError:
        return None


def is_online(cpu: int, root: Path = Path("/")) -> bool:
    """Asked anew. A CPU without an `online` file cannot be taken offline; the mask tells. Raises KernelError."""
    return cpu in CpuSet.parse(read_text(root / CPUS / "online"))


def can_go_offline(cpu: int, root: Path = Path("/")) -> bool:
    """Whether the kernel offers to take it offline at all (since Linux 6.5 never CPU 0)."""
    return (root / CPUS / f"cpu{cpu}" / "online").exists()


def _turn(cpu: int, online: bool, root: Path) -> None:
    path = root / CPUS / f"cpu{cpu}" / "online"
    write_text(path, "1" if online else "0")
    state = read_text(path).strip()
    if state != ("1" if online else "0"):
        # The kernel accepted the write; someone else changed it back, or it lies.
        raise KernelError("verify", str(path), errno.EAGAIN, f"it reads {state!r} after the write")


def take_offline(cpu: int, root: Path = Path("/")) -> None:
    """This kernel stops using the CPU. Does nothing when it is offline.

    Raises KernelError: ENOENT (it cannot go offline), EBUSY (the last one, or a deadline task's), EPERM.
    """
    _turn(cpu, False, root)


def bring_online(cpu: int, root: Path = Path("/")) -> None:
    """This kernel uses the CPU again. Does nothing when it is online.

    Raises KernelError: EIO (it did not answer), EPERM (SMT is switched off), ENOENT.
    """
    _turn(cpu, True, root)


def _number(path: Path) -> int | None:
    """A number that offline CPUs do not have; -1, as some firmware gives, is unknown too."""
    try:
        value = int(read_text(path))
    except (KernelError, ValueError):
        return None
    return value if value >= 0 else None


def _siblings(folder: Path) -> CpuSet | None:
    for name in ("core_cpus_list", "thread_siblings_list"):  # the second is the name before Linux 5.3
        try:
            return CpuSet.parse(read_text(folder / name)) or None
        except KernelError:
            continue
    return None


def nodes(root: Path = Path("/")) -> tuple[NumaNode, ...]:
    """The NUMA nodes by number; none when the kernel is built without NUMA. Raises KernelError and BadInputError."""
    if not (root / NODES).is_dir():
        return ()
    with reported("readdir", root / NODES):
        names = [path.name for path in (root / NODES).iterdir()]
    found = []
    for number in sorted(int(name[4:]) for name in names if re.fullmatch(r"node[0-9]{1,5}", name)):
        folder = root / NODES / f"node{number}"
        match = None
        try:
            match = re.search(r"MemTotal:\s*([0-9]{1,18}) kB", read_text(folder / "meminfo"))
        except KernelError:
            pass  # then its size is unknown
        cpus = CpuSet.parse(read_text(folder / "cpulist"))
        found.append(NumaNode(number, cpus, int(match[1]) * 1024 if match else None))
    return tuple(found)


def topology(known_apic_ids: Mapping[int, int] | None = None, root: Path = Path("/")) -> Topology:
    """Every present CPU. The kernel forgets the APIC IDs of offline CPUs: `known_apic_ids` were noted while online.

    Raises KernelError and BadInputError.
    """
    every, info, numa = masks(root), cpuinfo(root), nodes(root)
    apic_ids = {**(known_apic_ids or {}), **info.apic_ids}
    node_of = {cpu: node.number for node in numa for cpu in node.cpus}
    cpus = []
    for number in every.present:
        folder, online = root / CPUS / f"cpu{number}" / "topology", number in every.online
        cpus.append(
            Cpu(
                number=number,
                online=online,
                apic_id=apic_ids.get(number),
                core=_number(folder / "core_id"),
                package=_number(folder / "physical_package_id"),
                node=node_of.get(number),
                siblings=_siblings(folder) if online else None,
            )
        )
    return Topology(tuple(cpus), numa)
