"""A host made of fakes: every verb runs below a temporary root and touches nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kupgrade.cli.composition import Composition
from kupgrade.cli.main import cli
from kupgrade.core.fold import fold
from kupgrade.journal import Journal
from kupgrade.model.plan import Plan, Refusal
from kupgrade.model.record import Now, Record, RecordKind, State

OLD_BOOT = "11111111-1111-4111-8111-111111111111"


def facts(**changes: Any) -> Any:
    """As much of the facts as the verbs look at."""
    values: dict[str, Any] = {
        "boot_id": OLD_BOOT,
        "release": "6.12.48",
        "architecture": "x86_64",
        "digest": "d" * 64,
        "values": {"release": "6.12.48", "criu": "4.1"},
        "workloads": (),
        "unknown": {"watchdog": "no such device"},
        "hooks": (),
        "errata": (),
        "descriptor_stores": (),
    }
    return SimpleNamespace(**{**values, **changes})


Event = tuple[RecordKind, int | None, Mapping[str, Any]]

COMMITTED: tuple[Event, ...] = (
    (RecordKind.STARTED, 0, {}),
    (RecordKind.DONE, 0, {"seconds": 0.5}),
    (RecordKind.COMMITTED, None, {}),
    (RecordKind.NOTE, None, {"blackout": {"demo": 1.5}}),
    (RecordKind.FINISHED, None, {"outcome": "committed"}),
)
ROLLED_BACK: tuple[Event, ...] = (
    (RecordKind.STARTED, 2, {}),
    (RecordKind.FELL_BACK, None, {"reason": "dump failed", "release": "6.12.48"}),
    (RecordKind.FINISHED, None, {"outcome": "rolled-back"}),
)
HANDS_OFF: tuple[Event, ...] = ((RecordKind.HANDS_OFF, None, {"reason": "a third release runs"}),)


def failed_early(code: int) -> tuple[Event, ...]:
    return (
        (RecordKind.STARTED, 0, {}),
        (RecordKind.FAILED, 0, {"error": "no room", "code": code}),
        (RecordKind.UNDO_REQUESTED, None, {"reason": "no room", "by": "kupgrade"}),
        (RecordKind.FINISHED, None, {"outcome": "rolled-back"}),
    )


def write(journal: Journal, events: tuple[Event, ...], watch: Callable[[Record, State], None] | None = None) -> State:
    """Append events as the loop would."""
    for kind, step, data in events:
        record = Record(journal.next_seq, kind, OLD_BOOT, 1, 1_795_000_100.0, 200.0, step, dict(data))
        journal.append(record)
        if watch is not None:
            watch(record, fold(journal.records))
    return fold(journal.records)


@dataclass
class Host:
    """A virtual host: change its parts, call verbs on it, look at the result."""

    root: Path
    plan: Plan
    events: tuple[Event, ...] = COMMITTED
    systemd: bool = True
    composed: Composition = field(init=False)
    calls: list[Any] = field(default_factory=list)
    refusals: tuple[Refusal, ...] = ()

    def __post_init__(self) -> None:
        self.composed = Composition(
            root=self.root,
            euid=lambda: 0,
            terminal=lambda: False,
            probe=lambda root, policy: facts(),
            make_plan=self._make_plan,
            capabilities=lambda facts, policy: {"kexec": self.refusals},
            stores=lambda facts, policy, kernel, root: (
                kernel or "7.3.4",
                {"luo": self.refusals, "disk": ()},
                {"policy": "copy", "in_place": "unknown"},
            ),
            errata=lambda facts, policy, kernel, root: {"kexec": ()},
            run=self._run,
            observe=lambda state, root: Now(OLD_BOOT, "6.12.48", None),
            resume=self._resume,
            start_worker=self._start_worker,
            holder=lambda path, root: None,
            running_release=lambda: "6.12.48",
            sleep=lambda seconds: self.calls.append("sleep"),
            idle_limit=1.0,
        )

    def change(self, **parts: Any) -> None:
        self.composed = replace(self.composed, **parts)

    def call(self, *words: str, stdin: str = "") -> Result:
        return CliRunner().invoke(cli, list(words), obj=self.composed, input=stdin)

    def lines(self, *words: str) -> tuple[list[dict[str, Any]], int]:
        """The JSON lines of a call, and its exit code."""
        result = self.call(*words, "--json")
        return [json.loads(line) for line in result.stdout.splitlines()], result.exit_code

    def open(self, *events: Event) -> None:
        """An open upgrade with these records."""
        journal = self.composed.state.begin(self.plan)
        write(journal, tuple(events))
        journal.close()

    def snapshot(self) -> dict[str, Any]:
        """Everything below the root, to see that nothing was touched."""
        return {str(path): path.lstat().st_mtime_ns for path in sorted(self.root.rglob("*"))}

    def _make_plan(self, policy: Any, facts: Any, **choices: Any) -> Plan:
        self.calls.append(choices)
        if self.refusals:
            from kupgrade.planning import PlanRefused

            raise PlanRefused(self.refusals)
        return self.plan

    def _run(self, journal: Journal, *, root: Path, watch: Callable[[Record, State], None]) -> State:
        self.calls.append("run")
        return write(journal, self.events, watch)

    def _start_worker(self, root: Path) -> bool:
        self.calls.append("start-worker")
        if self.systemd:
            journal = self.composed.state.open_current()
            assert journal is not None
            state = write(journal, self.events)
            if state.over:
                self.composed.state.finish(state.plan.upgrade)
            journal.close()
        return self.systemd

    def _resume(self, arguments: list[str]) -> int:
        self.calls.append(arguments)
        return 0


@pytest.fixture
def host(tmp_path: Path, plan_with: Callable[..., Plan]) -> Host:
    return Host(tmp_path, plan_with())


@pytest.fixture
def auto(host: Any) -> Any:
    """The host of the other tests, with requests on it and a clock that can be set."""
    from .automation import Auto

    return Auto(host)
