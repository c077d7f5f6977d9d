"""Calls of hooks as steps: journaled, bounded, undone in reverse.

What a hook does cannot be seen, so a call that was cut short (the worker was killed in it) is UNKNOWN: everything is
undone, the inverses of its hooks included. An inverse may therefore be called for a hook that was never finished or
never begun, and more than once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from kupgrade.errors import KupgradeError, RefusedError
from kupgrade.model.hook import Hook, HookPoint
from kupgrade.model.plan import Scope
from kupgrade.model.record import Verdict
from kupgrade.steps.base import Figures, Nothing, UndoContext, register
from kupgrade.steps.ports_hooks import Hooks


class HasHooks(Protocol):
    """A host with hooks."""

    hooks: Hooks


@dataclass(frozen=True, slots=True)
class Digests:
    """SHA-256 of each hook's file right before the call."""

    files: tuple[str, ...]


def _names(point: HookPoint, hooks: Sequence[Hook]) -> str:
    return f"{point.value} hooks " + ", ".join(hook.name for hook in hooks)


def _describe(point: HookPoint, hooks: Sequence[Hook], timeout: float) -> str:
    return f"call the {_names(point, hooks)} (at most {timeout:g} s each)"


def _inverses(hooks: Sequence[Hook]) -> str:
    named = [f"{hook.name}.undo" for hook in reversed(hooks) if hook.undo]
    without = [hook.name for hook in hooks if not hook.undo]
    text = "call " + ", ".join(named) if named else "none"
    return text + (f" ({', '.join(without)} declares no inverse)" if without else "")


def _take_back(host: HasHooks, hooks: Sequence[Hook], timeout: float) -> None:
    for hook in reversed(hooks):
        host.hooks.take_back(hook, timeout)


@register
@dataclass(frozen=True, slots=True)
class CallHooks:
    """Calls the hooks of one point before the commit; one that says no, or not now, ends the upgrade.

    Scope DISK: what a hook did (a load balancer told, a lock taken) may outlive any boot.
    """

    kind: ClassVar[str] = "call-hooks"
    scope: ClassVar[Scope] = Scope.DISK
    irreversible: ClassVar[bool] = False
    before: ClassVar[type] = Digests
    point: HookPoint
    hooks: tuple[Hook, ...]
    timeout: float  # seconds, of each

    def describe(self) -> str:
        """One clause."""
        return _describe(self.point, self.hooks, self.timeout)

    def describe_undo(self) -> str:
        """One clause."""
        return _inverses(self.hooks)

    def observe(self, host: HasHooks) -> Digests:
        """Refuses a hook that is not the planned one any more."""
        found = host.hooks.digests(self.hooks)
        for hook, now in zip(self.hooks, found, strict=True):
            if now != hook.digest:
                raise RefusedError(
                    f"The hook {hook.path} is not the one of the plan", "its file has changed or is gone", "Plan again"
                )
        return Digests(found)

    def do(self, host: HasHooks, before: Digests) -> Figures:
        """Call each in order, until one says no."""
        for hook in self.hooks:
            host.hooks.call(hook, self.timeout)
        host.hooks.complete(self.point)
        return {"hooks": len(self.hooks)}

    def undo(self, host: HasHooks, before: Digests, context: UndoContext) -> None:
        """Call the inverses, in reverse."""
        _take_back(host, self.hooks, self.timeout)

    def verify(self, host: HasHooks, before: Digests) -> Verdict:
        """Only the process that called them knows."""
        return Verdict.DONE if host.hooks.completed(self.point) else Verdict.UNKNOWN


@register
@dataclass(frozen=True, slots=True)
class TellHooks:
    """Calls the hooks of a point after the commit. They can refuse nothing: a failure is recorded, and that is all.

    Killed in it, the next process calls them again.
    """

    kind: ClassVar[str] = "tell-hooks"
    scope: ClassVar[Scope] = Scope.DISK
    irreversible: ClassVar[bool] = True
    before: ClassVar[type] = Nothing
    point: HookPoint
    hooks: tuple[Hook, ...]
    timeout: float  # seconds, of each

    def describe(self) -> str:
        """One clause."""
        return _describe(self.point, self.hooks, self.timeout)

    def describe_undo(self) -> str:
        """One clause."""
        return "after the commit nothing is taken back"

    def observe(self, host: HasHooks) -> Nothing:
        """Nothing."""
        return Nothing()

    def do(self, host: HasHooks, before: Nothing) -> Figures:
        """Call each whose file is unchanged, whatever the others say."""
        figures: dict[str, float | int | str] = {"hooks": len(self.hooks)}
        for hook, now in zip(self.hooks, host.hooks.digests(self.hooks), strict=True):
            if now != hook.digest:
                figures[hook.name] = "not called: its file has changed or is gone"
                continue
            try:
                host.hooks.call(hook, self.timeout)
            except KupgradeError as error:
                figures[hook.name] = error.why
        return figures

    def undo(self, host: HasHooks, before: Nothing, context: UndoContext) -> None:
        """Irreversible; never called."""

    def verify(self, host: HasHooks, before: Nothing) -> Verdict:
        """They were told."""
        return Verdict.DONE


@register
@dataclass(frozen=True, slots=True)
class AnswerForHooks:
    """In the old kernel, before another one beside it takes over: hooks called there are undone here if it is stopped.

    What that kernel journals before its commit is lost with it, so the old one cannot know how far it came.
    """

    kind: ClassVar[str] = "answer-for-hooks"
    scope: ClassVar[Scope] = Scope.DISK
    irreversible: ClassVar[bool] = False
    before: ClassVar[type] = Nothing
    hooks: tuple[Hook, ...]
    timeout: float  # seconds, of each

    def describe(self) -> str:
        """One clause."""
        return "answer for the hooks that the new kernel will call: " + ", ".join(hook.name for hook in self.hooks)

    def describe_undo(self) -> str:
        """One clause."""
        return _inverses(self.hooks)

    def observe(self, host: HasHooks) -> Nothing:
        """Nothing."""
        return Nothing()

    def do(self, host: HasHooks, before: Nothing) -> None:
        """The record is the deed."""

    def undo(self, host: HasHooks, before: Nothing, context: UndoContext) -> None:
        """Call the inverses, whether the hooks were called or not."""
        if not context.in_new_kernel:
            _take_back(host, self.hooks, self.timeout)

    def verify(self, host: HasHooks, before: Nothing) -> Verdict:
        """A promise needs no proof."""
        return Verdict.DONE
