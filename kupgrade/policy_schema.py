"""The keys of a policy: what each may hold, and how the merged table becomes a `Policy`."""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from kupgrade.errors import BadInputError
from kupgrade.model.policy import (
    Concern,
    EngineOptions,
    KernelRules,
    KexecOptions,
    MemoryMode,
    NetworkMode,
    OnUnknown,
    Policy,
    SpawnOptions,
    WorkloadPolicy,
    seconds,
)
from kupgrade.model.workload import Fate, Probe, ProbeKind, StoreKind

Check = Callable[[Any], Any]
E = TypeVar("E", bound=enum.Enum)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,62}")
_UNIT = re.compile(r"[A-Za-z0-9:_.@\\-]{1,247}\.service")


class KeyProblem(Exception):  # noqa: N818 - never leaves the policy loader, which turns it into a BadInputError
    """A key that cannot be used: its path, why, and what to write instead."""

    def __init__(self, key: tuple[str, ...], why: str, remedy: str) -> None:
        super().__init__(why)
        self.key, self.why, self.remedy = key, why, remedy


def _bad(why: str, remedy: str) -> KeyProblem:
    return KeyProblem((), why, remedy)


def _span(value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        result = float(value)
    elif isinstance(value, str):
        try:
            result = seconds(value)
        except BadInputError as error:
            raise _bad(error.what, error.remedy) from None
    else:
        raise _bad(f"{value!r:.40} is not a time span", 'Write it as "30s", "500ms" or "1min 30s"')
    if not math.isfinite(result) or result <= 0:
        raise _bad(f"{value!r:.40} is not a positive time", "Leave the key out for the default")
    return result


def _whole(low: int, high: int) -> Check:
    def check(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise _bad(f"found {value!r:.40}", f"Write a whole number from {low} to {high}")
        return value

    return check


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _bad(f"found {value!r:.40}", "Write true or false, without quotes")
    return value


def _one_of(kind: type[E], *but: E) -> Callable[[Any], E]:
    """A member of `kind`, other than those of `but`: they are chosen by other means."""
    known = {member.value: member for member in kind if member not in but}

    def check(value: Any) -> E:
        try:
            return known[value]
        except (KeyError, TypeError):
            choices = ", ".join(f'"{name}"' for name in known)
            raise _bad(f"found {value!r:.40}", f"Write one of {choices}") from None

    return check


def _text(pattern: re.Pattern[str], expected: str) -> Check:
    def check(value: Any) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise _bad(f"found {value!r:.60}", f"Write {expected}")
        return value

    return check


def _list(item: Check, least: int = 0) -> Check:
    def check(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list) or len(value) < least:
            raise _bad(f"found {value!r:.40}", f"Write a list of {least} or more" if least else "Write a list")
        return tuple(item(entry) for entry in value)

    return check


_BYTES = re.compile(r"([0-9]{1,12}) ?(?:([KMGT])(?:iB)?)?")


def _bytes(value: Any) -> int:
    """A number of bytes, or text with a binary unit: "512MiB", "2G"."""
    match = _BYTES.fullmatch(value) if isinstance(value, str) else None
    if match:
        value = int(match[1]) << (10 * (" KMGT".index(match[2]) if match[2] else 0))
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 50:
        raise _bad(f"found {value!r:.40}", 'Write it as "512MiB" or "2GiB", 0 for what is computed')
    return value


_any_text = _text(re.compile(r"[^\0\n]*"), "a text of one line, in quotes")
_glob = _text(re.compile(r"[^\0\n\s]+"), "a glob, in quotes")
_path = _text(re.compile(r"/[^\0\n]*"), "an absolute path, in quotes")
_engine = _text(re.compile(r"[a-z][a-z0-9-]*"), "the name of an engine, in quotes")

_KEXEC: Mapping[str, Check] = {
    "stores": _list(_one_of(StoreKind, StoreKind.WINDOW), 1),
    "disk_path": _path,
    "pmem_device": _text(re.compile(r"/dev/[^\0\n]+"), 'a device, e.g. "/dev/pmem0"'),
    "predump_rounds": _whole(0, 32),
    "network": _one_of(NetworkMode),
    "network_timeout": _span,
    "cmdline_append": _any_text,
}
_SPAWN: Mapping[str, Check] = {
    "cores": _whole(0, 4096),
    "memory": _bytes,
    "window": _bytes,
    "serial": _whole(0, 4),
    "predump_rounds": _whole(0, 32),
    "hello_timeout": _span,
    "restore_deadline": _span,
    "cmdline_append": _any_text,
    "keep": _list(_text(re.compile(r"[0-9a-fA-F:.*?\[\]!-]+"), 'a PCI address or a glob of such, e.g. "0000:00:02.*"')),
    "retire": _flag,
    "refuse_on": _list(_one_of(Concern)),
}
_ENGINE: Mapping[str, Check] = {"order": _list(_engine, 1), "fallback": _flag, "memory": _one_of(MemoryMode)}
_KERNELS: Mapping[str, Check] = {"allow": _list(_glob), "block": _list(_glob)}
_TOP: Mapping[str, Check] = {
    "max_blackout": _span,
    "deadline": _span,
    # 0 would mean: after a panic hang for ever; the fall back needs the machine to restart.
    "panic_timeout": _whole(1, 600),
    "on_unknown": _one_of(OnUnknown),
    "stop_services": _flag,
    "keep_services": _list(_glob),
}
_WORKLOAD: Mapping[str, Check] = {
    "name": _text(_NAME, "a name of letters, digits and _ . @ -"),
    "unit": _text(_UNIT, 'the name of a service, e.g. "demo.service"'),
    "pidfile": _path,
    "cgroup": _text(re.compile(r"/[^\0\n]+"), 'a path below /sys/fs/cgroup, e.g. "/system.slice/demo.service"'),
    "fate": _one_of(Fate),
    "max_blackout": _span,
}
_PROBE: Mapping[str, Check] = {
    "kind": _one_of(ProbeKind),
    "port": _whole(1, 65535),
    "path": _path,
    "command": _list(_any_text, 1),
    "timeout": _span,
}


def check_shape(table: Mapping[str, Any]) -> None:
    """Refuse unknown keys and wrong values in one drop-in, before it is merged; raises KeyProblem."""
    _sections(table)
    names: set[str] = set()
    for index, entry in enumerate(_workload_tables(table), 1):
        name = str(entry.get("name", ""))
        if not name:
            raise KeyProblem(("workload", ""), f"workload number {index} has no name", 'Give it one: name = "..."')
        _workload_values(entry)
        if name in names:
            raise KeyProblem(("workload", name), "the name is used twice in one file", "Give each its own")
        names.add(name)


def build(table: Mapping[str, Any]) -> Policy:
    """The policy of a merged table; raises KeyProblem for what only the whole can tell."""
    top, engine, kexec, spawn, kernels = _sections(table)
    return Policy(
        **top,
        engine=EngineOptions(**engine, kexec=KexecOptions(**kexec), spawn=SpawnOptions(**spawn)),
        kernels=KernelRules(**kernels),
        workloads=tuple(_workload(entry) for entry in _workload_tables(table)),
    )


def _sections(table: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """The values of the top level, of [engine], of [engine.kexec], of [engine.spawn] and of [kernels]."""
    engine = _subtable(table, ("engine",))
    kernels = _subtable(table, ("kernels",))
    kexec = _subtable(engine, ("engine", "kexec"))
    spawn = _subtable(engine, ("engine", "spawn"))
    return (
        _values(table, _TOP, (), ("engine", "kernels", "workload")),
        _values(engine, _ENGINE, ("engine",), ("kexec", "spawn")),
        _values(kexec, _KEXEC, ("engine", "kexec")),
        _values(spawn, _SPAWN, ("engine", "spawn")),
        _values(kernels, _KERNELS, ("kernels",)),
    )


def _subtable(table: Mapping[str, Any], key: tuple[str, ...]) -> Mapping[str, Any]:
    value = table.get(key[-1], {})
    if not isinstance(value, dict):
        raise KeyProblem(key, f"found {value!r:.40}", f"It is a table: [{'.'.join(key)}]")
    return value


def _workload_tables(table: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    value = table.get("workload", [])
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise KeyProblem(("workload",), "it is not a list of tables", "Write each below its own [[workload]]")
    return value


def _values(
    table: Mapping[str, Any],
    checks: Mapping[str, Check],
    where: tuple[str, ...],
    subtables: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Every value of `table` checked and converted; keys of `subtables` are left to others."""
    values = {}
    for key, value in table.items():
        if key in subtables:
            continue
        if key not in checks:
            known = ", ".join(sorted((*checks, *subtables)))
            raise KeyProblem((*where, key), "no such key", f"Known here: {known}")
        try:
            values[key] = checks[key](value)
        except KeyProblem as problem:
            raise KeyProblem((*where, key), problem.why, problem.remedy) from None
    return values


def _workload_values(entry: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    where = ("workload", str(entry.get("name", "")))
    values = _values(entry, _WORKLOAD, where, ("probe",))
    probe = entry.get("probe", {})
    if not isinstance(probe, dict):
        raise KeyProblem((*where, "probe"), f"found {probe!r:.40}", "It is a table: [workload.probe]")
    return values, _values(probe, _PROBE, (*where, "probe"))


def _workload(entry: Mapping[str, Any]) -> WorkloadPolicy:
    values, probe = _workload_values(entry)
    where = ("workload", values["name"])
    ways = [key for key in ("unit", "pidfile", "cgroup") if key in values]
    if len(ways) != 1:
        found = " and ".join(ways) or "none of them"
        raise KeyProblem(where, f"one of unit, pidfile, cgroup must be set, not {found}", "Set one")
    return WorkloadPolicy(**values, probe=_probe(probe, (*where, "probe")))


def _probe(values: dict[str, Any], where: tuple[str, ...]) -> Probe:
    kind = values.get("kind", ProbeKind.NONE)
    if kind in (ProbeKind.TCP, ProbeKind.HTTP) and "port" not in values:
        raise KeyProblem((*where, "port"), f"a {kind.value} probe needs it", "Set port = the number it listens on")
    if kind is ProbeKind.COMMAND and not values.get("command", ("",))[0].startswith("/"):
        raise KeyProblem(
            (*where, "command"),
            "a command probe needs it, with an absolute path",
            'Set command = ["/path", "argument"]',
        )
    return Probe(**values)
