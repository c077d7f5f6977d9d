"""What a rehearsal makes of a fault whose file was spent where the new kernel wrote."""

from __future__ import annotations

from typing import Any

import pytest

from kupgrade.rehearsal import faults, scenario
from kupgrade.rehearsal.options import Options

ROLLED_BACK = ({"kind": "failed"}, {"kind": "finished"})
COMMITTED = ({"kind": "committed"}, {"kind": "finished"})


@pytest.mark.parametrize(
    ("engine", "fault", "journal", "spent"),
    [
        ("spawn", "probe-fails", ROLLED_BACK, True),
        ("spawn", "probe-fails", COMMITTED, False),
        ("spawn", "kill-tool@dump", ROLLED_BACK, False),
        ("spawn", "", ROLLED_BACK, False),
        ("kexec", "probe-fails", ROLLED_BACK, False),
    ],
)
def test_a_fault_is_spent_on_a_snapshot_only_where_that_was_given_up(
    engine: str, fault: str, journal: tuple[dict[str, Any], ...], spent: bool
) -> None:
    """An upgrade that committed in spite of its fault was not struck, and its file is left behind."""
    nothing: Any = None
    course = scenario._Course(Options(engine=engine), nothing, nothing, nothing, nothing, nothing)
    parsed = faults.parse(fault, (), engine) if fault else None
    assert course.spent_on_snapshot(parsed, journal) is spent
