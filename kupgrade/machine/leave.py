"""Asking the policy once more, on this machine, right before the freeze. Every error means no."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from kupgrade import policy
from kupgrade.core import permission
from kupgrade.core.permission import Hindrances
from kupgrade.errors import KupgradeError, NotNowError, RefusedError
from kupgrade.host import logind
from kupgrade.model.plan import Plan
from kupgrade.model.schedule import Terms


def hindrances(root: Path) -> Hindrances:
    """Who holds up a shutdown, and who is logged in."""
    unknown: list[str] = []

    def ask(question: Callable[[Path], tuple[str, ...]]) -> tuple[str, ...] | None:
        try:
            return question(root)
        except KupgradeError as error:
            unknown.append(str(error))
            return None

    return Hindrances(ask(logind.inhibitors), ask(logind.users), "; ".join(unknown))


def require(plan: Plan, terms: Terms, root: Path) -> None:
    """Raise NotNowError unless the policy of this moment lets the workloads be frozen; RefusedError for its kernel."""
    now = policy.load(root)
    if not now.kernels.permits(plan.new_release):
        raise RefusedError(f"{plan.new_release} is not allowed any more", "[kernels] of the policy excludes it")
    answer = permission.leave(now, terms, time.time(), permission.need(plan), hindrances(root))
    if not answer.granted:
        raise NotNowError("The policy says not now", answer.why, "Try again then, or insist with kupgrade apply --now")
