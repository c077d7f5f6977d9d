"""Where an instance stands, from its journal and a look at it; and the lines that say so. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from kupgrade.core.blocks import MIB
from kupgrade.core.explain import span
from kupgrade.model.instance import Life, Listed, Seen
from kupgrade.model.machine import CpuSet
from kupgrade.model.record import Now, Record, RecordKind, State, StepStatus

TAKE_CPUS, TAKE_MEMORY = "take-cpus", "take-memory"
WITH_AGENT, WITHOUT_AGENT = "spawn-kernel", "start-kernel"
RUNNING = (Life.ALIVE, Life.SILENT, Life.UNKNOWN, Life.PANICKED, Life.ENDED)


def stands(state: State) -> bool:
    """Whether it was started to the end and nobody asked for its end yet."""
    started = all(step.status is StepStatus.DONE for step in state.steps)
    return started and not (state.undoing or state.over or state.hands_off)


def listed(
    name: str, records: Sequence[Record], state: State, now: Now, seen: Seen | None, keeper: int | None
) -> Listed:
    """One line of the list. `seen`: a look at its kernel, None when nothing runs that could be looked at."""
    found = _life(state, now, seen, keeper)
    kinds = {spec.kind: spec for spec in state.plan.steps}
    cpus = kinds[TAKE_CPUS].params["cpus"] if TAKE_CPUS in kinds else ()
    memory = int(kinds[TAKE_MEMORY].params["size"]) if TAKE_MEMORY in kinds else 0
    return Listed(
        name=name,
        life=found.life,
        release=state.plan.new_release,
        cpus=str(CpuSet(tuple(int(number) for number in cpus))),
        memory=memory,
        since=_since(records, state),
        age=found.age,
        why=found.why,
        keeper=keeper,
        agent=WITH_AGENT in kinds,
    )


def _life(state: State, now: Now, seen: Seen | None, keeper: int | None) -> Seen:
    if state.hands_off:
        return Seen(Life.HANDS_OFF, None, state.hands_off)
    if now.boot_id != state.boot_id:
        return Seen(Life.GONE, None, "this machine was restarted since")
    if state.undoing:
        return Seen(Life.STOPPING, None, state.undo_reason)
    if not stands(state):
        failed = next((step.error for step in state.steps if step.error), "")
        return Seen(Life.HALF_STARTED if keeper is None else Life.STARTING, None, failed)
    return seen if seen is not None else Seen(Life.UNKNOWN, None, "nothing is known of it")


def _since(records: Sequence[Record], state: State) -> float | None:
    """When its kernel was started: the last step's."""
    kinds = [spec.kind for spec in state.plan.steps]
    for record in records:
        live = record.step is not None and kinds[record.step] in (WITH_AGENT, WITHOUT_AGENT)
        if live and record.kind is RecordKind.STARTED:
            return record.time
    return None


def listed_text(found: Listed, now: float) -> str:
    """One line for people; `now` in seconds since the epoch."""
    parts = [
        f"{found.name}  {found.life.value:<12}  {found.release}  CPU {found.cpus}  {found.memory // MIB} MiB",
        f"  for {span(max(now - found.since, 0.0))}" if found.since is not None else "",
        f", last heartbeat {found.age:.2g} s ago" if found.age is not None else "",
        f": {found.why}" if found.why else "",
    ]
    text = "".join(parts)
    if found.life in RUNNING and found.keeper is None:
        text += f"\n  nobody holds its guard: systemctl start kupgrade-instance@{found.name}.service"
    if found.life in (Life.HALF_STARTED, Life.GONE, Life.PANICKED, Life.ENDED):
        text += f"\n  take it back: kupgrade instance stop {found.name}"
    return text
