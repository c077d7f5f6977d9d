"""PCI in a fake sysfs: what stands where, what may move, and what this host stands on."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kupgrade.errors import BadInputError, KernelError
from kupgrade.kernel import pci, pci_needs
from kupgrade.kernel.acpi import EcamRange
from kupgrade.model.machine import MemoryRange, PciAddress
from kupgrade.model.pci import DomainType, Need

Put = Callable[[str, str], Path]

EMPTY = "0x0000000000000000 0x0000000000000000 0x0000000000000000\n"
IO = "0x0000000000001000 0x0000000000001fff 0x0000000000000101\n"
MEM = "0x00000000fe800000 0x00000000fe9fffff 0x0000000000000200\n"
PREF = "0x000000fe00000000 0x000000fe000fffff 0x0000000000102201\n"
UNSET = "0x0000000000000000 0x00000000001fffff 0x0000000020102200\n"
WITH_IOV, WITHOUT_IOV = 13, 7

PORT_NIC, PORT_DISK, PORT_TWO, SWITCH = (PciAddress.parse(f"0000:00:0{n}.0") for n in (2, 3, 4, 5))
NIC, DISK, DISPLAY = (PciAddress.parse(text) for text in ("0000:01:00.0", "0000:02:00.0", "0000:00:01.0"))


def resource(windows: str, before: int = WITH_IOV) -> str:
    return EMPTY * before + windows


class Tree:
    """A sysfs with PCI devices, their links and their kernel's reactions left to the test."""

    def __init__(self, root: Path, put: Put) -> None:
        self.root, self.put = root, put

    def link(self, where: str, target: Path) -> None:
        path = self.root / where
        path.parent.mkdir(parents=True, exist_ok=True)
        target.mkdir(parents=True, exist_ok=True)
        path.symlink_to(os.path.relpath(target, path.parent))

    def function(self, *path: str, class_code: int = 0x020000, driver: str = "", group: str = "", **files: str) -> Path:
        folder = "/".join(("sys/devices/pci0000:00", *path))
        defaults = {"vendor": "0x1af4", "device": "0x1041", "class": f"{class_code:#08x}", "power/control": "auto"}
        for name, text in {**defaults, **files}.items():
            self.put(f"{folder}/{name}", text + "\n")
        self.link(f"sys/bus/pci/devices/{path[-1]}", self.root / folder)
        if driver:
            self.link(f"{folder}/driver", self.root / "sys/bus/pci/drivers" / driver)
        if group:
            self.link(f"{folder}/iommu_group", self.root / "sys/kernel/iommu_groups" / group)
        return self.root / folder

    def port(
        self, *path: str, secondary: int, subordinate: int | None = None, text: str = resource(IO + MEM + PREF + EMPTY)
    ) -> None:
        self.function(
            *path,
            class_code=0x060400,
            driver="pcieport",
            secondary_bus_number=str(secondary),
            subordinate_bus_number=str(subordinate or secondary),
            resource=text.rstrip("\n"),
        )


@pytest.fixture
def tree(tmp_path: Path, put: Put) -> Tree:
    """A display on the root bus; NIC and disk each alone behind a port; two devices behind one; a switch."""
    made = Tree(tmp_path, put)
    made.function("0000:00:01.0", class_code=0x030000, boot_vga="1")
    made.port("0000:00:02.0", secondary=1)
    made.function("0000:00:02.0", "0000:01:00.0", driver="virtio-pci", group="7")
    put("sys/kernel/iommu_groups/7/type", "identity\n")
    made.port("0000:00:03.0", secondary=2)
    made.function("0000:00:03.0", "0000:02:00.0", class_code=0x010802, driver="nvme")
    made.function("0000:00:03.0", "0000:02:00.1", class_code=0x010802)
    made.port("0000:00:04.0", secondary=3)
    made.function("0000:00:04.0", "0000:03:00.0")
    made.function("0000:00:04.0", "0000:03:01.0")
    made.port("0000:00:05.0", secondary=4, subordinate=6)
    made.port("0000:00:05.0", "0000:04:00.0", secondary=5)
    made.port("0000:00:06.0", secondary=7)
    return made


@pytest.mark.parametrize("before", [WITH_IOV, WITHOUT_IOV])
def test_windows_are_the_last_lines_whatever_the_kernel_is_built_with(before: int) -> None:
    """Memory and prefetchable memory; I/O, closed and unset windows are left out."""
    windows = pci.parse_windows(resource(IO + MEM + PREF + EMPTY, before))
    assert [(str(each.range), each.prefetchable) for each in windows] == [
        ("0xfe800000-0xfe9fffff", False),
        ("0xfe00000000-0xfe000fffff", True),
    ]
    assert pci.parse_windows(resource(EMPTY + EMPTY + UNSET + EMPTY, before)) == ()
    assert pci.parse_windows(MEM * 7) == ()


@given(st.text(alphabet="0x123456789abcdef \n", max_size=600))
def test_arbitrary_resource_files_are_read_or_refused(text: str) -> None:
    """No text makes the reader fail in another way."""
    try:
        pci.parse_windows(text)
    except BadInputError:
        pass


def test_a_function_is_read_with_its_place(tree: Tree) -> None:
    """Driver, IOMMU group with its type, the bridges above it."""
    nic = pci.function(NIC, tree.root)
    assert (nic.driver, nic.iommu_group, nic.iommu_type) == ("virtio-pci", 7, DomainType.IDENTITY)
    assert (nic.path, nic.root_port, nic.class_code, nic.power_control) == ((PORT_NIC,), PORT_NIC, 0x020000, "auto")
    disk = pci.function(DISK, tree.root)
    assert (disk.iommu_group, disk.iommu_type) == (None, None)
    assert pci.function(DISPLAY, tree.root).root_port is None


def test_an_iommu_group_of_unknown_type_is_unknown(tree: Tree) -> None:
    """Not "no IOMMU"."""
    (tree.root / "sys/kernel/iommu_groups/7/type").write_text("new-kind\n")
    assert pci.function(NIC, tree.root).iommu_type is DomainType.UNKNOWN


def test_bridges_know_their_buses(tree: Tree) -> None:
    """Root ports and the ports of a switch; windows that cannot be read are unknown."""
    found = {each.address: each for each in pci.bridges(tree.root)}
    assert (found[SWITCH].secondary, found[SWITCH].subordinate, found[SWITCH].root_port) == (4, 6, True)
    assert not found[PciAddress.parse("0000:04:00.0")].root_port
    (tree.root / "sys/bus/pci/devices" / str(PORT_NIC) / "resource").unlink()
    assert pci.bridge(PORT_NIC, tree.root).windows is None


def test_only_a_device_alone_behind_a_root_port_is_movable(tree: Tree) -> None:
    """All its functions with it; not two devices, not a switch, not an empty port."""
    found = pci.movable(pci.functions(tree.root), pci.bridges(tree.root))
    assert [(each.port.address, len(each.functions)) for each in found] == [(PORT_NIC, 1), (PORT_DISK, 2)]


def test_a_machine_without_pci_has_no_functions(tmp_path: Path) -> None:
    """Nor an error."""
    assert pci.functions(tmp_path) == ()


def test_the_configuration_space_of_a_function_is_found() -> None:
    """By segment and bus."""
    ranges = [EcamRange(0xB0000000, 0, 0, 127), EcamRange(0xC0000000, 1, 0, 255)]
    assert pci.ecam_of(NIC, ranges) == ranges[0]
    assert pci.ecam_of(PciAddress(1, 200, 0, 0), ranges) == ranges[1]
    assert pci.ecam_of(PciAddress(0, 200, 0, 0), ranges) is None


class Kernel:
    """Reacts to writes as the kernel does, unless told to disobey."""

    def __init__(self, tree: Tree) -> None:
        self.tree, self.obeys, self.written = tree, True, []

    def write(self, path: Path, text: str) -> None:
        relative = str(path.relative_to(self.tree.root))
        self.written.append((relative, text))
        if not self.obeys:
            return
        match path.name:
            case "unbind":
                (pci.folder_of(PciAddress.parse(text), self.tree.root) / "driver").unlink()
            case "bind":
                self.tree.link(f"sys/bus/pci/devices/{text}/driver", path.parent)
            case "remove":
                path.parent.unlink()
            case "control":
                path.write_text(text)


@pytest.fixture
def kernel(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel(tree)
    monkeypatch.setattr(pci, "write_text", made.write)
    return made


def test_a_function_is_unbound_and_bound_again(tree: Tree, kernel: Kernel) -> None:
    """Twice is once."""
    for _ in range(2):
        pci.unbind(NIC, tree.root)
    assert pci.driver_of(NIC, tree.root) == ""
    for _ in range(2):
        pci.bind(NIC, "virtio-pci", tree.root)
    assert pci.driver_of(NIC, tree.root) == "virtio-pci"
    assert kernel.written == [
        ("sys/bus/pci/devices/0000:01:00.0/driver/unbind", "0000:01:00.0"),
        ("sys/bus/pci/drivers/virtio-pci/bind", "0000:01:00.0"),
    ]


def test_a_function_is_removed_and_looked_for_again(tree: Tree, kernel: Kernel) -> None:
    """Twice is once; the rescan is below one port, or everywhere."""
    for _ in range(2):
        pci.remove(DISK, tree.root)
    pci.rescan(PORT_DISK, tree.root)
    pci.rescan(root=tree.root)
    assert kernel.written == [
        ("sys/bus/pci/devices/0000:02:00.0/remove", "1"),
        ("sys/bus/pci/devices/0000:00:03.0/rescan", "1"),
        ("sys/bus/pci/rescan", "1"),
    ]


def test_power_control_takes_two_words(tree: Tree, kernel: Kernel) -> None:
    """And reads back."""
    pci.set_power_control(PORT_NIC, "on", tree.root)
    assert pci.function(PORT_NIC, tree.root).power_control == "on"
    with pytest.raises(BadInputError):
        pci.set_power_control(PORT_NIC, "off", tree.root)


@pytest.mark.parametrize(
    "act",
    [
        lambda root: pci.unbind(NIC, root),
        lambda root: pci.bind(DISK, "virtio-pci", root),
        lambda root: pci.remove(NIC, root),
        lambda root: pci.set_power_control(NIC, "on", root),
    ],
)
def test_what_does_not_read_back_is_an_error(tree: Tree, kernel: Kernel, act: Callable[[Path], None]) -> None:
    """The write alone proves nothing."""
    kernel.obeys = False
    with pytest.raises(KernelError, match="verify failed"):
        act(tree.root)


def test_a_function_that_is_gone_says_so(tree: Tree) -> None:
    """ENOENT."""
    with pytest.raises(KernelError) as caught:
        pci.function(PciAddress(0, 9, 0, 0), tree.root)
    assert caught.value.errno == errno.ENOENT


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


def test_memory_ranges_of_windows_are_whole(tree: Tree) -> None:
    """Both ends of a resource line are inside."""
    (first, _) = pci.bridge(PORT_NIC, tree.root).windows or ()
    assert first.range == MemoryRange(0xFE800000, 2 << 20)
