"""Whether the policy lets an upgrade go on at this moment: windows, inhibitors, users. Pure; unknown means no."""

from __future__ import annotations

import datetime
import math
from dataclasses import dataclass

from kupgrade.core.explain import span
from kupgrade.core.windows import current, following
from kupgrade.model.plan import Plan
from kupgrade.model.policy import Policy
from kupgrade.model.schedule import Terms


@dataclass(frozen=True, slots=True)
class Hindrances:
    """Who holds up a shutdown, and who is logged in; None: that cannot be told, `why` says why not."""

    inhibitors: tuple[str, ...] | None = ()
    users: tuple[str, ...] | None = ()
    why: str = ""


@dataclass(frozen=True, slots=True)
class Leave:
    """An answer with its reason; `next`: when to ask again (seconds since the epoch), None: that cannot be told."""

    granted: bool
    why: str
    next: float | None = None


def need(plan: Plan) -> float:
    """Seconds that have to be left: the predicted blackout, and the time until a new kernel that fails is given up."""
    return max((budget.predicted for budget in plan.budgets), default=0.0) + plan.deadline


def leave(policy: Policy, terms: Terms, now: float, seconds: float, found: Hindrances) -> Leave:
    """Whether something that takes so many `seconds` may begin `now`."""
    if terms.at_once:
        return Leave(True, "a person said: now")
    here = current(policy.windows, now)
    later = following(policy.windows, now, seconds) if policy.windows else None
    opens = None if later is None else later.begin
    when = "no window is ever that long" if opens is None else f"the next one that is long enough opens {moment(opens)}"
    if here is None:
        return Leave(False, f"no window is open; {when}", opens)
    if here.end - now < seconds:
        left = f"the window closes in {span(here.end - now)} and {span(seconds)} may be needed"
        return Leave(False, f"{left}; {when}", opens)
    if policy.respect_inhibitors:
        if found.inhibitors is None:
            return Leave(False, f"whether something holds up a shutdown is unknown: {found.why}")
        if found.inhibitors:
            return Leave(False, f"a shutdown is held up by {'; '.join(found.inhibitors)}")
    if terms.automatic and not policy.automation.with_users:
        if found.users is None:
            return Leave(False, f"whether somebody is logged in is unknown: {found.why}")
        if found.users:
            return Leave(False, f"logged in: {', '.join(found.users)}")
    rest = "" if math.isinf(here.end) else f" until {moment(here.end)}"
    return Leave(True, f"a window is open{rest}" if policy.windows else "the policy has no windows")


def moment(seconds: float) -> str:
    """A time as people read it, in UTC."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
