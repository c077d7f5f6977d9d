"""A sysfs with PCI devices in it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from kupgrade.model.machine import PciAddress

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


def a_tree(root: Path, put: Put) -> Tree:
    """A display on the root bus; NIC and disk each alone behind a port; two devices behind one; a switch."""
    made = Tree(root, put)
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
