"""Hooks on the modelled host: what each did lives outside of it, so no restart of the machine takes it back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from kupgrade.errors import NotNowError, RefusedError
from kupgrade.model.hook import BLACKOUT, Hook, HookPoint
from kupgrade.model.record import Outcome
from tests.fakes.endings import NEW_ENTRY

AFTER = (HookPoint.POST_RESUME, HookPoint.COMMIT)
HOOKS = tuple(
    Hook(point, f"10-{point.value}", f"/etc/kupgrade/hooks/{point.value}.d/10", "d1", "/u", "d2") for point in HookPoint
)
BEGUN, DONE = "begun", "done"


@dataclass
class Outside:
    """What hooks did to the world: by point, and how often the inverse of one was called."""

    did: dict[HookPoint, str] = field(default_factory=dict)
    undone: int = 0


@dataclass
class Hooks:
    """The port on a modelled machine, or on one of two kernels."""

    m: Any
    outside: Outside
    answered: set[HookPoint] = field(default_factory=set)

    def digests(self, hooks: Sequence[Hook]) -> tuple[str, ...]:
        return tuple(hook.digest for hook in hooks)

    def call(self, hook: Hook, timeout: float) -> None:
        point, m = hook.point, self.m
        m.act(f"hook {point.value}")
        self._check(point)
        self.outside.did[point] = BEGUN
        m.act(f"hook {point.value} half done")
        says = m.behaviour.hook_says
        if says.startswith(f"{point.value}: "):
            error = NotNowError if says.endswith("not now") else RefusedError
            raise error(f"The hook {hook.name} says no", "exit status 1")
        self.outside.did[point] = DONE

    def _check(self, point: HookPoint) -> None:
        m = self.m
        if (point in AFTER) is not m.committed:
            m.violate(f"the {point.value} hook was called {'after' if m.committed else 'before'} the commit")
        if point is HookPoint.COMMIT and m.default() != NEW_ENTRY:
            m.violate("the commit hook was called and the new kernel is not the default")
        copies = list(m.copies.values())
        still = bool(copies) and not any(copy.running for copy in copies)
        if point is HookPoint.PRE_RESTORE and copies:
            m.violate("the pre-restore hook was called and a workload is there")
        elif point in BLACKOUT and point is not HookPoint.PRE_RESTORE and not still:
            m.violate(f"the {point.value} hook was called while workloads run or are not there")
        elif point not in BLACKOUT and any(not copy.running for copy in copies):
            m.violate(f"the {point.value} hook was called while workloads stand still")

    def take_back(self, hook: Hook, timeout: float) -> None:
        self.m.act(f"undo hook {hook.point.value}")
        if hook.point in AFTER or self.m.committed:
            self.m.violate(f"the {hook.point.value} hook was undone after the commit")
        self.outside.did.pop(hook.point, None)
        self.outside.undone += 1

    def complete(self, point: HookPoint) -> None:
        self.answered.add(point)

    def completed(self, point: HookPoint) -> bool:
        return point in self.answered


def judge_hooks(outside: Outside, outcome: Outcome, behaviour: Any, *, default: bool) -> list[str]:
    """After a commit all were called to their end and stay; after a rollback nothing of any of them is left.

    `default`: the new kernel is the boot default. If it is not, because its soak time or its boot was cut short, those
    that are told so are not called.
    """
    if outcome is Outcome.ROLLED_BACK:
        return [f"left behind: what the {point.value} hook did ({how})" for point, how in outside.did.items()]
    due = [point for point in HookPoint if default or point is not HookPoint.COMMIT]
    wrong = [f"the {point.value} hook was never called" for point in due if point not in outside.did]
    for point, how in outside.did.items():
        if how != DONE and not behaviour.hook_says.startswith(f"{point.value}: "):
            wrong.append(f"the {point.value} hook did not end")
    return wrong
