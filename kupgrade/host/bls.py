"""Boot Loader Specification entries and systemd-boot's variables.

Sources: uapi-group.org/specifications/specs/boot_loader_specification, systemd.io/BOOT_LOADER_INTERFACE.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from pathlib import Path

from kupgrade.errors import BadInputError
from kupgrade.model.kernel import BootEntry, KernelRelease

# Where the EFI system partition, or the extended boot loader partition, is usually mounted
PARTITIONS = ("boot", "efi", "boot/efi")

EFI_VENDOR = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"

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


def parse_entry(name: str, text: str) -> BootEntry:
    """A type #1 entry; `name` is its file name, whose boot counter is no part of the ID."""
    fields: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, *value = line.split(maxsplit=1) or [""]  # by spaces or tabs
        if key and not key.startswith("#"):
            fields.setdefault(key, []).append(value[0].strip() if value else "")

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
    """Every entry on the usual partitions, by ID: type #1 files, and unified images by their names only."""
    found: dict[str, BootEntry] = {}
    for partition in PARTITIONS:
        for path in (root / partition / "loader/entries").glob("*.conf"):
            try:
                entry = parse_entry(path.name, path.read_text(errors="replace"))
            except OSError:
                continue  # the boot loader could not read it either
            found.setdefault(entry.id, entry)
        for path in (root / partition / "EFI/Linux").glob("*.efi"):
            name = _COUNTER.sub("", path.name)
            found.setdefault(name, BootEntry(id=name, title=name, kernel=f"/EFI/Linux/{path.name}"))
    return tuple(found[name] for name in sorted(found))


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
    """The entry that a default means: an ID or a pattern, of which the last in order of IDs is taken.

    Special names (@saved and so on) are resolved by the boot loader alone: None.
    """
    names = (pattern, pattern + ".conf", pattern + ".efi")
    matching = [each for each in everything if any(fnmatch.fnmatchcase(each.id, name) for name in names)]
    return matching[-1] if matching and not pattern.startswith("@") else None
