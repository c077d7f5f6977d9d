"""What runs in the virtual host by itself, as far as it can be told without one."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from kupgrade.journal import encode_line
from kupgrade.rehearsal import resources, tree


def script(name: str) -> dict[str, Any]:
    return runpy.run_path(str(tree.GUEST / name))


@pytest.mark.parametrize(("numbers", "text"), [([], ""), ([3], "3"), ([0, 1, 2, 3], "0-3"), ([0, 2, 3, 9], "0,2-3,9")])
def test_numbers_are_told_as_ranges_that_the_judge_counts(numbers: list[int], text: str) -> None:
    """As the kernel writes them."""
    assert script("resources.py")["ranges"](numbers) == text
    assert resources.count(text) == len(numbers)


def test_the_operator_waits_for_the_step_in_the_newest_journal(tmp_path: Path) -> None:
    """A step that is under way is not done yet, nor does one count of an upgrade before; a torn line ends it."""
    operator = script("roll_back.py")
    done = operator["done"]
    done.__globals__["JOURNALS"] = str(tmp_path / "*/journal")
    plan = {"phases": [{"steps": [{"kind": "dump"}]}, {"steps": [{"kind": "restore"}]}]}
    lines = [{"kind": "planned", "data": {"plan": plan}}, {"kind": "started", "step": 0}, {"kind": "done", "step": 0}]
    for name, count in (("1", 3), ("2", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "journal").write_bytes(b"".join(encode_line(line) for line in lines[:count]))
        assert done("dump", frozenset()) is (count == 3)
    with (tmp_path / "2/journal").open("ab") as file:
        file.write(encode_line(lines[2])[:-6])
        file.flush()
        assert not done("dump", frozenset())
        file.seek(-len(encode_line(lines[2])) + 6, 2)
        file.truncate()
        file.write(encode_line(lines[2]))
    assert done("dump", frozenset()) and not done("restore", frozenset())
    assert not done("dump", frozenset({str(tmp_path / "1/journal"), str(tmp_path / "2/journal")}))


def test_the_hook_stays_away_from_a_kernel_that_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Imported on a host it forks nothing: its command line names no window."""
    monkeypatch.setattr("os.fork", lambda: pytest.fail("it forked"))
    assert "kill-agent" in script("standby_fault.py")["STRIKES"]
