"""The command line of a spawned kernel: what it keeps of the host's, what it is told."""

from __future__ import annotations

from typing import Any

import pytest

from kupgrade.core import spawn_cmdline
from kupgrade.core.spawn_cmdline import Place
from kupgrade.errors import BadInputError
from kupgrade.model.ids import Ticket, UpgradeId
from kupgrade.model.kernel import CommandLine
from kupgrade.model.machine import MemoryRange
from kupgrade.model.spawn import parse_range, range_value

TICKET = Ticket(UpgradeId("20261121-041503-9f2c1a"), 2)
PLACE = Place(
    TICKET,
    box=MemoryRange(0x38000000, 0x40000000),
    window=MemoryRange(0x70000000, 0x8000000),
    low=MemoryRange(0x20000, 0x40000),
    bsp=0,
)
HOST = CommandLine.parse(
    "BOOT_IMAGE=/vmlinuz root=UUID=1-2 ro quiet console=tty0 console=ttyS0,115200 crashkernel=256M memmap=4G$8G"
    " maxcpus=4 isolcpus=2,3 mitigations=auto,nosmt net.ifnames=0 systemd.unit=x.target panic=30 nmi-watchdog=1"
    " kupgrade.ticket=20200101-000000-000000:9 kspawn.bsp=7 pci=nomsi tsc=unstable cgroup.memory=nokmem -- single"
)


def spawned(serial: int = 0, **more) -> CommandLine:
    return spawn_cmdline.spawned(HOST, PLACE, tsc_khz=2400000, cpus=2, serial=serial, **more)


def test_what_an_administrator_set_for_the_host_stays() -> None:
    """In its order; and nothing else of the host's command line, words for init neither."""
    kept = spawn_cmdline.inherited(HOST)
    assert str(kept) == "quiet mitigations=auto,nosmt net.ifnames=0 cgroup.memory=nokmem"


def test_each_word_of_ours_stands_once() -> None:
    """Also those that the host gives other values, so that none of them wins by its place."""
    line = spawned(serial=2)
    ours = ("tsc", "pci", "panic", "maxcpus", "reboot", "nmi_watchdog", "kspawn.bsp", "kupgrade.ticket", "console")
    assert all(len(line.values(name)) == 1 for name in ours)
    assert line.get("tsc_early_khz") == "2400000"
    assert line.get("maxcpus") == "2"


def test_the_new_kernel_is_told_where_it_is() -> None:
    """Ticket, box, window and low memory can be read back; its kspawn uses the bottom of the low memory."""
    line = spawned()
    assert Ticket.parse(line.get("kupgrade.ticket") or "") == TICKET
    assert parse_range(line.get("kupgrade.box") or "") == PLACE.box
    assert parse_range(line.get("kupgrade.window") or "") == PLACE.window
    assert parse_range(line.get("kupgrade.low") or "") == PLACE.low
    assert line.module_parameters("kspawn") == {"bsp": "0", "trampoline": "0x20000"}


@pytest.mark.parametrize("serial", [0, 1, 2])
def test_ports_of_the_old_kernel_are_reserved(serial: int) -> None:
    """PCI configuration always, serial ports but its own, and never more ranges than the kernel takes."""
    line = spawned(serial)
    ports = (line.get("reserve") or "").split(",")[::2]
    assert "0xcf8" in ports
    assert len(ports) <= spawn_cmdline.RESERVABLE
    own = spawn_cmdline.SERIAL_PORTS.get(serial)
    assert f"{own or 0:#x}" not in ports
    assert line.get("console") == (f"ttyS{serial - 1},115200" if serial else None)
    assert line.has("8250.nr_uarts") == (serial == 0)


def test_words_of_the_policy_come_last() -> None:
    """So they win over ours."""
    line = spawned(extra=CommandLine.parse("loglevel=8 maxcpus=1"))
    assert line.words[-2:] == ("loglevel=8", "maxcpus=1")


@pytest.mark.parametrize("wrong", [{"tsc_khz": 0}, {"cpus": 0}, {"serial": 9}])
def test_numbers_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    """Before anything is written anywhere."""
    with pytest.raises(BadInputError):
        spawn_cmdline.spawned(HOST, PLACE, **{"tsc_khz": 1000, "cpus": 1, **wrong})


@pytest.mark.parametrize("text", ["", "0x1000", "1:x", "0x1000:0"])
def test_a_range_that_is_none_is_refused(text: str) -> None:
    """Whatever stands on a command line."""
    with pytest.raises(BadInputError):
        parse_range(text)
    assert parse_range(range_value(PLACE.box)) == PLACE.box


def test_the_new_kernel_keeps_to_four_levels_of_page_tables() -> None:
    """Its CPUs come back into a park loop whose tables have four: with five they would reset the machine."""
    assert spawned().has("no5lvl")
