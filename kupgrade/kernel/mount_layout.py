"""What a mount namespace consists of, so that it can be made again where the one who made it is not there yet.

For the sandbox of a service that is restored beside an old kernel: systemd comes only after the commit there. A layer
is one line of mountinfo (proc_pid_mountinfo(5)), told in the host's paths: numbers of devices and mounts are not the
same in another kernel. Which file systems of the host's are there so early is asked when the layout is laid.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kupgrade.errors import KupgradeError
from kupgrade.kernel import blockfs
from kupgrade.kernel.blockfs import Mount
from kupgrade.kernel.libc import reported

PRIVATE = "/systemd-private-"  # directories for temporary files of one start of a service (systemd.exec(5))
IN_MEMORY = ("tmpfs", "devtmpfs")
_OWN = ("tmpfs", "proc")  # file systems that can be mounted anew, with the same options
_DELETED = "//deleted"  # of a mount whose directory was removed


@dataclass(frozen=True, slots=True)
class Node:
    """A directory, an empty file, a link (then `target`), a FIFO, a socket or a device. `mode` as stat(2)."""

    path: str
    mode: int
    uid: int
    gid: int
    device: int = 0
    target: str = ""


@dataclass(frozen=True, slots=True)
class Layer:
    """One mount. `source`: the host's path that is seen there; empty: a file system of its own.

    `flags`: the mount's own options. `nodes`: with a source, what leads to it if that may not be there (it is in
    memory); else what the file system holds besides files. `whole`: the host has the same mount at the same place.
    `inside`: the source is a path in the namespace itself, on a file system of its own.
    """

    mountpoint: str
    flags: tuple[str, ...]
    source: str = ""
    fstype: str = ""
    data: str = ""
    nodes: tuple[Node, ...] = ()
    whole: bool = False
    inside: bool = False


@dataclass(frozen=True, slots=True)
class Layout:
    """A namespace, parents before children. `memory`: file systems of the host's in memory that it takes part of."""

    layers: tuple[Layer, ...] = ()
    memory: tuple[Layer, ...] = ()
    hostname: str = ""


def visible(mounts: tuple[Mount, ...]) -> tuple[Mount, ...]:
    """Those that no later mount covers, parents before children."""
    by_id = {mount.id: mount for mount in mounts}
    children: dict[int, list[Mount]] = {}
    for mount in mounts:
        children.setdefault(mount.parent, []).append(mount)

    def below(mount: Mount) -> Iterator[Mount]:
        own = children.get(mount.id, [])
        if any(each.mountpoint == mount.mountpoint for each in own):  # something lies on its root
            yield from below(next(each for each in reversed(own) if each.mountpoint == mount.mountpoint))
            return
        yield mount
        last = {each.mountpoint: each for each in own}
        for each in last.values():
            if not any(_is_below(each.mountpoint, other) for other in last if other != each.mountpoint):
                yield from below(each)

    roots = [mount for mount in mounts if mount.parent not in by_id and mount.mountpoint == "/"]
    return tuple(below(roots[-1])) if roots else ()


def _is_below(path: str, above: str) -> bool:
    return path.startswith(above.rstrip("/") + "/")


def host_path(mount: Mount, ours: tuple[Mount, ...]) -> str:
    """Where the host sees what is mounted; empty: nowhere."""
    if mount.subroot.endswith(_DELETED):
        return ""
    for each in ours:
        inside = mount.subroot == each.subroot or _is_below(mount.subroot, each.subroot)
        if each.device == mount.device and inside:
            path = str(PurePosixPath(each.mountpoint, os.path.relpath(mount.subroot, each.subroot)))
            if blockfs.holding(ours, path) is each:
                return path
    return ""


def inner_path(mount: Mount, seen: tuple[Mount, ...]) -> str:
    """Where the namespace itself sees a part of a file system of its own that is mounted once more; empty: nowhere."""
    for each in seen[: seen.index(mount)]:
        if each.device == mount.device and each.subroot == "/":
            return str(PurePosixPath(each.mountpoint, mount.subroot.lstrip("/")))
    return ""


def unmakeable(theirs: tuple[Mount, ...], ours: tuple[Mount, ...], credentials: str = "") -> tuple[str, ...]:
    """What of a namespace only the one who made it can make again, in words. `credentials`: where its own are."""
    found = []
    seen = visible(theirs)
    for mount in seen:
        path = host_path(mount, ours)
        above = blockfs.holding(ours, path) if path else None
        if mount.mountpoint == credentials:
            found.append(f"credentials in {credentials}")
        elif above is None:
            if mount.fstype not in _OWN or (mount.subroot != "/" and not inner_path(mount, seen)):
                found.append(f"{mount.fstype} on {mount.mountpoint}")
        elif mount.mountpoint == "/" and path != "/":
            found.append(f"{path} as its root")
        elif path != mount.mountpoint and above.block_backed and above.mountpoint != "/":
            found.append(f"{path} on {mount.mountpoint}")  # it is mounted later than the service is restored
    return tuple(found)


def layout(
    theirs: tuple[Mount, ...], ours: tuple[Mount, ...], view: Path, carried: Iterable[str], root: Path = Path("/")
) -> Layout:
    """Of a namespace in which `unmakeable` finds nothing.

    `view`: what a process in it sees as its root; `carried`: the host's paths whose files go along. Raises KernelError,
    and KupgradeError for files that would be lost.
    """
    carried = tuple(carried)
    seen = visible(theirs)
    layers = tuple(_layer(mount, ours, seen, view, root) for mount in seen)
    for layer in layers:
        if not any(layer.mountpoint == path or _is_below(layer.mountpoint, path) for path in carried):
            _refuse_files(view, layer)
    places = [path for path in carried if path] + [
        each.source for each in layers if each.source and not (each.whole or each.inside)
    ]
    held = {id(mount): mount for path in places if (mount := blockfs.holding(ours, path)) and mount.fstype == "tmpfs"}
    memory = (Layer(each.mountpoint, each.options, "", each.fstype, _data(each)) for each in held.values())
    return Layout(layers, tuple(sorted(memory, key=lambda each: each.mountpoint)))


def _layer(mount: Mount, ours: tuple[Mount, ...], seen: tuple[Mount, ...], view: Path, root: Path) -> Layer:
    path = host_path(mount, ours)
    above = blockfs.holding(ours, path) if path else None
    if above is None and (inner := inner_path(mount, seen)):
        return Layer(mount.mountpoint, mount.options, inner, inside=True)
    if above is None:
        nodes = tuple(_inside(view / mount.mountpoint.lstrip("/"))) if mount.fstype == "tmpfs" else ()
        return Layer(mount.mountpoint, mount.options, "", mount.fstype, _data(mount), nodes)
    whole = path == mount.mountpoint == above.mountpoint
    led = above.fstype in IN_MEMORY or PRIVATE in path
    nodes = tuple(_way(root, path, above.mountpoint)) if led and not whole else ()
    return Layer(mount.mountpoint, mount.options, path, nodes=nodes, whole=whole)


def _refuse_files(view: Path, layer: Layer) -> None:
    """A file system of its own that goes along without its files must have none but what others are mounted on."""
    for node in layer.nodes if not layer.source else ():
        path = view / layer.mountpoint.lstrip("/") / node.path
        if stat.S_ISREG(node.mode) and path.lstat().st_dev == path.parent.lstat().st_dev and path.lstat().st_size:
            why = f"{layer.mountpoint}/{node.path} is in a file system of its own that only systemd fills"
            raise KupgradeError("A service's mounts cannot be made again", why, "Give the unit fate = restart")


def _data(mount: Mount) -> str:
    """The file system's own options, as mount(2) takes them."""
    return ",".join(word for word in mount.super_options if word not in ("rw", "ro", "seclabel"))


def _way(root: Path, path: str, top: str) -> Iterator[Node]:
    """The directories from below `top` to `path`, and that."""
    for each in (*reversed(PurePosixPath(path).parents), PurePosixPath(path)):
        if _is_below(str(each), top):
            yield _node(root / str(each).lstrip("/"), str(each))


def _inside(top: Path) -> Iterator[Node]:
    """What a file system holds, its root first, without what is mounted in it; paths are relative."""
    device = top.lstat().st_dev
    with reported("read", top):
        yield _node(top, ".")
        for folder, directories, files in os.walk(top):
            for name in sorted((*directories, *files)):
                yield _node(Path(folder, name), str(Path(folder, name).relative_to(top)))
            directories[:] = [name for name in directories if Path(folder, name).lstat().st_dev == device]


def _node(path: Path, name: str) -> Node:
    with reported("stat", path):
        found = path.lstat()
        target = str(path.readlink()) if stat.S_ISLNK(found.st_mode) else ""
    return Node(name, found.st_mode, found.st_uid, found.st_gid, found.st_rdev, target)
