"""The catalogue of journal messages, and records as fields."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kupgrade.core import events
from kupgrade.core.fold import fold
from kupgrade.model.plan import Plan
from kupgrade.model.record import Record, RecordKind
from tests.crash.matrix import BEHAVIOURS
from tests.fakes.drive import play

CATALOG = Path(__file__).parents[3] / "packaging/catalog/kupgrade.catalog"


def test_the_shipped_catalogue_is_the_table() -> None:
    """What journalctl -x shows is what the code sends; make it anew with catalog_text()."""
    assert CATALOG.read_text() == events.catalog_text()


def test_ids_are_never_shared() -> None:
    """128 random bits in lower-case hex each, and a name of its own."""
    ids = [message.id for message in events.MESSAGES]
    assert all(re.fullmatch(r"[0-9a-f]{32}", each) for each in ids)
    assert len(set(ids)) == len(ids) == len({message.name for message in events.MESSAGES})


def test_texts_name_only_fields_that_are_sent() -> None:
    """A field that is never there would be shown empty."""
    for message in events.MESSAGES:
        named = set(re.findall(r"@([A-Z_]+)@", message.text + message.subject))
        assert named <= {*events.ALWAYS, *message.fields}, message.name


def test_the_catalogue_is_one_that_journalctl_reads(tmp_path: Path) -> None:
    """By systemd's own reader, where it is there."""
    if shutil.which("journalctl") is None:
        pytest.skip("no journalctl here")
    (tmp_path / "usr/lib/systemd/catalog").mkdir(parents=True)
    (tmp_path / "var/lib/systemd/catalog").mkdir(parents=True)
    shutil.copy(CATALOG, tmp_path / "usr/lib/systemd/catalog")
    root = f"--root={tmp_path}"
    done = subprocess.run(["journalctl", root, "--update-catalog"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    listed = subprocess.run(["journalctl", root, "--list-catalog"], capture_output=True, text=True, check=False).stdout
    assert {line.split()[0] for line in listed.splitlines()} >= {message.id for message in events.MESSAGES}


@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=[each.name for each in BEHAVIOURS])
def test_every_record_of_an_upgrade_can_be_told(behaviour: Any) -> None:
    """Each state change has its message, with upgrade, state and priority; outcomes have their own."""
    records = play(behaviour, {}).log.records
    told = [events.fields_of(record, fold(records[: at + 1])) for at, record in enumerate(records)]
    for record, fields in zip(records, told, strict=True):
        message = events.message_of(record, fold(records))
        assert message is not None
        assert fields["MESSAGE_ID"] == message.id
        assert fields["KUPGRADE_UPGRADE"]
        assert fields["KUPGRADE_STATE"]
        assert fields["PRIORITY"] in "34567"
        assert ("KUPGRADE_STEP" in fields) == (record.step is not None)
        assert set(fields) <= {
            "MESSAGE",
            "MESSAGE_ID",
            "PRIORITY",
            "SYSLOG_IDENTIFIER",
            *events.ALWAYS,
            *message.fields,
        }
    last = told[-1]
    assert last["KUPGRADE_OUTCOME"] in ("committed", "rolled-back")


def test_figures_are_told_as_blackout_only(records_of: Callable[..., Any], plan_with: Callable[..., Plan]) -> None:
    """Other notes are in the journal of the upgrade and nowhere else."""
    blackout = (RecordKind.NOTE, None, {"blackout": {"web": 1.25, "jobs": 2.0}})
    records = records_of(plan_with(), blackout, (RecordKind.NOTE, None, {"retired": 1}))
    assert events.fields_of(records[1], fold(records[:2]))["KUPGRADE_BLACKOUT"] == "web=1.25 jobs=2.0"
    assert events.fields_of(records[2], fold(records)) == {}


def test_the_blackout_is_from_the_intent_to_freeze_until_they_run() -> None:
    """In the new kernel as on the way back; before and after it the watchdog may judge."""
    records = play(BEHAVIOURS[0], {}).log.records
    kinds = [spec.kind for spec in fold(records).plan.steps]

    def name(record: Record) -> str:
        return record.kind.value if record.step is None else f"{record.kind.value} {kinds[record.step]}"

    still = [name(record) for at, record in enumerate(records) if events.stands_still(fold(records[: at + 1]))]
    assert (still[0], still[-1]) == ("started freeze", "started thaw")
    assert "committed" in still
    back = play(next(each for each in BEHAVIOURS if each.dump_fails), {}).log.records
    still = [name(record) for at, record in enumerate(back) if events.stands_still(fold(back[: at + 1]))]
    assert still[-1] == "undo-started freeze"
