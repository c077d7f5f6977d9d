"""Facts, policy and target for tests of the planner: a healthy host, changed by keyword."""

from __future__ import annotations

import dataclasses
from typing import Any

from kupgrade.model.facts import Descriptor, Facts, ProcessFacts, StoreFacts, WorkloadFacts
from kupgrade.model.kernel import Compression, Initrd, KernelImage, KernelRelease
from kupgrade.model.machine import Cpu, CpuSet, NumaNode, PciAddress, Topology
from kupgrade.model.pci import Bridge, DomainType, Movable, Need, PciFunction
from kupgrade.model.policy import EngineOptions, Policy, SpawnOptions, WorkloadPolicy
from kupgrade.model.spawn_facts import ModuleState, Nic, RootFileSystem, RootPort, SpawnFacts, Stack
from kupgrade.model.target import Target
from kupgrade.model.workload import Workload

OLD, NEW = "6.12.1-amd64", "7.3.4-amd64"


def workload(**changes: Any) -> Workload:
    base = Workload("demo", "demo.service", "/system.slice/demo.service", 500, (500, 501), tcp_ports=(7070,))
    return dataclasses.replace(base, **changes)


def process(**changes: Any) -> ProcessFacts:
    base = ProcessFacts(500, "demo", root=True, below_root=True, session_leader=True, traced_by=0)
    return dataclasses.replace(base, **changes)


def descriptor(kind: str, name: str = "", **changes: Any) -> Descriptor:
    return dataclasses.replace(Descriptor(5, kind, name), **changes)


def seen(*processes: ProcessFacts, **changes: Any) -> WorkloadFacts:
    base = WorkloadFacts(
        "demo",
        "demo.service",
        workload(),
        processes=processes or (process(),),
        anonymous_bytes=64 << 20,
        own_clock=True,
    )
    return dataclasses.replace(base, **changes)


def facts(**changes: Any) -> Facts:
    base = Facts(
        boot_id="boot-a",
        release=OLD,
        architecture="x86_64",
        cmdline="root=/dev/vda ro quiet panic=3",
        root_user=True,
        systemd=True,
        kexec_loaded=False,
        kexec_disabled=False,
        lockdown="none",
        criu_version=(4, 2, 1),
        criu_check="",
        nft=True,
        panic_timeout=3,
        pid_max=4194304,
        highest_kernel_thread=90,
        memory_bytes=2 << 30,
        watchdog="watchdog0 (i6300ESB timer)",
        watchdog_why="",
        boot_loader="grub",
        boot_default="old",
        stores=StoreFacts("/var/lib/kupgrade/images", 10 << 30, "/dev/pmem0", 512 << 20),
        workloads=(seen(),),
        active_services=("cron.service", "dbus.service", "demo.service", "needed.service"),
        needed_services=("needed.service",),
        boot_seconds=5.0,
        early_agent=True,
    )
    return dataclasses.replace(base, **changes)


PORT_DISK, PORT_NIC, PORT_BUS = "0000:00:02.0", "0000:00:03.0", "0000:00:04.0"


def topology(cores: int = 4, threads: int = 1, offline: tuple[int, ...] = ()) -> Topology:
    """Cores with adjoining threads, APIC IDs as CPU numbers; what is offline has neither siblings nor APIC ID."""
    cpus = []
    for number in range(cores * threads):
        core = number // threads
        mates = CpuSet(tuple(n for n in range(core * threads, (core + 1) * threads) if n not in offline))
        there = number not in offline
        cpus.append(Cpu(number, there, number if there else None, core, 0, 0, mates if there else None))
    return Topology(tuple(cpus), (NumaNode(0, CpuSet(tuple(range(cores * threads))), 4 << 30),))


def root_port(
    address: str,
    driver: str = "virtio-pci",
    *modules: str,
    class_code: int = 0x010000,
    iommu: DomainType | None = None,
    needs: tuple[Need, ...] = (),
) -> RootPort:
    """A root port with one function behind it, on the bus that has its device number."""
    port = PciAddress.parse(address)
    place = PciAddress(0, port.device, 0, 0)
    group = None if iommu is None else 1
    function = PciFunction(place, 0x1AF4, 0x1042, class_code, driver, (port,), group, iommu, "on")
    movable = Movable(Bridge(port, port.device, port.device, True, ()), (function,))
    return RootPort(movable, needs, modules)


def spawn(**changes: Any) -> SpawnFacts:
    """A virtual host with four CPUs and 4 GiB, on which a second kernel can be started."""
    base = SpawnFacts(
        module=ModuleState.INSTALLED,
        topology=topology(),
        stuck=CpuSet.of(0),
        bsp=0,
        smt="notsupported",
        block_size=128 << 20,
        blocks_online=32,
        blocks_removable=32,
        movable_bytes=1 << 30,
        longest_run=2 << 30,
        memory_total=4 << 30,
        memory_available=3 << 30,
        ports=(
            root_port(PORT_DISK, "virtio-pci", "virtio_blk", "virtio_pci", needs=(Need.ROOT,)),
            root_port(PORT_NIC, "virtio-pci", "virtio_net", "virtio_pci", class_code=0x020000),
            root_port(PORT_BUS, "virtio-pci", "virtio_console", "virtio_pci", class_code=0x078000),
        ),
        ecam=True,
        root=RootFileSystem("/dev/vda1", "ext4", "0f0f", "rw,relatime", Stack.PLAIN, (PORT_DISK,)),
        nics=(Nic("eth0", "52:54:00:00:00:01", PORT_NIC),),
        interrupt_remapping=False,
        x2apic=False,
        hypervisor=True,
        encrypted=False,
        ipi_broadcast=False,
    )
    return dataclasses.replace(base, **changes)


def spawn_policy(**options: Any) -> Policy:
    """The policy of `policy()`, with options of the spawn engine."""
    return policy(engine=EngineOptions(spawn=SpawnOptions(**options)))


def policy(**changes: Any) -> Policy:
    return dataclasses.replace(Policy(workloads=(WorkloadPolicy("demo", unit="demo.service"),)), **changes)


def target(**changes: Any) -> Target:
    image = KernelImage(
        path=f"/boot/vmlinuz-{NEW}",
        release=KernelRelease(NEW),
        version=NEW,
        architecture="x86_64",
        size=1,
        sha256="0",
        compression=Compression.ZSTD,
        protocol=0x20F,
        relocatable=True,
        xloadflags=1,
        init_size=1,
        cmdline_limit=2047,
        signed=True,
    )
    initrd = Initrd(f"/boot/initrd.img-{NEW}", 1, "0", (Compression.ZSTD,), (KernelRelease(NEW),), True, True)
    base = Target(image, initrd, (), True, (), f"/boot/vmlinuz-{OLD}", f"/boot/initrd.img-{OLD}")
    for name in list(changes):
        if name in ("release", "architecture", "signed"):
            value: Any = changes.pop(name)
            value = KernelRelease(value) if name == "release" else value
            base = dataclasses.replace(base, image=dataclasses.replace(base.image, **{name: value}))
        elif name in ("releases", "has_init", "has_shell"):
            base = dataclasses.replace(base, initrd=dataclasses.replace(base.initrd, **{name: changes.pop(name)}))
    return dataclasses.replace(base, **changes)
