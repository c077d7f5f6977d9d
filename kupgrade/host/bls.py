"""Boot Loader Specification entries and systemd-boot's variables.

Sources: uapi-group.org/specifications/specs/boot_loader_specification, systemd.io/BOOT_LOADER_INTERFACE.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kupgrade.errors import BadInputError
from kupgrade.model.kernel import BootEntry, KernelRelease

# Where the EFI system partition, or the extended boot loader partition, is usually mounted
PARTITIONS = ("boot", "efi", "boot/efi")

EFI_VENDOR = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"

_EXHAUSTED = re.compile(r"\+0+(-[0-9]+)?\.conf$")
_COUNTER = re.compile(r"\+[0-9]+(-[0-9]+)?(?=\.(conf|efi)$)")  # tries left, tries done


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
    fields: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, *value = line.split(maxsplit=1) or [""]  # by spaces or tabs
        if key and not key.startswith("#"):
            fields.setdefault(key, []).append(value[0].strip() if value else "")
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


@dataclass(frozen=True, slots=True)
class _Place:
    """What an entry's place in systemd-boot's list depends on."""

    entry: BootEntry
    exhausted: bool = False  # no tries left
    sort_key: str = ""
    machine: str = ""
    version: str = ""

    @classmethod
    def of(cls, entry: BootEntry, name: str, text: str) -> _Place:
        """Of a type #1 file."""
        fields = _fields(text)
        sort_key, machine, version = (fields.get(key, [""])[-1] for key in ("sort-key", "machine-id", "version"))
        return cls(
            entry, bool(_EXHAUSTED.search(name)), sort_key, machine if sort_key else "", version if sort_key else ""
        )

    @property
    def ascending(self) -> tuple[bool, bool, str, str]:
        """What counts first."""
        return self.exhausted, not self.sort_key, self.sort_key, self.machine


def _version(text: str) -> tuple[tuple[int, int, str], ...]:
    """Numbers as numbers, ~ before the end of the text (uapi-group.org/specifications/specs/version_format)."""
    parts: list[tuple[int, int, str]] = []
    for part in re.findall(r"[0-9]+|~|[^0-9~]+", text):
        number = part.lstrip("0")  # compared by length, then as text: it may be of any length
        parts.append((0, 0, "") if part == "~" else (3, len(number), number) if part.isdecimal() else (2, 0, part))
    return (*parts, (1, 0, ""))


def entries(root: Path = Path("/")) -> tuple[BootEntry, ...]:
    """Every entry on the usual partitions, as systemd-boot orders them, the newest first.

    Type #1 files, and unified images by their names only: where those stand among the others is unknown.
    """
    found: dict[str, _Place] = {}
    for partition in PARTITIONS:
        for path in (root / partition / "loader/entries").glob("*.conf"):
            try:
                text = path.read_text(errors="replace")
            except OSError:
                continue  # the boot loader could not read it either
            entry = parse_entry(path.name, text)
            found.setdefault(entry.id, _Place.of(entry, path.name, text))
        for path in (root / partition / "EFI/Linux").glob("*.efi"):
            name = _COUNTER.sub("", path.name)
            found.setdefault(name, _Place(BootEntry(id=name, title=name, kernel=f"/EFI/Linux/{path.name}")))
    newest_first = sorted(
        found.values(), key=lambda each: (_version(each.version), _version(each.entry.id)), reverse=True
    )
    return tuple(each.entry for each in sorted(newest_first, key=lambda each: each.ascending))


def efi_variable(name: str, root: Path = Path("/")) -> str | None:
    """A boot loader interface variable (UTF-16 after four bytes of attributes); None when it is not set."""
    try:
        data = (root / f"sys/firmware/efi/efivars/{name}-{EFI_VENDOR}").read_bytes()
    except OSError:
        return None
    return data[4:].decode("utf-16-le", errors="replace").rstrip("\0")


def configured_default(root: Path = Path("/")) -> str | None:
    """`default` of loader.conf, a pattern for IDs; None when it is not set."""
    for partition in PARTITIONS:
        try:
            text = (root / partition / "loader/loader.conf").read_text(errors="replace")
        except OSError:
            continue
        for line in text.splitlines():
            words = line.split(maxsplit=1)
            if len(words) == 2 and words[0] == "default":
                return words[1].strip()
    return None


def select(everything: Iterable[BootEntry], pattern: str) -> BootEntry | None:
    """The entry that a default means: an ID or a pattern, of which the first in the loader's order is taken.

    Special names (@saved and so on) are resolved by the boot loader alone: None. So is the order of unified images.
    """
    names = [(pattern + suffix).lower() for suffix in ("", ".conf", ".efi")]
    matching = [each for each in everything if any(fnmatch.fnmatchcase(each.id.lower(), name) for name in names)]
    if pattern.startswith("@") or (len(matching) > 1 and any(each.id.endswith(".efi") for each in matching)):
        return None
    return matching[0] if matching else None
