"""One plan for all runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes.drive import shared_plan


@pytest.fixture(autouse=True, scope="module")
def _one_plan() -> Iterator[None]:
    with shared_plan():
        yield
