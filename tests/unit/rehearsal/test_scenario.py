"""What a rehearsal makes of faults that leave their file or none, and of what `kupgrade apply` says."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kupgrade.errors import KupgradeError
from kupgrade.host.command import Completed
from kupgrade.rehearsal import faults, inside, scenario
from kupgrade.rehearsal.fault_port import Told
from kupgrade.rehearsal.options import Options
from kupgrade.rehearsal.qemu import Event


@pytest.mark.parametrize(
    ("engine", "fault", "committed", "spent"),
    [
        ("spawn", "probe-fails", False, True),
        ("spawn", "probe-fails", True, False),
        ("spawn", "kill-tool@dump", False, False),
        ("spawn", "", False, False),
        ("kexec", "probe-fails", False, False),
    ],
)
def test_a_fault_is_spent_on_a_snapshot_only_where_that_was_given_up(
    engine: str, fault: str, committed: bool, spent: bool
) -> None:
    """An upgrade that committed in spite of its fault was not struck, and its file is left behind."""
    nothing: Any = None
    course = scenario._Course(Options(engine=engine), nothing, nothing, nothing, nothing, nothing)
    parsed = faults.parse(fault, (), engine) if fault else None
    assert course.spent_on_snapshot(parsed, committed=committed) is spent


def a_machine(state: Path, console: str = "", *events: str) -> Any:
    (state / "serial2.log").write_text(console)
    return SimpleNamespace(state=state, events=[Event(1.0, name) for name in events])


def test_a_sign_of_an_earlier_upgrade_is_none_of_this_one(tmp_path: Path) -> None:
    """Several faults share one life of a machine: each has to strike by itself."""
    cut, killed = faults.parse("power-cut@dump"), faults.parse("kill-agent@dump", (), "spawn")
    first = Told.now(a_machine(tmp_path))
    machine = a_machine(tmp_path, "fault: kill-agent\n", "RESET")
    assert first.struck_since(cut, machine, committed=False)
    assert first.struck_since(killed, machine, committed=False)
    second = Told.now(machine)
    assert not second.struck_since(cut, machine, committed=False)
    assert not second.struck_since(killed, machine, committed=False)
    again = a_machine(tmp_path, "fault: kill-agent\nfault: kill-agent\n", "RESET", "RESET")
    assert second.struck_since(cut, again, committed=False)
    assert second.struck_since(killed, again, committed=False)


@pytest.mark.parametrize(("text", "engine"), [("kill-tool@cross:frozen", "kexec"), ("kill-agent@restore", "spawn")])
def test_a_fault_that_cannot_spend_its_file_struck_only_where_nothing_was_committed(
    text: str, engine: str, tmp_path: Path
) -> None:
    """After a commit the file would be gone: what the new kernel wrote is there, and who was killed never crossed."""
    machine = a_machine(tmp_path)
    told, fault = Told.now(machine), faults.parse(text, (), engine)
    assert told.struck_since(fault, machine, committed=False)
    assert not told.struck_since(fault, machine, committed=True)


def a_link(status: int, stdout: str = "", stderr: str = "") -> Any:
    return SimpleNamespace(run=lambda *words, **options: Completed(status, stdout, stderr))


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (0, inside.Answer()),
        (3, inside.Answer(refused="no")),
        (6, inside.Answer(refused="no")),
        (75, inside.Answer(refused="no")),
        (1, inside.Answer(broke="exit status 1: no")),
        (2, inside.Answer(broke="exit status 2: no")),
        (-9, inside.Answer(broke="exit status -9: no")),
    ],
)
def test_only_an_apply_that_says_no_refuses(status: int, answer: inside.Answer) -> None:
    """One that ends by a fault of its own, or is killed, has judged nothing."""
    assert inside.apply(a_link(status, stderr="no\n"), Options(), "7.3") == answer


def test_a_question_that_was_cut_off_does_not_say_that_an_upgrade_is_over() -> None:
    """A busy host takes longer than the shell was given."""
    assert inside.standing(a_link(0, "over\n")) == ("over", "")
    assert inside.standing(a_link(0, 'open\n00000000 {"kind":"crossed"}\n')) == ("open", "crossed")
    with pytest.raises(KupgradeError, match="where it stands"):
        inside.standing(a_link(-9))
