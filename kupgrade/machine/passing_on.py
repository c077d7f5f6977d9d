"""What the agent of a boot leaves to the worker: the boot goes on behind it, and must not wait for a soak time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from kupgrade.core.recovery import Action, decide
from kupgrade.errors import KupgradeError
from kupgrade.host.systemd import Systemd
from kupgrade.machine.observed import observe_now
from kupgrade.machine.places import Places
from kupgrade.model.record import State

LEFT = frozenset({"soak"})
WORKER = "kupgrade-apply.service"
NOTED, WATCHING = "kupgrade-request.service", "kupgrade-request.path"  # looks at what packages noted; sees it come


def left(state: State, root: Path = Path("/")) -> bool:
    """Whether nothing but what is left to the worker comes next."""
    if state.over or state.hands_off or not state.committed:
        return False
    decision = decide(state, observe_now(state, Places(root)))
    acts = decision.action in (Action.RUN, Action.VERIFY) and decision.step is not None
    return acts and state.plan.steps[decision.step or 0].kind in LEFT


def _look() -> None:
    """As its path and timer would, and not where an administrator has switched those off."""
    systemd = Systemd()
    if systemd.enabled(WATCHING):
        systemd.start([NOTED])


def look_again(places: Places, start: Callable[[], None] = _look) -> None:
    """After a commit, when all is over: the kernel that runs now may be one that a package noted, not to be awaited.

    Best effort: the timer looks, too, some minutes later.
    """
    with contextlib.suppress(KupgradeError, OSError):
        if any(places.noted.iterdir()):
            start()


def pass_on(start: Callable[[], None] = lambda: Systemd().start([WORKER])) -> None:
    """Have the worker go on once the agent has let the journal go. Best effort: the timer looks after it, too."""
    with contextlib.suppress(KupgradeError):
        start()
