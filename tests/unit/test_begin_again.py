"""What the worker does when its loop itself fails, perhaps while the workloads stand still."""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import Any

import pytest

from kupgrade import resume
from kupgrade.errors import ExitCode, KernelError, KupgradeError, NeedsHumanError, RefusedError


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    found: list[int] = []
    journal = SimpleNamespace(records=(), close=lambda: None)
    states = SimpleNamespace(open_current=lambda _patience: journal, finish=lambda _upgrade: None)
    monkeypatch.setattr(resume, "StateDirectory", lambda _root: states)
    monkeypatch.setattr(resume.host, "await_predecessors", lambda _patience: None)
    monkeypatch.setattr(resume.telling, "in_blackout", lambda _records: True)
    monkeypatch.setattr(resume, "make_writable", lambda: None)
    monkeypatch.setattr(resume.os, "kill", lambda _pid, number: found.append(number))
    return found


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (KernelError("read", "/proc/1/stat", 5), True),
        (KupgradeError("The window cannot be read", "no word"), True),
        (OSError(5, "Input/output error"), True),
        (ValueError("of no kind that was expected"), True),
        (NeedsHumanError("The journal is damaged", "record 3"), False),
        (RefusedError("Refused", "by the policy"), False),
    ],
)
def test_a_worker_whose_loop_fails_is_started_again(
    error: Exception,
    again: bool,
    killed: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its unit starts it after a signal, and not after an exit status: that one is an answer."""

    def fails(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(resume.host, "run", fails)
    if isinstance(error, KupgradeError):
        assert resume.main(["--worker"]) == error.code
    else:
        with pytest.raises(type(error)):
            resume.main(["--worker"])
    assert killed == ([signal.SIGKILL] if again else [])
    assert (type(error).__name__ in capsys.readouterr().err) is again


def test_the_agent_of_a_boot_is_not_ended_by_a_signal(killed: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody starts it again: its boot goes on, and the worker comes after it."""

    def fails(*_: Any, **__: Any) -> None:
        raise KupgradeError("No")

    monkeypatch.setattr(resume.host, "run", fails)
    assert resume.main([]) == ExitCode.FAILED
    assert killed == []
