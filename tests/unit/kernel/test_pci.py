"""PCI in a fake sysfs: what stands where, and what may move."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kupgrade.errors import BadInputError, KernelError
from kupgrade.kernel import pci
from kupgrade.kernel.acpi import EcamRange
from kupgrade.model.machine import MemoryRange, PciAddress
from kupgrade.model.pci import DomainType
from tests.fakes.pci_tree import (
    DISK,
    DISPLAY,
    EMPTY,
    IO,
    MEM,
    NIC,
    PORT_DISK,
    PORT_NIC,
    PREF,
    SWITCH,
    UNSET,
    WITH_IOV,
    WITHOUT_IOV,
    Tree,
    resource,
)


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


def test_memory_ranges_of_windows_are_whole(tree: Tree) -> None:
    """Both ends of a resource line are inside."""
    (first, _) = pci.bridge(PORT_NIC, tree.root).windows or ()
    assert first.range == MemoryRange(0xFE800000, 2 << 20)


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
