"""The virtual host's disk: base, kernels and kupgrade as one ext4 image, built in seconds from cached layers."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kupgrade.host.command import run
from kupgrade.rehearsal import rootfs, tree
from kupgrade.rehearsal.cache import Cache, key
from kupgrade.rehearsal.packages import KernelPackages
from kupgrade.rehearsal.suites import Archive, mirror
from kupgrade.rehearsal.toolbox import Progress, Toolbox, toolbox

DISK_GIB = 4  # sparse
FORMAT = 1  # raise it when the way the image is put together changes


@dataclass(frozen=True, slots=True)
class VirtualHost:
    """A disk image that holds both kernels, and the files QEMU boots the old one from."""

    image: Path
    layers: dict[str, Path]  # release -> kernel layer
    old_release: str
    new_release: str
    tools: Toolbox

    def kernel(self, release: str) -> Path:
        """The kernel image of `release`, on this machine."""
        return self.layers[release] / "boot" / f"vmlinuz-{release}"

    def initrd(self, release: str) -> Path:
        """The initrd of `release`, on this machine."""
        return self.layers[release] / "boot" / f"initrd.img-{release}"


def build(old: str, new: str, progress: Progress, cache: Cache | None = None) -> VirtualHost:
    """Everything needed to boot: tools, image with the kernels `old` and `new` (as --from and --to name them)."""
    cache = cache or Cache.default()
    archive = Archive(cache, mirror())
    progress("asking the mirror for kernels")
    chosen = [archive.kernel(wanted) for wanted in (old, new)]
    progress(f"from {chosen[0].release} to {chosen[1].release}")
    tools = toolbox(archive, progress)
    base = rootfs.base(archive, progress)
    layers = {kernel.release: rootfs.kernel_layer(archive, base, kernel, progress) for kernel in chosen}
    image = _image(cache, tools, base, chosen, layers, progress)
    for kind in ("image", "kernel", "base", "toolbox"):
        cache.prune(kind, keep=3)
    return VirtualHost(image, layers, chosen[0].release, chosen[1].release, tools)


def _image(
    cache: Cache,
    tools: Toolbox,
    base: Path,
    kernels: Sequence[KernelPackages],
    layers: dict[str, Path],
    progress: Progress,
) -> Path:
    def build_image(place: Path) -> None:
        progress("installing kupgrade and writing the disk image")
        root = place / "root"
        rootfs.assemble([base, *layers.values()], root)
        tree.install(root)
        lines = [f"{kernel.release} {kernel.version} {kernel.suite}\n" for kernel in kernels]
        rootfs.write(root, "usr/lib/kupgrade-lab/kernels", "".join(lines))
        compile_python = ["python3", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
        packages = "/usr/lib/python3/dist-packages/kupgrade"
        run(["chroot", str(root), *compile_python, packages, "/usr/lib/kupgrade-lab"], timeout=120, check=False)
        make = [*tools.tool("usr/sbin/mkfs.ext4"), "-q", "-F", "-L", "virtual-host", "-m", "0", "-N", "131072"]
        options = ["-E", "lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0"]
        run([*make, *options, "-d", str(root), str(place / "disk.img"), f"{DISK_GIB}G"], timeout=300)
        shutil.rmtree(root)

    name = key(FORMAT, base.parent.name, sorted(layers), [path.parent.name for path in layers.values()], tree.digest())
    image = cache.entry("image", name, build_image) / "disk.img"
    cache.prune("image", keep_seconds=86400.0, keep=4)
    return image
