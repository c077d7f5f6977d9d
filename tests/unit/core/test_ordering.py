"""Workloads in the order in which a boot starts them."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from kupgrade.core.ordering import in_order
from kupgrade.model.workload import Workload


def workloads(names: str) -> tuple[Workload, ...]:
    return tuple(
        Workload(name=name, unit="" if name.isupper() else f"{name}.service", cgroup=f"/{name}", root_pid=1, pids=(1,))
        for name in names
    )


@pytest.mark.parametrize(
    ("names", "after", "expected"),
    [
        ("abc", {}, "abc"),
        ("abc", {"a": "c"}, "cab"),
        ("abc", {"a": "b", "b": "c"}, "cba"),
        ("abc", {"a": "x", "c": "a"}, "abc"),
        ("ab", {"a": "b", "b": "a"}, "ba"),
        ("TaU", {}, "TaU"),
        ("", {}, ""),
    ],
)
def test_who_comes_after_whom(names: str, after: Mapping[str, str], expected: str) -> None:
    """Chains, names of units that are not kept, circles, and workloads that no unit starts."""
    named = {f"{unit}.service": [f"{each}.service" for each in others] for unit, others in after.items()}
    assert "".join(each.name for each in in_order(workloads(names), named)) == expected
