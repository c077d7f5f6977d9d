"""Boot Loader Specification entries and systemd-boot's variables.

Sources: uapi-group.org/specifications/specs/boot_loader_specification, systemd.io/BOOT_LOADER_INTERFACE.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from kupgrade.errors import BadInputError
from kupgrade.model.kernel import BootEntry, KernelRelease

# Where the EFI system partition, or the extended boot loader partition, is usually mounted
PARTITIONS = ("boot", "efi", "boot/efi")

_UNIFIED = "/EFI/Linux/"

EFI_VENDOR = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"

_COUNTER = re.compile(r"\+([0-9]+)(-[0-9]+)?(?=\.(conf|efi)$)")  # tries left, tries done
_PARTS = re.compile(r"([0-9]+)|([a-z]+)|([~^.-])")
_MARKS = {"~": -1, "-": 1, "^": 2, ".": 3}  # 0: the end


def release_of(text: str) -> KernelRelease | None:
    """A kernel release out of a version field or a file name (vmlinuz-RELEASE); None when it is none."""
    name = text.rpartition("/")[2]
    for prefix in ("vmlinuz-", "vmlinux-", "kernel-"):
        name = name.removeprefix(prefix)
    try:
        return KernelRelease(name) if any(char.isdigit() for char in name) else None
    except BadInputError:
        return None


def _fields(text: str) -> dict[str, list[str]]:
    """What an entry says: a key, blanks or tabs, its value."""
    fields: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, *value = line.split(maxsplit=1)[:2] or [""]
        if key and not key.startswith("#"):
            fields.setdefault(key, []).append("".join(value).strip())
    return fields


def parse_entry(name: str, text: str) -> BootEntry:
    """A type #1 entry; `name` is its file name, whose boot counter is no part of the ID."""
    fields = _fields(text)

    def last(key: str) -> str:
        return fields.get(key, [""])[-1]

    kernel = last("linux") or last("uki") or last("efi")
    return BootEntry(
        id=_COUNTER.sub("", name),
        title=last("title") or name,
        release=release_of(last("version")) if last("version") else release_of(kernel),
        kernel=kernel,
        initrds=tuple(fields.get("initrd", ())),
        options=" ".join(fields.get("options", ())),
    )


def entries(root: Path = Path("/")) -> tuple[BootEntry, ...]:
    """Every entry on the usual partitions, in the order of systemd-boot's menu; of unified images only the names."""
    found: dict[str, tuple[tuple[object, ...], BootEntry]] = {}
    for partition in PARTITIONS:
        for path in (root / partition / "loader/entries").glob("*.conf"):
            try:
                text = path.read_text(errors="replace")
            except OSError:
                continue  # the boot loader could not read it either
            entry = parse_entry(path.name, text)
            found.setdefault(entry.id, (_place(path.name, _fields(text)), entry))
        for path in (root / partition / "EFI/Linux").glob("*.efi"):
            name = _COUNTER.sub("", path.name)
            entry = BootEntry(id=name, title=name, kernel=f"{_UNIFIED}{path.name}")
            found.setdefault(name, (_place(path.name, {}), entry))
    newest_id = sorted(found.values(), key=lambda each: _version(each[1].id), reverse=True)
    return tuple(entry for _, entry in sorted(newest_id, key=lambda each: each[0]))


def _place(name: str, fields: dict[str, list[str]]) -> tuple[object, ...]:
    """Where systemd-boot shows an entry (boot.c, boot_entry_compare), but for the order of IDs.

    What has no tries left comes last, what has no sort-key after what has one; of one sort-key and machine the newest
    version goes first.
    """
    counter = _COUNTER.search(name)
    worn_out = counter is not None and int(counter[1]) == 0
    key, machine, version = (fields.get(each, [""])[-1] for each in ("sort-key", "machine-id", "version"))
    newest_first = tuple(tuple(-number for number in part) for part in _version(version)) if key else ()
    return (worn_out, not key, key, machine if key else "", newest_first)


def _version(text: str) -> tuple[tuple[int, ...], ...]:
    """To sort by, numbers as numbers: uapi-group.org/specifications/specs/version_format_specification."""
    found: list[tuple[int, ...]] = []
    for number, letters, mark in _PARTS.findall(text.lower()):
        if mark:
            found.append((_MARKS[mark],))
        else:
            digits = number.lstrip("0")  # a number of any length: by length, then by digits
            found.append((5, len(digits), *map(int, digits)) if number else (4, *map(ord, letters), 0))
    return (*found, (0,))


def efi_variable(name: str, root: Path = Path("/")) -> str | None:
    """A boot loader interface variable (UTF-16 after four bytes of attributes); None when it is not set."""
    try:
        data = (root / f"sys/firmware/efi/efivars/{name}-{EFI_VENDOR}").read_bytes()
    except OSError:
        return None
    return data[4:].decode("utf-16-le", errors="replace").rstrip("\0")


def configured_default(root: Path = Path("/")) -> str | None:
    """`default` of loader.conf, a pattern for IDs, the last one counts; None when it is not set."""
    for partition in PARTITIONS:
        try:
            text = (root / partition / "loader/loader.conf").read_text(errors="replace")
        except OSError:
            continue
        lines = [line.split(maxsplit=1) for line in text.splitlines()]
        found = [words[1].strip() for words in lines if len(words) == 2 and words[0] == "default"]
        if found:
            return found[-1]
    return None


def select(everything: Sequence[BootEntry], patterns: Iterable[str | None]) -> BootEntry | None:
    """The entry that defaults mean: an ID or a pattern, of which the first in the menu is taken.

    Of several patterns the first that any entry matches counts, and without one the menu's first entry. None: only the
    boot loader knows. It resolves special names (@saved and so on), and where a unified image stands in the menu is
    said within the image.
    """
    for pattern in (*patterns, "*"):
        if not pattern:
            continue
        if pattern.startswith("@"):
            return None
        names = [each.lower() for each in (pattern, pattern + ".conf", pattern + ".efi")]
        matching = [each for each in everything if any(fnmatch.fnmatchcase(each.id.lower(), name) for name in names)]
        if matching:
            unsure = len(matching) > 1 and any(each.kernel.startswith(_UNIFIED) for each in matching)
            return None if unsure else matching[0]
    return None
