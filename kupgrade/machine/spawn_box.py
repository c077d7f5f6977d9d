"""What goes into the box of a spawned kernel, put together: every part, and the address it goes to."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from kupgrade.core import box, spawn_cmdline
from kupgrade.core.box import Box, BoxNeeds
from kupgrade.errors import BadInputError, KernelError, RefusedError
from kupgrade.kernel import acpi, acpi_devices, bootparams, memory_blocks, pagetables, park_code, pci
from kupgrade.kernel.acpi import EcamRange
from kupgrade.kernel.bootparams import BzImage
from kupgrade.kernel.kspawn import Info
from kupgrade.kernel.libc import read_text, reported
from kupgrade.kernel.window_format import channel_size
from kupgrade.model.ids import Ticket
from kupgrade.model.kernel import CommandLine
from kupgrade.model.machine import MemoryRange
from kupgrade.model.plan import Refusal
from kupgrade.model.spawn import LOW_PARAMETER, CpusBefore, Instance, Order, parse_range

SEGMENT = 0xEE  # of the one bus of configuration space that a new kernel starts with; nothing is on it
MIB = 1 << 20
PAGE = 4096
SEED = 32  # bytes of randomness; there is no other source that early


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes and the physical address they go to."""

    address: int
    content: bytes | memoryview


@dataclass(frozen=True, slots=True)
class Blueprint:
    """An order laid out: what is journaled of it, and what is written. `low_ram`: as box.low_ram found it."""

    order: Order
    instance: Instance
    box: Box
    image: BzImage
    ecam: EcamRange
    tsc_khz: int
    low_ram: tuple[MemoryRange, ...]


T = TypeVar("T")


def _granted(found: T | Refusal) -> T:
    if isinstance(found, Refusal):
        raise RefusedError(f"No kernel can be started beside this one ({found.rule})", found.fact, found.remedy)
    return found


def _needs(image: BzImage, initrd: int, window: int, root_image: int) -> BoxNeeds:
    """The sizes that the box has to hold; an initramfs is unpacked beside its archive."""
    if window < channel_size():
        raise BadInputError(f"A shared window of {window} bytes is too small", f"expected {channel_size()} or more")
    return BoxNeeds(
        init_size=image.init_size,
        initrd=initrd,
        root_image=root_image,
        window=window,
        alignment=max(image.alignment, box.SMALL_ALIGNMENT),
        spare=box.DEFAULT_SPARE + initrd,
    )


def needed_memory(kernel: Path, initrd: Path, window: int, root_image: int = 0) -> int:
    """Bytes of memory that a kernel needs beside this one to come up at all. Raises KernelError, BadInputError."""
    return box.needed_size(_needs(bootparams.parse(_read(kernel)), _size(initrd), window, root_image))


def _read(path: Path) -> bytes:
    with reported("read", path):
        return path.read_bytes()


def _size(path: Path) -> int:
    with reported("stat", path):
        return path.stat().st_size


def choose_low(info: Info, root: Path) -> tuple[MemoryRange, tuple[MemoryRange, ...]]:
    """A stretch below 640 KiB for the new kernel's real-mode code, and what there is RAM.

    A kernel that was itself spawned sees its own stretch only. What else is RAM it was told, for its child.
    """
    line = CommandLine.parse(read_text(root / "proc/cmdline"))
    own, told = line.get(LOW_PARAMETER), line.get(spawn_cmdline.LOW_RAM_PARAMETER)
    in_use = [MemoryRange(info.trampoline, info.trampoline_size)]
    usable: Sequence[MemoryRange]
    if own is None:
        usable = memory_blocks.firmware_ram(root) or ()
        in_use += box.real_mode(usable)
    else:
        usable = [parse_range(each) for each in told.split(",")] if told else box.LOW_SLICES
        in_use.append(parse_range(own))
    return _granted(box.low_slice(usable, in_use)), box.low_ram(usable)


def spare_bus(root: Path) -> EcamRange:
    """One bus of configuration space on which there is nothing. Raises RefusedError.

    A spawned kernel knows of none but the one that it was given itself, which serves its child as well.
    """
    given = [each for each in acpi.host_mcfg(root) or () if each.segment == SEGMENT]
    if given:
        return given[0]
    busy = {each.address.bus for each in pci.functions(root)}
    for bridge in pci.bridges(root):
        busy |= set(range(bridge.secondary, bridge.subordinate + 1))
    for each in acpi.host_mcfg(root) or ():
        for bus in range(each.last, each.first - 1, -1):
            if each.segment == 0 and bus not in busy:
                return EcamRange(each.base, SEGMENT, bus, bus)
    raise RefusedError(
        "No kernel can be started beside this one (mmconfig)",
        "this machine has no memory-mapped PCI configuration space, or no bus that is free",
        "Nothing can be done about it on this machine; use another engine",
    )


def lay_out(order: Order, cpus: CpusBefore, info: Info, root: Path = Path("/")) -> Blueprint:
    """Decide where everything goes; has no effect. Raises RefusedError, BadInputError, KernelError."""
    if not cpus.given or info.bsp_apic_id is None or info.bsp_apic_id in cpus.apic_ids:
        raise BadInputError("A kernel needs a CPU that is not the bootstrap processor", f"given {cpus.numbers}")
    image = bootparams.parse(_read(Path(order.kernel)))
    ecam = spare_bus(root)
    low, low_ram = choose_low(info, root)
    wanted = _needs(image, _size(Path(order.initrd)), order.window, order.root_image)
    made = _granted(box.layout(order.memory, wanted, low, [ecam.slice(ecam.first, ecam.last)]))
    instance = Instance(
        upgrade=order.upgrade,
        epoch=order.epoch,
        generation=order.generation,
        box=made.whole,
        low=low,
        window=made.window,
        root_image=made.root_image,
        registers=made.registers,
        park=made.park.start,
        page_tables=made.page_tables.start,
        apic_ids=cpus.apic_ids,
        later=cpus.others,
        bsp=info.bsp_apic_id,
    )
    return Blueprint(order, instance, made, image, ecam, info.tsc_khz, low_ram)


def command_line(blueprint: Blueprint) -> CommandLine:
    """The new kernel's command line."""
    order, instance = blueprint.order, blueprint.instance
    ticket = Ticket(order.upgrade, order.epoch)
    return spawn_cmdline.spawned(
        CommandLine.parse(order.cmdline),
        spawn_cmdline.Place(ticket, instance.box, instance.window, instance.low, instance.bsp, blueprint.low_ram),
        tsc_khz=blueprint.tsc_khz,
        cpus=len(instance.apic_ids),
        serial=order.serial,
        extra=CommandLine.parse(order.extra),
    )


def slots_at(instance: Instance) -> int:
    """Where the park code's slots are: behind its own page."""
    return instance.park + park_code.PAGE


def slot_ids(instance: Instance) -> tuple[int, ...]:
    """The APIC IDs of the slots, in their order."""
    return (*instance.apic_ids, *instance.later)


def control_area(instance: Instance) -> MemoryRange:
    """The part of the box with mailbox, park code, slots and registers."""
    return MemoryRange.between(instance.box.start, instance.registers + PAGE)


def parked(control: memoryview, instance: Instance) -> tuple[int, ...]:
    """The APIC IDs of the CPUs that wait in the park loop; `control` begins where the box does."""
    at = slots_at(instance) - instance.box.start
    with control[at : at + len(slot_ids(instance)) * park_code.SLOT.size] as table:
        return tuple(apic_id for apic_id, waits in park_code.SLOT.iter_unpack(bytes(table)) if waits)


def registers(control: memoryview, instance: Instance) -> tuple[int, int]:
    """The reset and the sleep control register; `control` begins where the box does."""
    at = instance.registers - instance.box.start
    return control[at + acpi.RESET_REGISTER], control[at + acpi.SLEEP_CONTROL]


def parts(blueprint: Blueprint) -> Iterator[Part]:
    """Everything but the window's header, small things first. The control area must be zero before."""
    order, instance, made, image = blueprint.order, blueprint.instance, blueprint.box, blueprint.image
    everybody = slot_ids(instance)
    slots = park_code.slot_table(everybody)
    if slots_at(instance) + len(slots) > made.park.end:
        raise BadInputError("There are too many CPUs for one box", f"{len(everybody)}")
    tables = pagetables.identity(made.page_tables.start, made.whole, made.page_tables.size)
    yield Part(made.page_tables.start, tables)
    yield Part(instance.park, park_code.park_page(made.page_tables.start, slots_at(instance), len(everybody)))
    yield Part(slots_at(instance), slots)
    yield Part(made.acpi.start, _acpi(blueprint, everybody))
    yield Part(made.cmdline.start, bootparams.cmdline_bytes(image, str(command_line(blueprint))))
    yield Part(made.setup_data.start, bootparams.setup_data(bootparams.SetupData.RNG_SEED, os.urandom(SEED)))
    yield Part(
        made.zero_page,
        bootparams.zero_page(
            image,
            load_address=made.kernel.start,
            cmdline=made.cmdline.start,
            rsdp=made.acpi.start,
            memory_map=made.memory_map,
            initrd=made.initrd,
            first_setup_data=made.setup_data.start,
        ),
    )
    yield Part(made.kernel.start, image.body)
    if made.initrd is not None:
        initrd = _read(Path(order.initrd))
        if len(initrd) != made.initrd.size:
            raise KernelError("read", order.initrd, errno.ESTALE, "It changed meanwhile; try again")
        yield Part(made.initrd.start, initrd)


def _acpi(blueprint: Blueprint, everybody: Sequence[int]) -> bytes:
    made, ecam, serial = blueprint.box, blueprint.ecam, blueprint.order.serial
    devices = [acpi_devices.reserved_ecam(SEGMENT, ecam.slice(ecam.first, ecam.last))]
    if serial:
        devices.append(acpi_devices.uart(serial, spawn_cmdline.SERIAL_PORTS[serial]))
    return acpi.tables(
        made.acpi,
        everybody,
        acpi_devices.soft_off() + acpi_devices.system_bus(*devices),
        [ecam],
        registers=made.registers,
        mailbox=made.mailbox,
        reset_vector=made.park.start,
    )
