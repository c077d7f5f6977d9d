"""systemd through systemctl: units as facts, and the drop-in that lets a restored process tree become its unit again.

How adoption works. Until the crossing, a drop-in is laid beside each kept unit. In the next boot the unit's start job
then runs the restorer instead of the program: `Type=forking` with a PID file makes systemd take the restored root
process as MainPID, in the unit's own cgroup and with a new journal stream as its standard output. When the drop-in is
removed again (daemon-reload), the unit has its own Type=, ExecStart= and Restart= back and keeps its processes.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kupgrade.errors import KupgradeError
from kupgrade.host import command
from kupgrade.host.durable import sync_directory, write_durably
from kupgrade.model.policy import seconds

# systemd takes drop-ins in the order of their names, and the last one wins: after override.conf of systemctl edit.
DROPIN = "zzzz-kupgrade.conf"
_FORMER = "90-kupgrade.conf"  # of upgrades that an older version of this package began
# systemd.unit(5), "System Unit Search Path", the first that has a file wins.
_UNIT_DIRECTORIES = tuple(f"{top}/systemd/system" for top in ("etc", "run", "usr/local/lib", "usr/lib", "lib"))
RESUME_UNIT = "kupgrade-resume.service"
_ONE_WAY = ("RefuseManualStop", "RefuseManualStart", "Transient")
_PROPERTIES = (
    "Id",
    "LoadState",
    "ActiveState",
    "SubState",
    "MainPID",
    "ControlGroup",
    "Type",
    "Restart",
    "NRestarts",
    "FragmentPath",
    "PIDFile",
    "StandardOutput",
    "RuntimeDirectory",
    "Delegate",
    "NoExecPaths",
    "RootDirectory",
    "RootImage",
    "DynamicUser",
    "MemoryDenyWriteExecute",
    "PartOf",
    "After",
    "WatchdogUSec",
)


@dataclass(frozen=True, slots=True)
class Unit:
    """What systemd says of a unit. `main_pid` 0: none."""

    name: str
    loaded: bool
    active: str
    sub: str
    main_pid: int
    cgroup: str
    type: str
    restart: str
    restarts: int
    pidfile: str
    runtime_directories: tuple[str, ...]
    few_executables: bool = False  # NoExecPaths=
    own_root: str = ""  # RootDirectory= or RootImage=
    dynamic_user: bool = False
    denies_write_execute: bool = False
    part_of: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    watchdog: float = 0.0  # seconds; 0: none


def parse_show(text: str) -> dict[str, str]:
    """`systemctl show` output as a mapping."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def unit_of(name: str, values: Mapping[str, str]) -> Unit:
    """A Unit from `systemctl show` properties."""
    return Unit(
        name=name,
        loaded=values.get("LoadState") == "loaded",
        active=values.get("ActiveState", "unknown"),
        sub=values.get("SubState", "unknown"),
        main_pid=int(values.get("MainPID") or 0),
        cgroup=values.get("ControlGroup", ""),
        type=values.get("Type", ""),
        restart=values.get("Restart", ""),
        restarts=int(values.get("NRestarts") or 0),
        pidfile=values.get("PIDFile", ""),
        runtime_directories=tuple(values.get("RuntimeDirectory", "").split()),
        few_executables=bool(values.get("NoExecPaths")),
        own_root=values.get("RootDirectory") or values.get("RootImage") or "",
        dynamic_user=values.get("DynamicUser") == "yes",
        denies_write_execute=values.get("MemoryDenyWriteExecute") == "yes",
        part_of=tuple(values.get("PartOf", "").split()),
        after=tuple(values.get("After", "").split()),
        watchdog=_span(values.get("WatchdogUSec", "0")),
    )


def _span(text: str) -> float:
    """Seconds, of a time that systemctl shows for people; what lasts for ever is no limit."""
    return 0.0 if text in ("", "0", "infinity") else seconds(text)


def dropin_text(
    upgrade: str,
    restorer: Sequence[str],
    pidfile: str,
    start_timeout: int,
    *,
    sandboxed: bool = False,
    executable: str = "",
) -> str:
    """The drop-in that makes a unit's next start a restore (start_timeout in seconds).

    Nothing is heard of a restored process until it is thawed: its watchdog counts from when somebody says so
    (host/unit_watchdog.py). `sandboxed`: what is started gets the unit's namespaces, all but that of its users, as
    root; `executable` is a file that it needs, where the unit lets few be executed.
    """
    words = " ".join(_quote(word) for word in restorer)
    prefix, more = ("!", "PrivateUsers=no\n") if sandboxed else ("+", "")
    more += f"ExecPaths={executable}\n" if executable else ""
    return f"""# Laid by kupgrade for upgrade {upgrade}; removed at its end (commit or rollback).
[Unit]
After={RESUME_UNIT}
Wants={RESUME_UNIT}
[Service]
Type=forking
PIDFile={pidfile}
GuessMainPID=no
Restart=no
TimeoutStartSec={start_timeout}
WatchdogSec=0
ExecCondition=
ExecStartPre=
ExecStartPost=
ExecStart=
ExecStart={prefix}{words}
{more}"""


def remove_dropins(paths: Iterable[Path]) -> bool:
    """Remove these; True when any was there. An operator's own in the same directory stay."""
    found = False
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
            found = True
        with contextlib.suppress(OSError):
            path.parent.rmdir()  # only when it is empty
    return found


def _quote(word: str) -> str:
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if " " in escaped or '"' in escaped else escaped


class Systemd:
    """systemctl, and the directory of drop-ins below `root`."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    @property
    def running(self) -> bool:
        """Whether systemd is PID 1 here (sd_booted(3))."""
        return (self.root / "run/systemd/system").is_dir()

    def missing(self, units: Sequence[str]) -> tuple[str, ...]:
        """Those of `units` whose file is in none of systemd's directories, or is masked by a link to /dev/null."""
        found = []
        for unit in units:
            place = next((p for each in _UNIT_DIRECTORIES if os.path.lexists(p := self.root / each / unit)), None)
            if place is None or place.resolve() == Path("/dev/null"):
                found.append(unit)
        return tuple(found)

    def show(self, unit: str) -> Unit:
        """Facts of a unit; an unknown name gives `loaded` False."""
        out = command.run(["systemctl", "show", unit, "--property=" + ",".join(_PROPERTIES)]).stdout
        return unit_of(unit, parse_show(out))

    def active_services(self) -> tuple[str, ...]:
        """Names of all active services that can be stopped, and then be started again, by somebody who asks for it.

        Not those that refuse either (auditd.service of some distributions), nor transient ones, which a stop forgets.
        """
        out = command.run(
            ["systemctl", "list-units", "--type=service", "--state=active", "--plain", "--no-legend", "--no-pager"]
        ).stdout
        names = sorted(line.split()[0] for line in out.splitlines() if line.strip())
        if not names:
            return ()
        show = ["systemctl", "show", "--property=Id," + ",".join(_ONE_WAY), *names]
        units = [parse_show(block) for block in command.run(show).stdout.split("\n\n")]
        left = {unit.get("Id") for unit in units if any(unit.get(each) == "yes" for each in _ONE_WAY)}
        return tuple(name for name in names if name not in left)

    def boot_seconds(self) -> float:
        """Seconds from the kernel's start to this systemd's start (kernel and initrd), in this boot."""
        out = command.run(["systemctl", "show", "--property=UserspaceTimestampMonotonic"]).stdout
        return int(parse_show(out)["UserspaceTimestampMonotonic"]) / 1e6

    def needed_by(self, units: Sequence[str]) -> frozenset[str]:
        """Everything that `units` pull in or are part of, recursively: stopping any of it would stop them.

        Themselves, too, by the names that systemd lists them by: `units` may say mysql.service for mariadb.service.
        """
        out = command.run(
            ["systemctl", "list-dependencies", "--all", "--plain", "--no-pager", *units], check=False
        ).stdout
        above = command.run(["systemctl", "show", "--property=Id,PartOf", "--value", *units]).stdout
        return frozenset((*(line.split()[-1] for line in out.splitlines() if line.strip()), *above.split()))

    def await_manager(self, timeout: float) -> None:
        """Wait (seconds) until PID 1 answers: right after the root file system is mounted it is not systemd yet."""
        deadline = time.monotonic() + timeout
        while True:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                if probe.connect_ex(str(self.root / "run/systemd/private")) == 0 and self.running:
                    return
            if time.monotonic() > deadline:
                raise KupgradeError("systemd did not come up", f"no answer in {timeout:g} s")
            time.sleep(0.02)

    def start(self, units: Sequence[str], *, now: bool = False, wait: bool = False) -> None:
        """Queue start jobs; `now` ignores every dependency and ordering (early in the boot)."""
        options = ["--job-mode=ignore-dependencies"] if now else []
        options += [] if wait else ["--no-block"]
        command.run(["systemctl", "start", *options, *units])

    def enabled(self, unit: str) -> bool:
        """Whether boots start it; told from files, so early in a boot as well."""
        return command.run(["systemctl", "is-enabled", "--quiet", unit], check=False).status == 0

    def stop(self, units: Sequence[str], timeout: float = 120.0) -> None:
        """Stop and wait (seconds)."""
        if units:
            command.run(["systemctl", "stop", *units], timeout=timeout)

    def reset_failed(self, units: Sequence[str]) -> None:
        """Forget failures; a unit that has none is no error."""
        command.run(["systemctl", "reset-failed", *units], check=False)

    def reload(self) -> None:
        """daemon-reload."""
        command.run(["systemctl", "daemon-reload"], timeout=120.0)

    def dropin(self, unit: str) -> Path:
        """Where the drop-in of `unit` lies."""
        return self.root / "etc/systemd/system" / f"{unit}.d" / DROPIN

    def hold(self, unit: str, text: str) -> None:
        """Lay the drop-in durably (no reload: it counts from the next boot)."""
        path = self.dropin(unit)
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_durably(path, text.encode(), 0o644)
        sync_directory(path.parent.parent)

    def held(self, unit: str) -> bool:
        """Whether the drop-in is there."""
        return any(path.exists() for path in self._dropins(unit))

    def _dropins(self, unit: str) -> tuple[Path, Path]:
        path = self.dropin(unit)
        return path, path.with_name(_FORMER)

    def release(self, units: Sequence[str]) -> bool:
        """Remove the drop-ins; True when any was there (then a reload is due)."""
        return remove_dropins(path for unit in units for path in self._dropins(unit))

    def run_transient(self, name: str, argv: Sequence[str], properties: Mapping[str, str]) -> None:
        """Start `argv` as a transient service, so that it outlives the terminal."""
        options = [f"--property={key}={value}" for key, value in properties.items()]
        command.run(["systemd-run", "--quiet", "--collect", f"--unit={name}", *options, *argv])


def require_running(systemd: Systemd) -> None:
    """Raise when systemd is not PID 1."""
    if not systemd.running:
        raise KupgradeError("systemd does not run here", "/run/systemd/system is missing", "Boot the host with systemd")
