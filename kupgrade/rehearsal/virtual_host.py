"""The virtual host's disk: base, kernels and kupgrade as one ext4 image, built in seconds from cached layers."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kupgrade.errors import UsageError
from kupgrade.host.command import run
from kupgrade.rehearsal import bootdisk, kho_kernel, rootfs, spawn_module, tree
from kupgrade.rehearsal.cache import Cache, key
from kupgrade.rehearsal.packages import SUITES, KernelPackages
from kupgrade.rehearsal.qemu import Machine
from kupgrade.rehearsal.suites import Archive, mirror
from kupgrade.rehearsal.toolbox import Progress, Toolbox, toolbox

DISK_GIB = 4  # sparse
FORMAT = 3  # raise it when the way the image is put together changes
BOOTS = ("grub", "direct")  # its own boot loader, or QEMU loads the old kernel at every reset
_TREE = "/usr/lib/python3/dist-packages/kupgrade"
_IMAGES_KEPT = 86400.0  # seconds unused: half a GB each, made of the rest in seconds, and anew for each change here


def command_line(extra: str = "") -> str:
    """The old kernel's command line; half a GiB survives crossings and resets as /dev/pmem0."""
    line = f"root={bootdisk.ROOT_DEVICE} rw console=ttyS0 quiet memmap=512M!1G panic=5 net.ifnames=0"
    return f"{line} {extra}".strip()


def command_line_beside(movable: int) -> str:
    """The command line of a host that a second kernel is started beside; `movable` MiB can be taken from it.

    Without broadcasts a panic of one kernel does not stop the CPUs of the other.
    """
    line = f"root={bootdisk.ROOT_DEVICE} rw console=ttyS0 quiet panic=5 net.ifnames=0"
    return f"{line} no_ipi_broadcast=1" + (f" movablecore={movable}M" if movable else "")


@dataclass(frozen=True, slots=True)
class VirtualHost:
    """A disk image that holds all kernels, and the files QEMU boots the old one from when it boots directly.

    `new_releases`: in the order in which they are upgraded to.
    """

    image: Path
    layers: dict[str, Path]  # release -> kernel layer
    old_release: str
    new_releases: tuple[str, ...]
    tools: Toolbox
    boot: str
    command_line: str

    @property
    def new_release(self) -> str:
        """The first kernel to upgrade to."""
        return self.new_releases[0]

    def kernel(self, release: str) -> Path:
        """The kernel image of `release`, on this machine."""
        return self.layers[release] / "boot" / f"vmlinuz-{release}"

    def initrd(self, release: str) -> Path:
        """The initrd of `release`, on this machine."""
        return self.layers[release] / "boot" / f"initrd.img-{release}"

    def machine(self, memory_mib: int = 2048, cpus: int = 2) -> Machine:
        """The machine to start, booting as this host was built to."""
        direct = self.boot == "direct"
        kernel = self.kernel(self.old_release) if direct else None
        initrd = self.initrd(self.old_release) if direct else None
        return Machine(self.image, kernel, initrd, self.command_line, memory_mib, cpus)


def build(
    old: str,
    new: str | Sequence[str],
    progress: Progress,
    cache: Cache | None = None,
    *,
    boot: str = "grub",
    line: str | None = None,
    kspawn: bool = False,
    services: Sequence[str] = (),
) -> VirtualHost:
    """Everything needed to boot: tools, image with the kernels `old` and `new` (as --from and --to name them).

    `boot` is one of BOOTS; `line` is the command line of all menu entries, by default command_line(); with `kspawn`
    the module is installed for every kernel; `services` are Debian packages that it has besides.
    """
    cache = cache or Cache.default()
    line = command_line() if line is None else line
    archive = Archive(cache, mirror())
    progress("asking the mirror for kernels")
    chosen = _choose(archive, old, [new] if isinstance(new, str) else new, kspawn=kspawn)
    progress(f"from {chosen[0].release} to {', '.join(kernel.release for kernel in chosen[1:])}")
    tools = toolbox(archive, progress)
    base = rootfs.base(archive, progress, services)
    layers = {kernel.release: rootfs.kernel_layer(archive, base, kernel, progress) for kernel in chosen}
    modules = {release: spawn_module.for_release(archive, release) for release in layers} if kspawn else {}
    menu = bootdisk.menu(list(layers), line) if boot == "grub" else ""
    image = _image(cache, tools, base, chosen, layers, modules, menu, progress)
    cache.prune("image", _IMAGES_KEPT, keep=3)
    for kind in ("kernel", "kho-kernel", "base", "toolbox", "kspawn", "kbuild"):
        cache.prune(kind, keep=3)
    new_releases = tuple(kernel.release for kernel in chosen[1:])
    return VirtualHost(image, layers, chosen[0].release, new_releases, tools, boot, line)


def _choose(archive: Archive, old: str, new: Sequence[str], *, kspawn: bool) -> list[KernelPackages]:
    """The kernels wanted, the old one first."""
    suites = spawn_module.SUITES if kspawn else SUITES  # without headers there is no module
    ours = [wanted for wanted in (old, *new) if kho_kernel.is_name(wanted)]
    if kspawn and ours:
        raise UsageError(f"no headers of {ours[0]}", "a kernel beside it needs a module", "Use the engine kexec")

    def named(wanted: str, than: KernelPackages | None = None) -> KernelPackages:
        if kho_kernel.is_name(wanted):
            return kho_kernel.find(archive, wanted, than)
        return archive.kernel(wanted, suites=suites)

    chosen = [named(wanted) for wanted in new]
    return [named(old, chosen[0]), *chosen]


def _image(
    cache: Cache,
    tools: Toolbox,
    base: Path,
    kernels: Sequence[KernelPackages],
    layers: dict[str, Path],
    modules: dict[str, Path],
    menu: str,
    progress: Progress,
) -> Path:
    def build_image(place: Path) -> None:
        progress("installing kupgrade and writing the disk image")
        root = place / "root"
        rootfs.assemble([base, *layers.values()], root)
        tree.install(root)
        for release, module in modules.items():
            rootfs.add_module(root, release, module)
        lines = [f"{kernel.release} {kernel.version} {kernel.suite}\n" for kernel in kernels]
        rootfs.write(root, "usr/lib/kupgrade-lab/kernels", "".join(lines))
        if menu:
            rootfs.write(root, "boot/grub/grub.cfg", menu)
            rootfs.write(root, "boot/grub/grubenv", bootdisk.environment_block(kernels[0].release))
        compile_python = ["python3", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
        run(["chroot", str(root), *compile_python, _TREE, "/usr/lib/kupgrade-lab"], timeout=120, check=False)
        write_disk(tools, root, place / "disk.img")
        shutil.rmtree(root)

    parts = [path.parent.name for path in (*layers.values(), *modules.values())]
    name = key(FORMAT, base.parent.name, [kernel.release for kernel in kernels], parts, menu, tree.digest())
    image = cache.entry("image", name, build_image) / "disk.img"
    cache.prune("image", keep_seconds=86400.0, keep=4)
    return image


def write_disk(tools: Toolbox, root: Path, disk: Path) -> None:
    """`root` as the only partition of a new sparse disk, GRUB before it."""
    sectors = DISK_GIB * (1 << 30) // bootdisk.SECTOR - bootdisk.START
    with disk.open("wb") as file:
        file.truncate(DISK_GIB << 30)
    make = [*tools.tool("usr/sbin/mkfs.ext4"), "-q", "-F", "-L", "virtual-host", "-m", "0", "-N", "131072"]
    offset = bootdisk.START * bootdisk.SECTOR
    options = ["-E", f"offset={offset},lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0"]
    run([*make, *options, "-d", str(root), str(disk), f"{sectors // 2}k"], timeout=300)
    bootdisk.embed(disk, root, sectors)
