"""Memory in place: what is planned, and what the operator is told when it cannot be, or perhaps not."""

from __future__ import annotations

import dataclasses

import pytest

from kupgrade.core import memory_mode
from kupgrade.engines.base import Engine, Order
from kupgrade.engines.kexec import KexecEngine
from kupgrade.engines.spawn import SpawnEngine
from kupgrade.model.ids import UpgradeId
from kupgrade.model.policy import EngineOptions, MemoryMode
from kupgrade.model.workload import Store, StoreKind
from kupgrade.steps.base import load
from kupgrade.steps.checkpoint import Restore
from tests.fakes import facts as fake
from tests.fakes.drive import WORKLOADS

STORE = Store(StoreKind.DISK, "/var/lib/kupgrade/images/x")
WISHES = {mode: fake.policy(engine=EngineOptions(memory=mode)) for mode in MemoryMode}


@pytest.mark.parametrize("engine", [KexecEngine(), SpawnEngine()], ids=["kexec", "spawn"])
@pytest.mark.parametrize(
    ("mode", "has", "filled", "words"),
    [
        (MemoryMode.COPY, True, False, ""),
        (MemoryMode.COPY, False, False, ""),
        (MemoryMode.IN_PLACE, True, True, ""),
        (MemoryMode.IN_PLACE, None, True, "is unknown"),
        (MemoryMode.IN_PLACE, False, False, "has no userfaultfd"),
    ],
)
def test_the_plan_fills_in_place_where_it_is_wished_and_can_be(
    engine: Engine, mode: MemoryMode, has: bool | None, filled: bool, words: str
) -> None:
    """Restored without memory, waited for before anything is good or wiped; a wish that is not met is told."""
    target = dataclasses.replace(fake.target(), userfaultfd=has)
    facts = fake.facts(spawn=fake.spawn())
    order = Order(UpgradeId("20261121-041503-9f2c1a"), facts, WISHES[mode], target, STORE, WORKLOADS, (), 1000, "/s")
    specs = [spec for phase in engine.phases(order) for spec in phase.steps]
    kinds = [spec.kind for spec in specs]
    restore = load(specs[kinds.index("restore")])
    assert isinstance(restore, Restore) and restore.in_place is filled
    assert ("in place" in restore.describe()) is filled
    assert ("fill-memory" in kinds) is filled
    if filled:
        assert kinds.index("thaw") < kinds.index("fill-memory") < kinds.index("mark-good") < kinds.index("wipe-images")
    notes = " ".join(memory_mode.notes(WISHES[mode], target))
    assert words in notes and bool(notes) is bool(words)


@pytest.mark.parametrize("engine", [KexecEngine(), SpawnEngine()], ids=["kexec", "spawn"])
def test_a_soak_time_begins_when_all_is_placed(engine: Engine) -> None:
    """Images are wiped before it, so memory is filled before that."""
    target = dataclasses.replace(fake.target(), userfaultfd=True)
    policy = dataclasses.replace(WISHES[MemoryMode.IN_PLACE], soak=60.0)
    facts = fake.facts(spawn=fake.spawn())
    order = Order(UpgradeId("20261121-041503-9f2c1a"), facts, policy, target, STORE, WORKLOADS, (), 1000, "/s")
    kinds = [spec.kind for phase in engine.phases(order) for spec in phase.steps]
    at = [kinds.index(kind) for kind in ("thaw", "fill-memory", "wipe-images", "soak", "mark-good", "settle-reboot")]
    assert at == sorted(at)


@pytest.mark.parametrize(("has", "word"), [(True, "yes"), (False, "no"), (None, "unknown")])
def test_the_preflight_knows_three_answers(has: bool | None, word: str) -> None:
    """Without a target nothing is known."""
    policy, target = WISHES[MemoryMode.COPY], dataclasses.replace(fake.target(), userfaultfd=has)
    assert memory_mode.told(policy, target) == {"policy": "copy", "in_place": word}
    assert memory_mode.told(policy, None)["in_place"] == "unknown"
