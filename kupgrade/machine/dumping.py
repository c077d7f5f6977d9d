"""The dump of one workload: what criu is told of it, and what its images hold that criu does not put there.

Crash windows: what is written beside criu's images, and the edits of those, come before the seal. A dump that was cut
short is made anew.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kupgrade.errors import KernelError
from kupgrade.host import criu_edits, volatile
from kupgrade.host.criu import Criu, DumpOptions
from kupgrade.host.images import round_name
from kupgrade.host.journal_streams import held_inodes
from kupgrade.kernel import cgroup, cgroup_tree, mount_layout, namespaces, proc, process, sock_diag
from kupgrade.kernel.cgroup_tree import Cell
from kupgrade.kernel.mount_layout import Layout
from kupgrade.kernel.namespaces import Held
from kupgrade.kernel.proc import GONE
from kupgrade.machine import copies, restorer, sandbox
from kupgrade.machine.images import store_of
from kupgrade.machine.rounds import bytes_in, last_round
from kupgrade.machine.sandbox import ForeignFile
from kupgrade.machine.streams import META
from kupgrade.model.codec import decode
from kupgrade.model.workload import Store, StoreKind, Workload

JOURNAL_SOCKET = "/run/systemd/journal/stdout"
_TEMPORARY = {"/tmp": "tmp.mount", "/var/tmp": "var-tmp.mount"}  # noqa: S108  # systemd.mount(5)
# The freezer inside of a sandbox may be mounted read-only; this way leads to the host's.
_HOST = Path("/proc/1/root")


@dataclass(frozen=True, slots=True)
class Meta:
    """Beside a workload's images: which sockets are journal streams (inode -> descriptor), its processes, its sandbox.

    `pids`: those that were dumped; empty in images of a release that kept to those planned. `files`: what systemd opens
    for it; `mounts`: those by which its mount namespace differs from the host's; `mounted`: units of the host's own
    mounts that its private directories lie on; `cells`: its cgroup and those below, with who is in which; `stopped`:
    processes that somebody had stopped by a signal, and that are to stay so. `layout`: its mounts and the host's file
    systems in memory, for a restore before systemd runs.
    """

    streams: dict[str, int]
    pids: tuple[int, ...] = ()
    files: tuple[ForeignFile, ...] = ()
    mounts: tuple[Held, ...] = ()
    mounted: tuple[str, ...] = ()
    cells: tuple[Cell, ...] = ()
    stopped: tuple[int, ...] = ()
    layout: Layout = field(default_factory=Layout)


def read_meta(store: Store, workload: Workload) -> Meta:
    """Raises OSError when nothing was dumped there."""
    path = store_of(store).path / workload.name / "final" / META
    return decode(Meta, json.loads(path.read_text()), f"{workload.name}/{META}")


def as_dumped(store: Store | None, workload: Workload) -> Workload:
    """The workload with the processes that were dumped, when there is a dump."""
    if store is None:
        return workload
    try:
        pids = read_meta(store, workload).pids
    except OSError:
        return workload
    return dataclasses.replace(workload, pids=pids) if pids else workload


def stopped_in(store: Store | None, workload: Workload) -> tuple[int, ...]:
    """Its processes that were stopped by a signal when they were dumped."""
    try:
        return () if store is None else read_meta(store, workload).stopped
    except OSError:
        return ()


def pids_in(store: Store | None) -> tuple[int, ...]:
    """All processes that were dumped into a store; none when it is not there, or not mounted."""
    if store is None:
        return ()
    found: set[int] = set()
    for path in Path(store.path).glob(f"*/final/{META}"):
        found.update(decode(Meta, json.loads(path.read_text()), str(path)).pids)
    return tuple(sorted(found))


def journal_streams(pids: Iterable[int]) -> dict[int, int]:
    """Inode -> lowest descriptor number, of sockets connected to the journal's stdout socket."""
    with sock_diag.connect() as diag:
        table = sock_diag.unix_peers(diag)
    taken_over = held_inodes()
    found: dict[int, int] = {}
    for pid in pids:
        for fd in _fds(pid):
            if fd.kind is not process.FdKind.SOCKET or fd.inode not in table:
                continue
            peer = table.get(table[fd.inode].peer)
            if peer is not None and (peer.path == JOURNAL_SOCKET or peer.inode in taken_over):
                found[fd.inode] = min(found.get(fd.inode, fd.number), fd.number)
    return found


def _fds(pid: int) -> tuple[process.Fd, ...]:
    """Of a process that may have ended meanwhile: none."""
    try:
        return process.fds(pid)
    except KernelError as error:
        if error.errno not in GONE:
            raise
        return ()


def _stopped(pids: Iterable[int]) -> Iterator[int]:
    for pid in pids:
        try:
            if proc.process(pid).state == "T":
                yield pid
        except KernelError as error:
            if error.errno not in GONE:
                raise


def pre_dump(criu: Criu, workload: Workload, directory: Path, number: int) -> None:
    """One round, on top of the round before it."""
    criu.pre_dump(_options(workload, directory, number - 1, journal_streams(cgroup.members(workload.cgroup))))


def dump(criu: Criu, store: Store, workload: Workload) -> int:
    """The final dump of the frozen workload on top of its last complete round; bytes written."""
    images = store_of(store)
    pids = copies.tree(workload)
    found = journal_streams(pids)
    stopped = tuple(_stopped(pids))
    last = last_round(images.path / workload.name)
    directory = images.round_directory(workload.name, "final")
    files = sandbox.foreign_files(pids, workload.root_pid) if "mnt" in workload.sandbox else ()
    criu.dump(_options(workload, directory, last, found, files))
    if workload.user_namespace:
        criu_edits.share_user_namespace(directory)
    if workload.shared_memory:
        criu_edits.keep_shared_memory(directory, sandbox.segments(pids))
    volatile.pack(sandbox.view(workload.root_pid), workload.carried, directory)
    cells = cgroup_tree.cells(workload.cgroup)
    layout = _layout(workload) if store.kind is StoreKind.WINDOW else Layout()
    restorer.put(directory / META, Meta(_standard(found), pids, files, *_mounts(workload), cells, stopped, layout))
    return bytes_in(directory)


def _standard(streams: dict[int, int]) -> dict[str, int]:
    return {f"socket:[{inode}]": (2 if fd == 2 else 1) for inode, fd in streams.items()}


def _mounts(workload: Workload) -> tuple[tuple[Held, ...], tuple[str, ...]]:
    """Those that make up its sandbox, and the units of the host's for temporary files."""
    if "mnt" not in workload.sandbox:
        return (), ()
    ours = namespaces.mounts(1)
    own = namespaces.own_mounts(namespaces.mounts(workload.root_pid), ours)
    there = {mount.mountpoint for mount in ours}
    return own, tuple(unit for place, unit in _TEMPORARY.items() if place in there)


def _layout(workload: Workload) -> Layout:
    """Of a workload that goes to a kernel beside this one."""
    theirs = namespaces.mounts(workload.root_pid) if "mnt" in workload.sandbox else ()
    carried = [each.path for each in workload.carried]
    found = mount_layout.layout(theirs, namespaces.mounts(1), sandbox.view(workload.root_pid), carried)
    name = namespaces.hostname(workload.root_pid) if "uts" in workload.sandbox else ""
    return dataclasses.replace(found, hostname=name)


def _options(
    workload: Workload, directory: Path, last: int, streams: Iterable[int], files: Sequence[ForeignFile] = ()
) -> DumpOptions:
    frozen = cgroup.directory(workload.cgroup)
    return DumpOptions(
        pid=workload.root_pid,
        directory=directory,
        parent=f"../{round_name(last)}" if last else "",
        external_sockets=tuple(streams),
        frozen_cgroup=str(_HOST / frozen.relative_to("/") if workload.sandbox else frozen),
        external_files=tuple(file.key for file in files),
        inside=sandbox.around(workload, workload.root_pid, dumping=True),
    )
