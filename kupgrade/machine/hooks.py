"""The port `Hooks`: the operator's programs on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kupgrade.errors import BadInputError, KupgradeError, NotNowError, RefusedError
from kupgrade.host import hooks as programs
from kupgrade.model.hook import UNDO, Hook, HookPoint
from kupgrade.model.plan import Plan


@dataclass
class RealHooks:
    """Hooks of one upgrade; what they print goes to the journal, line by line."""

    plan: Plan
    _complete: set[HookPoint] = field(default_factory=set)

    def digests(self, hooks: Sequence[Hook]) -> tuple[str, ...]:
        """Empty for one that must not be called."""
        return tuple(self._digest(hook.path) for hook in hooks)

    def _digest(self, path: str) -> str:
        try:
            return programs.digest(Path(path))
        except BadInputError:
            return ""

    def call(self, hook: Hook, timeout: float) -> None:
        """Call it."""
        called = self._call(hook, hook.path, "do", timeout)
        if called.status == 0:
            return
        why = _ending(called, timeout)
        if called.status == programs.NOT_NOW:
            raise NotNowError(f"The hook {hook.point.value}.d/{hook.name} says: not now", why, "Try again later")
        raise RefusedError(
            f"The hook {hook.point.value}.d/{hook.name} says no", why, f"See journalctl, and {hook.path}"
        )

    def take_back(self, hook: Hook, timeout: float) -> None:
        """Call its inverse."""
        if not hook.undo:
            return
        name = f"{hook.point.value}.d/{hook.name}{UNDO}"
        if self._digest(hook.undo) != hook.undo_digest:
            _say(f"hook {name} was not called: its file has changed or is gone")
            return
        try:
            called = self._call(hook, hook.undo, "undo", timeout)
        except KupgradeError as error:
            _say(str(error))
            return
        if called.status != 0:
            _say(f"hook {name} failed, the way back goes on: {_ending(called, timeout)}")

    def complete(self, point: HookPoint) -> None:
        """In this process."""
        self._complete.add(point)

    def completed(self, point: HookPoint) -> bool:
        """In this process."""
        return point in self._complete

    def _call(self, hook: Hook, path: str, action: str, timeout: float) -> programs.Called:
        try:
            called = programs.call(path, self._environment(hook, action, timeout), timeout)
        except OSError as error:
            raise RefusedError(f"The hook {path} cannot be started", error.strerror or str(error)) from error
        for line in called.output.splitlines():
            _say(f"hook {hook.point.value}.d/{hook.name}: {line}")
        if called.cut:
            _say(f"hook {hook.point.value}.d/{hook.name}: (it wrote more than is kept)")
        return called

    def _environment(self, hook: Hook, action: str, timeout: float) -> dict[str, str]:
        plan = self.plan
        return {
            "KUPGRADE_UPGRADE": str(plan.upgrade),
            "KUPGRADE_STEP": hook.point.value,
            "KUPGRADE_ACTION": action,
            "KUPGRADE_ENGINE": plan.engine,
            "KUPGRADE_OLD_RELEASE": plan.old_release,
            "KUPGRADE_NEW_RELEASE": plan.new_release,
            "KUPGRADE_WORKLOADS": " ".join(budget.workload for budget in plan.budgets),
            "KUPGRADE_TIMEOUT": f"{timeout:g}",
        }


def _ending(called: programs.Called, timeout: float) -> str:
    last = called.output.splitlines()[-1] if called.output else ""
    if called.status is None:
        how = f"it took longer than {timeout:g} s"
    elif called.status < 0:
        how = f"it ended by signal {-called.status}"
    else:
        how = f"exit status {called.status}"
    return f"{how}: {last[:200]}" if last else how


def _say(text: str) -> None:
    print(f"kupgrade: {text}", flush=True)  # noqa: T201
