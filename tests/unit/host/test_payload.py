from __future__ import annotations

import gzip

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kupgrade.errors import BadInputError
from kupgrade.host import payload
from kupgrade.model.kernel import Compression


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.sampled_from(payload.MAGICS), st.binary(max_size=200))
def test_garbage_behind_any_magic_never_crashes(tool, magic, rest):
    """It is refused, or (without the tools) its end is found inside the data."""
    data = magic[0] + rest
    try:
        found = payload.unpack(data, 0, "garbage")
    except BadInputError:
        return
    assert 0 < found.end <= len(data)


def test_no_magic_is_refused():
    """What is not compressed is not guessed at."""
    with pytest.raises(BadInputError, match="no compressed data"):
        payload.unpack(b"plain text", 0, "file")


def test_the_end_of_a_stream_is_exact():
    """What follows belongs to somebody else."""
    packed = gzip.compress(b"content")
    found = payload.unpack(b"ab" + packed + b"after", 2, "file")
    assert (found.compression, found.data, found.end) == (Compression.GZIP, b"content", 2 + len(packed))


def test_a_bomb_is_refused(monkeypatch):
    """What unpacks to more than any kernel or initrd is damaged or hostile."""
    monkeypatch.setattr(payload, "LIMIT", 1000)
    with pytest.raises(BadInputError, match="too much"):
        payload.unpack(gzip.compress(bytes(5000)), 0, "file")


def test_a_tool_that_fails_means_damage(tool):
    """zstd's own words are passed on."""
    tool("zstd", "echo 'zstd: Decoding error (36): Data corruption detected' >&2; exit 1")
    with pytest.raises(BadInputError, match="Data corruption detected"):
        payload.unpack(bytes.fromhex("28b52ffd2000010000"), 0, "file")
