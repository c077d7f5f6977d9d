"""Evidence of a rehearsal, made by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

from kupgrade.rehearsal.client import Recording
from kupgrade.rehearsal.judge import Evidence, WorkloadSeen, judge

BEFORE = WorkloadSeen((329, 330), 329, True, 0, "check ok", ("1 329 0", "2 329 5"))
AFTER = dataclasses.replace(BEFORE, lines=("1 329 0", "2 329 5", "3 329 9"))


def recording(count: int = 5, answered: int | None = None) -> Recording:
    made = Recording(sent=[i * 0.02 for i in range(count)])
    for number in range(count if answered is None else answered):
        made.take(f"{number} {number + 1} 329 330 1.0", number * 0.02 + (9.0 if number > 2 else 0.001))
    return made


def evidence(**changes: Any) -> Evidence:
    plan = {"store": "pmem", "phases": [{"name": "staging", "steps": [{"kind": "prepare-store"}]}]}
    journal = (
        {"kind": "planned", "step": None, "time": 1.0, "data": {"plan": plan}},
        {"kind": "started", "step": 0, "time": 1.0, "data": {}},
        {"kind": "done", "step": 0, "time": 1.5, "data": {"seconds": 0.5}},
        {"kind": "note", "step": None, "time": 2.0, "data": {"blackout": {"demo": 8.5}}},
        {"kind": "finished", "step": None, "time": 2.0, "data": {"outcome": "committed"}},
    )
    base = Evidence("kexec", "pmem", "6.12", "7.3", "7.3", ("a", "b"), BEFORE, AFTER, recording(), journal)
    return dataclasses.replace(base, **changes)


HAD: dict[str, Any] = {
    "release": "6.12",
    "cpus": "0-3",
    "present": "0-3",
    "memory_kib": 4000000,
    "blocks": {"DMA32": "0-15", "Movable": "32-47"},
    "drivers": {"0000:00:02.0": "0x8086:0x25ab timer", "0000:01:00.0": "0x1af4:0x1042 virtio-pci"},
    "iomem": ["00100000-7ffdcfff : System RAM"],
    "kspawn": False,
}
HAS: dict[str, Any] = {
    **HAD,
    "memory_kib": 3700000,
    "drivers": {"0001:01:00.0": "0x1af4:0x1042 virtio-pci"},
    "kspawn": True,
}


def beside(**changes: Any) -> dict[str, Any]:
    return judge(evidence(engine="spawn", resources_before=HAD, **{"resources_after": HAS, **changes}))
