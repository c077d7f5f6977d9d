"""Device-mapper snapshots: a file system to be written before its disk may be.

A snapshot keeps all writes in a store of its own and leaves the origin alone. Merging copies them to the origin while
the snapshot is mounted and in use; when nothing is left to copy, the table becomes a plain mapping of the origin.

Source: Documentation/admin-guide/device-mapper/snapshot.rst. The store must be persistent (P): the kernel does not
merge transient ones (drivers/md/dm-snap-transient.c has no merge methods).
"""

from __future__ import annotations

import enum
import errno
import os
import re
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kupgrade.errors import KernelError, KupgradeError
from kupgrade.kernel.devmapper import SECTOR, DeviceMapper, Segment
from kupgrade.kernel.libc import reported

CHUNK = 8  # sectors: 4 KiB, a file system block, so that little more is copied than was written
_USAGE = re.compile(r"(\d+)/(\d+) (\d+)")
_RETRY = 5.0  # seconds in which somebody who looks at a device (udev) lets go of it
_POLL = 0.02


class Target(enum.Enum):
    """What a mapped device does."""

    SNAPSHOT = "snapshot"
    MERGE = "snapshot-merge"
    LINEAR = "linear"
    OTHER = "other"
    NONE = "none"  # it was made, but never got a table


@dataclass(frozen=True, slots=True)
class Status:
    """A mapped device. `used`, `room`, `metadata`: sectors of the store (0 for plain mappings).

    `failure`: the kernel's own word when the store is unusable (Invalid, Overflow, Merge failed), else empty.
    """

    target: Target
    sectors: int
    used: int = 0
    room: int = 0
    metadata: int = 0
    failure: str = ""

    @property
    def merged(self) -> bool:
        """Whether a merge has nothing left to copy."""
        return self.target is Target.MERGE and not self.failure and self.used == self.metadata


def parse_status(segments: Sequence[Segment]) -> Status:
    """What the kernel says of a device; one of several targets is none of ours."""
    sectors = sum(each.length for each in segments)
    if len(segments) != 1:
        return Status(Target.OTHER if segments else Target.NONE, sectors)
    try:
        target = Target(segments[0].kind)
    except ValueError:
        target = Target.OTHER
    if target not in (Target.SNAPSHOT, Target.MERGE):
        return Status(target, sectors)
    rest = segments[0].text.strip()
    usage = _USAGE.fullmatch(rest)
    if usage is None:
        return Status(target, sectors, failure=rest or "no figures")
    used, room, metadata = (int(number) for number in usage.groups())
    return Status(target, sectors, used, room, metadata)


def sectors_of(device: Path, root: Path = Path("/")) -> int:
    """Size of a block device in sectors, from sysfs. Raises KernelError."""
    path = root / "sys/class/block" / device.resolve().name / "size"
    with reported("read", path):
        return int(path.read_text())


def node(name: str, root: Path = Path("/")) -> Path:
    """The mapped device's node."""
    return root / "dev/mapper" / name


def ensure_node(mapper: DeviceMapper, name: str, root: Path = Path("/")) -> Path:
    """The node, made unless it leads to the device: as udev's link where devtmpfs has the device, else a real node.

    udev may make it at the same time. Raises KernelError (ENXIO: there is no such device).
    """
    found = mapper.info(name)
    if found is None:
        raise KernelError("DM_DEV_STATUS", name, errno.ENXIO)
    path, own = node(name, root), root / f"dev/dm-{os.minor(found.device)}"
    while _number(path) != found.device:
        with reported("mknod", path):
            path.unlink(missing_ok=True)  # of an earlier device of this name
            try:
                if _number(own) == found.device:
                    path.symlink_to(Path("..") / own.name)
                else:
                    os.mknod(path, stat.S_IFBLK | 0o600, found.device)
            except FileExistsError:
                continue
            return path
    return path


def _number(path: Path) -> int | None:
    """The block device that a path leads to."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_rdev if stat.S_ISBLK(found.st_mode) else None


def status(mapper: DeviceMapper, name: str) -> Status | None:
    """None: there is no such device. Raises KernelError."""
    found = mapper.status(name)
    return None if found is None else parse_status(found)


def origin(mapper: DeviceMapper, name: str, root: Path = Path("/")) -> Path:
    """The device below, by its number in the table in use. Raises KernelError (ENXIO: there is none)."""
    found = mapper.table(name)
    if not found or not found[0].text:
        raise KernelError("DM_TABLE_STATUS", name, errno.ENXIO)
    return device(found[0].text.split()[0], root)


def device(number: str, root: Path = Path("/")) -> Path:
    """The node of a block device (major:minor) under the kernel's own name. Raises KernelError."""
    link = root / "sys/dev/block" / number
    with reported("readlink", link):
        return root / "dev" / link.readlink().name.replace("!", "/")


def table(target: Target, sectors: int, origin: Path, store: Path | None) -> tuple[Segment, ...]:
    """The table of one target over the whole device."""
    text = f"{origin} 0" if target is Target.LINEAR else f"{origin} {store} P {CHUNK}"
    return (Segment(0, sectors, target.value, text),)


def snapshot(mapper: DeviceMapper, name: str, origin: Path, store: Path, sectors: int, root: Path = Path("/")) -> Path:
    """Map `origin` so that writes go to `store` (its content is lost); the node. What failed leaves no device.

    A device of that name that never got a table is what a killed process left, and replaced. Raises KernelError.
    """
    found = mapper.info(name)
    if found is not None and not found.active:
        remove(mapper, name, root)
    with reported("write", store), store.open("r+b") as file:
        file.write(bytes(SECTOR * CHUNK))  # a header of an earlier snapshot would be taken for this one's
        file.flush()
        os.fsync(file.fileno())
    mapper.create(name)
    try:
        mapper.load(name, table(Target.SNAPSHOT, sectors, origin, store))
        mapper.resume(name)
    except KernelError:
        remove(mapper, name, root)
        raise
    return ensure_node(mapper, name, root)


def reload(mapper: DeviceMapper, name: str, wanted: Sequence[Segment], *, frozen: bool = False) -> None:
    """Exchange the table of a device in use: its file system is frozen and flushed (lockfs) for the moment between,
    unless it is `frozen` already.

    No program is started in that moment: it could lie on that file system. Raises KernelError; the device goes on
    with the table that it had.
    """
    mapper.suspend(name, frozen=frozen)
    try:
        mapper.load(name, wanted)
    finally:
        mapper.resume(name)


def check_sound(found: Status | None, name: str) -> Status:
    """Raise KupgradeError unless the device is there and its store usable."""
    if found is None or found.target is Target.NONE:
        raise KupgradeError(f"The mapped device {name} is gone", "somebody removed it")
    if found.failure:
        raise KupgradeError(
            f"The snapshot {name} cannot be used any more",
            f"the kernel says: {found.failure}",
            "What was written since the crossing is lost; the origin is as it was",
        )
    return found


def remove(mapper: DeviceMapper, name: str, root: Path = Path("/"), patience: float = _RETRY) -> None:
    """Unmap; done as well when there is no such device. Raises KernelError (EBUSY after `patience` seconds)."""
    deadline = time.monotonic() + patience
    while True:
        try:
            mapper.remove(name)
        except KernelError as error:
            if error.errno == errno.EBUSY and time.monotonic() < deadline:
                time.sleep(_POLL)
                continue
            if error.errno != errno.ENXIO:
                raise
        break
    with reported("unlink", node(name, root)):
        node(name, root).unlink(missing_ok=True)
