"""What a kernel had of the machine before an upgrade beside another one, and after it: pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

LEAST_MEMORY = 0.9  # of what the old kernel had; the first blocks and the control areas do not move
_NAMES = {
    "cpus": "CPUs online",
    "memory_kib": "MemTotal",
    "blocks": "memory blocks and their zones",
    "drivers": "drivers of PCI functions",
    "iomem": "the address map",
    "kspawn": "kspawn loaded",
}
# How much may be gone that is in use elsewhere just then: caches of the kernel, the journal's files.
_SLACK = {"descriptors": 256, "descriptors_of_init": 8, "available_kib": 96 << 10}
_PASSING = ("sh", "python3", "systemd-hostnam", "systemd-timedat")


def count(cpus: str) -> int:
    """How many CPUs a list like `0-2,5` names."""
    ranges = (part.partition("-") for part in cpus.split(",") if part)
    return sum(int(last or first) - int(first) + 1 for first, _, last in ranges)


def findings(before: Mapping[str, Any], after: Mapping[str, Any], outcome: str) -> list[str]:
    """What is missing: after a commit of what the machine has, else of what this very kernel had."""
    return _gone_over(before, after) if outcome == "committed" else _changed(before, after)


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    return [
        f"{what} changed: {_difference(before[key], after[key])}"
        for key, what in _NAMES.items()
        if before[key] != after[key]
    ]


def _difference(before: Any, after: Any) -> str:
    """Only what differs of a mapping or a list."""
    if isinstance(before, Mapping):
        keys = sorted({*before, *after}, key=str)
        return ", ".join(f"{k}: {before.get(k)} -> {after.get(k)}" for k in keys if before.get(k) != after.get(k))
    if isinstance(before, list):
        gone, new = [x for x in before if x not in after], [x for x in after if x not in before]
        return f"gone {gone}, new {new}"
    return f"{before} -> {after}"


def _gone_over(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    found = []
    had, has = count(before["cpus"]), count(after["cpus"])
    if not had:
        found.append("the CPUs of the old kernel could not be counted")
    if has < had:
        found.append(f"the old kernel is not gone: {has} of {had} CPUs are online ({after['cpus']})")
    share = after["memory_kib"] / before["memory_kib"]
    if share < LEAST_MEMORY:
        found.append(f"only {share:.0%} of the memory came over: {after['memory_kib']} of {before['memory_kib']} KiB")
    missing = _behind_ports(before) - _behind_ports(after)
    found += [f"no driver drives {each} here" for each in sorted(missing.elements())]
    return found


def _behind_ports(seen: Mapping[str, Any]) -> Counter[str]:
    """Driven functions that lie behind a root port: those that can be handed over."""
    return Counter(
        what for address, what in seen["drivers"].items() if " " in what and address.split(":", 1)[1][:2] != "00"
    )


def leaks(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What many upgrades that were taken back left behind in the kernel that went through them."""
    found = _changed(before, after)
    more = {
        name: count - before["processes"].get(name, 0)
        for name, count in after["processes"].items()
        if count > before["processes"].get(name, 0) and name not in _PASSING
    }
    if more:
        found.append(f"more processes: {more}")
    for key, slack in _SLACK.items():
        grown = (after[key] - before[key]) * (-1 if key == "available_kib" else 1)
        if grown > slack:
            found.append(f"{key}: {before[key]} -> {after[key]}")
    return found


def summary(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """One line for people."""
    mebibytes = [round(each["memory_kib"] / 1024) for each in (before, after)]
    return f"CPUs {before['cpus']} -> {after['cpus']}, memory {mebibytes[0]} -> {mebibytes[1]} MiB"
