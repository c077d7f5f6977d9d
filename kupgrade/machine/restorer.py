"""The restorer of one workload, and what its held unit runs meanwhile (see host/systemd.py for how adoption works).

Two processes, because importing what criu needs takes longer than everything else. The agent starts the restorer as
early as it can; it imports, then waits. The unit's start process is a shell that names its PID and waits at a pipe:
systemd has put it into the unit's cgroup and given it a new journal stream. The restorer takes that stream over
(pidfd_getfd), moves into that cgroup, restores the tree there (stopped), writes the PID file and lets the shell end;
systemd then adopts the restored root as the unit's main process.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from kupgrade.errors import BadInputError, KupgradeError
from kupgrade.host import volatile
from kupgrade.host.command import environment
from kupgrade.host.criu import Criu, RestoreOptions
from kupgrade.host.criu_child import Inside
from kupgrade.kernel import cgroup, mount_maker, namespaces, proc
from kupgrade.kernel.cgroup_tree import Cell
from kupgrade.kernel.libc import Libc
from kupgrade.kernel.mount_layout import Layout
from kupgrade.kernel.namespaces import Held
from kupgrade.machine import cells, enclosure, fill, nursery, restoring, sandbox, starter
from kupgrade.machine.places import Places
from kupgrade.machine.sandbox import ForeignFile
from kupgrade.model.codec import decode, encode

_POLL = 0.01


@dataclass(frozen=True, slots=True)
class Request:
    """What to restore: `streams` are image keys (socket:[inode]) to the standard descriptor that replaces them.

    `cgroup`: where a workload without a unit is restored; `unit`: whether a unit's start process waits. `in_place`:
    its memory is filled while it runs already. `sandbox`: kinds of namespaces of the start process that it is restored
    into, `mounts` what they must have (if not `as_strict`, what is missing is told, and no more), `files` what systemd
    had opened before it made them; without a unit they are made by `layout`. `cells`: its cgroup and those below it,
    with who is in which.
    """

    directory: str
    streams: dict[str, int]
    pidfile: str
    cgroup: str
    unit: bool
    deadline: float  # seconds from the request on
    in_place: bool = False
    checked: bool = False  # what holds memory was read and summed since it came
    sandbox: tuple[str, ...] = ()
    files: tuple[ForeignFile, ...] = ()
    mounts: tuple[Held, ...] = ()
    as_strict: bool = False
    cells: tuple[Cell, ...] = ()
    layout: Layout = field(default_factory=Layout)


@dataclass(frozen=True, slots=True)
class Answer:
    """How it went; `seconds` is criu's own share. `copied`: why memory was copied that was to be filled in place."""

    pid: int
    seconds: float
    error: str
    copied: str = ""


def request_path(places: Places, name: str, token: str) -> Path:
    """Where the agent puts its request. The token is one restorer's own: one that a killed agent left never sees it."""
    return places.restorers / f"{name}.{token}.request"


def answer_path(places: Places, name: str) -> Path:
    """Where the restorer puts its answer."""
    return places.restorers / f"{name}.answer"


def put(path: Path, value: object) -> None:
    """Write JSON so that a reader sees all of it or nothing."""
    temporary = path.with_suffix(path.suffix + ".new")
    temporary.write_text(json.dumps(encode(value)))
    temporary.replace(path)


def restore_forked(places: Places, name: str, request: Request, streams: dict[str, int]) -> None:
    """Restore in a fork of this process, which has imported everything; the answer comes as from a restorer.

    `streams`: image keys to descriptors of ours, which are closed here. For kernels in which no system runs yet.
    """
    places.restorers.mkdir(mode=0o700, parents=True, exist_ok=True)
    answer_path(places, name).unlink(missing_ok=True)
    if os.fork():
        for fd in streams.values():
            os.close(fd)
        return
    try:
        os.setsid()
        restoring.begin(places, name)
        put(answer_path(places, name), _serve(places, name, request, streams))
        restoring.finish(places, name)
    finally:
        os._exit(0)


def spawn(places: Places, name: str, patience: float) -> str:
    """Have a restorer wait for its request (seconds); its token. What an earlier one left is removed first."""
    starter.open_for_start(places, name)
    answer_path(places, name).unlink(missing_ok=True)
    token = secrets.token_hex(4)
    if nursery.ask(name, token, patience):
        return token
    argv = [sys.executable, "-sP", "-m", "kupgrade.machine.restorer", name, token, str(patience), str(os.getpid())]
    subprocess.Popen(
        argv, env=environment(), stdin=subprocess.DEVNULL, start_new_session=True
    )  # not waited for: once asked it outlives a killed agent, and answers through its file
    return token


def main(argv: list[str]) -> int:
    """`restorer NAME TOKEN PATIENCE AGENT`: see `serve`; the exit status."""
    name, token, patience, agent = argv
    deadline = time.monotonic() + float(patience)
    with contextlib.suppress(KupgradeError):
        # The slow parts ahead of time: the import, and criu's probing of a new kernel, which it keeps in /run.
        # What is wrong with either is told by the restore itself.
        Criu().check()
    return serve(name, token, deadline, int(agent))


def serve(name: str, token: str, deadline: float, parent: int) -> int:
    """Wait for the request until `deadline` (time.monotonic), while the parent lives, restore, answer; exit status."""
    places = Places()
    path = request_path(places, name, token)
    if not _await(path, deadline, parent):
        return 1
    restoring.begin(places, name)
    try:
        request = decode(Request, json.loads(path.read_text()), f"request for {name}")
        path.unlink()
    except FileNotFoundError:  # it was taken back
        return 1
    put(answer_path(places, name), answer := _serve(places, name, request, {}))
    restoring.finish(places, name)
    starter.open_gate(places, name, 1 if answer.error else 0, starter.GATE_PATIENCE if request.unit else 0.0)
    return 1 if answer.error else 0


def _await(path: Path, deadline: float, parent: int | None = None) -> bool:
    while not path.exists():
        if time.monotonic() > deadline or parent not in (None, os.getppid()):
            return False
        time.sleep(_POLL)
    return True


def _serve(places: Places, name: str, request: Request, inherit: dict[str, int]) -> Answer:
    """One restore; an error is answered, not raised. `inherit`: what the streams become when no unit waits."""
    logs = places.run / "logs" / name
    logs.mkdir(mode=0o700, parents=True, exist_ok=True)
    begun = time.monotonic()
    directory, copied = Path(request.directory), ""
    stack = contextlib.ExitStack()
    try:
        where, around, view = request.cgroup, None, places.root
        if request.unit:
            pid = _starter(places, name, request, begun + request.deadline)
            if not pid:
                return Answer(0, 0.0, "systemd did not start the unit's restore")
            where = cells.unit_cgroup(request.cgroup, proc.process(pid).cgroup)
            inherit = _streams(pid, request.streams)
        elif request.sandbox:
            pid = stack.enter_context(enclosure.made(request.layout, request.sandbox))
        if request.sandbox:
            around, view = Inside(pid, request.sandbox), sandbox.view(pid)
            inherit |= _sandboxed(request, pid)
        begun = time.monotonic()
        volatile.unpack(view, directory)
        if request.in_place:
            directory, copied = _begin_filling(places, name, request, where, logs)
        cgroup.enter(where)
        lazy = request.in_place and not copied
        root = Criu().restore(RestoreOptions(directory, inherit, logs, lazy=lazy, inside=around))
        cells.fill(where, request.cells)
        if around is not None and request.unit:
            _close_shell(request, around.pid)
        Path(request.pidfile).write_text(f"{root}\n")
    except Exception as error:  # whatever it is: somebody waits
        text = str(error) if isinstance(error, KupgradeError | OSError) else repr(error)
        return Answer(0, time.monotonic() - begun, text)
    finally:
        stack.close()
        for fd in inherit.values():
            os.close(fd)
    return Answer(root, time.monotonic() - begun, "", copied)


def _starter(places: Places, name: str, request: Request, deadline: float) -> int:
    """The unit's start process; 0: none came."""
    if request.sandbox:
        return sandbox.await_starter(request.cgroup, starter.gate_path(places, name), deadline)
    path = starter.pid_path(places, name)
    return int(path.read_text()) if _await(path, deadline) else 0


def _sandboxed(request: Request, pid: int) -> dict[str, int]:
    """Descriptors for what was opened outside of the sandbox. Raises KupgradeError when it is not the one it was."""
    # What another kernel does not have at all needs no restriction.
    there = [
        each
        for each in request.mounts
        if not each.mountpoint.startswith(mount_maker.KERNELS)
        or os.path.lexists(f"{sandbox.view(pid)}{each.mountpoint}")
    ]
    weaker = namespaces.weaker(there, namespaces.mounts(pid))
    if weaker and not request.as_strict:
        sys.stderr.write(f"<4>kupgrade: the sandbox of process {pid} is weaker than it was: {', '.join(weaker)}\n")
    elif weaker:
        why = "there is less that holds it in: " + ", ".join(weaker[:8])
        raise KupgradeError("systemd made another sandbox for the unit", why, "Compare the unit's settings")
    return sandbox.reopen(request.files)


def _close_shell(request: Request, pid: int) -> None:
    """Where few files may be executed the start process's shell could be, by a mount that the sandbox had not."""
    shell = str(Path(starter.SHELL).resolve())
    there = any(mount.mountpoint == shell for mount in namespaces.mounts(pid))
    if there and not any(each.mountpoint == shell for each in request.mounts):
        sandbox.unmount_inside(pid, shell)


def _begin_filling(places: Places, name: str, request: Request, where: str, logs: Path) -> tuple[Path, str]:
    """Where criu finds its images, and why memory is copied all the same. It goes on without a page server then."""
    directory = Path(request.directory)
    try:
        return fill.begin(places, name, directory, where, logs, checked=request.checked), ""
    except BadInputError:
        raise
    except KupgradeError as error:
        sys.stderr.write(f"<4>kupgrade: memory of {name} is copied: {error}\n")
        return directory, str(error)


def _streams(pid: int, wanted: dict[str, int]) -> dict[str, int]:
    """The start process's standard descriptors, duplicated into us: numbers above 2, as swrk closes those."""
    if not wanted:
        return {}
    libc = Libc()
    pidfd = libc.pidfd_open(pid)
    try:
        return {key: libc.pidfd_getfd(pidfd, number) for key, number in wanted.items()}
    finally:
        os.close(pidfd)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
