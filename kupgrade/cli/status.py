"""`kupgrade status`: where the open upgrade stands, what comes next and why."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from kupgrade.cli.auto_modes import attempt_text
from kupgrade.cli.composition import composition
from kupgrade.cli.render import emit, output_options
from kupgrade.core.fold import fold
from kupgrade.core.permission import moment
from kupgrade.core.recovery import decide
from kupgrade.core.standing import standing, standing_text
from kupgrade.core.timeline import event_text, timeline
from kupgrade.errors import ExitCode, KupgradeError
from kupgrade.model.codec import encode

if TYPE_CHECKING:
    from kupgrade.cli.composition import Composition
    from kupgrade.model.record import Record

STATUS_FORMAT = "kupgrade.status/1"
_LAST_EVENTS = 8  # lines of the timeline that people are shown
_REDRAW = "\x1b[H{}\x1b[J"  # from the top, over what is there, then erase the rest: no flicker
_REST_OF_LINE = "\x1b[K"


@dataclass(frozen=True, slots=True)
class _Answer:
    """Text for people, JSON for machines, whether it may still change, the exit code."""

    text: str
    json: dict[str, Any]
    moving: bool
    events: tuple[str, ...] = ()  # the whole timeline, a line each
    code: ExitCode = ExitCode.DONE


@click.command()
@click.option("--watch", is_flag=True, help="Go on until the upgrade is over.")
@output_options
@click.pass_context
def status(context: click.Context, watch: bool, as_json: bool, dry_run: bool) -> ExitCode:  # noqa: ARG001 - never acts
    """Say where the open upgrade stands, what comes next and why, what is safe, what to do.

    --watch goes on until the upgrade is over or needs a person: on a terminal in place, else with a line for each
    event. Exits with 5 when a person is needed, else with 0; with 130 when it is interrupted, which disturbs nothing.
    """
    composed = composition(context)
    composed.require_root("status")
    show = _Shown(as_json, watch and composed.terminal())
    while True:
        found = _answer(composed)
        show(found)
        if not (watch and found.moving):
            return found.code
        composed.sleep(composed.watch_seconds)


@dataclass
class _Shown:
    """What was printed so far, so that only what is new is printed, or what has changed is drawn again."""

    as_json: bool
    in_place: bool
    last: _Answer | None = None

    def __call__(self, found: _Answer) -> None:
        before, self.last = self.last, found
        if before is not None and found.json == before.json:
            return
        if self.as_json:
            emit(found.json)
        elif self.in_place:
            click.echo(_REDRAW.format(found.text.replace("\n", f"{_REST_OF_LINE}\n")), color=True)
        elif before is None or not found.events:
            click.echo(found.text)
        else:
            for line in found.events[len(before.events) :]:
                click.echo(line)


def answer(composed: Composition) -> dict[str, Any]:
    """What --json prints."""
    return _answer(composed).json


def _answer(composed: Composition) -> _Answer:
    records = composed.state.read_current()
    answer = _idle(composed) if records is None else _open(composed, records)
    text, value = _automation(composed)
    return replace(answer, text=answer.text + text, json={**answer.json, "automation": value})


def _automation(composed: Composition) -> tuple[str, dict[str, Any]]:
    """What packages asked for, and what came of it: as text below the rest, and as data."""
    try:
        mode, pending = composed.policy.automation.mode.value, composed.requests.read()
        attempts = composed.requests.attempts()
    except KupgradeError as error:
        # What is open must be told, whatever is wrong with the files of the automation.
        return f"\nAutomation: unknown: {error}", {"unknown": str(error)}
    value = {"mode": mode, "pending": encode(pending), "attempts": encode(attempts[-_LAST_EVENTS:])}
    if not (pending.requests or pending.ignored or attempts):
        return "", value
    lines = [f"\nAutomation ({mode})"]
    lines += [f"  requested: {each.release} ({each.source}, {moment(each.time)})" for each in pending.requests]
    lines += [f"  ignored: {each}" for each in pending.ignored]
    if attempts:
        last = attempts[-1]
        times = f"{last.count} times, last " if last.count > 1 else ""
        lines.append(f"  {times}{moment(last.last)}: {attempt_text(last)}".replace("\n", "\n  "))
    return "\n".join(lines), value


def _open(composed: Composition, records: tuple[Record, ...]) -> _Answer:
    state = fold(records)
    now = composed.observe(state, composed.root)
    found = standing(state, decide(state, now), composed.worker())
    events = timeline(records)
    lines = [f"Running {now.release}", standing_text(found), "", "Latest"]
    told = tuple(event_text(each) for each in events)
    lines += told[-_LAST_EVENTS:]
    value = {
        "format": STATUS_FORMAT,
        "open": True,
        "running_release": now.release,
        "standing": encode(found),
        "timeline": encode(events),
    }
    code = ExitCode.NEEDS_HUMAN if state.hands_off and not state.over else ExitCode.DONE
    return _Answer("\n".join(lines), value, not (state.over or state.hands_off), told, code)


def _idle(composed: Composition) -> _Answer:
    history = composed.state.history()
    last = history[-1] if history else None
    release = composed.running_release()
    text = f"Running {release}. No upgrade is open."
    if last is not None:
        text += f"\nLast: {last.upgrade} to {last.new_release or 'an unknown release'}, {last.outcome}"
        text += f" ({last.reason})" if last.reason else ""
        text += "".join(f"\n  lost: {name}: {why}" for name, why in last.lost.items())
    instances = composed.state.open_instances()
    if instances:
        text += f"\nBeside it: {', '.join(instances)} (kupgrade instance list)"
    value = {
        "format": STATUS_FORMAT,
        "open": False,
        "running_release": release,
        "last": encode(last),
        "instances": list(instances),
    }
    return _Answer(text, value, moving=False)
