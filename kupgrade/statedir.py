"""The layout of /var/lib/kupgrade: one directory an upgrade, and a link to the open one.

    upgrades/ID/plan.json    the plan as approved
    upgrades/ID/journal      what happened
    current -> upgrades/ID   there while an upgrade is open; its absence lets a boot go on at once
    forgotten.json           releases that may be tried again although they were rolled back
    instances/NAME/          the same once more (upgrades/ID, current) for each name of an instance

Everything is root's alone: whoever can write here decides what runs in the next kernel.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from kupgrade import forgotten, private
from kupgrade.core.chronicle import HistoryEntry, damaged_entry, entry, rejection
from kupgrade.core.fold import fold
from kupgrade.errors import BadInputError, KupgradeError, NeedsHumanError, NotNowError
from kupgrade.journal import Journal, read, sync_directory, write_durably
from kupgrade.model.codec import encode
from kupgrade.model.ids import UpgradeId
from kupgrade.model.instance import checked_name
from kupgrade.model.plan import Plan
from kupgrade.model.record import Record, RecordKind, State
from kupgrade.model.schedule import ORDINARY, Terms

PLACE = "var/lib/kupgrade"
INSTANCES = "instances"


@dataclass(frozen=True, slots=True)
class StateDirectory:
    """The state below `root` (the root of the file system, / on a real host). Reading creates nothing."""

    root: Path = Path("/")
    place: str = PLACE

    @property
    def path(self) -> Path:
        """/var/lib/kupgrade, or an instance's directory in it."""
        return self.root / self.place

    def instance(self, name: str) -> StateDirectory:
        """Where the plans and journals of the instance `name` are, whether there is one or not."""
        return StateDirectory(self.root, f"{PLACE}/{INSTANCES}/{checked_name(name)}")

    def open_instances(self) -> tuple[str, ...]:
        """The names of the instances that were started, or half started, and not taken back."""
        folder = self.root / PLACE / INSTANCES
        if not StateDirectory(self.root)._trusted() or not folder.is_dir():
            return ()
        names = sorted(each.name for each in folder.iterdir())
        return tuple(name for name in names if self.instance(name).current_id() is not None)

    def begin_instance(self, name: str, plan: Plan) -> Journal:
        """As `begin`, for an instance. Raises NotNowError while an upgrade or an instance is open.

        One at a time: kspawn gives no memory back while any CPU runs another kernel (kmod/memory.c).
        """
        own = self.instance(name)
        private.make(self.path)
        with self._beginning():
            self._refuse_open()
            self.refuse_instances()
            private.make(self.path / INSTANCES)
            return own.begin(plan)

    def refuse_instances(self) -> None:
        """Raise NotNowError while there is an instance: upgrades and instances share CPUs, memory and kspawn."""
        for name in self.open_instances():
            own = self.instance(name)
            upgrade = own.current_id()
            if upgrade is None:
                continue
            state = fold(own.read(upgrade))
            if state.over:
                own.finish(upgrade)
                continue
            raise NotNowError(
                f"The instance {name} is there",
                f"it has CPUs and memory of this machine for {state.plan.new_release}",
                f"Stop it first: kupgrade instance stop {name}",
            )

    def journal_path(self, upgrade: UpgradeId) -> Path:
        """The journal of one upgrade, whether it exists or not."""
        return self.path / "upgrades" / str(upgrade) / "journal"

    def begin(self, plan: Plan, terms: Terms = ORDINARY) -> Journal:
        """Make `plan` the open upgrade; its journal, with the PLANNED record, is returned locked.

        The link comes last: a power cut before it leaves an abandoned entry, never a half-open upgrade.
        Raises NotNowError while another upgrade, or an instance, is open.
        """
        private.make(self.path)
        with self._beginning():
            self._refuse_open()
            if self.place == PLACE:
                self.refuse_instances()
            upgrades = self.path / "upgrades"
            private.make(upgrades)
            directory = upgrades / str(plan.upgrade)
            try:
                directory.mkdir(private.MODE)
            except FileExistsError:
                raise BadInputError(
                    f"The plan {plan.upgrade} has been applied already",
                    f"{directory} exists",
                    "Make a new plan",
                ) from None
            try:
                write_durably(directory / "plan.json", json.dumps(encode(plan), indent=1).encode() + b"\n")
                journal = Journal.create(directory / "journal")
                journal.append(_planned(plan, terms))
                sync_directory(upgrades)
            except OSError:
                shutil.rmtree(directory, ignore_errors=True)  # on a full disk, e.g.: nothing was applied
                raise
            self._point_current(directory)
        return journal

    @contextmanager
    def none_begins(self) -> Iterator[None]:
        """Meanwhile nobody begins an upgrade or an instance. Raises NotNowError while one is open, or begins."""
        private.make(self.path)
        with self._beginning():
            self._refuse_open()
            self.refuse_instances()
            yield

    def current_id(self) -> UpgradeId | None:
        """The open upgrade's ID, or None. Raises NeedsHumanError when the link leads nowhere sensible."""
        link = self.path / "current"
        if not self._trusted() or not os.path.lexists(link):
            return None
        if link.is_symlink():
            target = link.readlink()
            upgrade = _led_to(target)
            if upgrade is not None and self.journal_path(upgrade).exists():
                private.check(self.path / target)
                return upgrade
        raise NeedsHumanError(
            f"{link} does not lead to an upgrade",
            "it is damaged or was changed",
            "Inspect it; if stale, remove it",
        )

    def read_current(self) -> tuple[Record, ...] | None:
        """The records of the open upgrade without locking it, or None."""
        upgrade = self.current_id()
        return None if upgrade is None else self.read(upgrade)

    def read(self, upgrade: UpgradeId) -> tuple[Record, ...]:
        """The records of one upgrade without locking it."""
        return read(self.journal_path(upgrade)).records

    def read_state(self) -> State | None:
        """The state of what is open, or None."""
        records = self.read_current()
        return None if records is None else fold(records)

    def open_current(self, patience: float = 0.0) -> Journal | None:
        """The open upgrade's journal, locked, or None; NotNowError while another process has it.

        `patience`: seconds; a predecessor that was just killed may still hold it for a moment.
        """
        deadline = time.monotonic() + patience
        while (upgrade := self.current_id()) is not None:
            try:
                return Journal.open(self.journal_path(upgrade))
            except NotNowError:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(0.1)
        return None

    def finish(self, upgrade: UpgradeId) -> None:
        """Close the upgrade: the link goes, the evidence stays. Closing another one does nothing."""
        if self.current_id() == upgrade:
            with self._beginning(fcntl.LOCK_EX):  # or the link might be that of the next one by now
                self._close(upgrade)

    def _close(self, upgrade: UpgradeId) -> None:
        if self.current_id() == upgrade:
            (self.path / "current").unlink()
            sync_directory(self.path)

    def history(self) -> tuple[HistoryEntry, ...]:
        """All upgrades, oldest first; a damaged one is listed as such."""
        return tuple(found for found, _ in self._chronicle())

    def rejected_releases(self) -> Mapping[str, str]:
        """Releases whose last upgrade crossed and came back, with the reason; not those forgotten since."""
        rejected: dict[str, str] = {}
        known = forgotten.read(self.path) if self._trusted() else {}
        for found, records in self._chronicle():
            if found.outcome == "committed":
                rejected.pop(found.new_release, None)
            reason = rejection(records)
            if reason and found.started > known.get(found.new_release, 0.0):
                rejected[found.new_release] = reason
        return rejected

    def forget(self, release: str) -> None:
        """Let `release` be tried again: what was rejected until now no longer counts, whatever the clock says."""
        private.make(self.path)
        latest = max((found.started for found in self.history() if found.new_release == release), default=0.0)
        forgotten.add(self.path, release, latest)

    def _chronicle(self) -> Iterator[tuple[HistoryEntry, tuple[Record, ...]]]:
        upgrades = self.path / "upgrades"
        if not self._trusted() or not upgrades.is_dir():
            return
        for directory in sorted(upgrades.iterdir()):
            try:
                records = self.read(UpgradeId(directory.name))
                found = entry(records)
                if found.outcome == "open" and not self._is_current(directory.name):
                    # Killed while it was being begun: nothing had been done.
                    found = replace(found, outcome="abandoned")
                yield found, records
            except (KupgradeError, OSError) as error:
                yield damaged_entry(directory.name, str(error)), ()

    def _is_current(self, name: str) -> bool:
        link = self.path / "current"
        return link.is_symlink() and link.readlink().name == name

    def _trusted(self) -> bool:
        """Whether the state directory exists; raises BadInputError when others can get at it."""
        if not os.path.lexists(self.path):
            return False
        private.check(self.path)
        return True

    @contextmanager
    def _beginning(self, how: int = fcntl.LOCK_EX | fcntl.LOCK_NB) -> Iterator[None]:
        """Two processes that begin at once would both find nothing open: one at a time."""
        fd = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, how)
            yield
        except BlockingIOError:
            raise NotNowError("Another kupgrade is beginning an upgrade", f"{self.path} is locked") from None
        finally:
            os.close(fd)

    def _refuse_open(self) -> None:
        upgrade = self.current_id()
        if upgrade is None:
            return
        state = fold(self.read(upgrade))
        if state.over:
            # Killed between the last record and the removal of the link.
            self._close(upgrade)
            return
        why = f"hands off: {state.hands_off}" if state.hands_off else f"to {state.plan.new_release}"
        raise NotNowError(
            f"The upgrade {upgrade} is still open",
            why,
            "See kupgrade status; kupgrade rollback takes it back",
        )

    def _point_current(self, directory: Path) -> None:
        temporary = self.path / ".current.new"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(directory.relative_to(self.path))
        temporary.replace(self.path / "current")
        sync_directory(self.path)


def _planned(plan: Plan, terms: Terms) -> Record:
    data = {"plan": encode(plan), "digest": plan.digest}
    return Record(
        seq=1,
        kind=RecordKind.PLANNED,
        boot_id=plan.boot_id,
        epoch=1,
        time=round(time.time(), 6),
        uptime=round(time.clock_gettime(time.CLOCK_BOOTTIME), 6),
        data=data if terms == ORDINARY else {**data, "terms": encode(terms)},
    )


def _led_to(target: Path) -> UpgradeId | None:
    """Whose journal the link `current` means; None when it leads elsewhere."""
    try:
        return UpgradeId(target.name) if target.parent == Path("upgrades") else None
    except BadInputError:
        return None
