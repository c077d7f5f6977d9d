"""A host with requests on it, for the tests of what is made of them."""

from __future__ import annotations

import json
from typing import Any

from kupgrade.core.permission import Hindrances
from kupgrade.model.automation import Attempt
from kupgrade.model.plan import Plan
from kupgrade.model.record import RecordKind
from kupgrade.model.schedule import Terms
from kupgrade.requests import NOTE

from .conftest import Event

NEW, RUNNING = "6.12.57", "6.12.48"
NOON = 1795262400.0  # 2026-11-21 12:00 UTC, a Saturday
STAGED: tuple[Event, ...] = ((RecordKind.STARTED, 0, {}), (RecordKind.DONE, 0, {}))
OPEN = '[[window]]\nstart = "11:00"\nlength = "3h"\n'
SHUT = '[[window]]\nstart = "02:00"\nlength = "3h"\n'


class Auto:
    """The host of the other tests, with requests on it and a clock that can be set."""

    def __init__(self, host: Any) -> None:
        self.host, self.now, self.hindrances = host, NOON, Hindrances()
        self.kernels = {RUNNING: True, NEW: True}
        self.rehearsals: list[Plan] = []
        self.outcome: tuple[str, str] = ("committed", "")
        host.change(
            time=lambda: self.now,
            hindrances=lambda root: self.hindrances,
            installed=lambda root: dict(self.kernels),
            boot_id=lambda root: "11111111-1111-4111-8111-111111111111",
            rehearse=self._rehearse,
        )

    def _rehearse(self, plan: Plan) -> tuple[str, str]:
        self.rehearsals.append(plan)
        return self.outcome

    def policy(self, mode: str, more: str = "", top: str = "") -> None:
        directory = self.host.root / "etc/kupgrade/policy.d"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "10.toml").write_text(f'{top}\n[automation]\nmode = "{mode}"\n{more}')

    def ask(self, *releases: str, age: float = 3600.0) -> None:
        import os

        folder = self.host.composed.requests.folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.parent.chmod(0o700)
        for release in releases:
            path = folder / f"{release}.json"
            path.write_text(json.dumps({"format": "kupgrade.request/1", "release": release, "source": "debian"}))
            path.chmod(0o600)
            os.utime(path, (self.now - age, self.now - age))

    def look(self, *words: str) -> tuple[dict[str, Any], int]:
        """The attempt, and the exit code."""
        lines, code = self.host.lines("auto", *words)
        return lines[-1]["attempt"], code

    @property
    def pending(self) -> tuple[str, ...]:
        return tuple(self.host.composed.requests.read().releases)

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        return tuple(self.host.composed.requests.attempts())

    @property
    def note(self) -> str:
        path = self.host.root / NOTE
        return path.read_text() if path.exists() else ""

    @property
    def terms(self) -> Terms:
        return self.host.composed.open_state().terms


def staged(auto: Auto, windows: str = SHUT) -> None:
    auto.policy("stage", windows)
    auto.host.events = STAGED
    auto.ask(NEW)
    assert auto.look()[0]["verdict"] == "staged"
    auto.host.events = ()
