"""Settings for all tests."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from kupgrade.host import libnftables

# No deadline per example: on a busy machine it would judge the machine, not the code.
settings.register_profile("kupgrade", deadline=None)
settings.load_profile("kupgrade")


@pytest.fixture(autouse=True, scope="session")
def _no_rules_on_this_host() -> Iterator[None]:
    """A test that needs nft(8) puts its own on PATH, or runs it in a network namespace; the library has no PATH."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(libnftables, "load", lambda: None)
        yield


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A directory of one's own in memory, if there is any: for what is flushed very often, and asked only if it is."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None) as name:
        yield Path(name)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Whoever is done takes tests of the other: in turns of many, one process gets all the long crash tests."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)
