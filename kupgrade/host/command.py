"""The one place that starts a child process."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kupgrade.errors import KupgradeError, ToolError

LIBRARIES = ("usr/lib/x86_64-linux-gnu", "usr/lib64", "lib64")
LOADER = "ld-linux-x86-64.so.2"
_SEARCH = "LD_LIBRARY_PATH"


@dataclass(frozen=True, slots=True)
class Completed:
    """A finished child: exit status (negative: killed by that signal), stdout and stderr as text."""

    status: int
    stdout: str
    stderr: str


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """A child's environment, rebuilt from little: fixed PATH and the C.UTF-8 locale."""
    env = {"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), "LC_ALL": "C.UTF-8"}
    if _Elsewhere.libraries:
        env[_SEARCH] = _Elsewhere.libraries
    env.update(extra or {})
    return env


class _Elsewhere:
    """Where libraries are looked for first; only `tools_of` sets it, whatever this process was started with."""

    libraries = ""


@contextlib.contextmanager
def tools_of(other: Path, root: Path = Path("/")) -> Iterator[bool]:
    """Programs and their libraries come from the root directory `other`, which is in memory, and not from a cold disk.

    Not where the two have another dynamic loader: ours is always the one that is used, and would not fit those
    libraries. Whether they do come from there.
    """
    found = next((each for each in LIBRARIES if _same_file(other / each / LOADER, root / each / LOADER)), None)
    if found is None:
        yield False
        return
    before = {name: os.environ.get(name) for name in ("PATH", _SEARCH)}
    path = ":".join(str(other / each) for each in ("usr/sbin", "usr/bin"))
    os.environ["PATH"] = f"{path}:{environment()['PATH']}"
    os.environ[_SEARCH] = _Elsewhere.libraries = str(other / found)
    try:
        yield True
    finally:
        _Elsewhere.libraries = ""
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _same_file(one: Path, other: Path) -> bool:
    try:
        return not one.samefile(other) and one.read_bytes() == other.read_bytes()
    except OSError:
        return False


def find(tool: str) -> str | None:
    """The absolute path of `tool` on PATH, or None."""
    return shutil.which(tool)


def run(
    argv: Sequence[str],
    *,
    stdin: bytes = b"",
    timeout: float = 60.0,
    check: bool = True,
    pass_fds: Sequence[int] = (),
    env: Mapping[str, str] | None = None,
) -> Completed:
    """Run `argv` to its end (timeout in seconds).

    Raises ToolError when `check` and the exit status is not 0, KupgradeError when the tool is missing or too slow.
    """
    try:
        done = subprocess.run(
            list(argv),
            input=stdin,
            capture_output=True,
            timeout=timeout,
            pass_fds=tuple(pass_fds),
            env=environment(env),
        )
    except FileNotFoundError as error:
        raise KupgradeError(
            f"{argv[0]} cannot be started", "it is not installed or not on PATH", f"Install {argv[0]}"
        ) from error
    except OSError as error:
        raise KupgradeError(f"{argv[0]} cannot be started", error.strerror or str(error)) from error
    except subprocess.TimeoutExpired as error:
        raise KupgradeError(f"{argv[0]} did not finish", f"no result after {timeout:g} s") from error
    out, err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    if check and done.returncode != 0:
        raise ToolError(tuple(argv), done.returncode, err or out)
    return Completed(done.returncode, out, err)
