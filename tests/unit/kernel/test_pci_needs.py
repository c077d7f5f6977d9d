"""What this host stands on, in a fake sysfs: the functions and ports under its file systems, routes and consoles."""

from __future__ import annotations

import pytest

from kupgrade.kernel import pci_needs
from kupgrade.model.machine import PciAddress
from kupgrade.model.pci import Need
from tests.fakes.pci_tree import DISK, DISPLAY, NIC, PORT_DISK, PORT_NIC, Tree

ROUTE = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
DEFAULT = "bond0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
LOCAL = "eth9\t0000000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"


def mountinfo(*rows: tuple[str, str, str, str]) -> str:
    return "".join(
        f"{20 + n} 1 {device} / {place} rw - {fstype} {source} rw\n"
        for n, (device, place, fstype, source) in enumerate(rows)
    )


@pytest.fixture
def host(tree: Tree) -> Tree:
    """Root on LVM on the disk, swap on another volume, the default route through a bond over the NIC."""
    disk = tree.root / "sys/devices/pci0000:00/0000:00:03.0/0000:02:00.0/nvme/nvme0/nvme0n1"
    virtual = tree.root / "sys/devices/virtual/block"
    tree.link("sys/dev/block/259:0", disk)
    tree.link("sys/dev/block/259:1", disk / "nvme0n1p1")
    for number in ("0", "1"):
        tree.link(f"sys/dev/block/253:{number}", virtual / f"dm-{number}")
        tree.link(f"sys/class/block/dm-{number}", virtual / f"dm-{number}")
        tree.link(f"sys/devices/virtual/block/dm-{number}/slaves/nvme0n1p1", disk / "nvme0n1p1")
    tree.put("proc/self/mountinfo", mountinfo(("253:0", "/", "ext4", "/dev/mapper/vg-root")))
    tree.put("proc/swaps", "Filename Type Size Used Priority\n/dev/dm-1 partition 100 0 -2\n")
    tree.put("proc/net/route", ROUTE + LOCAL + DEFAULT)
    nic = tree.root / "sys/devices/pci0000:00/0000:00:02.0/0000:01:00.0"
    tree.link("sys/class/net/eth0/device", nic / "virtio0")
    tree.link("sys/class/net/bond0/lower_eth0", tree.root / "sys/class/net/eth0")
    tree.put("sys/class/tty/console/active", "tty0\n")
    return tree


def test_what_the_host_stands_on_is_found(host: Tree) -> None:
    """Through device mapper and bond, with the ports on the way; nothing else."""
    found = pci_needs.needs(host.root)
    storage = frozenset({Need.ROOT, Need.BOOT, Need.SWAP})  # without a mount of its own, /boot is on the root
    assert found.functions == {
        DISPLAY: frozenset({Need.CONSOLE}),
        PORT_NIC: frozenset({Need.DEFAULT_ROUTE}),
        PORT_DISK: storage,
        NIC: frozenset({Need.DEFAULT_ROUTE}),
        DISK: storage,
    }
    assert found.unknown == ()


def test_boot_may_be_elsewhere(host: Tree) -> None:
    """Then the root file system's disk is not needed for it."""
    other = host.root / "sys/devices/pci0000:00/0000:00:04.0/0000:03:00.0/virtio3/block/vdb"
    host.link("sys/dev/block/254:0", other)
    host.put(
        "proc/self/mountinfo",
        mountinfo(("253:0", "/", "ext4", "/dev/mapper/vg-root"), ("254:0", "/boot", "ext4", "/dev/vdb")),
    )
    found = pci_needs.needs(host.root).functions
    assert found[PciAddress.parse("0000:03:00.0")] == {Need.BOOT}
    assert Need.BOOT not in found[DISK]


def test_btrfs_is_found_by_its_source(host: Tree) -> None:
    """Its device number names no device."""
    disk = host.root / "sys/devices/pci0000:00/0000:00:03.0/0000:02:00.0/nvme/nvme0/nvme0n1"
    host.link("sys/class/block/nvme0n1p1", disk / "nvme0n1p1")
    host.put("proc/self/mountinfo", mountinfo(("0:30", "/", "btrfs", "/dev/nvme0n1p1")))
    assert Need.ROOT in pci_needs.needs(host.root).functions[DISK]


def test_a_disk_of_several_paths_is_found_by_its_controllers(host: Tree) -> None:
    """Most server NVMe drives: the disk is the subsystem's, which only links to the controllers."""
    controller = host.root / "sys/devices/pci0000:00/0000:00:03.0/0000:02:00.0/nvme/nvme0"
    subsystem = "sys/devices/virtual/nvme-subsystem/nvme-subsys0"
    host.link(f"{subsystem}/nvme0", controller)
    host.put(f"{subsystem}/nvme0n1/nvme0n1p2/partition", "2\n")
    host.link("sys/dev/block/259:2", host.root / subsystem / "nvme0n1/nvme0n1p2")
    host.put("proc/self/mountinfo", mountinfo(("259:2", "/", "ext4", "/dev/nvme0n1p2")))
    found = pci_needs.needs(host.root)
    assert Need.ROOT in found.functions[DISK]
    assert found.unknown == ()


@pytest.mark.parametrize("disk", ["virtual/block/nbd0", "platform/host2/session1/target2:0:0/2:0:0:1/block/sdb"])
def test_a_disk_on_the_network_is_unknown_not_absent(host: Tree, disk: str) -> None:
    """It stands on an interface that its path does not name."""
    host.link("sys/dev/block/8:16", host.root / "sys/devices" / disk)
    host.put("proc/self/mountinfo", mountinfo(("8:16", "/", "ext4", "/dev/x")))
    assert any(each.startswith("the root file system") for each in pci_needs.needs(host.root).unknown)


@pytest.mark.parametrize(
    ("path", "text", "unknown"),
    [
        ("proc/self/mountinfo", mountinfo(("0:30", "/", "nfs4", "server:/export")), "the root file system: nfs4"),
        ("proc/net/route", ROUTE + DEFAULT.replace("bond0", "wg0"), "the default route: wg0"),
        ("sys/class/tty/console/active", "tty0 ttyS0\n", "the console: ttyS0"),
        ("proc/swaps", "Filename Type\n/dev/gone partition\n", "swap: /dev/gone"),
    ],
)
def test_what_cannot_be_traced_is_unknown_not_absent(host: Tree, path: str, text: str, unknown: str) -> None:
    """Network file systems, tunnels, ports of the super I/O chip."""
    host.put(path, text)
    assert any(each.startswith(unknown) for each in pci_needs.needs(host.root).unknown)


def test_consoles_on_pci_are_found(host: Tree) -> None:
    """A serial card, and the virtio console by its driver."""
    card = host.root / "sys/devices/pci0000:00/0000:00:04.0/0000:03:00.0"
    host.link("sys/class/tty/ttyS4/device", card)
    hvc = host.root / "sys/devices/pci0000:00/0000:00:04.0/0000:03:01.0"
    host.link(str((hvc / "virtio5/driver").relative_to(host.root)), host.root / "sys/bus/virtio/drivers/virtio_console")
    host.put("sys/class/tty/console/active", "ttyS4 hvc0\n")
    found = pci_needs.needs(host.root)
    assert found.unknown == ()
    assert found.functions[PciAddress.parse("0000:03:00.0")] == {Need.CONSOLE}
    assert found.functions[PciAddress.parse("0000:03:01.0")] == {Need.CONSOLE}


def test_swap_files_and_ipv6_routes_count(host: Tree) -> None:
    """The file's disk, and a default route that exists for IPv6 only."""
    host.put("proc/swaps", "Filename Type Size Used Priority\n/swap\\040file file 100 0 -2\n")
    host.put("proc/net/route", ROUTE)
    zero = "0" * 32
    host.put(
        "proc/net/ipv6_route",
        f"{zero} 00 {zero} 00 {zero} 00000400 1 0 00000003 eth0\n{zero} 00 {zero} 00 {zero} ffffffff 1 0 00200200 lo\n",
    )
    found = pci_needs.needs(host.root)
    assert Need.SWAP in found.functions[DISK]
    assert found.functions[NIC] == {Need.DEFAULT_ROUTE}
    assert found.unknown == ()
