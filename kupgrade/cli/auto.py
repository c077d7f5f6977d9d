"""`kupgrade auto`: takes what package hooks noted as far as the policy lets it; what kupgrade-request.service runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from kupgrade import requests, worker
from kupgrade.cli import auto_modes
from kupgrade.cli.auto_modes import Look, attempt_text, prepared
from kupgrade.cli.composition import composition
from kupgrade.cli.leave import ask_leave, let_go, waits
from kupgrade.cli.render import emit, output_options
from kupgrade.core.automation import Host, back_off, choose
from kupgrade.core.fold import fold
from kupgrade.core.permission import moment, need
from kupgrade.errors import ExitCode, KupgradeError, NotNowError
from kupgrade.executor import BY_TOOL
from kupgrade.model.automation import Attempt, Pending, Verdict
from kupgrade.model.codec import encode
from kupgrade.model.record import StepStatus
from kupgrade.model.schedule import Mode, Terms

if TYPE_CHECKING:
    from kupgrade.cli.composition import Composition
    from kupgrade.model.policy import Policy
    from kupgrade.model.record import State

SETTLED = 300.0  # seconds after which the transaction that brought a kernel is taken to be over
AUTO_FORMAT = "kupgrade.auto/1"
MODES: dict[Mode, Callable[[Look], Attempt]] = {
    Mode.NOTIFY: auto_modes.notify,
    Mode.PLAN: auto_modes.store_plan,
    Mode.STAGE: auto_modes.stage,
    Mode.REHEARSE: auto_modes.rehearse,
    Mode.APPLY: auto_modes.apply,
}


@click.command()
@output_options
@click.pass_context
def auto(context: click.Context, as_json: bool, dry_run: bool) -> ExitCode:
    """Take the kernels that packages brought as far as [automation] lets it. Never asks; the timer does this.

    Exits with 0 when something was done or nothing is to do, 75 when it waits, 3 and 6 when it is refused.
    """
    composed = composition(context)
    composed.require_root("auto")
    attempt = look(composed, dry_run=dry_run, as_json=as_json)
    if not dry_run and (attempt.requested or attempt.ignored or attempt.verdict is Verdict.STARTED):
        attempt = composed.requests.record(attempt)
    if as_json:
        emit({"format": AUTO_FORMAT, "dry_run": dry_run, "attempt": encode(attempt)})
    else:
        click.echo(attempt_text(attempt))
    return ExitCode(attempt.code)


def look(composed: Composition, *, dry_run: bool, as_json: bool) -> Attempt:
    """One look at what is open and what was asked for, and the next thing done about it."""
    policy = composed.policy
    now = composed.time()
    found = Look(composed, policy, now, composed.requests.read(), dry_run=dry_run, as_json=as_json)
    try:
        state = composed.open_state()
        if state is not None and not state.over:
            return _open(found, state)
        return _asked(found)
    except KupgradeError as error:
        return found.told(auto_modes.verdict_of(error), str(error), code=error.code)


def _asked(found: Look) -> Attempt:
    """No upgrade is open."""
    composed = found.composed
    choice = choose(found.pending.releases, host_of(composed, found.policy, found.pending))
    found = replace(found, release=choice.release, withdrawn=choice.withdrawn)
    if not found.dry_run:
        for each in choice.withdrawn:
            composed.requests.withdraw(each.release)
    if not choice.release:
        if not found.dry_run:
            requests.remove_note(composed.root)
            composed.requests.plan.unlink(missing_ok=True)
        why = "; ".join(f"{each.release}: {each.why}" for each in choice.withdrawn) or "no request is there"
        return found.told(Verdict.NOTHING, why)
    attempt = _taken(found, choice.unready)
    if not found.dry_run:
        requests.leave_note(composed.root, f"kupgrade: {attempt_text(attempt)}")
    return attempt


def _taken(found: Look, unready: str) -> Attempt:
    if unready:
        return found.told(Verdict.WAITS, unready)
    until = back_off(found.composed.state.history(), found.release)
    if until is not None and found.now < until:
        return found.told(Verdict.WAITS, f"it was taken back lately; not before {moment(until)}", next_=until)
    age = found.now - max(each.time for each in found.pending.requests if each.release == found.release)
    if 0 <= age < SETTLED and found.policy.automation.mode is not Mode.NOTIFY:
        why = "it was noted just now: the packages that came with it may not all be set up"
        return found.told(Verdict.WAITS, why, next_=found.now - age + SETTLED)
    try:
        return MODES[found.policy.automation.mode](found)
    except KupgradeError as error:
        return found.told(auto_modes.verdict_of(error), auto_modes.whole(error), code=error.code)


def host_of(composed: Composition, policy: Policy, pending: Pending) -> Host:
    """What a choice rests on; nothing is looked up when nothing was asked for."""
    if not pending.requests:
        return Host(composed.running_release(), {}, policy.kernels, {})
    rejected = composed.state.rejected_releases()
    return Host(composed.running_release(), composed.installed(composed.root), policy.kernels, rejected)


def _open(found: Look, state: State) -> Attempt:
    """An upgrade is open: nothing else is begun; one that waits may go on, one that soaks gets its worker."""
    composed, plan = found.composed, state.plan
    found = replace(found, release=plan.new_release, upgrade=str(plan.upgrade))
    if state.hands_off:
        return found.told(Verdict.REFUSED, f"a person is needed: {state.hands_off}", code=ExitCode.NEEDS_HUMAN)
    pid = composed.worker()
    if pid is not None:
        return found.told(Verdict.WAITS, f"an upgrade is open, process {pid} works on it")
    held = waits(composed, state)
    if state.committed or (not held and _ours_between_steps(state)):
        if not found.dry_run:
            composed.start_worker(composed.root)
        why = "the new kernel serves" if state.committed else "it was begun, and nobody worked on it"
        return found.told(Verdict.STARTED, f"{why}; the worker goes on")
    if not held:
        return found.told(Verdict.WAITS, "an upgrade is open, and nobody works on it: see kupgrade status")
    return _held(found, state)


def _ours_between_steps(state: State) -> bool:
    """Whether a look was killed before it had started the worker. One that was stopped in a step is a person's."""
    settled = all(step.status in (StepStatus.NEW, StepStatus.DONE) for step in state.steps)
    return state.terms.automatic and settled and not state.undoing


def _held(found: Look, state: State) -> Attempt:
    composed, plan = found.composed, state.plan
    choice = choose(found.pending.releases, host_of(composed, found.policy, found.pending))
    if choice.release != plan.new_release:
        other = f"{choice.release} is to be taken instead" if choice.release else "it is not asked for any more"
        return _put_away(found, f"{plan.new_release}: {other}")
    mode = found.policy.automation.mode
    if mode not in (Mode.STAGE, Mode.APPLY):
        return _put_away(found, f'the mode is "{mode.value}" now')
    if not found.policy.windows:
        return found.told(Verdict.STAGED, f"{prepared(plan)}; no window is set: kupgrade apply --now goes on")
    answer = ask_leave(composed, need(plan), Terms(automatic=True))
    if not answer.granted:
        return found.told(Verdict.STAGED, f"{prepared(plan)}; {answer.why}", next_=answer.next)
    if composed.probe(composed.root, found.policy).digest != plan.facts_digest:
        return _put_away(found, "the host has changed since it was prepared")
    if not found.dry_run:
        let_go(composed, answer.why, at_once=False)
        composed.start_worker(composed.root)
    return found.told(Verdict.STARTED, answer.why)


def _put_away(found: Look, why: str) -> Attempt:
    """Take a prepared upgrade back; the next look begins anew."""
    composed = found.composed
    if not found.dry_run:
        journal = composed.state.open_current()
        if journal is None:
            raise NotNowError("The upgrade is not open any more", "another process has closed it")
        state = fold(journal.records)
        worker.record_wish(journal, state, composed.observe(state, composed.root).boot_id, why, BY_TOOL)
        journal.close()
        composed.start_worker(composed.root)
    return found.told(Verdict.WAITS, f"what was prepared is taken back: {why}")
