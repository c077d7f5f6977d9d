"""Files of a root directory collected as archive entries: symbolic links kept, directories made, libraries found.

Everything is looked up below `root` as a process would see it that has it as its root: an absolute link leads back
into it, `..` never out of it.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kupgrade.errors import BadInputError
from kupgrade.host.initramfs import CpioEntry

DIRECTORY = stat.S_IFDIR | 0o755
MAX_LINKS = 40  # as the kernel (include/linux/namei.h, MAXSYMLINKS)
LIBRARY_DIRECTORIES = ("lib64", "usr/lib64", "lib", "usr/lib")  # what ld.so searches by itself
LOADER_CONFIG = "etc/ld.so.conf"


@dataclass
class FileTree:
    """Entries to be: each path once, parents before children when read by `entries`."""

    root: Path
    _found: dict[str, CpioEntry] = field(default_factory=dict)
    _directories: tuple[str, ...] | None = None

    def entries(self) -> tuple[CpioEntry, ...]:
        """Sorted by name, so the same files give the same archive."""
        return tuple(self._found[name] for name in sorted(self._found))

    def add(self, entry: CpioEntry) -> None:
        """An entry that is not a file of the root; one of the same name is replaced."""
        self._parents(entry.name)
        self._found[entry.name] = entry

    def _parents(self, name: str) -> None:
        parts = name.split("/")[:-1]
        for count in range(1, len(parts) + 1):
            self._found.setdefault("/".join(parts[:count]), CpioEntry("/".join(parts[:count]), DIRECTORY))

    def resolve(self, name: str) -> tuple[str, tuple[CpioEntry, ...]] | None:
        """Where a path leads without links, and the links on the way; None when there is nothing."""
        links: list[CpioEntry] = []
        todo = [part for part in name.split("/") if part not in ("", ".")]
        done: list[str] = []
        while todo:
            part = todo.pop(0)
            if part == "..":
                done = done[:-1]
                continue
            here = "/".join([*done, part])
            path = self.root / here
            if path.is_symlink():
                target = str(path.readlink())
                links.append(CpioEntry(here, stat.S_IFLNK | 0o777, target.encode(errors="surrogateescape")))
                if len(links) > MAX_LINKS:
                    return None
                done = [] if target.startswith("/") else done
                todo = [each for each in target.split("/") if each not in ("", ".")] + todo
                continue
            if not path.exists():
                return None
            done.append(part)
        return "/".join(done), tuple(links)

    def links(self, *names: str) -> None:
        """Add each of these names that is a link, with what it leads to as a directory (merged /usr: /bin, /lib)."""
        for name in names:
            resolved = self.resolve(name)
            if resolved is not None and resolved[1]:
                for link in resolved[1]:
                    self.add(link)
                self.add(CpioEntry(resolved[0], DIRECTORY))

    def file(self, name: str) -> str | None:
        """Add a file with the links that lead to it; returns its name without links, None when there is none."""
        resolved = self.resolve(name)
        if resolved is None or not (self.root / resolved[0]).is_file():
            return None
        real, links = resolved
        for link in links:
            self.add(link)
        if real not in self._found:
            path = self.root / real
            try:
                self.add(CpioEntry(real, stat.S_IFREG | stat.S_IMODE(path.stat().st_mode), path.read_bytes()))
            except OSError as error:
                raise BadInputError(f"{path} cannot be read", error.strerror or str(error)) from error
        return real

    def program(self, name: str) -> bool:
        """Add a program or library with all libraries it needs, and its interpreter; False when it is not there.

        Raises BadInputError naming the libraries that are missing.
        """
        todo = [(name, "what was asked for")]
        missing = []
        seen: set[str] = set()
        first = True
        while todo:
            path, wanted_by = todo.pop()
            real = self.file(path)
            if real is None:
                if first:
                    return False
                missing.append(f"{path} (for {wanted_by})")
                continue
            first = False
            if real in seen:
                continue
            seen.add(real)
            data = self._found[real].data
            if data[:2] == b"#!":
                todo.append((data[2 : data.index(b"\n")].split()[0].decode(), real))
            for needed, own in needed_by(data, real):
                found = needed if "/" in needed else self.library(needed, own)
                if found is None:
                    missing.append(f"{needed} (for {real})")
                else:
                    todo.append((found, real))
        if missing:
            raise BadInputError("Libraries are missing", ", ".join(sorted(missing)), "Install the packages they are in")
        return True

    def library(self, name: str, own: Iterable[str] = ()) -> str | None:
        """The path of a library by its name; `own`: directories that its user names (RUNPATH)."""
        if self._directories is None:
            self._directories = tuple(self._configured())
        for directory in (*own, *self._directories, *LIBRARY_DIRECTORIES):
            path = f"{directory.strip('/')}/{name}"
            resolved = self.resolve(path)
            if resolved is not None and (self.root / resolved[0]).is_file():
                return path
        return None

    def _configured(self) -> Iterator[str]:
        """The directories of ld.so.conf, in its order; it includes others by pattern."""
        todo = [LOADER_CONFIG]
        while todo:
            try:
                lines = (self.root / todo.pop(0)).read_text(errors="replace").splitlines()
            except OSError:
                continue
            for line in lines:
                words = line.partition("#")[0].split()
                if len(words) == 2 and words[0] == "include":
                    found = self.root.glob(words[1].lstrip("/"))
                    todo += sorted(str(path.relative_to(self.root)) for path in found)
                elif words:
                    yield words[0]


def _text(tag: object, name: str) -> str:
    """The string of a dynamic tag, which pyelftools sets as an attribute named after the tag."""
    return str(getattr(tag, name))


def needed_by(data: bytes, name: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The libraries (and the interpreter, by path) that an ELF file names, each with its RUNPATH; none for others.

    Raises BadInputError for a damaged ELF file.
    """
    if data[:4] != b"\x7fELF":
        return
    import io

    from elftools.common.exceptions import ELFError
    from elftools.elf.dynamic import DynamicSegment
    from elftools.elf.elffile import ELFFile
    from elftools.elf.segments import InterpSegment

    needed: list[str] = []
    paths: list[str] = []
    try:
        for segment in ELFFile(io.BytesIO(data)).iter_segments():
            if isinstance(segment, InterpSegment):
                needed.append(str(segment.get_interp_name()))
            elif isinstance(segment, DynamicSegment):
                for tag in segment.iter_tags():
                    if tag.entry.d_tag == "DT_NEEDED":
                        needed.append(_text(tag, "needed"))
                    elif tag.entry.d_tag in ("DT_RUNPATH", "DT_RPATH"):
                        paths += _text(tag, tag.entry.d_tag[3:].lower()).split(":")
    except (ELFError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise BadInputError(f"{name} is a damaged ELF file", str(error)) from error
    origin = name.rpartition("/")[0]
    own = tuple(path.replace("${ORIGIN}", f"/{origin}").replace("$ORIGIN", f"/{origin}") for path in paths if path)
    yield from ((each, own) for each in needed)
