"""Directories of hooks: what counts in them, and the call of one hook in a clean and bounded environment.

`hooks/POINT.d` below /usr/lib/kupgrade, /run/kupgrade and /etc/kupgrade. Files are called in the order of their names
over all three; one of the same name in a later directory replaces the earlier, a link to /dev/null masks it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import selectors
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from kupgrade.errors import BadInputError
from kupgrade.model.hook import UNDO, Hook, HookFault, HookPoint

LAYERS = ("usr/lib/kupgrade/hooks", "run/kupgrade/hooks", "etc/kupgrade/hooks")
NOT_NOW = 75  # EX_TEMPFAIL of sysexits.h
OUTPUT_LIMIT = 16 << 10  # bytes of one call that are kept
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}")
# What editors and package managers leave beside a file.
_LEFT_OVER = re.compile(r"\..*|.*(~|\.(bak|dpkg-\w+|rpm(save|new|orig)|ucf-\w+|swp))")


@dataclass(frozen=True, slots=True)
class Called:
    """How a call ended. `status`: None when it took too long; `cut`: more was written than is kept."""

    status: int | None
    output: str
    cut: bool = False


def find(root: Path = Path("/")) -> tuple[tuple[Hook, ...], tuple[HookFault, ...]]:
    """All hooks of all points in the order of their calls, and what is wrong with some."""
    hooks: list[Hook] = []
    faults: list[HookFault] = []
    for point in HookPoint:
        files = _chosen(root, point, faults)
        digests = {}
        for name, path in files.items():
            try:
                digests[name] = digest(path)
            except BadInputError as error:
                faults.append(HookFault(str(path), error.why, error.remedy))
        for name in sorted(digests):
            undo = name + UNDO
            if name.endswith(UNDO) or (undo in files and undo not in digests):
                continue
            inverse = (str(files[undo]), digests[undo]) if undo in digests else ("", "")
            hooks.append(Hook(point, name, str(files[name]), digests[name], *inverse))
    return tuple(hooks), tuple(faults)


def _chosen(root: Path, point: HookPoint, faults: list[HookFault]) -> dict[str, Path]:
    """By name, the last directory's file, without the masked ones."""
    chosen: dict[str, Path] = {}
    for layer in LAYERS:
        directory = root / layer / f"{point.value}.d"
        if not directory.is_dir():
            continue
        try:
            for parent in (directory, *directory.relative_to(root).parents):
                _check_owner(root / parent)
        except BadInputError as error:
            faults.append(HookFault(str(directory), error.why, error.remedy))
            continue
        for path in directory.iterdir():
            if _LEFT_OVER.fullmatch(path.name):
                continue
            if _NAME.fullmatch(path.name):
                chosen[path.name] = path
            else:
                shown = f"{directory}/{path.name!r:.80}"
                faults.append(
                    HookFault(shown, "has a name with other characters than letters, digits, . _ -", "Rename it")
                )
    return {
        name: path for name, path in chosen.items() if not (path.is_symlink() and _target(path) == Path("/dev/null"))
    }


def _target(path: Path) -> Path:
    try:
        return path.resolve(strict=True)
    except (OSError, RuntimeError):
        return path


def _check_owner(path: Path) -> None:
    info = path.stat()
    # Somebody without privileges who calls this gives nobody more than it has by files of its own.
    if info.st_uid not in {0, os.geteuid()}:
        raise BadInputError(
            f"{path} is not usable", f"belongs to user {info.st_uid}", f"Inspect it, then: chown root {path}"
        )
    sticky_directory = stat.S_ISDIR(info.st_mode) and info.st_mode & stat.S_ISVTX
    if stat.S_IMODE(info.st_mode) & 0o022 and not sticky_directory:
        mode = stat.S_IMODE(info.st_mode)
        raise BadInputError(
            f"{path} is not usable",
            f"could have been written by others (mode {mode:04o})",
            f"Inspect it, then: chmod go-w {path}",
        )


def digest(path: Path) -> str:
    """SHA-256 of a hook's file. Raises BadInputError for one that must not be called."""
    target = _target(path)
    try:
        _check_owner(target)
        info = target.stat()
        for parent in target.parents if path.is_symlink() else ():
            _check_owner(parent)
        data = target.read_bytes() if stat.S_ISREG(info.st_mode) else b""
    except OSError as error:
        raise BadInputError(
            f"{path} is not usable", f"cannot be read ({error.strerror})", "Repair or remove it"
        ) from error
    if not stat.S_ISREG(info.st_mode):
        raise BadInputError(
            f"{path} is not usable", "is not a regular file", "Remove it, or mask it by a link to /dev/null"
        )
    if not info.st_mode & stat.S_IXUSR:
        raise BadInputError(f"{path} is not usable", "is not executable", f"chmod 755 {path}, or remove it")
    return hashlib.sha256(data).hexdigest()


def call(path: str, env: Mapping[str, str], timeout: float) -> Called:
    """Call a hook and wait for it (seconds): own session, nothing to read, a fixed PATH and `env` and nothing else.

    What it started and left is killed with it. Raises OSError when it cannot be started.
    """
    process = subprocess.Popen(
        [*_with_caller(), path],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd="/",
        env={"PATH": _PATH, "LC_ALL": "C.UTF-8", **env},
        start_new_session=True,
    )
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    output, ended = bytearray(), False
    try:
        ended = _watch(process, process.stdout, output, timeout)
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for _ in range(64):  # what has left its session may write on
            if not _read(process.stdout, output):
                break
        process.stdout.close()
    text = output[:OUTPUT_LIMIT].decode(errors="replace").rstrip()
    return Called(process.returncode if ended else None, text, len(output) > OUTPUT_LIMIT)


@functools.cache
def _with_caller() -> tuple[str, ...]:
    """Words before a command with which a killed caller takes it along: its undo must not run beside it.

    setpriv(1) has them since util-linux 2.33; without them the next worker waits for the hook's end.
    """
    setpriv = shutil.which("setpriv", path=_PATH)
    words = (setpriv or "", "--pdeathsig", "KILL", "--")
    env = {"PATH": _PATH}
    quiet = subprocess.DEVNULL
    able = setpriv and subprocess.run([*words, "true"], env=env, stdout=quiet, stderr=quiet).returncode == 0
    return words if able else ()


def _watch(process: subprocess.Popen[bytes], pipe: IO[bytes], output: bytearray, timeout: float) -> bool:
    """Read until the process has ended (True), or its time is up; what is over the limit is read and dropped."""
    deadline = time.monotonic() + timeout
    os.set_blocking(pipe.fileno(), False)
    ended = os.pidfd_open(process.pid)
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            selector.register(ended, selectors.EVENT_READ)
            while (left := deadline - time.monotonic()) > 0:
                ready = {key.fd for key, _ in selector.select(left)}
                if pipe.fileno() in ready and not _read(pipe, output):
                    selector.unregister(pipe)
                if ended in ready:
                    return True
    finally:
        os.close(ended)
    return False


def _read(pipe: IO[bytes], output: bytearray) -> bool:
    """Take what is there; False at the end, or when nothing is."""
    try:
        data = os.read(pipe.fileno(), 65536)
    except BlockingIOError:
        return False
    output += data[: max(0, OUTPUT_LIMIT + 1 - len(output))]
    return bool(data)
