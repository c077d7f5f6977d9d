"""What the policy says of an upgrade that is about to begin, or that waits to go on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kupgrade import worker
from kupgrade.core.fold import fold
from kupgrade.core.permission import Hindrances, Leave, leave, need
from kupgrade.core.recovery import Action, decide
from kupgrade.errors import NotNowError
from kupgrade.model.schedule import Terms

if TYPE_CHECKING:
    from kupgrade.cli.composition import Composition
    from kupgrade.model.plan import Plan
    from kupgrade.model.record import State


def require_leave(composed: Composition, plan: Plan, terms: Terms) -> None:
    """Raise NotNowError unless the policy lets `plan` begin at this moment; the gate asks once more."""
    answer = ask_leave(composed, need(plan), terms)
    if not answer.granted:
        raise NotNowError("The policy says not now", answer.why, "Wait for it, or insist with --now")


def ask_leave(composed: Composition, seconds: float, terms: Terms) -> Leave:
    """What the policy says of something that takes so many seconds."""
    found = Hindrances() if terms.at_once else composed.hindrances(composed.root)
    return leave(composed.policy, terms, composed.time(), seconds, found)


def waits(composed: Composition, state: State) -> bool:
    """Whether an open upgrade is prepared and held."""
    return decide(state, composed.observe(state, composed.root)).action is Action.WAIT


def let_go(composed: Composition, why: str, *, at_once: bool) -> None:
    """Let the open upgrade go on. Raises NotNowError when it is not there any more, or somebody works on it."""
    journal = composed.state.open_current()
    if journal is None:
        raise NotNowError("The upgrade is not open any more", "another process has closed it")
    try:
        state = fold(journal.records)
        worker.let_go(journal, state, composed.observe(state, composed.root).boot_id, why, at_once=at_once)
    finally:
        journal.close()
