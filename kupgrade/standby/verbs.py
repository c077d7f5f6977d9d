"""What the agent in a spawned kernel can be asked to do."""

from __future__ import annotations

import base64
import binascii
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kupgrade.errors import BadInputError
from kupgrade.host import command
from kupgrade.kernel import cpu
from kupgrade.kernel.kspawn import Kspawn
from kupgrade.kernel.libc import read_text
from kupgrade.kernel.shared_window import SharedWindow
from kupgrade.model import standby
from kupgrade.model.codec import decode, encode
from kupgrade.model.instance import PARAMETER, RUN_TIMEOUT
from kupgrade.model.kernel import CommandLine
from kupgrade.standby.heir import Heir

# criu looks for what these bring, and not all of them come by themselves when it does.
CRIU_MODULES = ("tun", "veth", "unix_diag", "tcp_diag", "udp_diag", "raw_diag", "netlink_diag", "af_packet_diag")
MODULES_TIMEOUT = 30.0
SAID_LIMIT = 48 << 10  # bytes of one answer (kernel/window.py, MAX_PAYLOAD)


@dataclass(frozen=True, slots=True)
class Here:
    """This kernel, as far as requests reach; `beater` is the heartbeat's PID, `heir` waits for the old kernel's end."""

    device: Kspawn
    root: Path
    beater: int = 0
    window: SharedWindow | None = None
    heir: Heir = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "heir", Heir(self.device, self.root))


Verb = Callable[[Here, Mapping[str, Any]], Mapping[str, Any]]


def _texts(arguments: Mapping[str, Any], name: str) -> list[str]:
    value = arguments.get(name)
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise BadInputError(f"The request names no {name}", f"found {value!r:.60}")
    return value


def ping(_here: Here, _: Mapping[str, Any]) -> Mapping[str, Any]:
    """CLOCK_MONOTONIC of this kernel in seconds."""
    return {"monotonic": time.monotonic()}


def status(here: Here, _: Mapping[str, Any]) -> Mapping[str, Any]:
    """Release, boot ID, seconds since the start, CPUs, memory in bytes, loaded modules."""
    memory = {
        key: int(value.split()[0]) * 1024
        for key, _, value in (line.partition(":") for line in read_text(here.root / "proc/meminfo").splitlines())
        if key in ("MemTotal", "MemAvailable")
    }
    found = cpu.masks(here.root)
    return {
        "release": os.uname().release,
        "boot_id": read_text(here.root / "proc/sys/kernel/random/boot_id").strip(),
        "uptime": float(read_text(here.root / "proc/uptime").split()[0]),
        "online": str(found.online),
        "present": str(found.present),
        "memory": memory.get("MemTotal"),
        "available": memory.get("MemAvailable"),
        "modules": [line.split()[0] for line in read_text(here.root / "proc/modules").splitlines()],
    }


def modules(_here: Here, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """Load `names` with what they need; those built into the kernel are loaded by definition."""
    names = _texts(arguments, "names")
    if names:
        command.run(["modprobe", "-a", "--", *names], timeout=MODULES_TIMEOUT)
    return {"loaded": names}


def load_criu_modules() -> None:
    """Those that this kernel has."""
    for name in CRIU_MODULES:
        command.run(["modprobe", "-q", "--", name], timeout=MODULES_TIMEOUT, check=False)


def load_ssdt(here: Here, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """Load an ACPI table (base64 in `table`); the kernel finds the devices in it by itself."""
    try:
        table = base64.b64decode(str(arguments.get("table", "")), validate=True)
    except binascii.Error as error:
        raise BadInputError("The request holds no table", str(error)) from error
    here.device.load_ssdt(table)
    return {"length": len(table)}


def inherit(here: Here, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """Take over `legacy` (a standby.Legacy) as soon as the old kernel is gone; "inherited" tells how it went."""
    here.heir.expect(decode(standby.Legacy, arguments.get("legacy")))
    return {}


def inherited(here: Here, _: Mapping[str, Any]) -> Mapping[str, Any]:
    """How far that is: a standby.Inherited."""
    found: Mapping[str, Any] = encode(here.heir.found)
    return found


def stop(here: Here, _: Mapping[str, Any]) -> Mapping[str, Any]:
    """The agent ends after this answer, and after an inheritance that has begun; one that has not is given up."""
    if here.heir.found.stage is standby.Stage.WAITING:
        here.heir.give_up()
    return {}


def run_command(here: Here, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """Run `command` by the shell, in an instance only: its exit status, and the end of what it said."""
    if not CommandLine.parse(read_text(here.root / "proc/cmdline")).has(PARAMETER):
        raise BadInputError("No command is run here", "this kernel is no instance")
    text = str(arguments.get("command", ""))
    done = command.run(["sh", "-c", f"exec 2>&1\n{text}"], timeout=RUN_TIMEOUT - 5.0, check=False)
    said = done.stdout[-SAID_LIMIT:]
    while len(json.dumps(said)) > SAID_LIMIT:  # as it travels
        said = said[len(said) // 4 + 1 :]
    return {"status": done.status, "said": said}


VERBS: dict[str, Verb] = {
    standby.PING: ping,
    standby.STATUS: status,
    standby.MODULES: modules,
    standby.LOAD_SSDT: load_ssdt,
    standby.INHERIT: inherit,
    standby.INHERITED: inherited,
    standby.RUN: run_command,
    standby.STOP: stop,
}
