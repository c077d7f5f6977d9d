"""Facts for a kernel beside this one, read from a fake machine."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kupgrade import probe_spawn, probe_storage
from kupgrade.errors import ToolError
from kupgrade.host.command import Completed
from kupgrade.kernel import acpi
from kupgrade.model.codec import decode, encode
from kupgrade.model.machine import CpuSet
from kupgrade.model.pci import DomainType, Need
from kupgrade.model.spawn_facts import ModuleState, Nic, SpawnFacts, Stack
from tests.fakes import facts as fake

RELEASE, UUID = fake.OLD, "613d7488-3d8e-4d71-8a3d-3594b5493821"
GIB = 1 << 30
FLAGS = "fpu lm la57 x2apic hypervisor"
DISK = "sys/devices/pci0000:00/0000:00:02.0/0000:01:00.0"
NIC = "sys/devices/pci0000:00/0000:00:03.0/0000:02:00.0"
VDA = f"{DISK}/virtio0/block/vda"


class Machine:
    """A root with files; what its tools say is set by the test."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.addresses: list[dict[str, Any]] = [
            {"ifname": "lo", "addr_info": [{"scope": "host"}]},
            {"ifname": "eth0", "addr_info": [{"scope": "global"}, {"scope": "link"}]},
        ]
        self.table = "0 20480 linear 254:1 0"

    def put(self, path: str, text: str) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text + "\n")

    def link(self, path: str, target: str) -> None:
        where, place = self.root / path, self.root / target
        where.parent.mkdir(parents=True, exist_ok=True)
        place.mkdir(parents=True, exist_ok=True)
        where.symlink_to(os.path.relpath(place, where.parent))

    def driver(self, folder: str, name: str, module: str = "") -> None:
        bus = f"sys/bus/x/drivers/{name}"
        self.link(f"{folder}/driver", bus)
        if module and not (self.root / bus / "module").exists():
            self.link(f"{bus}/module", f"sys/module/{module}")

    def function(self, folder: str, class_code: int, **files: str) -> None:
        for name, text in {"vendor": "0x1af4", "device": "0x1042", "class": f"{class_code:#08x}", **files}.items():
            self.put(f"{folder}/{name}", text)
        self.link(f"sys/bus/pci/devices/{folder.rpartition('/')[2]}", folder)

    def block(self, number: int, state: str = "online", zone: str = "Normal", removable: str = "1") -> None:
        folder = f"sys/devices/system/memory/memory{number}"
        for name, text in (("state", state), ("valid_zones", zone), ("removable", removable)):
            self.put(f"{folder}/{name}", text)

    def mount(self, *lines: str) -> None:
        self.put("proc/self/mountinfo", "\n".join(lines))

    def run(self, argv: Sequence[str], **_: Any) -> Completed:
        match argv[0]:
            case "ip":
                return Completed(0, json.dumps(self.addresses), "")
            case "dmsetup":
                return Completed(0, self.table, "")
        raise ToolError(tuple(argv), 2, "no such device")


ROOT = "21 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,seclabel,errors=remount-ro"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Four CPUs, 16 blocks of memory, disk and NIC each behind a root port."""
    made = Machine(tmp_path)
    cpus = (
        f"processor\t: {n}\napicid\t\t: {n * 2}\nflags\t\t: {FLAGS}\naddress sizes\t: 40 bits physical\n"
        for n in range(4)
    )
    made.put("proc/cpuinfo", "\n".join(cpus))
    for name in ("online", "present", "possible"):
        made.put(f"sys/devices/system/cpu/{name}", "0-3")
    made.put("sys/devices/system/cpu/isolated", "1")
    made.put("sys/devices/system/cpu/nohz_full", "(null)")
    made.put("sys/devices/system/cpu/smt/control", "notsupported")
    for n in range(4):
        made.put(f"sys/devices/system/cpu/cpu{n}/topology/core_cpus_list", str(n))
        if n:
            made.put(f"sys/devices/system/cpu/cpu{n}/online", "1")
    made.put("sys/devices/system/memory/block_size_bytes", "8000000")
    for n in range(16):
        made.block(n, zone="Movable" if n > 13 else "Normal", removable="0" if n == 5 else "1")
    made.block(20, "offline")
    made.put("proc/meminfo", "MemTotal: 4194304 kB\nMemAvailable: 3145728 kB")
    made.put("proc/cmdline", "root=/dev/vda1 ro quiet no_ipi_broadcast=1")
    made.put("proc/sys/kernel/osrelease", RELEASE)
    made.put("proc/swaps", "Filename Type Size Used Priority\n/dev/zram0 partition 1 0 100")
    made.link("sys/class/block/zram0", "sys/devices/virtual/block/zram0")
    made.put("proc/interrupts", " 24: 0 0 PCI-MSIX-0000:00:02.0 0-edge virtio0\n  4: 0 0 IO-APIC 4-edge ttyS0")
    made.put("proc/net/route", "Iface Destination\neth0 00000000 0202000A 0003 0 0 0 00000000 0 0 0")
    (tmp_path / "sys/firmware/acpi/tables").mkdir(parents=True)
    (tmp_path / "sys/firmware/acpi/tables/MCFG").write_bytes(acpi.mcfg([acpi.EcamRange(0xB0000000, 0, 0, 255)]))
    made.put(f"usr/lib/modules/{RELEASE}/modules.dep", "updates/dkms/kspawn.ko:\nkernel/virtio_blk.ko:")
    made.put(f"usr/lib/modules/{RELEASE}/modules.builtin", "kernel/drivers/virtio_console.ko")
    made.put(f"usr/lib/modules/{RELEASE}/updates/dkms/kspawn.ko", "")
    for number, bus in (("2", "1"), ("3", "2")):
        port = f"sys/devices/pci0000:00/0000:00:0{number}.0"
        made.function(port, 0x060400, secondary_bus_number=bus, subordinate_bus_number=bus, resource="")
    made.function(DISK, 0x010000)
    made.driver(DISK, "virtio-pci", "virtio_pci")
    made.driver(f"{DISK}/virtio0", "virtio_blk", "virtio_blk")
    made.driver(f"{DISK}/power/ignored", "none", "never_listed")
    made.function(NIC, 0x020000)
    made.driver(NIC, "virtio-pci", "virtio_pci")
    made.driver(f"{NIC}/virtio1", "virtio_console")
    made.driver(f"{NIC}/virtio1/strange", "not-a-module")
    made.link(f"{NIC}/iommu_group", "sys/kernel/iommu_groups/3")
    made.put("sys/kernel/iommu_groups/3/type", "DMA-FQ")
    made.put(f"{NIC}/virtio1/net/eth0/address", "52:54:00:00:00:01")
    made.link("sys/class/net/eth0", f"{NIC}/virtio1/net/eth0")
    made.link(f"{NIC}/virtio1/net/eth0/device", f"{NIC}/virtio1")
    made.put(f"{VDA}/vda1/partition", "1")
    made.put(f"{VDA}/vda1/size", "20480")
    made.put(f"{VDA}/vda1/dev", "254:1")
    made.link("sys/dev/block/254:1", f"{VDA}/vda1")
    made.link("sys/class/block/vda1", f"{VDA}/vda1")
    (tmp_path / "dev/disk/by-uuid").mkdir(parents=True)
    (tmp_path / "dev/disk/by-uuid" / UUID).symlink_to("../../vda1")
    made.mount(ROOT, "22 21 0:20 / /proc rw - proc proc rw")
    monkeypatch.setattr(probe_spawn.command, "run", made.run)
    return made


def test_a_machine_is_read(machine: Machine) -> None:
    """Everything a choice rests on; what can be told is not unknown."""
    found = probe_spawn.observe_spawn(machine.root)
    assert not found.unknown
    assert found.module is ModuleState.INSTALLED
    assert found.topology and found.topology.online == CpuSet.of(0, 1, 2, 3) and found.topology.cpu(3).apic_id == 6
    assert (found.isolated, found.stuck, found.bsp) == (CpuSet.of(1), CpuSet.of(0), 0)
    assert (found.block_size, found.blocks_online, found.blocks_removable) == (128 << 20, 16, 15)
    assert (found.movable_bytes, found.longest_run) == (256 << 20, 10 * 128 << 20)
    assert (found.memory_total, found.memory_available) == (4 * GIB, 3 * GIB)
    assert found.ecam and found.hypervisor and found.five_levels and not found.ipi_broadcast and not found.spawned
    assert (found.interrupt_remapping, found.x2apic, found.xen, found.encrypted) == (False, None, False, False)
    assert found.swaps == () and found.others == ()
    assert found.nics == (Nic("eth0", "52:54:00:00:00:01", "0000:00:03.0"),)


def test_devices_and_their_modules(machine: Machine) -> None:
    """Drivers of children count, built-in ones by their name; attributes are not walked."""
    disk, nic = probe_spawn.observe_spawn(machine.root).ports
    assert (disk.address, disk.drivers, disk.needs) == ("0000:00:02.0", ("virtio-pci",), (Need.BOOT, Need.ROOT))
    assert disk.modules == ("virtio_blk", "virtio_pci")
    assert nic.needs == (Need.DEFAULT_ROUTE,) and nic.modules == ("virtio_console", "virtio_pci")
    assert nic.movable.functions[0].iommu_type is DomainType.DMA_FQ


def test_the_root_file_system(machine: Machine) -> None:
    """Its UUID by udev's link, its options as mount takes them, the port of its disk."""
    found = probe_spawn.observe_spawn(machine.root).root
    assert found and (found.source, found.fstype, found.uuid) == ("/dev/vda1", "ext4", UUID)
    assert found.options == "rw,relatime,errors=remount-ro"
    assert (found.stack, found.ports) == (Stack.PLAIN, ("0000:00:02.0",))


@pytest.mark.parametrize(
    ("table", "slaves", "stack"),
    [
        ("0 20480 linear 254:1 0", ("vda1",), Stack.LINEAR),
        ("0 20480 linear 254:1 2048", ("vda1",), Stack.MAPPED),
        ("0 10240 linear 254:1 0", ("vda1",), Stack.MAPPED),
        ("0 10240 linear 254:1 0\n10240 10240 linear 254:1 10240", ("vda1",), Stack.MAPPED),
        ("0 20480 crypt aes 254:1 0", ("vda1",), Stack.MAPPED),
        ("0 20480 linear 254:1 0", ("vda1", "vda2"), Stack.MAPPED),
    ],
)
def test_a_mapping_of_a_whole_partition_is_as_good_as_it(
    machine: Machine, table: str, slaves: tuple[str, ...], stack: Stack
) -> None:
    """An earlier upgrade leaves the root on a linear mapping; any other mapping is something else."""
    machine.table = table
    machine.put("sys/devices/virtual/block/dm-0/dm/name", "root")
    for name in slaves:
        machine.link(f"sys/devices/virtual/block/dm-0/slaves/{name}", f"{VDA}/{name}")
    machine.link("sys/dev/block/253:0", "sys/devices/virtual/block/dm-0")
    machine.mount("21 1 253:0 / / rw - ext4 /dev/mapper/root rw")
    found = probe_spawn.observe_spawn(machine.root).root
    assert found and (found.stack, set(found.ports)) == (stack, {"0000:00:02.0"})
    assert found.uuid == UUID


@pytest.mark.parametrize(("kind", "stack"), [("md", Stack.RAID), ("loop", Stack.LOOP)])
def test_other_stacks(machine: Machine, kind: str, stack: Stack) -> None:
    """Partitions of md and loop devices are told apart from those of disks."""
    machine.put(f"sys/devices/virtual/block/x0/{kind}/any", "")
    machine.put("sys/devices/virtual/block/x0/x0p1/partition", "1")
    assert probe_storage._stack(machine.root / "sys/devices/virtual/block/x0/x0p1") is stack


def test_cpus_of_an_isolated_partition_count_as_isolated(machine: Machine) -> None:
    """cpuset.cpus.partition=isolated takes them from the scheduler as isolcpus= does; sysfs does not list them."""
    machine.put("sys/fs/cgroup/cpuset.cpus.isolated", "3")
    found = probe_spawn.observe_spawn(machine.root)
    assert found.isolated == CpuSet.of(1, 3) and "isolated CPUs" not in found.unknown


def test_a_root_without_a_disk(machine: Machine) -> None:
    """NFS, overlay: no block device, no UUID, no port."""
    machine.mount("21 1 0:44 / / rw - overlay overlay rw,lowerdir=/a")
    found = probe_spawn.observe_spawn(machine.root).root
    assert found and (found.stack, found.ports, found.uuid) == (Stack.OTHER, (), "")


def test_other_file_systems(machine: Machine) -> None:
    """Each once, without bind mounts of the root, virtual ones and fuse; swap on disks counts, in memory not."""
    machine.mount(
        ROOT,
        "22 21 254:1 /srv /mnt rw - ext4 /dev/vda1 rw",
        "23 21 254:17 / /var rw - xfs /dev/vdb1 rw",
        "24 21 254:17 /log /var/log rw - xfs /dev/vdb1 rw",
        "25 21 254:18 / /data ro - ext4 /dev/vdb2 ro",
        "26 21 0:30 / /run rw - tmpfs tmpfs rw",
        "27 21 0:31 / /media rw - fuse.portal /dev/fuse rw",
    )
    machine.put("proc/swaps", "Filename Type Size Used Priority\n/dev/vdb3 partition 1 0 1\n/swap\\040file file 1 0 1")
    found = probe_spawn.observe_spawn(machine.root)
    assert [(o.mountpoint, o.fstype, o.writable) for o in found.others] == [
        ("/var", "xfs", True),
        ("/data", "ext4", False),
    ]
    assert found.swaps == ("/dev/vdb3", "/swap file")


def test_addresses_on_a_bridge(machine: Machine) -> None:
    """The NIC below is named, and by what its addresses are held; a bridge without a NIC carries nothing."""
    machine.put("sys/class/net/br0/address", "")
    machine.link("sys/class/net/br0/lower_eth0", f"{NIC}/virtio1/net/eth0")
    machine.put("sys/class/net/docker0/address", "")
    address = [{"scope": "global"}]
    machine.addresses = [{"ifname": name, "addr_info": address} for name in ("br0", "docker0")]
    found = probe_spawn.observe_spawn(machine.root).nics
    assert found == (Nic("eth0", "52:54:00:00:00:01", "0000:00:03.0", ("br0",)),)


@pytest.mark.parametrize(
    ("words", "bsp", "unknown"),
    [
        ("kupgrade.box=0x100000000:0x40000000 kspawn.bsp=4", 2, False),
        ("kupgrade.box=0x100000000:0x40000000 kspawn.bsp=9", None, True),
        ("kupgrade.box=0x100000000:0x40000000", None, True),
        ("kspawn.bsp=0", 0, False),
    ],
)
def test_the_real_bsp_of_a_spawned_kernel(machine: Machine, words: str, bsp: int | None, unknown: bool) -> None:
    """It is told by APIC ID; CPU 0 is it only where the firmware started the kernel."""
    machine.put("proc/cmdline", words)
    found = probe_spawn.observe_spawn(machine.root)
    assert found.bsp == bsp and ("real BSP" in found.unknown) is unknown
    assert found.spawned is ("kupgrade.box" in words) and found.ipi_broadcast


@pytest.mark.parametrize(
    ("text", "remapped"),
    [
        (" 24: 0 IR-PCI-MSIX-0000:00:02.0 0-edge", True),
        (" 24: 0 IR-IO-APIC 2-edge timer", True),
        (" 24: 0 PCI-MSI 0-edge\n 25: 0 DMAR-MSI 0-edge dmar0", False),
        ("NMI: 0", None),
    ],
)
def test_interrupt_remapping_is_seen_by_the_controllers(machine: Machine, text: str, remapped: bool | None) -> None:
    """Remapped controllers have IR- before their names."""
    machine.put("proc/interrupts", text)
    assert probe_spawn.observe_spawn(machine.root).interrupt_remapping is remapped


@pytest.mark.parametrize(
    ("flags", "words", "encrypted"),
    [
        ("hypervisor sev", "", True),
        ("tdx_guest hypervisor", "", True),
        ("sme sev", "", False),
        ("sme sev", "mem_encrypt=on", True),
    ],
)
def test_encrypted_memory(machine: Machine, flags: str, words: str, encrypted: bool) -> None:
    """A guest's flag is about itself, a host's about what it could do."""
    machine.put("proc/cpuinfo", f"processor\t: 0\napicid\t: 0\nflags\t: {flags}")
    machine.put("proc/cmdline", words)
    assert probe_spawn.observe_spawn(machine.root).encrypted is encrypted


def test_an_empty_machine_is_all_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is raised, and each fact has its reason."""
    monkeypatch.setattr(probe_spawn.command, "run", Machine(tmp_path).run)
    found = probe_spawn.observe_spawn(tmp_path)
    assert found.module is ModuleState.UNKNOWN and found.topology is None and found.root is None
    assert {"CPUs", "memory blocks", "mounts", "kspawn", "interrupt remapping"} <= set(found.unknown)
    assert all(found.unknown.values())


def test_facts_survive_being_stored(machine: Machine) -> None:
    """Encoded and decoded they are the same."""
    found = probe_spawn.observe_spawn(machine.root)
    assert decode(SpawnFacts, json.loads(json.dumps(encode(found)))) == found
