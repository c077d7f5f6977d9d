"""One plan for all runs, of each store."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kupgrade.model.workload import StoreKind
from tests.fakes.drive import plan, planned, shared_plans

PLANS = tuple(
    (plan(kind, in_place=in_place), planned(kind, in_place=in_place))
    for kind in (StoreKind.DISK, StoreKind.LUO)
    for in_place in (False, True)
)


@pytest.fixture(autouse=True, scope="module")
def _one_plan() -> Iterator[None]:
    with shared_plans(*PLANS):
        yield
