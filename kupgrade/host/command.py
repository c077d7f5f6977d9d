"""The one place that starts a child process."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kupgrade.errors import KupgradeError, ToolError


@dataclass(frozen=True, slots=True)
class Completed:
    """A finished child: exit status (negative: killed by that signal), stdout and stderr as text."""

    status: int
    stdout: str
    stderr: str


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """A child's environment, rebuilt from little: fixed PATH and the C.UTF-8 locale."""
    env = {"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), "LC_ALL": "C.UTF-8"}
    env.update(extra or {})
    return env


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
    except subprocess.TimeoutExpired as error:
        raise KupgradeError(f"{argv[0]} did not finish", f"no result after {timeout:g} s") from error
    out, err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    if check and done.returncode != 0:
        raise ToolError(tuple(argv), done.returncode, err or out)
    return Completed(done.returncode, out, err)
