"""A small plan and journal records, shared by the unit tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kupgrade.model.codec import encode
from kupgrade.model.ids import UpgradeId
from kupgrade.model.plan import BlackoutTerm, Budget, Loss, Phase, Plan, Scope, Side, StepSpec
from kupgrade.model.record import Record, RecordKind

OLD_BOOT = "11111111-1111-4111-8111-111111111111"
NEW_BOOT = "22222222-2222-4222-8222-222222222222"


def step(kind: str, scope: Scope = Scope.BOOT, irreversible: bool = False) -> StepSpec:
    undo = "none needed" if irreversible else f"undo {kind}"
    return StepSpec(kind, {}, scope, f"do {kind}", undo, irreversible)


def a_plan(upgrade: str = "20261121-041503-9f2c1a", **changes: Any) -> Plan:
    values: dict[str, Any] = {
        "upgrade": UpgradeId(upgrade),
        "created": 1_795_000_000.0,
        "engine": "kexec",
        "store": "disk",
        "boot_id": OLD_BOOT,
        "old_release": "6.12.48",
        "new_release": "6.12.57",
        "facts_digest": "d" * 64,
        "facts": {"release": "6.12.48", "criu": "4.1"},
        "phases": (
            Phase("stage", Side.OLD, (step("prepare-store", Scope.DISK), step("load-kernel"))),
            Phase(
                "hand over",
                Side.OLD,
                (step("freeze"), step("dump", Scope.DISK), step("cross")),
                blackout=True,
            ),
            Phase("take over", Side.NEW, (step("restore"),), blackout=True),
            Phase("serve", Side.NEW, (step("thaw", irreversible=True), step("wipe-images", Scope.DISK, True))),
        ),
        "budgets": (
            Budget(
                "demo",
                (BlackoutTerm("dump", 0.5, "96 MiB at 200 MiB/s"), BlackoutTerm("boot", 2.0, "rehearsed")),
                5.0,
            ),
        ),
        "losses": (Loss("TCP connections to 10.0.0.9", "the peer may time out"),),
        "warnings": ("no hardware watchdog",),
    }
    return Plan(**{**values, **changes})


def some_records(plan: Plan, *events: tuple[Any, ...]) -> tuple[Record, ...]:
    """PLANNED, then one record per event: (kind, step or None, data, boot)."""
    records = [
        Record(
            1,
            RecordKind.PLANNED,
            OLD_BOOT,
            1,
            1_795_000_000.0,
            100.0,
            data={"plan": encode(plan), "digest": plan.digest},
        )
    ]
    epoch = 1
    for event in events:
        kind, index, data, boot = (*event, *(None, {}, OLD_BOOT)[len(event) - 1 :])
        if kind in (RecordKind.CROSSED, RecordKind.FELL_BACK):
            epoch += 1
        seq = len(records) + 1
        records.append(Record(seq, kind, boot, epoch, 1_795_000_000.0 + seq, 100.0 + seq, index, data or {}))
    return tuple(records)


@pytest.fixture
def plan_with() -> Callable[..., Plan]:
    """Makes a plan; keyword arguments replace fields."""
    return a_plan


@pytest.fixture
def records_of() -> Callable[..., tuple[Record, ...]]:
    """Makes a journal's records."""
    return some_records
