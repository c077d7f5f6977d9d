"""Files of the automation: requests of package hooks, read with suspicion, and the log of what was made of them.

    pending/RELEASE.json     written by a hook, removed by us
    automation.json          the latest attempts
    automatic-plan.json      the plan of mode "plan"

A hook writes without fsync (a package transaction must not wait for it): a power cut right after may leave a torn file.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from kupgrade import private
from kupgrade.errors import BadInputError
from kupgrade.journal import sync_directory, write_durably
from kupgrade.model.automation import AUTOMATION_FORMAT, REQUEST_FORMAT, Attempt, Pending, Request
from kupgrade.model.codec import decode, encode
from kupgrade.model.kernel import KernelRelease

LARGEST = 4096  # bytes of a request
MOST = 256  # files that are looked at
KEPT = 50  # attempts
NOTE = "run/motd.d/kupgrade"  # pam_motd(8) shows it at a login
_SUFFIX = ".json"


@dataclass(frozen=True, slots=True)
class Requests:
    """The files in the state directory `state` (/var/lib/kupgrade). Reading creates and changes nothing."""

    state: Path

    @property
    def folder(self) -> Path:
        """Where hooks write."""
        return self.state / "pending"

    @property
    def plan(self) -> Path:
        """The plan that waits for a person."""
        return self.state / "automatic-plan.json"

    def read(self) -> Pending:
        """Every request that counts, and what else lies there. Raises BadInputError for a directory of others'."""
        if not os.path.lexists(self.folder):
            return Pending()
        private.check(self.folder)
        names = sorted(entry.name for entry in os.scandir(self.folder))
        found: list[Request] = []
        ignored = [f"{len(names) - MOST} more files: only {MOST} are looked at"] if len(names) > MOST else []
        for name in names[:MOST]:
            try:
                found.append(_request(self.folder / name))
            except BadInputError as error:
                ignored.append(f"{error.what}: {error.why}")
        return Pending(tuple(sorted(found, key=lambda each: KernelRelease(each.release))), tuple(ignored))

    def withdraw(self, release: str) -> None:
        """Take a request away; one that is gone is no error."""
        with contextlib.suppress(FileNotFoundError):
            (self.folder / f"{KernelRelease(release)}{_SUFFIX}").unlink()
            sync_directory(self.folder)

    def attempts(self) -> tuple[Attempt, ...]:
        """The latest attempts, oldest first. Raises BadInputError when their file is damaged."""
        path = self.state / "automation.json"
        if not path.exists():
            return ()
        try:
            value = json.loads(path.read_bytes())
            if value["format"] != AUTOMATION_FORMAT:
                raise ValueError(f"format {value['format']!r:.40}")
            return decode(tuple[Attempt, ...], value["attempts"], "automation.attempts")
        except (ValueError, KeyError, TypeError, RecursionError, OSError, BadInputError) as error:
            raise BadInputError(f"{path} is damaged", str(error), "Remove it; it is a log only") from error

    def record(self, attempt: Attempt) -> Attempt:
        """Log an attempt; one that came to the same as the last is counted, not repeated. Returns what was written."""
        try:
            before = self.attempts()
        except BadInputError:
            before = ()  # a log: what cannot be read is replaced
        if before and _same(before[-1], attempt):
            first = before[-1]
            attempt = replace(attempt, time=first.time, count=first.count + 1)
            before = before[:-1]
        kept = (*before, attempt)[-KEPT:]
        value = {"format": AUTOMATION_FORMAT, "attempts": encode(kept)}
        write_durably(self.state / "automation.json", json.dumps(value, indent=1).encode() + b"\n")
        return attempt


def _same(one: Attempt, other: Attempt) -> bool:
    """Whether they differ in nothing but when, and the later one withdrew nothing."""
    if other.withdrawn:
        return False
    fixed = {"time": 0.0, "last": 0.0, "count": 1, "next": None, "withdrawn": ()}
    return replace(one, **fixed) == replace(other, **fixed)  # type: ignore[arg-type]


def _request(path: Path) -> Request:
    name = path.name.removesuffix(_SUFFIX)
    if not path.name.endswith(_SUFFIX):
        raise BadInputError(f"{path.name!r:.80}", "no request is called that")
    release = KernelRelease(name).text
    data, when = _content(path)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise BadInputError(path.name, "it is torn, or no JSON") from None
    if not isinstance(value, dict) or value.get("format") != REQUEST_FORMAT:
        found = value.get("format") if isinstance(value, dict) else value
        raise BadInputError(path.name, f"format {found!r:.40}, known is {REQUEST_FORMAT}")
    if value.get("release") != release:
        raise BadInputError(path.name, f"it names another release, {value.get('release')!r:.80}")
    source = value.get("source")
    if not isinstance(source, str) or not source.isascii() or not source.isprintable() or len(source) > 64:
        raise BadInputError(path.name, f"its source is {source!r:.80}")
    return Request(release, source, when)


def _content(path: Path) -> tuple[bytes, float]:
    """The bytes of a private regular file, and when it was written."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise BadInputError(path.name, error.strerror or "it cannot be read") from None
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise BadInputError(path.name, "it is no regular file")
        if info.st_uid != os.geteuid() or stat.S_IMODE(info.st_mode) & 0o077:
            raise BadInputError(path.name, f"owner {info.st_uid}, mode {stat.S_IMODE(info.st_mode):04o}")
        data = os.read(fd, LARGEST + 1)
    except OSError as error:
        raise BadInputError(path.name, error.strerror or "it cannot be read") from None
    finally:
        os.close(fd)
    if len(data) > LARGEST:
        raise BadInputError(path.name, f"it is longer than {LARGEST} bytes")
    return data, info.st_mtime


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """A note for people must not fail what it tells about."""
    with contextlib.suppress(OSError):
        yield


def leave_note(root: Path, text: str) -> None:
    """Show `text` at the next logins; no terminal is written to. Best effort."""
    path = root / NOTE
    with _quietly():
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_durably(path, text.encode() + b"\n", 0o644)


def remove_note(root: Path) -> None:
    """Nothing is to be told any more."""
    with _quietly():
        (root / NOTE).unlink(missing_ok=True)
