"""What each mode of [automation] does with the kernel that was chosen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import click

from kupgrade import planfile, worker
from kupgrade.cli.leave import ask_leave
from kupgrade.cli.render import emit
from kupgrade.cli.target import AUTO, Target, new_plan
from kupgrade.core.explain import budget_text, over_budget, plan_text
from kupgrade.core.kinds import HELD_BEFORE
from kupgrade.core.permission import moment, need
from kupgrade.errors import BadInputError, ExitCode, KupgradeError, OverBudgetError
from kupgrade.model.automation import Attempt, Pending, Verdict, Withdrawn
from kupgrade.model.codec import encode
from kupgrade.model.schedule import Mode, Terms

if TYPE_CHECKING:
    from kupgrade.cli.composition import Composition
    from kupgrade.model.plan import Plan
    from kupgrade.model.policy import Policy

PLAN_LASTS = 86400.0  # seconds; then the facts it rests on are looked at again
_CODES = {Verdict.WAITS: ExitCode.NOT_NOW, Verdict.REFUSED: ExitCode.REFUSED, Verdict.FAILED: ExitCode.FAILED}


@dataclass(frozen=True, slots=True)
class Look:
    """One look: what lies there, and what was made of it so far. `now`: seconds since the epoch."""

    composed: Composition
    policy: Policy
    now: float
    pending: Pending
    release: str = ""
    withdrawn: tuple[Withdrawn, ...] = ()
    upgrade: str = ""
    dry_run: bool = False
    as_json: bool = False

    def told(
        self, verdict: Verdict, why: str, *, next_: float | None = None, code: int | None = None, plan: str = ""
    ) -> Attempt:
        """The attempt that this look came to."""
        return Attempt(
            time=self.now,
            last=self.now,
            mode=self.policy.automation.mode.value,
            verdict=verdict,
            why=why,
            requested=self.pending.releases,
            release=self.release,
            next=next_,
            withdrawn=self.withdrawn,
            ignored=self.pending.ignored,
            upgrade=self.upgrade,
            plan=plan,
            code=int(_CODES.get(verdict, ExitCode.DONE) if code is None else code),
        )


def verdict_of(error: KupgradeError) -> Verdict:
    """What an error means for a request: it stays, and is looked at again."""
    match error.code:
        case ExitCode.NOT_NOW:
            return Verdict.WAITS
        case ExitCode.REFUSED | ExitCode.OVER_BUDGET | ExitCode.USAGE | ExitCode.NEEDS_HUMAN:
            return Verdict.REFUSED
        case ExitCode.DONE:
            return Verdict.NOTHING
    return Verdict.FAILED


def whole(error: KupgradeError) -> str:
    """The error with every refusal behind it."""
    others = tuple(getattr(error, "refusals", ()))[1:]
    return str(error) + "".join(f"; {each.rule}: {each.fact}" for each in others)


def notify(look: Look) -> Attempt:
    """Say so: in the journal (by what is printed), at the next login, and in kupgrade status."""
    return look.told(Verdict.NOTIFIED, "it is installed; see kupgrade plan, then kupgrade apply")


def _plan(look: Look) -> Plan:
    """A plan for the chosen kernel, within its limits. Raises PlanRefused and OverBudgetError."""
    made = new_plan(look.composed, Target(look.release, AUTO, AUTO, retry_failed=False))
    if over := over_budget(made):
        raise OverBudgetError(
            "The predicted blackout is over its limit",
            "; ".join(budget_text(budget) for budget in over),
            "Raise max_blackout in the policy, or choose a faster store",
        )
    return made


def store_plan(look: Look) -> Attempt:
    """A stored plan, explained in the journal; one of this boot that is not a day old is kept."""
    path = look.composed.requests.plan
    if not _stored(look):
        made = _plan(look)
        if not look.dry_run:
            planfile.write(path, made)
        _explain(look, made)
    return look.told(Verdict.PLANNED, "a plan is stored, a person carries it out", plan=str(path))


def _explain(look: Look, plan: Plan) -> None:
    if look.as_json:
        emit(encode(plan))
    else:
        click.echo(plan_text(plan))


def _stored(look: Look) -> bool:
    try:
        found = planfile.read(look.composed.requests.plan)
    except BadInputError:
        return False
    fresh = 0 <= look.now - found.created < PLAN_LASTS and found.boot_id == look.composed.boot_id(look.composed.root)
    return fresh and found.new_release == look.release


def stage(look: Look) -> Attempt:
    """Prepare what nobody notices; what follows waits for a window, or without windows for a person."""
    made = _plan(look)
    terms = Terms(automatic=True, hold=True)
    if look.policy.windows:
        answer = ask_leave(look.composed, need(made), Terms(automatic=True))
        if answer.granted:
            return _begin(look, made, Terms(automatic=True), Verdict.STARTED, answer.why)
        return _begin(look, made, terms, Verdict.STAGED, f"{prepared(made)}; {answer.why}", answer.next)
    return _begin(
        look, made, terms, Verdict.STAGED, f"{prepared(made)}; no window is set: kupgrade apply --now goes on"
    )


def prepared(plan: Plan) -> str:
    """What is prepared of a plan that is held, and what is not, in words."""
    kinds = [step.kind for step in plan.steps]
    first = next((index for index, kind in enumerate(kinds) if kind in HELD_BEFORE), len(kinds))
    if not first:
        return "nothing of it can be prepared without being noticed"
    rest = f", not yet: {plan.steps[first].describe}" if first < len(kinds) else ""
    return f"prepared: {', '.join(kinds[:first])}{rest}"


def rehearse(look: Look) -> Attempt:
    """Try the two kernels in a virtual host, once for each request; the upgrade itself is left to a person."""
    made = _plan(look)
    asked = max((each.time for each in look.pending.requests if each.release == look.release), default=0.0)
    for before in look.composed.requests.attempts():
        done = before.verdict is Verdict.REHEARSED or (before.verdict is Verdict.FAILED and before.code == 0)
        if done and (before.mode, before.release) == (Mode.REHEARSE.value, look.release) and before.time >= asked:
            return look.told(before.verdict, before.why, code=0)
    if look.dry_run:
        return look.told(Verdict.WAITS, "it would be rehearsed in a virtual host", code=0)
    outcome, reason = look.composed.rehearse(made)
    text = f"the kernels were rehearsed in a virtual host: {outcome}{f' ({reason})' if reason else ''}"
    # The code of a failed one is 0: that it was tried is the result, and it is not tried again.
    return look.told(Verdict.REHEARSED if outcome == "committed" else Verdict.FAILED, text, code=0)


def apply(look: Look) -> Attempt:
    """Upgrade, in a window. Asked before the plan is made, which reads a lot, and once more with what it takes."""
    terms = Terms(automatic=True)
    answer = ask_leave(look.composed, look.policy.deadline, terms)
    if not answer.granted:
        return look.told(Verdict.WAITS, answer.why, next_=answer.next)
    made = _plan(look)
    answer = ask_leave(look.composed, need(made), terms)
    if not answer.granted:
        return look.told(Verdict.WAITS, answer.why, next_=answer.next)
    return _begin(look, made, terms, Verdict.STARTED, answer.why)


def _begin(look: Look, plan: Plan, terms: Terms, verdict: Verdict, why: str, next_: float | None = None) -> Attempt:
    composed = look.composed
    if not look.dry_run:
        worker.clear_request(composed.root)
        composed.state.begin(plan, terms).close()
        _explain(look, plan)
        if not composed.start_worker(composed.root):
            raise KupgradeError("The worker cannot be started", "systemd does not run here", "kupgrade resume --worker")
    return replace(look, upgrade=str(plan.upgrade)).told(verdict, why, next_=next_)


def attempt_text(attempt: Attempt) -> str:
    """One line for people."""
    release = f"{attempt.release}: " if attempt.release else ""
    later = f" (next: {moment(attempt.next)})" if attempt.next is not None else ""
    gone = "".join(f"\n  withdrawn: {each.release}: {each.why}" for each in attempt.withdrawn if attempt.release)
    ignored = "".join(f"\n  ignored: {each}" for each in attempt.ignored)
    plan = f"\n  kupgrade apply {attempt.plan}" if attempt.plan else ""
    return f"{release}{attempt.verdict.value} [{attempt.mode}]: {attempt.why}{later}{plan}{gone}{ignored}"
