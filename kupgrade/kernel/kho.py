"""KHO (kexec handover) in the running kernel: is it on, what was handed in, how much memory it set aside.

Sources: Documentation/admin-guide/mm/kho.rst, Documentation/core-api/kho/, include/linux/kho/abi/ (kexec_handover.h,
kexec_metadata.h, luo.h), Documentation/admin-guide/kernel-parameters.txt.

Most of it stands in debugfs only, which may not be mounted, not be readable (lockdown), or be built without KHO's part
of it (CONFIG_KEXEC_HANDOVER_DEBUGFS): then a fact is unknown, and the reason is kept.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kupgrade.errors import BadInputError, KernelError
from kupgrade.kernel import fdt, kexec
from kupgrade.kernel.libc import read_text, reported
from kupgrade.kernel.liveupdate import DEVICE
from kupgrade.model.kernel import CommandLine
from kupgrade.model.kho import KhoFacts, KhoWords
from kupgrade.model.machine import MemoryRange

DEBUGFS = "sys/kernel/debug"
KHO = f"{DEBUGFS}/kho"

METADATA = "kexec-metadata"
METADATA_FORMAT = struct.Struct("=I65sI")  # version, previous_release, kexec_count
METADATA_VERSION = 1

_ABI = re.compile(rb"([a-z]+-v[0-9]+)\0")
# The property itself: token, length, where its name stands, value
_KHO_ABI = re.compile(rb"\x00\x00\x00\x03\x00\x00\x00.\x00\x00..(kho-v[0-9]+)\0", re.DOTALL)

_BOTH = "it is off, or the kernel was built without CONFIG_KEXEC_HANDOVER_DEBUGFS"


class _UnknownError(Exception):
    """The fact cannot be told; the reason is the text."""


class _Notes:
    """What could not be told, and why."""

    __slots__ = ("found",)

    def __init__(self) -> None:
        self.found: list[tuple[str, str]] = []

    @contextmanager
    def about(self, *names: str) -> Iterator[None]:
        """Take down why these fields stay unknown, if the body finds out that they do."""
        try:
            yield
        except _UnknownError as error:
            self.found += [(name, str(error)) for name in names]
        except KernelError as error:
            self.found += [(name, f"{error.path}: {error.why}") for name in names]
        except BadInputError as error:
            self.found += [(name, f"{error.what}: {error.why}") for name in names]


def switch(text: str | None) -> bool | None:
    """A parameter as kstrtobool() reads it; None: neither yes nor no, so the parameter changes nothing."""
    low = (text or "").lower()
    if low[:1] in ("e", "y", "t", "1") or low[:2] == "on":
        return True
    return False if low[:1] in ("d", "n", "f", "0") or low[:2] == "of" else None


def read_words(root: Path = Path("/")) -> KhoWords:
    """The words of the running kernel's command line. Raises KernelError."""
    given = dict(CommandLine.parse(read_text(root / "proc/cmdline").replace("\0", "")))
    return KhoWords(given.get("kho"), given.get("liveupdate"), given.get("kho_scratch"), given.get("crashkernel"))


def _names(folder: Path) -> tuple[str, ...]:
    with reported("list", folder):
        return tuple(sorted(each.name for each in folder.iterdir()))


def _blob(path: Path) -> bytes:
    with reported("read", path):
        return path.read_bytes()


def _debugfs(root: Path) -> None:
    """Raises _UnknownError or KernelError where debugfs tells nothing about KHO."""
    if not _names(root / DEBUGFS):
        raise _UnknownError("debugfs is not mounted")
    if "out" not in (_names(root / KHO) if "kho" in _names(root / DEBUGFS) else ()):
        raise _UnknownError(f"there is no /{KHO}/out: {_BOTH}")


def _has_device(root: Path) -> bool:
    """Whether the kernel has the device, by its list of drivers; independent of names in /dev. Raises KernelError."""
    return any(line.split()[1:] == ["liveupdate"] for line in read_text(root / "proc/misc").splitlines())


def _enabled(root: Path, words: KhoWords, device: bool | None) -> bool:
    if device:
        return True  # live update turns itself off without KHO
    if switch(words.kho) is False:
        return False
    _debugfs(root)  # an option of the build: that it is missing says nothing
    return True


def _numbers(path: Path) -> list[int]:
    try:
        return [int(line, 16) for line in read_text(path).split()]
    except ValueError as error:
        raise _UnknownError(f"{path}: not a list of numbers") from error


def _scratch(root: Path) -> tuple[MemoryRange, ...]:
    _debugfs(root)
    starts, sizes = _numbers(root / KHO / "out/scratch_phys"), _numbers(root / KHO / "out/scratch_len")
    if len(starts) != len(sizes):
        raise _UnknownError("as many addresses as lengths were expected")
    return tuple(MemoryRange(start, size) for start, size in zip(starts, sizes, strict=True) if size)


def abi_of(blob: bytes) -> str:
    """The name of a blob's format: a device tree's `compatible`, or the string a structure begins with.

    Raises BadInputError.
    """
    if blob[:4] != fdt.MAGIC.to_bytes(4, "big"):
        found = _ABI.match(blob)
        if not found:
            raise BadInputError("The format cannot be told", "it is no device tree and begins with no name")
        return found[1].decode()
    text = fdt.parse(blob).text("compatible")
    if not text:
        raise BadInputError("The format cannot be told", "the device tree's root has no compatible property")
    return text


def _kho_abi(root: Path) -> str:
    """A kernel takes only what has its own format, and after a handover it shows no tree of its own.

    That tree grows behind what debugfs shows of it, so it is cut off: before the names of its properties, behind
    the root's, of which one is the format.
    """
    _debugfs(root)
    if "in" in _names(root / KHO):
        return abi_of(_blob(root / KHO / "in/fdt"))
    found = _KHO_ABI.search(_blob(root / KHO / "out/fdt"))
    if not found:
        raise _UnknownError(f"/{KHO}/out/fdt names no format")
    return found[1].decode()


def _luo_abi(root: Path, liveupdate: bool | None) -> str:
    if liveupdate is False:
        raise _UnknownError("live update is off")
    _debugfs(root)
    return abi_of(_blob(root / KHO / "out/sub_fdts/LUO"))


def _incoming(root: Path) -> tuple[str, ...]:
    """Names of what was handed over; the tree knows more of them than the folder of blobs."""
    _debugfs(root)
    if "in" not in _names(root / KHO):
        return ()
    return tuple(sorted(each.name for each in fdt.parse(_blob(root / KHO / "in/fdt")).children))


def read_metadata(blob: bytes) -> tuple[str, int]:
    """The release that handed over, and the number of kexecs since a cold boot. Raises BadInputError."""
    if len(blob) < METADATA_FORMAT.size:
        raise BadInputError("The kexec metadata is cut short", f"{len(blob)} of {METADATA_FORMAT.size} bytes")
    version, release, count = METADATA_FORMAT.unpack_from(blob)
    if version != METADATA_VERSION:
        raise BadInputError("The kexec metadata cannot be read", f"its version is {version}, not {METADATA_VERSION}")
    return os.fsdecode(release.partition(b"\0")[0]), count


def read(root: Path = Path("/")) -> KhoFacts:
    """All facts; never raises."""
    notes, words, there = _Notes(), KhoWords(), False
    enabled = liveupdate = kho_abi = luo_abi = previous = count = None
    scratch: tuple[MemoryRange, ...] | None = None
    incoming: tuple[str, ...] | None = None
    with notes.about("words"):
        words = read_words(root)
    with notes.about("liveupdate"), reported("stat", root / DEVICE):
        there = (root / DEVICE).exists()
        liveupdate = there or _has_device(root)
    with notes.about("enabled"):
        enabled = _enabled(root, words, liveupdate)
    if enabled is False:
        scratch, incoming = (), ()
        notes.found += [(name, "KHO is off") for name in ("kho_abi", "luo_abi")]
    else:
        with notes.about("scratch"):
            scratch = _scratch(root)
        with notes.about("kho_abi"):
            kho_abi = _kho_abi(root)
        with notes.about("incoming", "previous_release", "kexec_count"):
            incoming = _incoming(root)
        with notes.about("luo_abi"):
            luo_abi = _luo_abi(root, liveupdate)
    if incoming and METADATA in incoming:
        with notes.about("previous_release", "kexec_count"):
            previous, count = read_metadata(_blob(root / KHO / "in/sub_fdts" / METADATA))
    crash = kexec.read_state(root).crash_size
    if crash is None:
        notes.found.append(("crash_bytes", "the kernel does not tell what it keeps for a crash kernel"))
    return KhoFacts(
        device_there=there,
        enabled=enabled,
        liveupdate=liveupdate,
        words=words,
        scratch=scratch,
        crash_bytes=crash,
        kho_abi=kho_abi,
        luo_abi=luo_abi,
        incoming=incoming,
        previous_release=previous,
        kexec_count=count,
        unknown=tuple(notes.found),
    )
