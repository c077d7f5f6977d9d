"""Taking over, as the agent does it: images come in, then a child of the agent carries the upgrade on.

A child, because the agent has to go on answering; it is forked, so that what it needs is in memory already. The agent
starts it again when it is killed, as systemd does with the worker in the old kernel.
"""

from __future__ import annotations

import base64
import contextlib
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kupgrade.errors import BadInputError, KupgradeError
from kupgrade.host import nft
from kupgrade.host.criu import Criu
from kupgrade.kernel.libc import Libc, reported
from kupgrade.kernel.window_files import content, read_table
from kupgrade.machine import host, new_root, standing, streams
from kupgrade.machine.images import store_of
from kupgrade.machine.places import Places
from kupgrade.model import standby
from kupgrade.model.codec import decode, encode
from kupgrade.model.handover import Mark, Piece, Stage, TakeOver
from kupgrade.model.workload import Store, StoreKind
from kupgrade.standby import carry_on, touch, trial
from kupgrade.standby.verbs import Here, Verb, load_criu_modules

MAX_CHILDREN = 5  # that may die of a signal
TAKEN_OVER = "taken-over"  # in /run/kupgrade: the first process starts no second agent any more


class Child:
    """The child at work, if any; one agent has one."""

    pid = 0
    order: TakeOver | None = None
    started = 0
    inside = False  # whether the agent itself has the new root


def store(path: str) -> Store:
    """The images of an upgrade in this kernel's memory."""
    return Store(StoreKind.WINDOW, path, "tmpfs", str(Path(path).parent))


def prepare(_here: Here, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """Before the blackout: room for writes (bytes), criu's check and its trial, the lock on the ports `tcp` and `udp`.

    The check also fills criu's cache of what this kernel can. `unmade`: why there was no trial.
    """
    new_root.prepare_store(int(arguments["writes"]))
    load_criu_modules()
    host.learn_ahead()
    try:
        Criu().check()
        tried = trial.run()
    except KupgradeError as error:
        return {"criu": str(error)}
    touch.free_memory()
    nft.lock(arguments.get("tcp", ()), arguments.get("udp", ()), nft.Direction.BOTH)
    return {"criu": "", "unmade": tried.unmade}


def receive(here: Here, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """Write `pieces` from the window to the images in `directory`, and make `links` there. Bytes written."""
    if here.window is None:
        raise BadInputError("There is no shared window")
    images = store_of(store(str(arguments["directory"])))
    images.prepare()
    table = {each.name: each for each in read_table(here.window.files)}
    total = 0
    for raw in arguments.get("pieces", ()):
        piece = decode(Piece, raw, "piece")
        view = content(here.window.files, table[piece.piece])
        try:
            total += _write(_below(images.path, piece.name), piece.offset, view)
        finally:
            view.release()
    for name, target in arguments.get("links", ()):
        link = _below(images.path, name)
        link.unlink(missing_ok=True)
        link.symlink_to(target)
    return {"bytes": total}


def _below(top: Path, name: str) -> Path:
    path = top / name
    if ".." in path.parts or not path.is_relative_to(top):
        raise BadInputError(f"{name!r:.60} is no image")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def _write(path: Path, offset: int, view: memoryview) -> int:
    with reported("write", path):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            done = 0
            while done < len(view):
                done += os.pwrite(fd, view[done:], offset + done)
        finally:
            os.close(fd)
    return done


def take_over(here: Here, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """Begin: everything after this happens in a child; `stage` tells how far it is.

    As long as the mark in /run is not there nothing has happened: an agent started again may be asked again. Once it is
    there no agent is started any more.
    """
    if Child.order is not None or (Places().run / TAKEN_OVER).exists():
        raise BadInputError("This kernel takes over already")
    Child.order = decode(TakeOver, arguments.get("order"), "order")
    standing.put(Places(), Stage.TAKING)
    (Places().run / TAKEN_OVER).touch()
    time.clock_settime(time.CLOCK_REALTIME, Child.order.clock)
    streams.make(store(Child.order.store))
    _start(here, Child.order)
    return {"pid": Child.pid}


def stage(here: Here, _: Mapping[str, Any]) -> Mapping[str, Any]:
    """How far the child is; one that was killed is started again."""
    found = standing.get(Places())
    tend(here)
    return {"standing": encode(found)}


def tend(here: Here) -> None:
    """Start a killed child again. By the agent itself, too: after the commit the old kernel may be gone or dead."""
    if Child.order is not None:
        _enter_too()
        _look_after(here, Child.order)


def follow(proc: int) -> None:
    """As `_enter_too`, for an agent that begins after the commit; `proc`: descriptor of /proc, from when it was there.

    Once the host's init runs, the root that this process came from is empty; the first process has the one.
    KernelError.
    """
    with contextlib.suppress(KupgradeError, OSError):  # that root is emptied at any moment
        _enter_too()
    if Child.inside:
        return
    with reported("chroot", "/proc/1/root"):
        root = os.open("1/root", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=proc)
        os.fchdir(root)
        os.chroot(".")
        os.close(root)
    Child.inside = True


def _enter_too() -> None:
    """The agent follows into the new root: the old one is emptied when the host's own init starts."""
    if not Child.inside and new_root.SYSROOT.is_mount() and (new_root.SYSROOT / "run/kupgrade").is_dir():
        new_root.change_root()
        Child.inside = True


def _look_after(here: Here, order: TakeOver) -> None:
    if not Child.pid:
        return
    pid, status = os.waitpid(Child.pid, os.WNOHANG)
    if pid == 0:
        return
    Child.pid = 0
    if os.WIFSIGNALED(status):
        if Child.started < MAX_CHILDREN:
            _start(here, order)
        else:
            standing.fail(Places(), "what carries the upgrade on was killed again and again")


def _start(here: Here, order: TakeOver) -> None:
    Child.started += 1
    pid = os.fork()
    if pid:
        Child.pid = pid
        return
    code = 1
    try:
        code = _carry_on(here, order)
    except BaseException as error:
        sys.stderr.write(f"<3>kupgrade: {type(error).__name__}: {error}\n")
        with contextlib.suppress(BaseException):
            standing.fail(Places(), str(error))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _carry_on(here: Here, order: TakeOver) -> int:
    marks = [*order.marks, Mark("told", order.clock), Mark("begun", time.time())]
    os.setsid()
    os.environ.update(order.environment)
    table = base64.b64decode(order.table, validate=True)
    mark = Places().run / "table-loaded"
    if table and not mark.exists():
        here.device.load_ssdt(table)
        mark.touch()
    if not Child.inside:
        new_root.enter(order, Libc())
    new_root.go_on(Libc())  # a child that was killed may have left it frozen
    marks.append(Mark("mounted", time.time()))
    new_root.await_links(order.links)
    marks.append(Mark("linked", time.time()))
    standing.put_marks(Places(), marks)
    return carry_on.run()


VERBS: dict[str, Verb] = {
    standby.PREPARE: prepare,
    standby.RECEIVE: receive,
    standby.TAKE_OVER: take_over,
    standby.STAGE: stage,
}
