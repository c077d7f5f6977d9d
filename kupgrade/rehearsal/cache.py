"""The cache of everything the lab builds: keyed by content, complete or absent, safe against two runs at once."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

DEFAULT_ROOT = Path("/var/cache/kupgrade/rehearsal")
KEEP_SECONDS = 14 * 86400.0  # an entry nobody used for so long is pruned


def key(*parts: object) -> str:
    """A short name for the content described by `parts` (anything json can write)."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


@dataclass(frozen=True, slots=True)
class Cache:
    """A directory of finished builds, `ROOT/KIND/KEY`; a name exists only once its build is complete."""

    root: Path

    @classmethod
    def default(cls) -> Cache:
        """The cache named by $KUPGRADE_CACHE, else below /var/cache."""
        named = os.environ.get("KUPGRADE_CACHE")
        return cls(Path(named) if named else DEFAULT_ROOT)

    def entry(self, kind: str, name: str, build: Callable[[Path], None]) -> Path:
        """The directory of this entry; `build` fills a new one when it is missing.

        `build` gets an empty directory that becomes the entry by one rename after it returned; when it raises or
        the machine dies meanwhile, the next caller starts from nothing. A second caller waits for the first.
        """
        place = self.root / kind / name
        if not place.is_dir():
            with self._locked(kind, name):
                if not place.is_dir():
                    self._build(place, build)
        os.utime(place)
        return place

    def _build(self, place: Path, build: Callable[[Path], None]) -> None:
        half = place.with_name(f".half-{place.name}")
        shutil.rmtree(half, ignore_errors=True)  # what an interrupted build left
        half.mkdir(mode=0o755, parents=True)
        try:
            build(half)
            os.sync()  # a power cut must not leave a finished name over unwritten content
            half.rename(place)
        finally:
            shutil.rmtree(half, ignore_errors=True)

    @contextmanager
    def _locked(self, kind: str, name: str) -> Iterator[None]:
        directory = self.root / kind
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / f".lock-{name}").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def prune(self, kind: str, keep_seconds: float = KEEP_SECONDS, keep: int = 1) -> list[str]:
        """Remove entries of `kind` unused for `keep_seconds`, except the `keep` newest; returns their names."""
        directory = self.root / kind
        if not directory.is_dir():
            return []
        entries = [(used, path) for path in directory.iterdir() if (used := _used(path)) and path.name[0] != "."]
        entries.sort(reverse=True)
        limit = time.time() - keep_seconds
        removed = []
        for used, path in entries[keep:]:
            if used >= limit:
                continue
            with self._locked(kind, path.name):
                if not 0 < _used(path) < limit:  # another run has removed it, or taken it into use
                    continue
                doomed = path.with_name(f".half-{path.name}")
                shutil.rmtree(doomed, ignore_errors=True)
                path.rename(doomed)  # never a half-removed entry under its own name
                shutil.rmtree(doomed, ignore_errors=True)
            removed.append(path.name)
        return removed


def _used(entry: Path) -> float:
    """When an entry was last used; 0: it is none, or gone."""
    try:
        found = entry.stat()
    except FileNotFoundError:
        return 0.0
    return found.st_mtime if stat.S_ISDIR(found.st_mode) else 0.0
