"""Checkpoint images on their store: directories, the manifest with its complete mark, and wiping.

Layout below the store's path (0700, root): `WORKLOAD/pre-1 … pre-N`, `WORKLOAD/final`, `manifest.json`. The
manifest is written last and atomically: without it the images do not count. Images hold secrets (memory), so they are
0600, never on a path others can read, and are overwritten before they are removed.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from kupgrade.errors import BadInputError
from kupgrade.host import command
from kupgrade.host.durable import sync_directory, write_durably
from kupgrade.host.manifest import MANIFEST, PAGES, ImageFile, Known, Manifest, checksum, links_in
from kupgrade.model.codec import decode, encode
from kupgrade.model.workload import Store, StoreKind

FINAL = "final"  # directory of the final dump
FS_LABEL = "kupgrade"
SAFE = "nosuid,nodev,noexec"
MEMORY_SHARE = "75%"  # of this kernel's memory that images in it may take; tmpfs takes what is written only
_CHUNK = 1 << 20
_NOTHING = 2  # blkid(8): no sign of anything; 0 without a word: partitions; 8: signs of several
_MARKS = (MANIFEST, f".{MANIFEST}.new")  # the second: one that was not written to its end (durable.py)


class ImageStore:
    """One upgrade's images at `store.path`."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.path = Path(store.path)

    @property
    def in_memory(self) -> bool:
        """Whether the images are in this kernel's memory only (tmpfs)."""
        return self.store.in_memory

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
            self._mount_memory()
        else:
            self._mount("ext4", SAFE)
        Path(self.store.mountpoint).chmod(0o700)

    def _mount_memory(self) -> None:
        """With large pages where this kernel has them: images are read back several times as fast."""
        options = f"{SAFE},mode=0700,size={MEMORY_SHARE}"
        if self._mount("tmpfs", f"{options},huge=within_size", check=False) != 0:
            self._mount("tmpfs", options)

    def _mount(self, kind: str, options: str, *, check: bool = True) -> int:
        argv = ["mount", "-t", kind, "-o", options, self.store.device, self.store.mountpoint]
        return command.run(argv, check=check).status

    def format(self) -> None:
        """Make the device's file system, unless it is ours already. Raises BadInputError when it holds another."""
        if not self.store.device or self.in_memory or self.mounted():
            return
        argv = ["blkid", "-p", "-o", "value", "-s", "TYPE", "-s", "LABEL", self.store.device]
        done = command.run(argv, check=False)
        found = done.stdout.split()
        if sorted(found) == ["ext4", FS_LABEL]:
            return
        if found or done.status != _NOTHING:
            raise BadInputError(
                f"{self.store.device} holds something else",
                " ".join(found) or f"no file system by itself, blkid's exit status is {done.status}",
                f"Clear it (wipefs {self.store.device}) or name another store in the policy",
            )
        options = ["-q", "-F", "-m", "0", "-L", FS_LABEL, "-E", "nodiscard", "-O", "^has_journal"]
        command.run(["mkfs.ext4", *options, self.store.device])

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
        _empty(path)
        return path

    def forget_rounds(self, workload: str) -> None:
        """Wipe every pre-dump round: a new first one makes them worthless; they would be taken for its successors."""
        for path in (self.path / workload).glob("*"):
            if round_of(path.name) is None:
                continue
            _empty(path)
            path.rmdir()

    def free_bytes(self) -> int:
        """Bytes free for images: in memory no more than there is, whatever the file system's own limit says."""
        info = os.statvfs(self.path)
        free = info.f_bavail * info.f_frsize
        return min(free, _available_memory()) if self.in_memory else free

    def used_bytes(self) -> int:
        """Bytes that the images take."""
        return sum(self._stat(path).st_size for path in self._files())

    def seal(self, upgrade: str, old_release: str, new_release: str, known: Mapping[str, Known]) -> Manifest:
        """Checksum everything (but what `known` covers), flush, then write the complete mark."""
        files = {name: each.file for name, each in self.checksums(known).items()}
        manifest = Manifest(upgrade, old_release, new_release, files, links=links_in(self.path))
        self.sync()
        write_durably(self.path / MANIFEST, json.dumps(encode(manifest)).encode())
        return manifest

    def checksums(self, known: Mapping[str, Known]) -> dict[str, Known]:
        """Of what is there now; what `known` covers is not read again, so that sealing in the blackout is short."""
        found = {}
        for path in self._files():
            path.chmod(0o600)  # criu's are; of others the umask tells
            info = self._stat(path)
            name = str(path.relative_to(self.path))
            before = known.get(name)
            same = before is not None and (before.written, before.file.size) == (info.st_mtime_ns, info.st_size)
            found[name] = before if before is not None and same else Known(checksum(path), info.st_mtime_ns)
        return found

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

    def verify(self, contents: Callable[[Path], bool] = lambda _: True) -> Manifest:
        """Compare every image with the manifest; raises BadInputError naming the first that differs.

        Of images whose relative path `contents` says no to the sizes are compared alone.
        """
        manifest = self.manifest()
        manifest.check_links(self.path)
        for name, expected in manifest.files.items():
            path = self.path / name
            try:
                known = ImageFile(self._stat(path).st_size, expected.crc32, expected.chunks)
                found = checksum(path) if contents(Path(name)) else known
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
        for directory, _, names in sorted(os.walk(self.path, onerror=_unless_missing)):
            for name in sorted(names):
                path = Path(directory, name)
                with contextlib.suppress(FileNotFoundError):  # its holder is gone, and the image with it
                    if name not in _MARKS and stat.S_ISREG(self._stat(path).st_mode):
                        yield path

    def _stat(self, path: Path) -> os.stat_result:
        """Images that came through a kexec are links to whoever holds them; anywhere else a link is no image."""
        return path.stat() if self.store.kind is StoreKind.LUO else path.lstat()


def last_dump(image: Path) -> bool:
    """Whether an image (relative path) is of the final dump, and of no round before it."""
    return image.parent.name == FINAL


def pages(image: Path) -> bool:
    """Whether an image holds memory, and nothing that criu is steered by."""
    return image.name.startswith(PAGES)


def round_name(number: int) -> str:
    """Of the directory of a pre-dump round, from 1."""
    return f"pre-{number}"


def round_of(name: str) -> int | None:
    """The number of the round in a directory of this name; None for any other."""
    word, _, number = name.partition("-")
    return int(number) if word == "pre" and number.isdigit() else None


def make_private(path: Path) -> None:
    """Make a directory and its missing parents, each 0700 (mkdir's own mode counts for the last one only)."""
    for directory in (*reversed(path.parents), path):
        if not directory.exists():
            directory.mkdir(mode=0o700)


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


def _unless_missing(error: OSError) -> None:
    """A directory that cannot be read is not one without images; what is not there holds none."""
    if not isinstance(error, FileNotFoundError):
        raise error


def _available_memory() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    raise BadInputError("The memory that is available is not known", "/proc/meminfo does not tell")


def _empty(directory: Path) -> None:
    for path in directory.iterdir():
        if stat.S_ISREG(path.lstat().st_mode):
            _overwrite(path)
        path.unlink()


def _overwrite(path: Path) -> None:
    size = path.stat().st_size  # of an image, and not of a link to whoever holds it
    with path.open("r+b", buffering=0) as file:
        zeros = bytes(_CHUNK)
        while size > 0:
            size -= file.write(zeros[: min(size, _CHUNK)])
        os.fsync(file.fileno())
