"""Buses that pass to another kernel: found by their ports, told in a table, made still as a whole or not at all."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from kupgrade.errors import KernelError, KupgradeError, RefusedError, ToolError
from kupgrade.host import nft
from kupgrade.host.nft import Interface
from kupgrade.kernel import acpi, kspawn, pci, pci_host
from kupgrade.machine import buses
from kupgrade.model.machine import PciAddress
from tests.fakes.pci_tree import DISPLAY, EMPTY, PORT_DISK, PORT_NIC, PORT_TWO, SWITCH, Tree

Put = Callable[[str, str], Path]

EMPTY_PORT = PciAddress.parse("0000:00:06.0")
FAR_NIC = PciAddress.parse("0007:01:00.0")
IOMEM = """\
00001000-0009ffff : System RAM
b0000000-bfffffff : Reserved
  b0100000-b01fffff : pnp 00:01
    b0100000-b01fffff : PCI {} 0007 [bus 01-01]
  bff00000-bfffffff : PCI ECAM 00ee [bus ff-ff]
fe800000-fe9fffff : PCI Bus 0007:01
  fe800000-fe83ffff : 0007:01:00.0
7000000000-70000fffff : PCI Bus 0007:01
"""


class Device:
    """A kspawn that keeps what is quiesced; `errors` by function, for whichever call comes first."""

    def __init__(self) -> None:
        self.silent: set[str] = set()
        self.still: list[str] = []
        self.calls: list[str] = []
        self.errors: dict[tuple[str, str], int] = {}

    def _call(self, call: str, function: kspawn.PciFunction) -> None:
        self.calls.append(f"{call} {function}")
        if number := self.errors.get((call, str(function))):
            raise KernelError(call, str(function), number)

    def quiesce(self, function: kspawn.PciFunction, *, keep: bool = False) -> None:
        assert keep, "the device would come back with this process's end"
        assert self.silent == {"eth0"}, "something may still be sent"
        self._call("quiesce", function)
        if str(function) not in self.still:
            self.still.append(str(function))

    def resume(self, function: kspawn.PciFunction) -> None:
        self._call("resume", function)
        if str(function) not in self.still:
            raise KernelError("KSPAWN_RESUME", str(function), errno.EALREADY)
        assert self.silent == {"eth0"}, "something may be sent already"
        self.still.remove(str(function))


@pytest.fixture
def put(tmp_path: Path) -> Put:
    def write(path: str, text: str) -> Path:
        target = tmp_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        return target

    return write


@pytest.fixture
def tree(tmp_path: Path, put: Put) -> Tree:
    """A NIC alone behind a port; a disk of three functions, one of them without a driver; what cannot pass."""
    made = Tree(tmp_path, put)
    made.function("0000:00:01.0", class_code=0x030000)
    made.port("0000:00:02.0", secondary=1)
    made.function("0000:00:02.0", "0000:01:00.0", driver="virtio-pci")
    made.port("0000:00:03.0", secondary=2)
    made.function("0000:00:03.0", "0000:02:00.0", class_code=0x010802, driver="nvme")
    made.function("0000:00:03.0", "0000:02:00.1", class_code=0x010802)
    made.function("0000:00:03.0", "0000:02:00.2", class_code=0x010802, driver="nvme")
    made.port("0000:00:04.0", secondary=3)
    made.function("0000:00:04.0", "0000:03:00.0")
    made.function("0000:00:04.0", "0000:03:01.0")
    made.port("0000:00:05.0", secondary=4, subordinate=6)
    made.port("0000:00:05.0", "0000:04:00.0", secondary=5)
    made.port("0000:00:06.0", secondary=7)
    for number, (name, device) in enumerate({"eth0": "0000:01:00.0/virtio1", "mgmt": "0000:00:1f.6"}.items(), 2):
        put(f"sys/devices/pci0000:00/{device}/net/{name}/ifindex", f"{number}\n")
        made.link(f"sys/class/net/{name}", tmp_path / f"sys/devices/pci0000:00/{device}/net/{name}")
    put("proc/iomem", IOMEM.format("ECAM"))
    mcfg = put("sys/firmware/acpi/tables/MCFG", "")
    mcfg.write_bytes(acpi.mcfg([acpi.EcamRange(0xB0000000, 0, 0, 255)]))
    return made


@pytest.fixture
def spawned(tmp_path: Path, put: Put) -> Tree:
    """A spawned kernel's view: a NIC on the root bus of a segment of its own, no port, no MCFG that names it."""
    made = Tree(tmp_path, put)
    far = tmp_path / "sys/devices/pci0007:01/0007:01:00.0"
    for name, text in (("vendor", "0x1af4"), ("device", "0x1041"), ("class", "0x020000")):
        put(f"sys/devices/pci0007:01/0007:01:00.0/{name}", text + "\n")
    made.link("sys/bus/pci/devices/0007:01:00.0", far)
    made.link("sys/devices/pci0007:01/0007:01:00.0/driver", tmp_path / "sys/bus/pci/drivers/virtio-pci")
    put("proc/iomem", IOMEM.format("MMCONFIG"))
    mcfg = put("sys/firmware/acpi/tables/MCFG", "")
    mcfg.write_bytes(acpi.mcfg([acpi.EcamRange(0xB0000000, 0xEE, 0xFF, 0xFF)]))
    return made


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    made = Device()
    monkeypatch.setattr(nft, "silence", lambda found: made.silent.update(each.name for each in found))
    monkeypatch.setattr(nft, "end_silence", lambda found: made.silent.difference_update(each.name for each in found))
    return made


def control_of(tree: Tree, port: PciAddress) -> str:
    return (tree.root / pci.DEVICES / str(port) / "power/control").read_text().strip()


def test_ports_are_found_in_the_order_asked_for(tree: Tree) -> None:
    """Each with all functions of the one device behind it."""
    disk, nic = buses.find([PORT_DISK, PORT_NIC], tree.root)
    assert [str(each.address) for each in disk.functions] == ["0000:02:00.0", "0000:02:00.1", "0000:02:00.2"]
    assert (nic.port.address, nic.port.secondary) == (PORT_NIC, 1)


@pytest.mark.parametrize(
    ("port", "why"),
    [
        (PORT_TWO, "exactly one"),
        (SWITCH, "exactly one"),
        (EMPTY_PORT, "exactly one"),
        (DISPLAY, "no root port"),
        (PciAddress.parse("0000:01:00.0"), "no root port"),
        (PciAddress.parse("0000:00:1e.0"), "no such function"),
    ],
)
def test_what_cannot_pass_is_refused_by_name(tree: Tree, port: PciAddress, why: str) -> None:
    """Two devices, a switch, nothing, no port, no function at all."""
    with pytest.raises(RefusedError, match=why) as caught:
        buses.find([PORT_NIC, port], tree.root)
    assert str(port) in caught.value.what


def test_a_table_names_a_segment_for_each_bus(tree: Tree) -> None:
    """From the given number on, with the configuration space of the firmware's table."""
    whole = buses.table(buses.find([PORT_NIC, PORT_DISK], tree.root), 3, tree.root)
    assert whole[:4] == b"SSDT"
    assert sum(whole) & 0xFF == 0
    for name in (b"P003", b"R003", b"P004", b"R004"):
        assert name in whole
    assert whole.count((0xB0000000).to_bytes(4, "little")) >= 2  # _CBA
    assert (0xB0100000).to_bytes(4, "little") in whole


def test_a_table_needs_space_windows_and_a_free_segment(tree: Tree) -> None:
    """Each refusal says what is missing."""
    found = buses.find([PORT_NIC], tree.root)
    with pytest.raises(RefusedError, match="segment"):
        buses.table(found, 0, tree.root)
    with pytest.raises(RefusedError, match="segment"):
        buses.table(found, buses.SEGMENT, tree.root)
    (tree.root / "sys/firmware/acpi/tables/MCFG").unlink()
    with pytest.raises(RefusedError, match="configuration space"):
        buses.table(found, 1, tree.root)
    tree.put("sys/devices/pci0000:00/0000:00:02.0/resource", EMPTY * 17)
    with pytest.raises(RefusedError, match="window"):
        (tree.root / "sys/firmware/acpi/tables/MCFG").write_bytes(acpi.mcfg([acpi.EcamRange(0xB0000000, 0, 0, 255)]))
        buses.table(buses.find([PORT_NIC], tree.root), 1, tree.root)


def test_a_bus_that_came_by_a_table_passes_on(spawned: Tree) -> None:
    """In a spawned kernel: configuration space and windows are those that the kernel itself entered."""
    (far,) = buses.find([FAR_NIC], spawned.root)
    assert [str(each.range) for each in far.port.windows or ()] == [
        "0xfe800000-0xfe9fffff",
        "0x7000000000-0x70000fffff",
    ]
    assert pci_host.ecam(spawned.root)[1] == acpi.EcamRange(0xB0000000, 7, 1, 1)
    whole = buses.table([far], 9, spawned.root)
    assert b"P009" in whole
    assert (0xB0000000).to_bytes(4, "little") in whole
    assert not buses.power([far], spawned.root)
    buses.keep_awake([far], spawned.root)
    with pytest.raises(RefusedError, match="no such function"):
        buses.find([PciAddress(7, 1, 1, 0)], spawned.root)


def test_a_root_port_stays_awake_and_sleeps_again(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it was set to is told before, and comes back."""

    def answer(port: PciAddress, value: str, _root: Path) -> None:
        tree.put(f"sys/devices/pci0000:00/{port}/power/control", f"{value}\n")

    monkeypatch.setattr(pci, "set_power_control", answer)
    found = buses.find([PORT_NIC, PORT_DISK], tree.root)
    tree.put(f"sys/devices/pci0000:00/{PORT_DISK}/power/control", "on\n")
    before = buses.power(found, tree.root)
    for _ in range(2):
        buses.keep_awake(found, tree.root)
    assert (control_of(tree, PORT_NIC), control_of(tree, PORT_DISK)) == ("on", "on")
    buses.restore_power(before, tree.root)
    assert (control_of(tree, PORT_NIC), control_of(tree, PORT_DISK)) == ("auto", "on")


def test_all_functions_with_a_driver_stand_still_and_come_back(tree: Tree, device: Device) -> None:
    """In reverse order; both done twice are done once."""
    found = buses.find([PORT_NIC, PORT_DISK], tree.root)
    for _ in range(2):
        buses.quiesce(device, found, tree.root)  # type: ignore[arg-type]
    assert device.still == ["0000:01:00.0", "0000:02:00.0", "0000:02:00.2"]
    device.calls.clear()
    for _ in range(2):
        buses.resume(device, found, tree.root)  # type: ignore[arg-type]
    assert not device.still
    assert not device.silent
    assert device.calls[:3] == ["resume 0000:02:00.2", "resume 0000:02:00.0", "resume 0000:01:00.0"]


def test_a_device_that_refuses_brings_the_others_back(tree: Tree, device: Device) -> None:
    """And the error says which it was; one that does not come back is told with it."""
    found = buses.find([PORT_NIC, PORT_DISK], tree.root)
    device.errors["quiesce", "0000:02:00.2"] = errno.EOPNOTSUPP
    with pytest.raises(KernelError, match="02:00"):
        buses.quiesce(device, found, tree.root)  # type: ignore[arg-type]
    assert not device.still
    assert not device.silent
    device.errors["resume", "0000:02:00.0"] = errno.EIO
    with pytest.raises(KernelError, match="02:00") as caught:
        buses.quiesce(device, found, tree.root)  # type: ignore[arg-type]
    assert "0000:02:00.0" in caught.value.__notes__[0]
    assert device.still == ["0000:02:00.0"]


def test_resume_tries_all_before_it_fails(tree: Tree, device: Device) -> None:
    """One broken device does not keep the others away."""
    found = buses.find([PORT_NIC, PORT_DISK], tree.root)
    buses.quiesce(device, found, tree.root)  # type: ignore[arg-type]
    device.errors["resume", "0000:02:00.2"] = errno.EIO
    with pytest.raises(KernelError, match="02:00"):
        buses.resume(device, found, tree.root)  # type: ignore[arg-type]
    assert device.still == ["0000:02:00.2"]
    assert device.silent == {"eth0"}, "a driver that did not come back would be asked to send"


def test_only_what_stands_on_a_function_that_passes_falls_silent(tree: Tree) -> None:
    """Through the virtio device of a NIC, too; the card that stays goes on sending."""
    found = buses.find([PORT_NIC, PORT_DISK], tree.root)
    assert buses.interfaces(found, tree.root) == (Interface("eth0", 2),)
    assert buses.interfaces(buses.find([PORT_DISK], tree.root), tree.root) == ()


def test_a_kernel_without_the_hook_is_told_before_anything_stands_still(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what would help; the kernel was asked without doing it."""

    def refuse(_found: object, *, dry: bool) -> None:
        assert dry
        raise ToolError(("nft",), 1, "Operation not supported")

    monkeypatch.setattr(nft, "silence", refuse)
    with pytest.raises(KupgradeError, match="cannot be kept silent") as caught:
        buses.check_silence(buses.find([PORT_NIC], tree.root), tree.root)
    assert "CONFIG_NETFILTER_EGRESS" in caught.value.remedy
