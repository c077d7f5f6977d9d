"""CRIU through pycriu's RPC: one `criu swrk` child a request (criu(8), criu's rpc.proto).

pycriu comes from the distribution (python3-pycriu); it is imported late, because importing protobuf costs more than
everything else that the agent in the new kernel does.
"""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kupgrade.errors import RefusedError
from kupgrade.host import command
from kupgrade.host.criu_child import CheckpointError, Inside, Swrk
from kupgrade.model.network import Connection, Endpoint

__all__ = ["CheckpointError", "Criu", "DumpOptions", "Inside", "RestoreOptions"]

MINIMUM_VERSION = (4, 2, 1)
_LOG_LEVEL = 2
# Bytes of an open file that has been deleted (the field is a uint32). By itself criu takes no more than 1 MiB, and says
# so in the blackout only; servers keep temporary files in that way.
_GHOST_LIMIT = (1 << 32) - 1
_ERROR_LINE = re.compile(r"\s*(?:\(\s*[0-9.]+\)\s*)?(?:[0-9]+:\s*)?Error \(([^)]*)\):\s*(.*)")


@dataclass(frozen=True, slots=True)
class DumpOptions:
    """One dump or pre-dump of the tree rooted at `pid`.

    `parent`: image directory of the round before, relative to `directory`. `external_sockets`: inodes of connected
    unix sockets whose other end stays outside (the journal's streams). `external_files`: keys of open files that are
    none of the namespace's, file[MOUNT:INODE] in hex. `frozen_cgroup`: path of a cgroup v2 directory that criu freezes
    (and leaves frozen when it was). `inside`: where criu runs; None: here. `leave_running`: else they are killed.
    """

    pid: int
    directory: Path
    parent: str = ""
    external_sockets: tuple[int, ...] = ()
    frozen_cgroup: str = ""
    timeout: int = 60  # seconds to collect and stop the tasks
    external_files: tuple[str, ...] = ()
    inside: Inside | None = None
    leave_running: bool = True


@dataclass(frozen=True, slots=True)
class RestoreOptions:
    """One restore. `inherit`: image key such as socket:[123] -> descriptor of ours that takes its place.

    `lazy`: criu leaves out the pages that are marked so; a server waits in `log_directory` for their descriptors.
    `inside`: where criu runs; None: here.
    """

    directory: Path
    inherit: Mapping[str, int]
    log_directory: Path
    leave_stopped: bool = True
    lazy: bool = False
    inside: Inside | None = None


class Criu:
    """The criu binary at `binary`, asked through RPC."""

    def __init__(self, binary: str = "criu") -> None:
        self.binary = binary
        self._waiting: list[Swrk] = []

    def prime(self, count: int) -> None:
        """Have so many children wait for dumps: to start one takes a moment of the blackout. Raises CheckpointError."""
        _import()
        self.dismiss()
        self._waiting = [Swrk(self.binary, guarded=True) for _ in range(count)]

    def dismiss(self) -> None:
        """End those that wait."""
        while self._waiting:
            self._waiting.pop().end()

    def version(self) -> tuple[int, ...]:
        """E.g. (4, 2, 1). Raises RefusedError when criu or pycriu is missing."""
        if command.find(self.binary) is None:
            raise RefusedError("criu is not installed", f"no {self.binary} on PATH", "Install criu >= 4.2.1")
        out = command.run([self.binary, "--version"]).stdout
        match = re.search(r"Version:\s*([0-9]+(?:\.[0-9]+)*)", out)
        if not match:
            raise RefusedError("criu's version is unknown", f"criu --version said {out.strip()!r:.60}")
        return tuple(int(part) for part in match[1].split("."))

    def check(self) -> None:
        """Ask criu whether this kernel has what it needs; also fills its feature cache in /run.

        By the command, not by RPC: that request leaves no cache behind (seen with criu 4.2.1), and each restore would
        then begin with most of a second of probing.
        """
        _import()
        done = command.run([self.binary, "check"], check=False)
        if done.status != 0:
            found = errors_of(done.stderr) or [done.stderr.strip() or f"exit status {done.status}"]
            raise CheckpointError("criu check failed", found[0], "Run criu check --all")

    def pre_dump(self, options: DumpOptions) -> None:
        """Copy memory while the workload runs; tracks what it dirties from then on."""
        client = _client()
        with _Directory(options.directory) as images:
            self._dump_options(client, options, images)
            self._request("pre_dump", client, options.directory / "dump.log", inside=options.inside)

    def dump(self, options: DumpOptions) -> None:
        """The final dump. As a rule the tasks stay as they are (frozen), so the old copy can still be thawed."""
        client = _client()
        with _Directory(options.directory) as images:
            self._dump_options(client, options, images)
            client.opts.leave_running = options.leave_running
            self._request("dump", client, options.directory / "dump.log", inside=options.inside)

    def restore(self, options: RestoreOptions) -> int:
        """Restore a tree detached from us; the PID of its root. Its tasks are stopped when `leave_stopped`."""
        client = _client()
        with _Directory(options.directory) as images, _Directory(options.log_directory) as work:
            opts = client.opts
            opts.images_dir_fd = images
            opts.work_dir_fd = work
            opts.log_file = "restore.log"
            opts.log_level = _LOG_LEVEL
            opts.tcp_established = True
            opts.network_lock = _rpc().SKIP
            opts.shell_job = False
            opts.leave_stopped = options.leave_stopped
            opts.lazy_pages = options.lazy
            opts.ext_unix_sk = True
            opts.file_locks = True
            opts.link_remap = True
            _leave_cgroups(opts, options.inside)
            for key, fd in options.inherit.items():
                opts.inherit_fd.add(key=key, fd=fd)
            log = options.log_directory / "restore.log"
            inherited = tuple(options.inherit.values())
            answer = self._request("restore", client, log, inherited, options.inside)
        return int(answer.pid)

    def _dump_options(self, client: Any, options: DumpOptions, images: int) -> None:
        opts = client.opts
        opts.pid = options.pid
        opts.images_dir_fd = images
        opts.log_file = "dump.log"
        opts.log_level = _LOG_LEVEL
        opts.track_mem = True
        opts.tcp_established = True
        opts.network_lock = _rpc().SKIP
        opts.file_locks = True
        opts.link_remap = True
        opts.ghost_limit = _GHOST_LIMIT
        opts.timeout = options.timeout
        _leave_cgroups(opts, options.inside)
        if options.parent:
            opts.parent_img = options.parent
        if options.frozen_cgroup:
            opts.freeze_cgroup = options.frozen_cgroup
        for key in options.external_files:
            opts.external.append(key)
        if options.external_sockets:
            opts.ext_unix_sk = True
            for inode in options.external_sockets:
                opts.unix_sk_ino.add(inode=inode)

    def _request(
        self,
        name: str,
        client: Any,
        log: Path,
        inherited: Sequence[int] = (),
        inside: Inside | None = None,
    ) -> Any:
        plain = not inherited and inside is None
        if self._waiting and plain:
            child = self._waiting.pop()
        else:  # a restore has a deadline of its own
            child = Swrk(self.binary, inherited, inside, guarded=name != "restore")
        try:
            client.use_fd(child.socket.fileno())
            child.asked()
            try:
                return getattr(client, name)()
            finally:
                child.check()
        except Exception as error:  # pycriu raises its own types and protobuf's; all mean "criu said no"
            said = (not child.stood_still and first_error(log)) or str(error)
            raise CheckpointError(f"criu {name.replace('_', '-')} failed", said, f"See {log}") from error
        finally:
            child.end()


def _leave_cgroups(opts: Any, inside: Inside | None) -> None:
    """Inside of a sandbox criu cannot mount the hierarchy: all tasks are restored into the cgroup that it is in."""
    if inside is not None and inside.kinds:
        opts.manage_cgroups = True
        opts.manage_cgroups_mode = _rpc().IGNORE


def _client() -> Any:
    return _import().criu()


class _Directory:
    """A directory descriptor that is closed again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = -1

    def __enter__(self) -> int:
        self.fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        return self.fd

    def __exit__(self, *_exc: object) -> None:
        os.close(self.fd)


def _import() -> Any:
    try:
        import pycriu
    except ImportError as error:
        raise RefusedError(
            "criu's Python bindings are not installed", str(error), "Install python3-pycriu from the distribution"
        ) from error
    return pycriu


def preload() -> None:
    """Import what every request needs, ahead of time. Raises RefusedError when it is not installed."""
    _import()


def _rpc() -> Any:
    return _import().rpc


def first_error(log: Path) -> str:
    """The first error line of a criu log, which names the cause; later ones only pass it on. Empty when none."""
    try:
        text = log.read_text(errors="replace")
    except OSError:
        return ""
    found = errors_of(text)
    return found[0] if found else ""


def errors_of(text: str) -> Sequence[str]:
    """All error messages of a criu log, in order."""
    return [match[2].strip() for match in map(_ERROR_LINE.match, text.splitlines()) if match]


def received(directory: Path) -> dict[Connection, int]:
    """Per established connection in the images, the next sequence number expected from its peer.

    From inetsk entries (files.img) and tcp-stream-*.img (`inq_seq`, criu's tcp-stream.proto). Raises CheckpointError
    when they cannot be read: a dump that was cut short leaves images without content.
    """
    result: dict[Connection, int] = {}
    for entry in _entries(directory / "files.img"):
        sock = entry.get("isk")
        if not sock or int(sock.get("state", 0)) != 1:
            continue
        stream = directory / f"tcp-stream-{int(sock['ino']):x}.img"
        if not stream.exists():
            continue
        local = Endpoint(_address(sock["src_addr"]), int(sock["src_port"]))
        remote = Endpoint(_address(sock["dst_addr"]), int(sock["dst_port"]))
        (data, *_) = _entries(stream)
        result[Connection(local, remote)] = int(data["inq_seq"])
    return result


def _entries(path: Path) -> Sequence[Mapping[str, Any]]:
    images = _import().images
    try:
        with path.open("rb") as file:
            found: Sequence[Mapping[str, Any]] = images.load(file, pretty=False)["entries"]
    except OSError as error:
        raise CheckpointError("An image cannot be read", f"{path}: {error.strerror}") from error
    except Exception as error:  # pycriu raises its own types, struct's and protobuf's; all mean that it is no image
        raise CheckpointError("An image cannot be read", f"{path}: {error!r}") from error
    if not found:
        raise CheckpointError("An image cannot be read", f"{path}: it is empty")
    return found


def _address(words: Sequence[int]) -> str:
    raw = b"".join(struct.pack("=I", int(word)) for word in words)
    family = socket.AF_INET if len(raw) == 4 else socket.AF_INET6
    return socket.inet_ntop(family, raw)
