"""One plan for all runs, of each store."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kupgrade.model.workload import StoreKind
from tests.fakes.drive import plan, planned, shared_plan


@pytest.fixture(autouse=True, scope="module")
def _one_plan() -> Iterator[None]:
    with shared_plan(), shared_plan(plan(StoreKind.LUO), planned(StoreKind.LUO)):
        yield
