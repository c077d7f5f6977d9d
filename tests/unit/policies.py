"""Policies of tests: as files below a root, and as texts."""

from __future__ import annotations

from pathlib import Path

import pytest

from kupgrade.errors import BadInputError
from kupgrade.model.policy import Policy
from kupgrade.policy import merge, parse


def put(root: Path, layer: str, name: str, text: str) -> Path:
    directory = root / layer / "kupgrade/policy.d"
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    path.write_text(text)
    for each in (path, *path.parents):
        if each == root:
            break
        each.chmod(0o644 if each == path else 0o755)
    return path


def of(text: str) -> Policy:
    return merge((parse(Path("x.toml"), text.encode()),))


def refusal(text: str) -> str:
    with pytest.raises(BadInputError) as caught:
        of(text)
    assert caught.value.remedy
    return str(caught.value)
