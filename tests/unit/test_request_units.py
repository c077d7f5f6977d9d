"""The units around requests: what they promise to the rest of the code, read from their files."""

from __future__ import annotations

from configparser import ConfigParser
from pathlib import Path

import pytest

from kupgrade.cli.auto import SETTLED
from kupgrade.cli.auto_modes import _CODES
from kupgrade.cli.main import VERBS
from kupgrade.errors import ExitCode
from kupgrade.model.policy import seconds
from kupgrade.policy_windows import SHORTEST
from kupgrade.requests import Requests
from kupgrade.statedir import StateDirectory

UNITS = Path(__file__).parents[2] / "packaging/systemd"


def unit(kind: str) -> ConfigParser:
    parser = ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(UNITS / f"kupgrade-request.{kind}")
    return parser


def test_the_path_watches_what_hooks_write() -> None:
    """The directory of the reader, by its changes: one that is not empty would start the service for ever."""
    path = unit("path")["Path"]
    assert path["PathChanged"] == str(Requests(StateDirectory().path).folder)
    assert "DirectoryNotEmpty" not in path and (path["MakeDirectory"], path["DirectoryMode"]) == ("yes", "0700")
    assert unit("path")["Install"]["WantedBy"] == "paths.target"


def test_no_window_is_missed() -> None:
    """Two looks of the timer are never further apart than the shortest window a policy may have."""
    timer = unit("timer")["Timer"]
    every = timer["OnCalendar"].removeprefix("*:0/")
    gap = int(every) * 60 + seconds(timer["RandomizedDelaySec"]) + seconds(timer["AccuracySec"])
    assert gap < SHORTEST and timer["Persistent"] == "yes"


def test_what_was_noted_just_now_is_looked_at_again_when_it_has_settled() -> None:
    """Not only when the clock's next look comes: that may be twice as far away."""
    again = seconds(unit("timer")["Timer"]["OnUnitInactiveSec"])
    assert SETTLED <= again <= SETTLED + 60


def test_waiting_is_no_failure_of_the_service() -> None:
    """What auto says while it waits, or when it is refused, is an answer; a failure or a person needed is not."""
    service = unit("service")
    good = {int(code) for code in service["Service"]["SuccessExitStatus"].split()}
    assert good == {ExitCode.NOT_NOW, ExitCode.REFUSED, ExitCode.OVER_BUDGET}
    assert good < {*map(int, _CODES.values()), ExitCode.OVER_BUDGET}
    assert service["Service"]["ExecStart"].split()[1] in VERBS
    assert service["Service"]["Type"] == "oneshot"


@pytest.mark.parametrize("kind", ["path", "timer", "service"])
def test_units_say_what_they_are(kind: str) -> None:
    """Each has a description, and no other unit is told to wait for it."""
    section = unit(kind)["Unit"]
    assert section["Description"] and "Before" not in section
