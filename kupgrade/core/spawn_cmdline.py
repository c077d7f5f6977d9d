"""The command line of a kernel that is started beside this one, made from the host's own.

What an administrator set for the host stays. What names this boot, this kernel's memory, CPU numbers, root file system
or consoles cannot hold there and goes. What keeps the new kernel off everything that the old one still drives comes.

Source of the words: Documentation/admin-guide/kernel-parameters.txt.
"""

from __future__ import annotations

from dataclasses import dataclass

from kupgrade.errors import BadInputError
from kupgrade.model.ids import TICKET_PARAMETER, Ticket
from kupgrade.model.kernel import CommandLine
from kupgrade.model.machine import MemoryRange
from kupgrade.model.spawn import BOX_PARAMETER, LOW_PARAMETER, MODULE, WINDOW_PARAMETER, range_value

SERIAL_PORTS = {1: 0x3F8, 2: 0x2F8, 3: 0x3E8, 4: 0x2E8}  # ttyS0 to ttyS3 of every PC
PCI_CONFIG = 0xCF8
LOW_RAM_PARAMETER = "kupgrade.lowram"  # RAM below 640 KiB by the firmware's map, which a spawned kernel does not see
RESERVABLE = 4  # ranges that reserve= takes (kernel/resource.c, MAXRESERVE)

_BOOT = "BOOT_IMAGE initrd root rootflags rootfstype rootwait rootdelay ro rw resume resume_offset noresume init rdinit"
_CONSOLES = "console earlycon earlyprintk keep_bootcon netconsole video vga fbcon splash no_console_suspend"
_MEMORY = (
    "mem memmap crashkernel movablecore kernelcore movable_node hugepages hugepagesz default_hugepagesz numa memtest"
)
_CPUS = (
    "maxcpus nr_cpus possible_cpus nosmp smp isolcpus nohz_full rcu_nocbs irqaffinity kthread_cpus disable_cpu_apicid"
)
_FIRMWARE = "acpi acpi_rsdp acpi_irq_balance pci pcie_ports pcie_aspm efi noefi add_efi_memmap efi_fake_mem reserve"
_INTERRUPTS = "apic noapic nolapic x2apic_phys intremap iommu intel_iommu amd_iommu apic_extnmi no_ipi_broadcast"
_CLOCKS = "tsc tsc_early_khz clocksource hpet lpj nmi_watchdog notsc"
_DEATH = "panic reboot oops panic_on_oops softlockup_panic hardlockup_panic hung_task_panic unknown_nmi_panic"
_OTHER = "io_delay mce dis_ucode_ldr microcode"
DROPPED = frozenset(
    " ".join((_BOOT, _CONSOLES, _MEMORY, _CPUS, _FIRMWARE, _INTERRUPTS, _CLOCKS, _DEATH, _OTHER)).split()
)
# Names with such a beginning are for one boot, or for the init system and initrd that are not this kernel's.
DROPPED_PREFIXES = ("kupgrade.", "systemd.", "rd.", "luks.", "dm_mod.", "8250.", f"{MODULE}.")


@dataclass(frozen=True, slots=True)
class Place:
    """Where the new kernel finds itself. `trampoline`: of its own kspawn, in `low`. `bsp`: an APIC ID.

    `low_ram`: what else its own child may be given of low memory.
    """

    ticket: Ticket
    box: MemoryRange
    window: MemoryRange
    low: MemoryRange
    bsp: int
    low_ram: tuple[MemoryRange, ...] = ()

    @property
    def trampoline(self) -> int:
        """Of its own kspawn: at the bottom, for the kernel takes its real-mode code from the top."""
        return self.low.start


def inherited(host: CommandLine) -> CommandLine:
    """The words of the host's own command line that hold in the new kernel too; those for init do not."""
    names = {name: name.replace("-", "_") for name, _ in host}
    gone = [name for name, plain in names.items() if plain in DROPPED or plain.startswith(DROPPED_PREFIXES)]
    kept = host.without(*gone)
    return CommandLine(kept.words[: kept.words.index("--")]) if "--" in kept.words else kept


def spawned(
    host: CommandLine, place: Place, *, tsc_khz: int, cpus: int, serial: int = 0, extra: CommandLine | None = None
) -> CommandLine:
    """The new kernel's whole command line. `cpus`: how many it starts with.

    `serial`: the number of the serial port that is its own (2: ttyS1), 0 for none: then it has no console. `extra`:
    words from the policy; they come last, so they win. Raises BadInputError for numbers that make no sense.
    """
    if tsc_khz < 1 or cpus < 1 or (serial and serial not in SERIAL_PORTS):
        raise BadInputError("A kernel cannot be started so", f"TSC {tsc_khz} kHz, {cpus} CPUs, serial port {serial}")
    line = inherited(host)
    if serial:
        port = SERIAL_PORTS[serial]
        line = line.appended("console", f"ttyS{serial - 1},115200").appended("earlyprintk", f"serial,{port:#x},115200")
    else:
        line = line.appended("8250.nr_uarts", "0")  # it would probe, and so disturb, the host's consoles
    foreign = [port for number, port in SERIAL_PORTS.items() if number != serial][: RESERVABLE - 1]
    ports = ",".join(f"{port:#x},8" for port in (*foreign, PCI_CONFIG))
    for name, value in (
        ("tsc_early_khz", str(tsc_khz)),  # there is no other clock to measure it by
        ("tsc", "reliable"),
        ("no_ipi_broadcast", "1"),  # shorthand interrupts would reach the old kernel's CPUs
        ("apic_extnmi", "none"),
        ("maxcpus", str(cpus)),  # all others are listed as well, for when the old kernel retires
        ("reserve", ports),
        ("pci", "noearly"),
        ("reboot", "acpi"),  # by the reset register in the box; any other way resets the machine
        ("panic", "0"),  # a dead kernel waits to be fenced
        ("nmi_watchdog", "0"),
        ("no5lvl", None),  # its CPUs come back into the park loop paging as they do; the loop's tables have four levels
        ("dis_ucode_ldr", None),  # the cores share their microcode with the old kernel
        ("io_delay", "none"),
        ("rdinit", "/init"),
        (f"{MODULE}.bsp", str(place.bsp)),
        (f"{MODULE}.trampoline", f"{place.trampoline:#x}"),
        (BOX_PARAMETER, range_value(place.box)),
        (WINDOW_PARAMETER, range_value(place.window)),
        (LOW_PARAMETER, range_value(place.low)),
        *([(LOW_RAM_PARAMETER, ",".join(map(range_value, place.low_ram)))] if place.low_ram else []),
        (TICKET_PARAMETER, str(place.ticket)),
    ):
        line = line.appended(name, value)
    return CommandLine(line.words + extra.words) if extra else line
