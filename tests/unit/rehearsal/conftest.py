from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest


@pytest.fixture
def build_told_to_end() -> Iterator[Callable[..., None]]:
    """In the place of what builds: it is sent SIGTERM meanwhile, and is not done for long."""

    def build(*_words: object, **_options: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5.0)

    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    yield build
    signal.signal(signal.SIGTERM, before)
