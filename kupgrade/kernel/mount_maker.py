"""Makes a mount namespace as a layout says, in the calling process, which has one of its own already (mount(2)).

Sources are opened before anything is mounted, as a layer may hide what a later one shows. Restrictions come when all
is mounted, as places to mount on may have to be made; nobody but its maker is in the namespace until it is whole.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Protocol

from kupgrade.errors import KupgradeError
from kupgrade.kernel import blockfs
from kupgrade.kernel.libc import read_text, reported
from kupgrade.kernel.mount_layout import PRIVATE, Layer, Layout, Node

# include/uapi/linux/mount.h
MS_REMOUNT, MS_BIND, MS_MOVE, MS_REC = 32, 4096, 8192, 16384
MS_SLAVE, MS_SHARED = 1 << 19, 1 << 20
FLAGS = {
    "ro": 1,
    "nosuid": 2,
    "nodev": 4,
    "noexec": 8,
    "nosymfollow": 256,
    "noatime": 1 << 10,
    "nodiratime": 1 << 11,
    "relatime": 1 << 21,
}
_BOOT = re.compile(re.escape(PRIVATE) + r"[0-9a-f]{32}-")
KERNELS = ("/proc/", "/sys/")  # what is not there in another kernel needs not be hidden


class MountCalls(Protocol):
    """The one call that is needed of Libc."""

    def mount(self, source: str, target: Path, fstype: str, flags: int = 0, options: str = "") -> None:
        """See Libc."""
        ...


def mount_memory(calls: MountCalls, layout: Layout) -> None:
    """File systems of the host's in memory that are not mounted yet, for everybody. Raises KernelError."""
    there = {mount.mountpoint for mount in blockfs.mounts()}
    for layer in layout.memory:
        if layer.mountpoint not in there:
            Path(layer.mountpoint).mkdir(mode=0o755, parents=True, exist_ok=True)
            calls.mount("tmpfs", Path(layer.mountpoint), "tmpfs", _number(layer), layer.data)


def lay(calls: MountCalls, layout: Layout) -> None:
    """All layers. Raises KernelError, and KupgradeError for what is not there."""
    boot = read_text(Path("/proc/sys/kernel/random/boot_id")).strip().replace("-", "")
    sources: dict[str, int] = {}
    try:
        for layer in layout.layers:
            if layer.source and not layer.inside and (fd := _opened(layer, boot)) is not None:
                sources[layer.mountpoint] = fd
        covered: set[str] = set()
        laid = []
        for layer in layout.layers:
            if layer.inside and (fd := _opened(layer, boot)) is not None:
                sources[layer.mountpoint] = fd
            if _lay(calls, layer, sources.get(layer.mountpoint), covered):
                laid.append(layer)
        for layer in laid:
            calls.mount("none", Path(layer.mountpoint), "none", MS_REMOUNT | MS_BIND | _number(layer))
    finally:
        for fd in sources.values():
            os.close(fd)


def _lay(calls: MountCalls, layer: Layer, source: int | None, covered: set[str]) -> bool:
    """Whether it is there. `covered`: places where the host is not seen any more."""
    place = Path(layer.mountpoint)
    in_place = not any(layer.mountpoint == each or layer.mountpoint.startswith(f"{each}/") for each in covered)
    if layer.source and source is None:
        return False
    if layer.whole and in_place:  # else the host mounts it later, and it comes here from there
        return layer.mountpoint in {mount.mountpoint for mount in blockfs.mounts()}
    if not _stands(place, source):
        return False
    covered.add(layer.mountpoint)
    if source is not None:
        calls.mount(f"/proc/self/fd/{source}", place, "none", MS_BIND)
    else:
        calls.mount(layer.fstype, place, layer.fstype, _number(layer) & ~FLAGS["ro"], layer.data)
        for node in layer.nodes:
            _make(place / node.path, node)
    return True


def _number(layer: Layer) -> int:
    return sum(FLAGS.get(word, 0) for word in layer.flags)


def _opened(layer: Layer, boot: str) -> int | None:
    """A descriptor of what is to be seen, made if need be; None: this kernel has no such thing."""
    for node in layer.nodes:
        path = Path(_now(node.path, boot))
        if not os.path.lexists(path):
            _make(path, node)
    path = Path(_now(layer.source, boot))
    try:
        return os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError as error:
        if layer.whole or layer.source.startswith(KERNELS):
            return None
        why = f"there is no {path} for {layer.mountpoint}"
        raise KupgradeError("A service's mounts cannot be made again", why, "Give the unit fate = restart") from error


def _now(path: str, boot: str) -> str:
    """Private directories bear the boot's name: systemd-tmpfiles removes those of other boots."""
    return _BOOT.sub(f"{PRIVATE}{boot}-", path)


def _stands(place: Path, source: int | None) -> bool:
    """Whether there is something to mount on. What is missing below /run is made; a kernel's own files cannot be."""
    if os.path.lexists(place):
        return True
    if str(place).startswith(KERNELS):
        return False
    with reported("make", place):
        place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if source is None or stat.S_ISDIR(os.fstat(source).st_mode):
            place.mkdir(mode=0o755)
        else:
            place.touch(mode=0o444)
    return True


def _make(path: Path, node: Node) -> None:
    with reported("make", path):
        match stat.S_IFMT(node.mode):
            case stat.S_IFDIR:
                path.mkdir(mode=0o700, exist_ok=True)
            case stat.S_IFLNK:
                path.symlink_to(node.target)
            case stat.S_IFREG:
                path.touch(mode=0o600)
            case kind:
                os.mknod(path, kind | 0o600, node.device)
        os.chown(path, node.uid, node.gid, follow_symlinks=False)
        if not stat.S_ISLNK(node.mode):
            path.chmod(stat.S_IMODE(node.mode))


def make_root(calls: MountCalls, top: Path) -> None:
    """The mount at `top` becomes the root of this namespace, and of this process; later mounts of the host's come in.

    Raises KernelError.
    """
    calls.mount("none", top, "none", MS_REC | MS_SLAVE)
    with reported("chdir", top):
        os.chdir(top)
    calls.mount(".", Path("/"), "none", MS_MOVE)
    with reported("chroot", top):
        os.chroot(".")
        os.chdir("/")


def share(calls: MountCalls) -> None:
    """What is mounted here later is seen in namespaces that are made from this one. Raises KernelError."""
    calls.mount("none", Path("/"), "none", MS_REC | MS_SHARED)
