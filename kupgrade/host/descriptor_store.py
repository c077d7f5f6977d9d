"""Descriptor stores of services (sd_pid_notify_with_fds(3), systemd.service(5)): what is in them, and how to fill one.

The service manager takes a descriptor for a store from processes of the unit only. A unit that does not run gets its
descriptors by one start of something else: a drop-in in /run makes that start a process which hands them over. With
FileDescriptorStorePreserve=yes they stay in the store when it ends, and the unit's own next start finds them. The
manager forgets a unit, and its store, that does not run and that nothing refers to: early in a boot something has to.
"""

from __future__ import annotations

import array
import functools
import json
import os
import re
import select
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kupgrade.errors import BadInputError, KupgradeError
from kupgrade.host import command
from kupgrade.host.systemd import parse_show, remove_dropins
from kupgrade.model.descriptors import MEMORY, DescriptorStore

DROPIN = "zz-kupgrade-descriptors.conf"
KEPT_WHEN_STOPPED = "yes"  # FileDescriptorStorePreserve=
_REFERRED = ("WantedBy", "RequiredBy", "UpheldBy", "BoundBy", "TriggeredBy")
_STORE = ("FileDescriptorStoreMax", "FileDescriptorStorePreserve", "NFileDescriptorStore", "LUOSession")
_PROPERTIES = ",".join(("LoadState", "ActiveState", *_STORE, *_REFERRED))
PIN = "-.slice"  # always there, and before everything: an order that it names changes nothing but that it is named
_STOPPED = ("inactive", "failed")
_OTHER = re.compile(r"anon_inode:\[?([^\]]+)\]?|(\w+):\[\d+\]")
_START_TIMEOUT = 60  # seconds
_PATIENCE = 20.0  # seconds for the manager to take what was sent


@dataclass(frozen=True, slots=True)
class Stored:
    """One entry of a store. `path`: as /proc/PID/fd shows the file; `device` and `inode`: which file it is."""

    name: str
    path: str
    device: int
    inode: int


def parse_store(text: str) -> tuple[Stored, ...]:
    """What `systemd-analyze --json=short fdstore UNIT` says, in its order. Raises BadInputError."""
    try:
        return tuple(
            Stored(entry["fdname"], entry["path"] or "", _device(entry["devno"]), int(entry["inode"]))
            for entry in json.loads(text or "[]")
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInputError("systemd's list of stored descriptors is of another form", str(error)) from None


def _device(value: Any) -> int:
    """A device number: [major, minor], or null for 0:0."""
    major, minor = value or (0, 0)
    return os.makedev(int(major), int(minor))


def kind_of(stored: Stored) -> str:
    """What it is: memfd, socket, pipe, eventfd, ..., or file. Whatever lies in the kernel's own tmpfs is a memfd.

    Not its name tells that: a memfd that came from another kernel has none any more.
    """
    if stored.device == _memory():
        return MEMORY
    if stored.path.startswith("/memfd:"):
        return "hugetlb memfd"
    if match := _OTHER.fullmatch(stored.path):
        return match[1] or match[2]
    return "file" if stored.path.startswith("/") else "descriptor of unknown kind"


@functools.cache
def _memory() -> int:
    """The device number of the kernel's own tmpfs, in which memfds lie."""
    fd = os.memfd_create("where", os.MFD_CLOEXEC)
    try:
        return os.fstat(fd).st_dev
    finally:
        os.close(fd)


def store_of(unit: str, values: Mapping[str, str]) -> DescriptorStore:
    """Facts of a store from `systemctl show`, without what is in it."""
    return DescriptorStore(
        unit=unit,
        loaded=values.get("LoadState") == "loaded",
        active=values.get("ActiveState", "inactive") not in _STOPPED,
        limit=int(values.get("FileDescriptorStoreMax") or 0),
        mode=values.get("FileDescriptorStorePreserve") or "no",
        session=values.get("LUOSession", ""),
        held=int(values.get("NFileDescriptorStore") or 0),
        wanted=any(values.get(name) for name in _REFERRED),
    )


def return_dropin(giver: Sequence[str]) -> str:
    """The drop-in that makes a unit's next start nothing but the return of its descriptors: `giver`, told its name."""
    return f"""# Laid by kupgrade for a moment: this start returns the descriptors that came through an upgrade.
[Unit]
ConditionPathExists=
AssertPathExists=
RefuseManualStart=no
StartLimitIntervalSec=0
SuccessAction=none
FailureAction=none
[Service]
Type=oneshot
RemainAfterExit=no
Restart=no
NotifyAccess=main
TimeoutStartSec={_START_TIMEOUT}
ExecCondition=
ExecStartPre=
ExecStartPost=
ExecStop=
ExecStopPost=
ExecStart=
ExecStart=+{" ".join(giver)} %n
"""


class Stores:
    """The service manager's side, by its own tools."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    def show(self, unit: str) -> DescriptorStore:
        """Facts of a unit's store."""
        out = command.run(["systemctl", "show", unit, f"--property={_PROPERTIES}"]).stdout
        return store_of(unit, parse_show(out))

    def content(self, unit: str) -> tuple[Stored, ...]:
        """What is in it. Raises KupgradeError; the tool is part of systemd from 254 on."""
        return parse_store(command.run(["systemd-analyze", "--json=short", "fdstore", unit]).stdout.strip())

    def dropin(self, unit: str) -> Path:
        """Where the drop-in of a return lies: it ends with this boot."""
        return self.root / "run/systemd/system" / f"{unit}.d" / DROPIN

    def start_return(self, units: Sequence[str], giver: Sequence[str]) -> Mapping[str, str]:
        """Start the giver once in each of these units, which do not run, and wait; by unit what went wrong.

        Their own configuration is back when this returns, or when the machine has restarted; that they are referred to
        goes on as long as this boot.
        """
        wrong: dict[str, str] = {}
        if not units:
            return wrong
        try:
            self._lay(self.dropin(PIN), f"[Unit]\nBefore={' '.join(units)}\n")
            for unit in units:
                self._lay(self.dropin(unit), return_dropin(giver))
            self._reload()
            for unit in units:
                try:
                    start = ["systemctl", "start", "--job-mode=ignore-dependencies", unit]
                    command.run(start, timeout=_START_TIMEOUT + 30.0)
                except KupgradeError as error:
                    wrong[unit] = str(error)
        finally:
            self.forget(units)
        if wrong:
            command.run(["systemctl", "reset-failed", *wrong], check=False)
        return wrong

    def _lay(self, path: Path, text: str) -> None:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        path.write_text(text)

    def forget(self, units: Sequence[str]) -> None:
        """No return is under way any more: the units have their own configuration."""
        if remove_dropins(self.dropin(unit) for unit in units):
            self._reload()

    def _reload(self) -> None:
        command.run(["systemctl", "daemon-reload"], timeout=120.0)


def add(descriptors: Sequence[tuple[str, int]], patience: float = _PATIENCE) -> None:
    """From a process of the unit: put these (name, descriptor) into its store, and wait until the manager has them.

    Raises KupgradeError without a manager that listens, or after `patience` (seconds).
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        raise KupgradeError("There is no store to put descriptors into", "no NOTIFY_SOCKET is set")
    reader, writer = os.pipe()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.settimeout(patience)
            sender.connect(address.replace("@", "\0", 1))
            for name, fd in descriptors:
                _send(sender, f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", fd)
            _send(sender, "BARRIER=1", writer)
        os.close(writer)
        writer = -1
        waiting = select.poll()
        waiting.register(reader, 0)  # POLLHUP is always told: the manager has closed its end
        if not waiting.poll(patience * 1000):
            raise KupgradeError("systemd did not take the descriptors", f"no answer in {patience:g} s")
    except OSError as error:
        raise KupgradeError("systemd did not take the descriptors", error.strerror or str(error)) from error
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)


def _send(sender: socket.socket, text: str, fd: int) -> None:
    sender.sendmsg([text.encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])


def giver_command() -> tuple[str, ...]:
    """The program that hands a unit's descriptors over; its argument is the unit's name."""
    return (sys.executable, "-sP", "-m", "kupgrade.machine.descriptor_giver")
