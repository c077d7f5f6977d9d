"""The support bundle: what a bug report needs, as a tar.gz that is root's alone, with everything secret left out.

Never in it: checkpoint images, memory, environments, command lines of processes. All text passes core/redact.py.
"""

from __future__ import annotations

import functools
import gzip
import io
import json
import os
import platform
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kupgrade import __version__
from kupgrade.core import redact
from kupgrade.core.timeline import timeline
from kupgrade.errors import BadInputError, KupgradeError
from kupgrade.host import command
from kupgrade.model.codec import encode
from kupgrade.model.ids import UpgradeId
from kupgrade.policy import LAYERS
from kupgrade.statedir import StateDirectory

FORMAT = "kupgrade.report/1"
UPGRADES = 5  # the last ones, whose plan and journal go in
LINES = 2000  # of a log, at most
_LARGEST = 4 << 20  # bytes of one member
_UNITS = (
    *("kupgrade-apply.service", "kupgrade-resume.service", "kupgrade-lock.service", "kupgrade-crossing.target"),
    *("kupgrade-request.service", "kupgrade-request.path", "kupgrade-request.timer"),
)
# Nothing of a unit that its administrator wrote: no Environment=, no command lines.
_PROPERTIES = (
    "Id,LoadState,ActiveState,SubState,Result,ExecMainStatus,ExecMainCode,NRestarts,StatusText,InvocationID,"
    "ActiveEnterTimestamp,InactiveEnterTimestamp,NeedDaemonReload,DropInPaths,FreezerState,MainPID,Type"
)
_KERNEL_WORDS = (
    "kexec", "kupgrade", "kspawn", "liveupdate", "luo", "kho", "criu", "freez", "watchdog", "lockdown", "device-mapper",
    "Linux version", "panic", "Oops", "BUG:", "soft lockup", "hung task", "rcu:", "nvme", "virtio", "EXT4-fs",
)  # fmt: skip
Ask = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Wishes:
    """What is asked for. `addresses`: IP and hardware addresses are left out, too; `units`: of the workloads."""

    root: Path = Path("/")
    addresses: bool = False
    units: tuple[str, ...] = ()


@dataclass
class Bundle:
    """Members by name, all of them text that was redacted."""

    wishes: Wishes
    members: dict[str, bytes] = field(default_factory=dict)

    def add_text(self, name: str, ask: Ask) -> None:
        """What `ask` returns, or why it could not."""
        self._add(name, ask, lambda value: redact.text(str(value), addresses=self.wishes.addresses))

    def add_json(self, name: str, ask: Ask) -> None:
        """The same as JSON."""
        self._add(name, ask, self._json)

    def add_policy(self, name: str, ask: Ask) -> None:
        """The text of a policy file."""
        self._add(name, ask, lambda value: redact.toml(str(value), addresses=self.wishes.addresses))

    def _json(self, value: Any) -> str:
        return json.dumps(redact.data(encode(value), addresses=self.wishes.addresses), indent=1, sort_keys=True) + "\n"

    def _add(self, name: str, ask: Ask, show: Callable[[Any], str]) -> None:
        try:
            text = show(ask())
        except (KupgradeError, OSError, ValueError, TypeError, RecursionError) as error:
            name, text = f"{name}.missing", redact.text(f"{error}\n", addresses=self.wishes.addresses)
        self.members[name] = text.encode(errors="replace")[-_LARGEST:]


def collect(wishes: Wishes, answers: Mapping[str, Ask]) -> Bundle:
    """Everything. `answers`: what the verbs would print as JSON, by member name (status, preflight, history)."""
    bundle = Bundle(wishes)
    bundle.add_json("versions.json", lambda: _versions(wishes.root))
    for name, ask in answers.items():
        bundle.add_json(f"{name}.json", ask)
    for path in _policies(wishes.root):
        name = str(path.relative_to(wishes.root)).replace("/", "_")
        bundle.add_policy(f"policy/{name}", path.read_text)
    _add_upgrades(bundle)
    bundle.add_text("kernel.log", _kernel_log)
    bundle.add_text("journal.log", _journal)
    bundle.add_text("units.txt", lambda: _units(wishes.units))
    return bundle


def _versions(root: Path) -> dict[str, Any]:
    tools = {"systemd": ["systemctl", "--version"], "nft": ["nft", "--version"], "criu": ["criu", "--version"]}
    name = root / "etc/os-release"
    release = [line for line in name.read_text().splitlines() if line.startswith(("PRETTY_NAME=", "VERSION_ID="))]
    return {
        "format": FORMAT,
        "kupgrade": __version__,
        "python": platform.python_version(),
        "kernel": os.uname().release,
        "machine": os.uname().machine,
        "kernel cmdline": redact.cmdline((root / "proc/cmdline").read_text().strip()),
        "distribution": release,
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **{tool: _first_line(argv) for tool, argv in tools.items()},
    }


def _first_line(argv: list[str]) -> str:
    try:
        lines = command.run(argv, check=False, timeout=20).stdout.splitlines()
    except KupgradeError as error:
        return str(error)
    return lines[0] if lines else "no output"


def _policies(root: Path) -> Iterator[Path]:
    for layer in LAYERS:
        yield from sorted((root / layer).glob("*.toml"))


def _add_upgrades(bundle: Bundle) -> None:
    """Plan and journal of the last upgrades; nothing else that lies beside them."""
    states = StateDirectory(bundle.wishes.root)
    directory = states.path / "upgrades"
    names = sorted(path.name for path in directory.iterdir())[-UPGRADES:] if directory.is_dir() else []
    for name in names:
        bundle.add_json(f"upgrades/{name}/journal.json", functools.partial(_records, states, name))
        bundle.add_json(f"upgrades/{name}/timeline.json", functools.partial(_timeline, states, name))
        bundle.add_json(f"upgrades/{name}/plan.json", functools.partial(_plan, directory / name / "plan.json"))


def _records(states: StateDirectory, name: str) -> Any:
    return states.read(UpgradeId(name))


def _timeline(states: StateDirectory, name: str) -> Any:
    return timeline(states.read(UpgradeId(name)))


def _plan(path: Path) -> Any:
    return json.loads(path.read_text())


def _kernel_log() -> str:
    """Lines of the kernel's log that concern an upgrade; of its command line only what is known to be harmless."""
    lines = command.run(["dmesg", "--color=never"], timeout=30).stdout.splitlines()
    kept = [line for line in lines if any(word in line for word in _KERNEL_WORDS)][-LINES:]
    return "\n".join(line for line in kept if "ommand line" not in line) + "\n"


def _journal() -> str:
    """Our own units and records of this boot and the one before; what workloads wrote stays where it is."""
    found = []
    for boot in ("-1", "0"):
        argv = ["journalctl", "-b", boot, "--no-pager", "-q", "-o", "short-iso-precise", "-n", str(LINES)]
        ours = ["SYSLOG_IDENTIFIER=kupgrade", "+", *(f"_SYSTEMD_UNIT={unit}" for unit in _UNITS)]
        found.append(f"== boot {boot}\n{command.run([*argv, *ours], check=False, timeout=60).stdout}")
    return "\n".join(found)


def _units(workloads: tuple[str, ...]) -> str:
    argv = ["systemctl", "show", "--no-pager", f"--property={_PROPERTIES}", "--", *_UNITS, *workloads]
    return command.run(argv, check=False, timeout=60).stdout


def write(path: Path, bundle: Bundle) -> None:
    """The archive: a new file, mode 0600, in one directory, everything root's. Raises BadInputError."""
    top = path.name.removesuffix(".gz").removesuffix(".tar")
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise BadInputError(
            f"{path} cannot be made", error.strerror or "", "Name a file that does not exist"
        ) from error
    with os.fdopen(fd, "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        with (
            gzip.GzipFile(fileobj=file, mode="wb", filename="") as packed,
            tarfile.open(fileobj=packed, mode="w") as tar,
        ):
            for name, data in sorted(bundle.members.items()):
                info = tarfile.TarInfo(f"{top}/{name}")
                info.size, info.mode, info.mtime = len(data), 0o600, int(time.time())
                tar.addfile(info, io.BytesIO(data))
