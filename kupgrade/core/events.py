"""The catalogue of journal messages: what is told, under which MESSAGE_ID, with which fields.

`packaging/catalog/kupgrade.catalog` is this table as text (a test compares them). No ID is ever given
to another event.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kupgrade.core.chronicle import BLACKOUT
from kupgrade.core.stakes import FREEZE, THAW, status_of
from kupgrade.core.standing import stage_of
from kupgrade.model.plan import Plan
from kupgrade.model.record import Outcome, Record, RecordKind, State, StepStatus

IDENTIFIER = "kupgrade"
# syslog(3) levels.
ERROR, WARNING, NOTICE, INFO, DEBUG = 3, 4, 5, 6, 7
# In every record, besides MESSAGE, MESSAGE_ID, PRIORITY and SYSLOG_IDENTIFIER.
ALWAYS = ("KUPGRADE_UPGRADE", "KUPGRADE_STATE", "KUPGRADE_OLD_RELEASE", "KUPGRADE_NEW_RELEASE", "KUPGRADE_UPTIME")


@dataclass(frozen=True, slots=True)
class Message:
    """One kind of event: its ID (128 bits in hex), fields beyond those always there, and the catalogue's text."""

    id: str
    name: str
    priority: int
    fields: tuple[str, ...]
    subject: str
    text: str


MESSAGES: tuple[Message, ...] = (
    Message(
        "d3fde320e1a441c3b392c021b9824696", "planned", NOTICE, (),
        "A kernel upgrade has begun",
        "The plan to go from @KUPGRADE_OLD_RELEASE@ to @KUPGRADE_NEW_RELEASE@ was approved and recorded.\n"
        "kupgrade status says where it stands, kupgrade rollback takes it back.",
    ),
    Message(
        "60d1e82404904be187e793d6a54a35c4", "started", DEBUG, ("KUPGRADE_STEP",),
        "A step of the upgrade begins",
        "The intent is on disk; what the step does follows.",
    ),
    Message(
        "a0b23c4346764cf4a25be08d94ba67fa", "done", INFO, ("KUPGRADE_STEP", "KUPGRADE_SECONDS"),
        "A step of the upgrade is done",
        "It took effect, which was verified.",
    ),
    Message(
        "2aabbcc3d001402f90c4582f6eda4230", "failed", ERROR, ("KUPGRADE_STEP", "KUPGRADE_REASON"),
        "A step of the upgrade failed",
        "@KUPGRADE_STEP@: @KUPGRADE_REASON@\n"
        "Before the commit the upgrade is now taken back; after it, the step is tried again.",
    ),
    Message(
        "234ff339f17349e98b91f118e650d415", "undo-requested", WARNING, ("KUPGRADE_REASON",),
        "The upgrade is being rolled back",
        "Reason: @KUPGRADE_REASON@\nEverything that was done is undone in reverse.",
    ),
    Message(
        "6d33714a257b4f74b31bb65e317c7655", "undo-started", INFO, ("KUPGRADE_STEP",),
        "A step of the upgrade is being undone",
        "The way back goes on.",
    ),
    Message(
        "ad885fb6d7484fbf9bb3397cd762d168", "undone", INFO, ("KUPGRADE_STEP", "KUPGRADE_SECONDS"),
        "A step of the upgrade is undone",
        "What was before it is there again.",
    ),
    Message(
        "0abe390522234f1f8b0a3d46847edfa8", "crossed", NOTICE, (),
        "The new kernel has taken over",
        "@KUPGRADE_NEW_RELEASE@ runs and has claimed the upgrade. The workloads stand still until the commit.",
    ),
    Message(
        "8f2e16f233c946a6a695e0afeb0906bb", "fell-back", WARNING, ("KUPGRADE_REASON",),
        "The old release has taken over again",
        "Reason: @KUPGRADE_REASON@\nThe workloads are restored from their checkpoint where it is whole.",
    ),
    Message(
        "62a8b8bfd06641afbd59fdeac542f6a9", "reentering", NOTICE, ("KUPGRADE_REASON",),
        "The old release is started once more",
        "Processes of this boot hold PIDs that the workloads need.",
    ),
    Message(
        "8a38f8c1dd8c421a996cb083b075bc9d", "committed", NOTICE, (),
        "The upgrade is committed",
        "From here on the way back is a new upgrade to @KUPGRADE_OLD_RELEASE@.",
    ),
    Message(
        "246a3d77903e4f119bf1b5f905fd9c34", "cold", WARNING, ("KUPGRADE_REASON",),
        "The workloads start in the ordinary way",
        "The machine was restarted after the commit: @KUPGRADE_REASON@",
    ),
    Message(
        "6191392299044fb4b72f0781426d8873", "finished-committed", NOTICE, ("KUPGRADE_OUTCOME",),
        "The upgrade is over: the new release serves",
        "@KUPGRADE_NEW_RELEASE@ is the default of this machine. kupgrade history has the blackout of each workload.",
    ),
    Message(
        "d16e9ee87302460c87370ff5a6b669e2", "finished-rolled-back", WARNING, ("KUPGRADE_OUTCOME", "KUPGRADE_REASON"),
        "The upgrade is over: it was rolled back",
        "@KUPGRADE_OLD_RELEASE@ serves. Reason: @KUPGRADE_REASON@\n"
        "If the machine had crossed, @KUPGRADE_NEW_RELEASE@ is not tried again without --retry-failed.",
    ),
    Message(
        "11e25003ebf847189a8a48d513a91eb2", "hands-off", ERROR, ("KUPGRADE_REASON",),
        "The upgrade needs a person",
        "@KUPGRADE_REASON@\nNothing is touched any more and all evidence is kept. See kupgrade status;\n"
        "kupgrade report collects what a bug report needs; kupgrade rollback --abandon closes the upgrade.",
    ),
    Message(
        "6cd8a1a931af48139b3fbbb509dec4a5", "blackout", NOTICE, ("KUPGRADE_BLACKOUT",),
        "How long the workloads stood still",
        "@KUPGRADE_BLACKOUT@ (seconds)",
    ),
)  # fmt: skip
_BY_NAME = {message.name: message for message in MESSAGES}


def message_of(record: Record, state: State) -> Message | None:
    """The kind of event that a record is; None for one that is told nowhere (figures without a blackout)."""
    if record.kind is RecordKind.NOTE:
        return _BY_NAME["blackout"] if BLACKOUT in record.data else None
    if record.kind is RecordKind.FINISHED:
        return _BY_NAME["finished-committed" if state.outcome is Outcome.COMMITTED else "finished-rolled-back"]
    return _BY_NAME[record.kind.value]


def fields_of(record: Record, state: State) -> dict[str, str]:
    """One record as fields of the system's journal; empty for one that is not told. `state`: with the record."""
    message = message_of(record, state)
    if message is None:
        return {}
    plan, data = state.plan, record.data
    every = {
        "KUPGRADE_UPGRADE": str(plan.upgrade),
        "KUPGRADE_STATE": stage_of(state).value,
        "KUPGRADE_OLD_RELEASE": plan.old_release,
        "KUPGRADE_NEW_RELEASE": plan.new_release,
        "KUPGRADE_UPTIME": f"{record.uptime:g}",  # seconds; a record may reach the journal later than it was made
        "KUPGRADE_STEP": step_name(plan, record.step),
        "KUPGRADE_SECONDS": str(data.get("seconds", "")),
        "KUPGRADE_REASON": str(data.get("error") or data.get("reason") or state.undo_reason),
        "KUPGRADE_OUTCOME": str(data.get("outcome", "")),
        "KUPGRADE_BLACKOUT": _blackout(data),
    }
    wanted = {name: every[name] for name in (*ALWAYS, *message.fields) if every[name]}
    return {
        "MESSAGE": _sentence(message, wanted),
        "MESSAGE_ID": message.id,
        "PRIORITY": str(message.priority),
        "SYSLOG_IDENTIFIER": IDENTIFIER,
        **wanted,
    }


def _blackout(data: Mapping[str, object]) -> str:
    found = data.get(BLACKOUT)
    return " ".join(f"{name}={value}" for name, value in found.items()) if isinstance(found, Mapping) else ""


def _sentence(message: Message, fields: Mapping[str, str]) -> str:
    step = f"{fields['KUPGRADE_STEP']}: " if "KUPGRADE_STEP" in fields else ""
    more = ("KUPGRADE_REASON", "KUPGRADE_BLACKOUT", "KUPGRADE_SECONDS")
    detail = next((fields[name] for name in more if name in fields), "")
    unit = " s" if detail and detail == fields.get("KUPGRADE_SECONDS") else ""
    what = message.name if step else message.subject
    return f"{step}{what}" + (f" ({detail}{unit})" if detail else "")


def step_name(plan: Plan, index: int | None) -> str:
    """The kind of a step, with the point of a call of hooks; empty for none."""
    if index is None or not 0 <= index < len(plan.steps):
        return ""
    spec = plan.steps[index]
    point = spec.params.get("point", "")
    return f"{spec.kind} {point}" if point else spec.kind


def stands_still(state: State) -> bool:
    """Whether the workloads do not run because of this upgrade (from the intent to freeze until they run again)."""
    frozen = status_of(state, FREEZE) in (StepStatus.STARTED, StepStatus.DONE, StepStatus.UNDO_STARTED)
    return frozen and status_of(state, THAW) is not StepStatus.DONE and not state.cold and state.outcome is None


# Steps whose whole work is to wait, for as long as the policy says.
_WAITING = frozenset({"soak"})


def waits_rightly(state: State) -> bool:
    """Whether the open step is one that may take any time: no watchdog can tell from it that the worker hangs."""
    pairs = zip(state.plan.steps, state.steps, strict=True)
    return any(step.status is StepStatus.STARTED and spec.kind in _WAITING for spec, step in pairs)


def catalog_text() -> str:
    """The table as a journal catalogue (journalctl -x; the format of systemd's catalog files)."""
    parts = ["# Made from kupgrade/core/events.py; journalctl -x shows these texts.\n"]
    for message in MESSAGES:
        parts.append(
            f"-- {message.id}\nSubject: {message.subject}\nDefined-By: kupgrade\nDocumentation: man:kupgrade(8)\n"
            f"\n{message.text}\n"
        )
    return "\n".join(parts)
