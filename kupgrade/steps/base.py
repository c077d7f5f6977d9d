"""The shape of a step, and the registry that turns stored steps back into code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

from kupgrade.errors import BadInputError
from kupgrade.model.codec import decode, encode, learn
from kupgrade.model.plan import Scope, StepSpec
from kupgrade.model.record import Verdict

Figures = Mapping[str, float | int | str]


@dataclass(frozen=True, slots=True)
class Nothing:
    """The before-image of a step that changes nothing which existed before."""


@dataclass(frozen=True, slots=True)
class UndoContext:
    """What undo must know of the world: is this the boot of the effect, the new kernel, and do the images count."""

    same_boot: bool
    in_new_kernel: bool
    images_valid: bool


class Step(Protocol):
    """One atom. `do` and `undo` tolerate being half-done and done twice; `verify` asks the machine."""

    kind: ClassVar[str]
    scope: ClassVar[Scope]
    irreversible: ClassVar[bool]
    before: ClassVar[type]

    def describe(self) -> str:
        """One clause, present tense."""
        ...

    def describe_undo(self) -> str:
        """What undo does, one clause."""
        ...

    def observe(self, host: Any) -> Any:
        """The before-image: read-only, an instance of `before`."""
        ...

    def do(self, host: Any, before: Any) -> Figures | None:
        """Act; returns figures for the report."""
        ...

    def undo(self, host: Any, before: Any, context: UndoContext) -> Figures | None:
        """Take the effect back; returns figures for the report."""
        ...

    def verify(self, host: Any, before: Any) -> Verdict:
        """Whether the effect is there."""
        ...


S = TypeVar("S")

_REGISTRY: dict[str, type] = {}


def register(cls: type[S]) -> type[S]:
    """Class decorator: makes a step's kind known to `load`."""
    kind = cls.kind  # type: ignore[attr-defined]
    if kind in _REGISTRY:
        raise TypeError(f"two steps are called {kind}")
    _REGISTRY[kind] = cls
    return cls


def kinds() -> tuple[str, ...]:
    """All registered kinds, sorted."""
    return tuple(sorted(_REGISTRY))


def learn_all() -> None:
    """Let `load` be fast from now on, for every kind: who does this beforehand has it shorter in the blackout."""
    for cls in _REGISTRY.values():
        learn(cls)
        learn(cls.before)  # type: ignore[attr-defined]


def spec(step: Step) -> StepSpec:
    """A step as it is stored in a plan."""
    return StepSpec(
        kind=step.kind,
        params=encode(step),
        scope=step.scope,
        describe=step.describe(),
        undo=step.describe_undo(),
        irreversible=step.irreversible,
    )


def load(stored: StepSpec) -> Step:
    """A stored step as code again; raises BadInputError for an unknown kind or wrong parameters."""
    cls = _REGISTRY.get(stored.kind)
    if cls is None:
        raise BadInputError(
            f"The plan has a step of the unknown kind {stored.kind!r}",
            "it was written by another release of kupgrade",
            "Make a new plan",
        )
    step: Step = decode(cls, dict(stored.params), f"plan.{stored.kind}")
    return step
