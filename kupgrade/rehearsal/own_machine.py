"""The machine of a rehearsal of this host: a disk that the host's own initrds have a driver for, no network card."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kupgrade.errors import RefusedError, ToolError
from kupgrade.host import command, initramfs, kernels
from kupgrade.model.kernel import KernelRelease
from kupgrade.rehearsal.qemu import AGENT_PORT, EMULATED_CPU
from kupgrade.rehearsal.toolbox import OLDEST_QEMU, kvm_usable

QEMU = "qemu-system-x86_64"
PACKAGE = "qemu-system-x86"
TOOLS = {"mkfs.ext4": "e2fsprogs", "tar": "tar", "unshare": "util-linux", "mount": "mount", "ip": "iproute2"}
SLOW = {True: 4.0, False: 20.0}  # how many times slower than this host, at worst, with KVM and without
BASE_MIB = 1024  # for kernel, initrds and services
RESERVE_MIB = 256  # of this host's memory stay free
MOST_CPUS = 4


@dataclass(frozen=True, slots=True)
class Controller:
    """A way to attach the disk: modules that its driver needs, and QEMU's words for it."""

    name: str
    modules: tuple[str, ...]
    words: tuple[str, ...]


CONTROLLERS = (
    Controller("virtio-blk", ("virtio_pci", "virtio_blk"), ("-device", "virtio-blk-pci,drive=disk0")),
    Controller(
        "virtio-scsi",
        ("virtio_pci", "virtio_scsi", "sd_mod"),
        ("-device", "virtio-scsi-pci", "-device", "scsi-hd,drive=disk0"),
    ),
    Controller("ahci", ("ahci", "sd_mod"), ("-device", "ide-hd,drive=disk0,bus=ide.0")),
    Controller("nvme", ("nvme",), ("-device", "nvme,drive=disk0,serial=rehearsal")),
)


@dataclass(frozen=True, slots=True)
class Shape:
    """The machine to start. It boots `kernel` at every reset, as a boot loader pinned to the old kernel does.

    `images`: a second disk; with one, what is written to the first is gone with the machine.
    """

    disk: Path
    controller: Controller
    kernel: Path
    initrd: Path
    append: str
    memory_mib: int
    cpus: int
    kvm: bool
    images: Path | None = None


def arguments(shape: Shape, state: Path) -> list[str]:
    """QEMU's arguments; its sockets lie in the directory `state`."""
    accelerator = (
        ["-accel", "kvm", "-cpu", "host"] if shape.kvm else ["-accel", "tcg,thread=multi", "-cpu", EMULATED_CPU]
    )
    overlay = ",snapshot=on" if shape.images else ""
    return [
        *("-name", "kupgrade-this-host", "-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35"),
        *accelerator,
        *("-smp", str(shape.cpus), "-m", str(shape.memory_mib), "-nic", "none"),
        *("-drive", f"file={shape.disk},if=none,id=disk0,format=raw,cache=unsafe,discard=unmap{overlay}"),
        *shape.controller.words,
        *(_second(shape) if shape.images else ()),
        *("-device", "virtio-serial-pci", "-device", "virtio-rng-pci"),
        *("-serial", "chardev:serial0", "-chardev", f"socket,id=serial0,path={state}/serial,server=on,wait=off"),
        *("-chardev", f"socket,id=agent,path={state}/agent,server=on,wait=off"),
        *("-device", f"virtserialport,nr=1,chardev=agent,name={AGENT_PORT}"),
        *("-chardev", f"socket,id=qmp,path={state}/qmp,server=on,wait=off", "-mon", "chardev=qmp,mode=control"),
        *("-kernel", str(shape.kernel), "-initrd", str(shape.initrd), "-append", shape.append),
    ]


def _second(shape: Shape) -> tuple[str, ...]:
    """The disk of images, by the same controller."""
    device = shape.controller.words[-1]
    for first, second in (("disk0", "disk1"), ("ide.0", "ide.1"), ("serial=rehearsal", "serial=images")):
        device = device.replace(first, second)
    return "-drive", f"file={shape.images},if=none,id=disk1,format=raw,cache=unsafe", "-device", device


def require_tools() -> str:
    """QEMU's path. Raises RefusedError naming the packages of what is missing."""
    missing = {tool: package for tool, package in TOOLS.items() if command.find(tool) is None}
    qemu = command.find(QEMU)
    if qemu is None:
        missing[QEMU] = PACKAGE
    if qemu is None or missing:
        raise RefusedError(
            "This host cannot be rehearsed on itself",
            f"{', '.join(missing)} is not installed",
            f"Install it (Debian: apt install {' '.join(sorted(set(missing.values())))})",
        )
    if not kvm_usable() and (version := _version(qemu)) < OLDEST_QEMU:
        raise RefusedError(
            "This host cannot be rehearsed on itself",
            f"there is no KVM here, and QEMU {version} crashes kernels that it emulates",
            f"Install QEMU {OLDEST_QEMU} or newer, or switch virtualization on",
        )
    return qemu


def _version(qemu: str) -> int:
    try:
        match = re.search(r"version (\d+)", command.run([qemu, "--version"]).stdout)
    except ToolError as error:
        raise RefusedError("QEMU does not start", error.output.strip(), f"Repair {PACKAGE}") from error
    return int(match[1]) if match else 0


def controller(releases: Sequence[str], root: Path) -> Controller:
    """The first way to attach the disk that the initrds of all releases have drivers for, and ext4, too.

    Raises RefusedError, naming what is missing, when there is none. A part of an initrd that cannot be unpacked is
    taken to hold them.
    """
    lacking = [_lacking(KernelRelease(release), root) for release in releases]
    for each in CONTROLLERS:
        if not any(missing & {*each.modules, "ext4"} for missing in lacking):
            return each
    told = "; ".join(
        f"{release}: {', '.join(sorted(missing))}"
        for release, missing in zip(releases, lacking, strict=True)
        if missing
    )
    raise RefusedError(
        "The initrds of this host cannot start it on a machine of QEMU's",
        f"they are without drivers ({told})",
        "Build them with virtio_blk, virtio_pci and ext4 (initramfs-tools: MODULES=most; dracut: --no-hostonly)",
    )


def _lacking(release: KernelRelease, root: Path) -> set[str]:
    """Of all modules that come into question, those neither in the release's kernel nor in its initrd."""
    wanted = {"ext4", *(module for each in CONTROLLERS for module in each.modules)}
    there = kernels.modules_present(release, wanted, root)
    wanted -= {name for name, found in there.items() if found is kernels.Presence.BUILTIN}
    initrd = kernels.locate(release, root).initrd
    if initrd is None or not wanted:
        return wanted
    for archive in initramfs.archives(initrd.read_bytes(), str(initrd)):
        if archive.unread:
            return set()
        wanted -= modules_of(entry.name for entry in archive.entries)
    return wanted


def modules_of(names: Iterable[str]) -> set[str]:
    """The modules among files of an initrd, by the names the kernel gives them."""
    files = (name.rpartition("/")[2] for name in names if "lib/modules/" in name and ".ko" in name)
    return {file.partition(".ko")[0].replace("-", "_") for file in files}


def memory(workloads: int, wished: int | None, available: int) -> int:
    """MiB of the machine for workloads of so many bytes. Raises RefusedError when this host has not got them free."""
    size = BASE_MIB + 3 * (workloads >> 20) if wished is None else wished
    free = available >> 20
    if size + RESERVE_MIB > free:
        raise RefusedError(
            "There is not enough free memory for a machine in this host",
            f"it takes {size} MiB, {RESERVE_MIB} MiB stay free, and {free} MiB are available",
            "Free some, or give it less (--guest-memory)",
        )
    return size


def cpus(online: int) -> int:
    """As many as this host has, a few at most."""
    return max(1, min(online, MOST_CPUS))


def differences(shape: Shape, root_type: str, stores: tuple[str, str], slower: float) -> Sequence[str]:
    """What is not as on this host, in words. `stores`: here and there; `slower`: measured."""
    found = [
        f"a machine of QEMU's with {shape.cpus} CPUs and {shape.memory_mib} MiB, {'KVM' if shape.kvm else 'emulated'}",
        f"a process takes {slower:.1f} times as long as here",
        f"its only disk is {shape.controller.name}; none of this host's devices and drivers, no watchdog",
        "no network card: addresses are on the loopback interface, no client is connected, nothing can be reached",
        "only the policy's workloads run, and what their units need",
        "workloads were started anew, so their memory is not what they have here",
        "QEMU starts the kernel, no firmware and no boot loader",
    ]
    if root_type != "ext4":
        found.append(f"its files are on ext4, here on {root_type}")
    if stores[0] != stores[1]:
        found.append(f"images wait on {stores[1]}, here on {stores[0]}")
    return found
