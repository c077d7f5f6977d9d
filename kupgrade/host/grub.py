"""GRUB: its menu (grub.cfg), its environment block (grubenv), and the default entry.

Sources: GRUB manual, sections "default", "Environment block", "menuentry"; grub-core/lib/envblk.c.
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from kupgrade.errors import BadInputError
from kupgrade.host import bls
from kupgrade.host.durable import write_durably
from kupgrade.model.kernel import BootEntry

DIRECTORIES = ("boot/grub", "boot/grub2")
SIGNATURE = b"# GRUB Environment Block\n"
BLOCK = 1024  # bytes; GRUB writes the block in place and never makes it longer

_DEFAULT = re.compile(r'^\s*set\s+default="?([^"\n]*)"?\s*$', re.MULTILINE)
_SAVED = "${saved_entry}"
_NESTED = re.compile(r"(?<!>)>(?!>)")  # >> is a > in a name
Level = tuple[str, str, str]
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Menu:
    """What grub.cfg offers. `entries`: IDs with submenus as PARENT>CHILD, in menu order.

    `names`: what each entry is called at each level, submenus first: its position as GRUB counts it, its ID, its title.
    `default`: the value as written; empty: none.
    """

    entries: tuple[BootEntry, ...]
    names: tuple[tuple[Level, ...], ...]
    default: str

    @property
    def positions(self) -> tuple[str, ...]:
        """Each entry's place, e.g. 1>0."""
        return tuple(">".join(level[0] for level in levels) for levels in self.names)

    @property
    def uses_saved(self) -> bool:
        """Whether the default is taken from the environment block (GRUB_DEFAULT=saved)."""
        return self.default == _SAVED


def directory(root: Path = Path("/")) -> Path | None:
    """The directory with grub.cfg; None when there is none."""
    return next((root / name for name in DIRECTORIES if (root / name / "grub.cfg").is_file()), None)


def parse_env(data: bytes) -> dict[str, str]:
    """The variables of an environment block, in order. Raises BadInputError when it is none."""
    if not data.startswith(SIGNATURE):
        raise BadInputError("The GRUB environment block is damaged", "it lacks its signature", "grub-editenv create")
    found = {}
    for line in re.findall(rb"(?:[^\\\n]|\\.)+", data[len(SIGNATURE) :], re.DOTALL):
        name, equals, value = line.partition(b"=")
        if equals and not line.startswith(b"#"):
            found[name.decode(errors="replace")] = re.sub(rb"\\(.)", rb"\1", value, flags=re.DOTALL).decode(
                errors="surrogateescape"
            )
    return found


def format_env(values: dict[str, str], size: int = BLOCK) -> bytes:
    """An environment block of `size` bytes. Raises BadInputError when the values do not fit."""
    out = SIGNATURE
    for name, value in values.items():
        if not _NAME.fullmatch(name):
            raise BadInputError(f"{name!r:.40} cannot be a GRUB variable")
        escaped = value.replace("\\", "\\\\").replace("\n", "\\\n")
        out += f"{name}={escaped}\n".encode(errors="surrogateescape")
    if len(out) > size:
        raise BadInputError("The GRUB environment block is full", f"{len(out)} of {size} bytes")
    return out + b"#" * (size - len(out))


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line, comments=False)
    except ValueError:
        return []  # quotes that go over lines: not what grub-mkconfig writes


def _option(words: list[str], fallback: str) -> str:
    """The ID of a menuentry or submenu line; the title serves as one where none is given."""
    for i, word in enumerate(words[:-1]):
        if word in ("--id", "$menuentry_id_option", "${menuentry_id_option}"):
            return words[i + 1]
    return next((word.removeprefix("--id=") for word in words if word.startswith("--id=")), fallback)


def parse_menu(text: str) -> Menu:
    """grub.cfg as grub-mkconfig writes it: one command a line, blocks ended by a brace alone."""
    entries: list[BootEntry] = []
    names: list[tuple[Level, ...]] = []
    blocks: list[tuple[str, tuple[Level, ...]]] = []  # keyword, names
    counts = [0]
    commands: dict[str, list[str]] = {}
    title = ""
    for line in text.splitlines():
        words = _words(line.strip())
        if not words or words[0].startswith("#"):
            continue
        match words[0]:
            case "menuentry" | "submenu" if words[-1] == "{" and len(words) > 2:
                above = [block for block in blocks if block[0] == "submenu"]
                levels = above[-1][1] if above else ()
                blocks.append((words[0], (*levels, (str(counts[-1]), _option(words, words[1]), words[1]))))
                counts[-1] += 1
                if words[0] == "submenu":
                    counts.append(0)
                else:
                    title, commands = words[1], {}
            case "}" if blocks:
                keyword, levels = blocks.pop()
                if keyword == "submenu":
                    counts.pop()
                elif keyword == "menuentry":
                    entries.append(_entry(">".join(level[1] for level in levels), title, commands))
                    names.append(levels)
            case command if words[-1] == "{":
                blocks.append((command, ()))
            case command:
                commands[command.removesuffix("efi").removesuffix("16")] = words[1:]
    defaults = [value for value in _DEFAULT.findall(text) if value != "${next_entry}"]
    default = _SAVED if _SAVED in defaults else defaults[-1] if defaults else ""
    return Menu(tuple(entries), tuple(names), default)


def _entry(name: str, title: str, commands: dict[str, list[str]]) -> BootEntry:
    kernel, *options = commands.get("linux", [""])
    return BootEntry(
        id=name,
        title=title,
        release=bls.release_of(kernel),
        kernel=kernel,
        initrds=tuple(commands.get("initrd", ())),
        options=" ".join(options),
    )


def select(menu: Menu, wanted: str) -> BootEntry | None:
    """The entry a default means: a position, an ID or a title, one for each level, parted by >; empty is the first.

    Of a submenu that is named alone it is the first one.
    An entry of a submenu that is named without it is not found: GRUB looks through the topmost menu only, and then
    boots its first entry.
    """
    parts = [part.replace(">>", ">") for part in _NESTED.split(wanted or "0")]
    for entry, levels in zip(menu.entries, menu.names, strict=True):
        if len(parts) <= len(levels) and all(part in level for part, level in zip(parts, levels, strict=False)):
            return entry
    return None


def read_menu(root: Path = Path("/")) -> Menu | None:
    """The menu, with the entries of /boot/loader/entries where grub.cfg takes them (blscfg); None: unreadable."""
    folder = directory(root)
    if folder is None:
        return None
    try:
        text = (folder / "grub.cfg").read_text(errors="replace")
    except OSError:
        return None
    menu = parse_menu(text)
    if not re.search(r"^\s*blscfg\b", text, re.MULTILINE):
        return menu
    # blscfg shows the newest first, and names entries without .conf
    found = sorted(bls.entries(root), key=lambda e: (e.release is not None, e.release or e.id), reverse=True)
    shown = tuple(
        BootEntry(e.id.removesuffix(".conf"), e.title, e.release, e.kernel, e.initrds, e.options) for e in found
    )
    names = tuple(((str(place), entry.id, entry.title),) for place, entry in enumerate(shown))
    return Menu(shown + menu.entries, names + menu.names, menu.default)


def read_env(root: Path = Path("/")) -> dict[str, str]:
    """The environment block's variables; none when there is no block. Raises BadInputError when it is damaged."""
    folder = directory(root)
    try:
        return parse_env((folder / "grubenv").read_bytes()) if folder else {}
    except OSError:
        return {}


def write_env(name: str, value: str | None, root: Path = Path("/")) -> None:
    """Set (None: remove) a variable, durably, for GRUB's eyes.

    An existing block is overwritten where it lies, as GRUB's own tools do: GRUB reads a file system without replaying
    its journal, so after a power cut it would find a renamed file's predecessor. sync(2) is for file systems that never
    overwrite (btrfs): it commits what fsync alone leaves in their log.
    """
    folder = directory(root)
    if folder is None:
        raise BadInputError("GRUB is not installed", f"no grub.cfg below {root / 'boot'}")
    path = (folder / "grubenv").resolve()  # Fedora has had a link into the EFI partition there
    values, size = read_env(root), path.stat().st_size if path.exists() else BLOCK
    values.pop(name, None)
    if value is not None:
        values[name] = value
    block = format_env(values, size)
    if not path.exists():
        write_durably(path, block, 0o644)
    else:
        with path.open("r+b") as file:
            file.write(block)
            file.flush()
            os.fsync(file.fileno())
    os.sync()
