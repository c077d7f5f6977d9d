"""Device-mapper snapshots through dmsetup(8): a file system to be written before its disk may be.

A snapshot keeps all writes in a store of its own and leaves the origin alone. Merging copies them to the origin while
the snapshot is mounted and in use; when nothing is left to copy, the table becomes a plain mapping of the origin.

Source: Documentation/admin-guide/device-mapper/snapshot.rst. The store must be persistent (P): the kernel does not
merge transient ones (drivers/md/dm-snap-transient.c has no merge methods).
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from pathlib import Path

from kupgrade.errors import BadInputError, KernelError, KupgradeError, ToolError
from kupgrade.host import command

SECTOR = 512  # bytes; all of device-mapper counts in these
CHUNK = 8  # sectors: 4 KiB, a file system block, so that little more is copied than was written
_TIMEOUT = 60.0  # seconds
_ABSENT = "Device does not exist"  # dmsetup's word; its exit status is the same for every failure
_USAGE = re.compile(r"(\d+)/(\d+) (\d+)")


class Target(enum.Enum):
    """What a mapped device does."""

    SNAPSHOT = "snapshot"
    MERGE = "snapshot-merge"
    LINEAR = "linear"
    OTHER = "other"


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


def parse_status(line: str) -> Status:
    """One line of `dmsetup status NAME`. Raises BadInputError for anything that is none."""
    words = line.split(maxsplit=3)
    if len(words) < 3 or not words[0].isdecimal() or not words[1].isdecimal():
        raise BadInputError("dmsetup told no status of a device", f"{line!r:.80}", "Look at dmsetup status")
    sectors = int(words[1])
    try:
        target = Target(words[2])
    except ValueError:
        target = Target.OTHER
    if target in (Target.LINEAR, Target.OTHER):
        return Status(target, sectors)
    rest = words[3].strip() if len(words) > 3 else ""
    usage = _USAGE.fullmatch(rest)
    if usage is None:
        return Status(target, sectors, failure=rest or "no figures")
    used, room, metadata = (int(number) for number in usage.groups())
    return Status(target, sectors, used, room, metadata)


def sectors_of(device: Path, root: Path = Path("/")) -> int:
    """Size of a block device in sectors, from sysfs. Raises KernelError."""
    path = root / "sys/class/block" / device.resolve().name / "size"
    try:
        return int(path.read_text())
    except OSError as error:
        raise KernelError("read", str(path), error.errno or 0) from error


def node(name: str) -> Path:
    """The mapped device's node."""
    return Path("/dev/mapper") / name


def status(name: str) -> Status | None:
    """None: there is no such device. Raises ToolError when dmsetup cannot tell."""
    argv = ("dmsetup", "info", name)
    done = command.run(argv, timeout=_TIMEOUT, check=False)
    if done.status != 0:
        if _ABSENT in done.stderr + done.stdout:
            return None
        raise ToolError(argv, done.status, done.stderr or done.stdout, "Run as root, with dm_mod loaded")
    return parse_status(command.run(["dmsetup", "status", name], timeout=_TIMEOUT).stdout)


def table(target: Target, sectors: int, origin: Path, store: Path | None) -> str:
    """The table of one target over the whole device."""
    if target is Target.LINEAR:
        return f"0 {sectors} linear {origin} 0"
    return f"0 {sectors} {target.value} {origin} {store} P {CHUNK}"


def snapshot(name: str, origin: Path, store: Path, sectors: int) -> None:
    """Map `origin` so that writes go to `store` (its content is lost)."""
    with store.open("r+b") as file:  # a header of an earlier snapshot would be taken for this one's
        file.write(bytes(SECTOR * CHUNK))
    text = table(Target.SNAPSHOT, sectors, origin, store)
    command.run(["dmsetup", "create", name, "--table", text], timeout=_TIMEOUT)


def reload(name: str, text: str) -> None:
    """Exchange the table of a device in use: its file system is frozen and flushed (lockfs) for the moment between."""
    command.run(["dmsetup", "suspend", name], timeout=_TIMEOUT)
    try:
        command.run(["dmsetup", "reload", name, "--table", text], timeout=_TIMEOUT)
    finally:
        command.run(["dmsetup", "resume", name], timeout=_TIMEOUT)


def check_sound(found: Status | None, name: str) -> Status:
    """Raise KupgradeError unless the device is there and its store usable."""
    if found is None:
        raise KupgradeError(f"The mapped device {name} is gone", "somebody removed it")
    if found.failure:
        raise KupgradeError(
            f"The snapshot {name} cannot be used any more",
            f"the kernel says: {found.failure}",
            "What was written since the crossing is lost; the origin is as it was",
        )
    return found


def remove(name: str) -> None:
    """Unmap; done as well when there is no such device."""
    if status(name) is not None:
        command.run(["dmsetup", "remove", "--retry", name], timeout=_TIMEOUT)
