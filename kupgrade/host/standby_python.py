"""The part of a standby initramfs that is Python: the host's interpreter's library, pycriu, and kupgrade.

Where a compiled file is current it goes in instead of its source: compiling them in the new kernel would cost seconds
of its start, at each start, and half the memory is saved.
"""

from __future__ import annotations

import importlib.util
import re
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import kupgrade
from kupgrade.host.filetree import FileTree
from kupgrade.host.initramfs import CpioEntry

PACKAGES = "usr/lib/python3/dist-packages"
ROOTS = (PACKAGES, "usr/lib/python3.{minor}/site-packages", "usr/lib64/python3.{minor}/site-packages")
LIBRARIES = ("usr/lib/python3.{minor}", "usr/lib64/python3.{minor}")
WANTED = ("pycriu", "google/protobuf")  # what criu.py imports

# Of the standard library: tests, user interfaces and things for developers, which no kupgrade imports.
_TESTS = ("test", "unittest", "__pycache__")
_FOR_DEVELOPERS = ("idlelib", "lib2to3", "ensurepip", "venv", "pydoc_data", "_pyrepl", "distutils")
_FOR_PEOPLE = ("tkinter", "turtledemo", "curses", "sqlite3", "xmlrpc", "wsgiref", "dbm")
LEFT_OUT = frozenset((*_TESTS, *_FOR_DEVELOPERS, *_FOR_PEOPLE, "dist-packages", "site-packages"))
_LEFT_OUT_FILES = re.compile(
    r"config-3.*|turtle\.py|pydoc\.py|doctest\.py|(_test|xx|_codecs_|_xx|_ssl|_hashlib|_sqlite3|_curses|_dbm|_gdbm|_tkinter|readline|_ctypes_test).*\.so"
)
# Of kupgrade: what runs on the host only.
_OWN_LEFT_OUT = frozenset(("__pycache__", "rehearsal", "kmod", "cli"))

_HEADER = struct.Struct("<4sIII")  # magic, flags, then time and size of the source, or its hash (PEP 552)
_HASHED = 1


def add(tree: FileTree) -> list[str]:
    """Put it all into `tree`; returns what is missing. Raises BadInputError for missing shared libraries."""
    resolved = tree.resolve("usr/bin/python3")
    match = re.search(r"python3\.([0-9]+)$", resolved[0]) if resolved else None
    if match is None:
        return ["python3.N behind /usr/bin/python3"]
    minor = match[1]
    libraries = [path for path in (each.format(minor=minor) for each in LIBRARIES) if (tree.root / path).is_dir()]
    missing = [] if libraries else [f"the standard library of Python 3.{minor}"]
    for name in libraries:
        for path in _walk(tree.root / name, LEFT_OUT):
            if not _LEFT_OUT_FILES.fullmatch(path.name) and "config-3" not in path.parent.name:
                _add(tree, path, str(path.relative_to(tree.root)), minor)
    for wanted in WANTED:
        places = [each.format(minor=minor) for each in ROOTS]
        found = next((place for place in places if (tree.root / place / wanted).is_dir()), None)
        if found is None:
            missing.append(f"the Python package {wanted}")
            continue
        for path in _walk(tree.root / found / wanted, frozenset(("__pycache__", "compiler"))):
            _add(tree, path, f"{PACKAGES}/{path.relative_to(tree.root / found)}", minor)
    package = Path(kupgrade.__file__).parent
    for path in _walk(package, _OWN_LEFT_OUT):
        _add(tree, path, f"{PACKAGES}/kupgrade/{path.relative_to(package)}", minor)
    return missing


def _walk(top: Path, left_out: frozenset[str]) -> Iterator[Path]:
    """Python's files below `top`, sorted."""
    for path in sorted(top.iterdir()):
        if path.name in left_out:
            continue
        if path.is_dir():
            yield from _walk(path, left_out)
        elif path.suffix in (".py", ".so"):
            yield path


def _add(tree: FileTree, path: Path, name: str, minor: str) -> None:
    if path.suffix == ".so":
        tree.program(name)
        return
    if path.is_symlink():  # an absolute one leads out of a root that is not ours
        tree.file(name)
        return
    code = compiled(path, minor)
    if code is None:
        tree.add(CpioEntry(name, stat.S_IFREG | 0o644, path.read_bytes()))
    else:
        tree.add(CpioEntry(name.removesuffix(".py") + ".pyc", stat.S_IFREG | 0o644, code))


def compiled(source: Path, minor: str) -> bytes | None:
    """The compiled file of a source, made independent of the source's time; None when there is no current one."""
    path = source.parent / "__pycache__" / f"{source.stem}.cpython-3{minor}.pyc"
    try:
        data = path.read_bytes()
        status = source.stat()
    except OSError:
        return None
    if len(data) < _HEADER.size:
        return None
    magic, flags, first, second = _HEADER.unpack_from(data)
    if not flags & _HASHED:
        current = (first, second) == (int(status.st_mtime) & 0xFFFFFFFF, status.st_size & 0xFFFFFFFF)
    elif magic == importlib.util.MAGIC_NUMBER:
        current = data[8:16] == importlib.util.source_hash(source.read_bytes())
    else:
        current = False
    return _HEADER.pack(magic, _HASHED, 0, 0) + data[_HEADER.size :] if current else None
