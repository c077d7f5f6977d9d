"""Pre-dump rounds beside the new kernel: each is shipped while the next one is still to come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from kupgrade.model.record import Verdict
from kupgrade.model.workload import Store, StoreKind, Workload
from kupgrade.steps.base import Nothing
from kupgrade.steps.checkpoint import pays
from kupgrade.steps.handover import ShipImages
from kupgrade.steps.ports_handover import SHIPPED

MIB = 1 << 20
STORE = Store(StoreKind.WINDOW, "/run/kupgrade/images/x", "tmpfs", "/run/kupgrade/images")


def workload(name: str) -> Workload:
    return Workload(name=name, unit=f"{name}.service", cgroup=f"/system.slice/{name}.service", pids=(10,), root_pid=10)


@dataclass
class Machine:
    """Both ports in one; `writes`: MiB that each further round writes, by workload; `changed`: since the last one."""

    writes: dict[str, list[int]]
    changed_mib: int | None = 100
    cut_short: bool = False
    chains: dict[str, int] = field(default_factory=dict)
    did: list[str] = field(default_factory=list)

    def rounds(self, _store: Store, w: Workload) -> int:
        return 0 if self.cut_short else self.chains.get(w.name, 1)

    def changed(self, _w: Workload) -> int | None:
        return None if self.changed_mib is None else self.changed_mib * MIB

    def pre_dump(self, _store: Store, rounds: Sequence[tuple[Workload, int]]) -> Sequence[int]:
        for w, number in rounds:
            self.did.append(f"{w.name} {number}")
            self.chains[w.name] = number
        return [self.writes[w.name].pop(0) * MIB for w, _ in rounds]

    def ship(self, _store: Store, since: int) -> int:
        self.did.append(f"ship >{since}")
        return 1

    def answered(self, what: str) -> bool:
        return what == SHIPPED and bool(self.did)

    def remember(self, _store: Store) -> None:
        self.did.append("sum")

    @property
    def host(self) -> Any:
        return cast(Any, type("Host", (), {"checkpoints": self, "handover": self, "images": self}))


def shipped(machine: Machine, rounds: int, *names: str) -> list[str]:
    ShipImages(STORE, tuple(workload(name) for name in names or ("a",)), rounds).do(machine.host, Nothing())
    return machine.did


def test_rounds_go_on_while_each_is_smaller() -> None:
    """And each is on the other side before the next one begins."""
    did = shipped(Machine({"a": [200, 40, 39]}), 9)
    assert did == ["ship >0", "a 2", "sum", "ship >1", "a 3", "sum", "ship >2", "a 4", "sum", "ship >3"]


@pytest.mark.parametrize(
    ("machine", "rounds"),
    [
        (Machine({"a": [1]}, changed_mib=8), 9),
        (Machine({"a": [1]}), 1),
        (Machine({"a": [1]}, cut_short=True), 9),
    ],
    ids=["little was written", "no more rounds are wanted", "nothing to go on from"],
)
def test_only_what_is_there_is_shipped(machine: Machine, rounds: int) -> None:
    """Where another round would not pay, or its predecessor is not known."""
    assert shipped(machine, rounds) == ["ship >0"]


def test_a_workload_that_is_done_is_left_out_of_further_rounds() -> None:
    """The other one goes on, and what lies behind its own last round is shipped."""
    did = shipped(Machine({"a": [100, 90], "b": [100, 10, 9]}), 9, "a", "b")
    assert did[-4:] == ["ship >2", "b 4", "sum", "ship >3"]
    assert "a 4" not in did


def test_a_killed_shipment_goes_on_behind_the_rounds_that_are_there() -> None:
    """Everything is shipped once more: nobody knows what arrived."""
    assert shipped(Machine({"a": [10]}, chains={"a": 3}), 2) == ["ship >0", "a 4", "sum", "ship >3"]


def test_a_killed_shipment_is_not_taken_for_a_whole_one() -> None:
    """Only the process that was told so knows that everything came over."""
    machine, step = Machine({"a": []}), ShipImages(STORE, (workload("a"),), 1)
    assert step.verify(machine.host, Nothing()) is Verdict.NOT_DONE
    step.do(machine.host, Nothing())
    assert step.verify(machine.host, Nothing()) is Verdict.DONE


@pytest.mark.parametrize(
    ("written", "changed", "wanted"),
    [
        ([], 100 * MIB, True),
        ([100], 9 * MIB, True),
        ([100], 8 * MIB, False),
        ([100], None, True),
        ([100, 69], None, True),
        ([100, 71], None, False),
    ],
)
def test_another_round_pays_while_much_changes_and_the_last_one_shrank(
    written: list[int], changed: int | None, wanted: bool
) -> None:
    """Unknown counts as much."""
    assert pays(written, changed) is wanted
