"""The keys of a policy: what each may hold, and how the merged table becomes a `Policy`."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from typing import Any

from kupgrade.model.descriptors import PreservePolicy, StoreLosses
from kupgrade.model.policy import (
    Concern,
    EngineOptions,
    ErrataOptions,
    HookOptions,
    KernelRules,
    KexecOptions,
    MemoryMode,
    MetricsOptions,
    NetworkMode,
    OnUnknown,
    Policy,
    SpawnOptions,
    WorkloadPolicy,
)
from kupgrade.model.schedule import Automation, Mode
from kupgrade.model.workload import Fate, Probe, ProbeKind, StoreKind
from kupgrade.policy_checks import Check, KeyProblem, bad
from kupgrade.policy_checks import deadline as _deadline
from kupgrade.policy_checks import flag as _flag
from kupgrade.policy_checks import list_of as _list
from kupgrade.policy_checks import one_of as _one_of
from kupgrade.policy_checks import size as _bytes
from kupgrade.policy_checks import span as _span
from kupgrade.policy_checks import span_or_none as _span_or_none
from kupgrade.policy_checks import text as _text
from kupgrade.policy_checks import whole as _whole
from kupgrade.policy_windows import windows as _windows

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,62}")
_UNIT = re.compile(r"[A-Za-z0-9:_.@\\-]{1,247}\.service")


_any_text = _text(re.compile(r"[^\0\n]*"), "a text of one line, in quotes")
_glob = _text(re.compile(r"[^\0\n\s]+"), "a glob, in quotes")
_path = _text(re.compile(r"/[^\0\n]*"), "an absolute path, in quotes")
_engine = _text(re.compile(r"kexec|spawn"), '"kexec" or "spawn"')


def _textfile(value: Any) -> str:
    """A file that is renamed into place: root would make a regular file out of /dev/null."""
    expected = 'an absolute path, or "" for none'
    path = _text(re.compile(r"(/[^\0\n]*)?"), expected)(value)
    if re.match(r"/+(dev|proc|sys)(/|$)", posixpath.normpath(path)):
        raise bad(f"found {path!r:.60}, where no files are kept", f"Write {expected}")
    return str(path)


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
_HOOKS: Mapping[str, Check] = {"timeout": _span, "blackout_timeout": _span}
_ERRATA: Mapping[str, Check] = {"ignore": _list(_text(re.compile(r"[a-z0-9.-]+"), "the id of a known problem"))}
_METRICS: Mapping[str, Check] = {"textfile": _textfile}
_TOP: Mapping[str, Check] = {
    "max_blackout": _span,
    "deadline": _deadline,
    # 0 would mean: after a panic hang for ever; the fall back needs the machine to restart.
    "panic_timeout": _whole(1, 600),
    "on_unknown": _one_of(OnUnknown),
    "stop_services": _flag,
    "keep_services": _list(_glob),
    "soak": _span_or_none,
    "respect_inhibitors": _flag,
}
_TABLES = ("engine", "kernels", "hooks", "errata", "metrics", "workload", "preserve", "window", "automation")
_AUTOMATION: Mapping[str, Check] = {"mode": _one_of(Mode), "with_users": _flag}
_PRESERVE: Mapping[str, Check] = {
    "unit": _text(_UNIT, 'the name of a service, e.g. "demo.service"'),
    "losses": _one_of(StoreLosses),
}
_WORKLOAD: Mapping[str, Check] = {
    "name": _text(_NAME, "a name of letters, digits and _ . @ -"),
    "unit": _text(_UNIT, 'the name of a service, e.g. "demo.service"'),
    "pidfile": _path,
    "cgroup": _text(re.compile(r"/[^\0\n]+"), 'a path below /sys/fs/cgroup, e.g. "/system.slice/demo.service"'),
    "fate": _one_of(Fate),
    "max_blackout": _span,
    "stop_timeout": _span,
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
    _automation(table)
    _windows(table)
    for _, entry in _named(table, "workload", "name"):
        _workload_values(entry)
    for unit, entry in _named(table, "preserve", "unit"):
        _values(entry, _PRESERVE, ("preserve", unit))


def _named(table: Mapping[str, Any], kind: str, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The tables of a list and what names each; raises KeyProblem for one without a name, or with another's."""
    names: set[str] = set()
    for index, entry in enumerate(_tables(table, kind), 1):
        name = str(entry.get(key, ""))
        if not name:
            raise KeyProblem((kind, ""), f"{kind} number {index} has no {key}", f'Give it one: {key} = "..."')
        yield name, entry
        if name in names:
            raise KeyProblem((kind, name), f"the {key} is used twice in one file", "Give each its own")
        names.add(name)


def build(table: Mapping[str, Any]) -> Policy:
    """The policy of a merged table; raises KeyProblem for what only the whole can tell."""
    top, engine, kexec, spawn, kernels, hooks, errata, metrics = _sections(table)
    return Policy(
        **top,
        engine=EngineOptions(**engine, kexec=KexecOptions(**kexec), spawn=SpawnOptions(**spawn)),
        kernels=KernelRules(**kernels),
        hooks=HookOptions(**hooks),
        errata=ErrataOptions(**errata),
        metrics=MetricsOptions(**metrics),
        workloads=tuple(_workload(entry) for entry in _tables(table, "workload")),
        preserve=tuple(
            PreservePolicy(**_values(entry, _PRESERVE, ("preserve", str(entry.get("unit", "")))))
            for entry in _tables(table, "preserve")
        ),
        windows=_windows(table),
        automation=_automation(table),
    )


def _automation(table: Mapping[str, Any]) -> Automation:
    return Automation(**_values(_subtable(table, ("automation",)), _AUTOMATION, ("automation",)))


def _sections(table: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """The values of the top level and, in this order, of each table that `build` takes apart."""
    engine = _subtable(table, ("engine",))
    kernels = _subtable(table, ("kernels",))
    kexec = _subtable(engine, ("engine", "kexec"))
    spawn = _subtable(engine, ("engine", "spawn"))
    return (
        _values(table, _TOP, (), _TABLES),
        _values(engine, _ENGINE, ("engine",), ("kexec", "spawn")),
        _values(kexec, _KEXEC, ("engine", "kexec")),
        _values(spawn, _SPAWN, ("engine", "spawn")),
        _values(kernels, _KERNELS, ("kernels",)),
        _values(_subtable(table, ("hooks",)), _HOOKS, ("hooks",)),
        _values(_subtable(table, ("errata",)), _ERRATA, ("errata",)),
        _values(_subtable(table, ("metrics",)), _METRICS, ("metrics",)),
    )


def _subtable(table: Mapping[str, Any], key: tuple[str, ...]) -> Mapping[str, Any]:
    value = table.get(key[-1], {})
    if not isinstance(value, dict):
        raise KeyProblem(key, f"found {value!r:.40}", f"It is a table: [{'.'.join(key)}]")
    return value


def _tables(table: Mapping[str, Any], kind: str) -> list[Mapping[str, Any]]:
    value = table.get(kind, [])
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise KeyProblem((kind,), "it is not a list of tables", f"Write each below its own [[{kind}]]")
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
    if values.get("fate") is Fate.STOP and "unit" not in values:
        raise KeyProblem((*where, "fate"), "only a unit can be stopped and started again", "Name its unit")
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
