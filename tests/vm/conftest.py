"""A virtual host that runs, for tests that drive it themselves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kupgrade.rehearsal import virtual_host
from tests.vm.hosts import NEWER, Guest, say, skipped_without, started, with_module

# They need kernels that are built meanwhile.
COMPILED = ("test_images_in_memory.py", "test_liveupdate.py", "test_preserved_descriptors.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What waits for a compiler comes last."""
    items.sort(key=lambda item: item.path.name in COMPILED)


@pytest.fixture
def guest() -> Iterator[Guest]:
    """With the demonstration workload."""
    with skipped_without():
        host = virtual_host.build(*NEWER, say)
    with started(host) as found:
        found.start_workload()
        yield found


@pytest.fixture
def beside(request: pytest.FixtureRequest) -> Iterator[Guest]:
    """What a kernel (the test's parameter names the pair) is started beside the first one with."""
    with with_module(request.param, 4096) as found:
        yield found
