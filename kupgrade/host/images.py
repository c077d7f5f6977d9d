"""Checkpoint images on their store: directories, the manifest with its complete mark, and wiping.

Layout below the store's path (0700, root): `WORKLOAD/pre-1 … pre-N`, `WORKLOAD/final`, `manifest.json`. The
manifest is written last and atomically: without it the images do not count. Images hold secrets (memory), so they are
0600, never on a path others can read, and are overwritten before they are removed.
"""

from __future__ import annotations

import json
import os
import stat
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from kupgrade.errors import BadInputError
from kupgrade.host import command
from kupgrade.host.durable import sync_directory, write_durably
from kupgrade.model.codec import decode, encode
from kupgrade.model.workload import Store, StoreKind

MANIFEST = "manifest.json"
FORMAT = "kupgrade.images/1"
FS_LABEL = "kupgrade"
MEMORY_SHARE = "75%"  # of this kernel's memory that images in it may take; tmpfs takes what is written only
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One file: size in bytes and CRC-32."""

    size: int
    crc32: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What must be there, whose it is, and for which crossing."""

    upgrade: str
    old_release: str
    new_release: str
    files: Mapping[str, ImageFile]
    format: str = FORMAT


class ImageStore:
    """One upgrade's images at `store.path`."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.path = Path(store.path)

    @property
    def in_memory(self) -> bool:
        """Whether the images are in this kernel's memory only (tmpfs)."""
        return self.store.kind is StoreKind.WINDOW

    def mounted(self) -> bool:
        """Whether the store's file system is mounted where it should be (always true for a plain directory)."""
        if not self.store.device:
            return True
        if self.in_memory:
            return Path(self.store.mountpoint).is_mount()
        device = os.path.realpath(self.store.device)
        return any(
            fields[0] == device and fields[1] == self.store.mountpoint
            for fields in (line.split() for line in Path("/proc/mounts").read_text().splitlines())
        )

    def mount(self) -> None:
        """Mount the store's device; a directory needs none."""
        if self.mounted():
            return
        Path(self.store.mountpoint).mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.in_memory:
            kind, options = "tmpfs", f"nosuid,nodev,noexec,mode=0700,size={MEMORY_SHARE}"
        else:
            kind, options = "ext4", "nosuid,nodev,noexec"
        command.run(["mount", "-t", kind, "-o", options, self.store.device, self.store.mountpoint])
        Path(self.store.mountpoint).chmod(0o700)

    def format(self) -> None:
        """Make the device's file system, unless it is ours already. Raises BadInputError when it holds another."""
        if not self.store.device or self.in_memory or self.mounted():
            return
        found = command.run(
            ["blkid", "-p", "-o", "value", "-s", "TYPE", "-s", "LABEL", self.store.device], check=False
        ).stdout.split()
        if sorted(found) == ["ext4", FS_LABEL]:
            return
        if found:
            raise BadInputError(
                f"{self.store.device} holds another file system",
                " ".join(found),
                f"Clear it (wipefs {self.store.device}) or name another store in the policy",
            )
        command.run(
            [
                "mkfs.ext4",
                "-q",
                "-F",
                "-m",
                "0",
                "-L",
                FS_LABEL,
                "-E",
                "nodiscard",
                "-O",
                "^has_journal",
                self.store.device,
            ]
        )

    def prepare(self) -> None:
        """Make the directory (0700) on a mounted store; refuses one that others could write."""
        self.format()
        self.mount()
        make_private(self.path)
        check_private(self.path)

    def round_directory(self, workload: str, name: str) -> Path:
        """The (fresh) directory of one dump round."""
        path = self.path / workload / name
        make_private(path)
        for stale in path.iterdir():
            stale.unlink()
        return path

    def free_bytes(self) -> int:
        """Bytes free for images."""
        info = os.statvfs(self.path)
        return info.f_bavail * info.f_frsize

    def used_bytes(self) -> int:
        """Bytes that the images take."""
        return sum(path.lstat().st_size for path in self._files())

    def seal(self, upgrade: str, old_release: str, new_release: str, known: Mapping[str, ImageFile]) -> Manifest:
        """Checksum everything (but what `known` covers), flush, then write the complete mark."""
        files = {}
        for path in self._files():
            name = str(path.relative_to(self.path))
            size = path.lstat().st_size
            before = known.get(name)
            files[name] = before if before is not None and before.size == size else checksum(path)
        manifest = Manifest(upgrade, old_release, new_release, files)
        self.sync()
        write_durably(self.path / MANIFEST, json.dumps(encode(manifest)).encode())
        return manifest

    def checksums(self) -> dict[str, ImageFile]:
        """Checksums of what is there now, made before the blackout so that sealing is short."""
        return {str(path.relative_to(self.path)): checksum(path) for path in self._files()}

    def sync(self) -> None:
        """Flush every file system: the images, and what the frozen workloads have written to files before.

        A checkpoint whose files are older than its memory is not one: after a power cut the restored workload would
        go on behind lines that were never written.
        """
        if self.in_memory:
            return  # a power cut ends the images, too; the handover flushes before it freezes
        sync_directory(self.path)
        os.sync()

    def sealed(self) -> bool:
        """Whether the complete mark is there."""
        return (self.path / MANIFEST).exists()

    def manifest(self) -> Manifest:
        """Read the complete mark; raises BadInputError when it is missing or damaged."""
        path = self.path / MANIFEST
        check_private(self.path)
        try:
            return decode(Manifest, json.loads(path.read_bytes()), "manifest")
        except FileNotFoundError:
            raise BadInputError("The checkpoint images are not complete", f"{path} is missing") from None
        except ValueError as error:
            raise BadInputError("The checkpoint's manifest is damaged", str(error)) from None

    def verify(self, only: str = "") -> Manifest:
        """Compare every image with the manifest; raises BadInputError naming the first that differs.

        `only`: checksum images of this round alone, and compare the sizes of the others (short enough for a blackout).
        """
        manifest = self.manifest()
        for name, expected in manifest.files.items():
            path = self.path / name
            try:
                if only and Path(name).parent.name != only:
                    found = ImageFile(path.lstat().st_size, expected.crc32)
                else:
                    found = checksum(path)
            except OSError as error:
                raise BadInputError("A checkpoint image cannot be read", f"{name}: {error.strerror}") from error
            if found != expected:
                raise BadInputError(
                    "A checkpoint image is damaged",
                    f"{name}: {found.size} bytes, checksum {found.crc32:08x};"
                    f" recorded are {expected.size} bytes, {expected.crc32:08x}",
                )
        return manifest

    def withdraw(self) -> None:
        """Remove the complete mark: from now on the images are dead. Durable."""
        (self.path / MANIFEST).unlink(missing_ok=True)
        if self.path.is_dir():
            sync_directory(self.path)

    def wipe(self) -> None:
        """Overwrite and remove all images, mark first; leaves the mount to `unmount`."""
        self.withdraw()
        for path in self._files():
            _overwrite(path)
            path.unlink()
        for path in sorted(self.path.rglob("*"), key=lambda p: len(p.parts), reverse=True):
            if path.is_symlink() or not path.is_dir():
                path.unlink()
            else:
                path.rmdir()
        if self.path.is_dir():
            self.path.rmdir()

    def unmount(self) -> None:
        """Unmount the store's device if we mounted one."""
        if self.store.device and self.mounted():
            command.run(["umount", self.store.mountpoint])

    def _files(self) -> Iterator[Path]:
        if not self.path.is_dir():
            return
        for path in sorted(self.path.rglob("*")):
            if path.name != MANIFEST and stat.S_ISREG(path.lstat().st_mode):
                yield path


def make_private(path: Path) -> None:
    """Make a directory and its missing parents, each 0700 (mkdir's own mode counts for the last one only)."""
    for directory in (*reversed(path.parents), path):
        if not directory.exists():
            directory.mkdir(mode=0o700)


def checksum(path: Path) -> ImageFile:
    """Size and CRC-32 of a file."""
    crc, size = 0, 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
            size += len(chunk)
    return ImageFile(size, crc)


def check_private(path: Path) -> None:
    """Raise BadInputError unless `path` is a directory that only we can enter."""
    info = path.lstat()
    if not stat.S_ISDIR(info.st_mode):
        raise BadInputError(f"{path} is not a directory", "a link in its place could lead anywhere")
    if info.st_uid != os.geteuid() or stat.S_IMODE(info.st_mode) & 0o077:
        raise BadInputError(
            f"{path} is open to others",
            f"owner {info.st_uid}, mode {stat.S_IMODE(info.st_mode):04o}; checkpoint images hold secrets",
            f"chown root {path} and chmod 0700 {path}",
        )


def _overwrite(path: Path) -> None:
    size = path.lstat().st_size
    with path.open("r+b", buffering=0) as file:
        zeros = bytes(_CHUNK)
        while size > 0:
            size -= file.write(zeros[: min(size, _CHUNK)])
        os.fsync(file.fileno())


def kinds() -> tuple[StoreKind, ...]:
    """Stores in the order of preference."""
    return (StoreKind.PMEM, StoreKind.DISK)
