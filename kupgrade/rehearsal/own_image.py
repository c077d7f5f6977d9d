"""A disk of this host's files for its rehearsal: measured, copied past whoever writes to them, removed afterwards.

The copy is made in a mount namespace of its own, where this host's file systems are bound read-only and the new one is
mounted: nobody else sees these mounts, and they end with the process that made them, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import secrets
import shutil
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kupgrade.errors import KupgradeError, RefusedError
from kupgrade.host.command import find, run
from kupgrade.host.images import ImageStore
from kupgrade.kernel.blockfs import free_bytes
from kupgrade.model.workload import Store, StoreKind
from kupgrade.rehearsal.own_root import View, patterns

PLACE = "var/lib/kupgrade/rehearsal"
LIVE, LIVE_DISK = "live", "live-disk"  # images of what runs here, and the disk that they are put on
MIB = 1 << 20
RESERVE = 512 * MIB  # left free on this host's disk whatever happens in the guest
OVERHEAD = 1.06  # metadata of the new file system
_SLOWEST = 1e6  # bytes a second, when waiting for a copy
# With the view at $1: what stays away is told by patterns in the file $2.
_VIEW = """
mount --bind -o ro / "$1"
while IFS= read -r point; do mount --bind -o ro "$point" "$1$point"; done < "$3"
cd "$1"
"""
_MEASURE = _VIEW + 'du -s --block-size=1 --exclude-from="$2" . | cut -f 1\n'
# tar tells by 1 that files changed or went while they were read, and by 2 that something could not be.
_COPY = (
    """
mount -o loop,noatime "$4" "$5"
"""
    + _VIEW
    + """
set -f
words='--acls --selinux --xattrs --xattrs-include=* --numeric-owner'
{ status=0; tar -c --sparse $words --exclude-from="$2" -f - . 2> "$6" || status=$?; echo $status > "$6.status"; } |
    tar -x $words --same-permissions --same-owner -C "$5" -f -
set +f
cd /
for kind in target.wants target.requires device.wants device.requires; do
    rm -rf "$5"/etc/systemd/system/*.$kind
done
tar -x --same-permissions --same-owner --numeric-owner --no-overwrite-dir --keep-directory-symlink -C "$5" -f "$7"
umount "$5"
"""
)


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link of the settings."""

    target: str


Settings = Mapping[str, str | bytes | Link]  # path below the guest's root -> content


@dataclass(frozen=True, slots=True)
class Made:
    """The disk, what was copied (bytes), in how many seconds, and the files that changed or went meanwhile.

    `identity`: UUID of its file system.
    """

    disk: Path
    copied: int
    seconds: float
    changed: tuple[str, ...]
    identity: str


@contextlib.contextmanager
def workplace(root: Path, scratch: Path | None) -> Iterator[Path]:
    """A directory for one rehearsal (0700), gone afterwards; those of rehearsals that were killed go first.

    With `scratch` it lies there, and a link to it in the usual place tells the next rehearsal where.
    """
    place = root / PLACE
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    place.mkdir(mode=0o700, exist_ok=True)
    place.chmod(0o700)
    name = f"run-{os.getpid()}-{secrets.token_hex(3)}"
    directory = place / name
    with contextlib.ExitStack() as stack:
        with _held(place):  # nobody sweeps between the directory and its lock
            sweep(place)
            stack.callback(_remove, directory)
            if scratch is None:
                directory.mkdir(mode=0o700)
            else:
                directory.symlink_to(scratch.absolute() / f"kupgrade-rehearsal-{name}")
                directory.resolve().mkdir(mode=0o700)
            lock = stack.enter_context((directory / "lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield directory.resolve()


@contextlib.contextmanager
def _held(directory: Path) -> Iterator[None]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def sweep(place: Path) -> tuple[str, ...]:
    """Remove what rehearsals left that were killed: nobody holds their locks. Their names."""
    found = []
    for directory in sorted(place.glob("run-*")):
        try:
            with (directory / "lock").open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue  # it is at work
        except FileNotFoundError:
            pass  # killed before it had a lock
        _remove(directory)
        found.append(directory.name)
    return tuple(found)


def _remove(directory: Path) -> None:
    """With all that a link points to. Raises KupgradeError: a copy of this host holds its secrets."""
    where = directory.resolve()
    try:
        wipe_images(where)
        shutil.rmtree(where)
    except FileNotFoundError:
        pass  # it was never made, or the disk that it lay on is gone
    except OSError as error:
        raise KupgradeError(f"A copy of this host's files is left in {where}", str(error), "Remove it") from error
    if directory.is_symlink():
        directory.unlink()


def wipe_images(directory: Path) -> None:
    """Overwrite and remove all that holds memory of this host's services; done as well when nothing does."""
    for name in (LIVE, LIVE_DISK):
        wipe_tree(directory / name)


def wipe_tree(directory: Path) -> None:
    """Overwrite and remove the files of a directory, and itself."""
    ImageStore(Store(StoreKind.DISK, str(directory))).wipe()


def measure(found: View, directory: Path) -> int:
    """Bytes that the view's files take here."""
    _write_lists(found, directory)
    words = [str(directory / name) for name in ("view", "patterns", "points")]
    return int(_apart(_MEASURE, words, 3600.0).strip())


def require_room(directory: Path, size: int, written: int, images: int = 0) -> None:
    """Raise RefusedError, with figures, unless the copy of `size` bytes, what the guest writes and images fit there."""
    free = free_bytes(directory)
    needed = int(size * OVERHEAD) + written + images + RESERVE
    if free < needed:
        live = f" {images // MIB} MiB for images of what runs here," if images else ""
        raise RefusedError(
            "There is no room for a copy of this host's files",
            f"{size // MIB} MiB of them, {written // MIB} MiB for what the guest writes,{live} and {RESERVE // MIB} MiB"
            f" that stay free make {needed // MIB} MiB, and {directory} has {free // MIB} MiB",
            "Choose another place (--scratch), or leave something out (--leave-out)",
        )


def make(found: View, directory: Path, size: int, written: int, identity: str, settings: Settings) -> Made:
    """The guest's disk: an ext4 file system with the UUID `identity`, the view's files, and over them `settings`.

    Raises KupgradeError when something could not be read. Nothing is enabled in it: what targets and devices would
    start by an administrator's wish is taken out.
    """
    begun = time.monotonic()
    disk = directory / "disk.img"
    with disk.open("wb") as file:
        disk.chmod(0o600)
        file.truncate((int(size * OVERHEAD * 1.1) + 2 * written + 1024 * MIB) // MIB * MIB)
    options = ["-E", "lazy_itable_init=0,lazy_journal_init=0", "-m", "0"]
    run(["mkfs.ext4", "-q", "-F", "-i", "12288", "-U", identity, *options, str(disk)], timeout=600.0)
    _write_lists(found, directory)
    archive = directory / "settings.tar"
    archive.write_bytes(packed(settings))
    (directory / "root").mkdir(exist_ok=True)
    names = ("view", "patterns", "points", "disk.img", "root", "copy.log", "settings.tar")
    _apart(_COPY, [str(directory / name) for name in names], 900.0 + size / _SLOWEST)
    log = (directory / "copy.log").read_text(errors="replace").splitlines()
    status = int((directory / "copy.log.status").read_text())
    if status > 1:
        raise KupgradeError("This host's files could not be copied", "; ".join(log[-3:]) or f"tar: {status}")
    return Made(disk, size, round(time.monotonic() - begun, 1), changed(log), identity)


def changed(log: Sequence[str]) -> tuple[str, ...]:
    """The files that tar saw change, shrink or go while it read them."""
    marks = (": file changed as we read it", ": File removed before we read it", ": File shrank by ")
    found = (line.removeprefix("tar: ").split(mark)[0] for line in log for mark in marks if mark in line)
    return tuple(dict.fromkeys(path.removeprefix(".") for path in found))


def packed(settings: Settings) -> bytes:
    """As a tar archive, everything root's."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for path, content in settings.items():
            member = tarfile.TarInfo(path)
            if isinstance(content, Link):
                member.type, member.linkname = tarfile.SYMTYPE, content.target
                archive.addfile(member)
                continue
            data = content.encode() if isinstance(content, str) else content
            member.size, member.mode = len(data), 0o644
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def _write_lists(found: View, directory: Path) -> None:
    (directory / "view").mkdir(exist_ok=True)
    (directory / "patterns").write_text("".join(f"{each}\n" for each in patterns(found)))
    (directory / "points").write_text("".join(f"{each}\n" for each in found.mounted))


def gentle() -> tuple[str, ...]:
    """Words before a program that gives way to this host's own: processors, disks, memory when it runs out."""
    ways = {"choom": ("-n", "1000", "--"), "nice": ("-n", "10"), "ionice": ("-c", "3")}
    return tuple(word for tool, words in ways.items() if find(tool) for word in (tool, *words))


def _apart(script: str, words: Sequence[str], timeout: float) -> str:
    """A script in mount and process namespaces of its own; all of it ends with this process. Its output."""
    bound = [*gentle(), *(["setpriv", "--pdeathsig", "KILL"] if find("setpriv") else [])]
    spaces = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"]
    return run([*bound, *spaces, "/bin/sh", "-eu", "-c", script, "rehearsal", *words], timeout=timeout).stdout
