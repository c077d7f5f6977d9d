"""The journal of the modelled host: in memory, or the real one with torn tails."""

from __future__ import annotations

import os
from pathlib import Path

from kupgrade.journal import Journal, encode_line
from kupgrade.model.codec import encode
from kupgrade.model.record import Record, RecordKind
from kupgrade.model.workload import ProbeKind
from tests.fakes.endings import EndError, Hung
from tests.fakes.machine import Machine


class MemoryLog:
    """A journal in memory: what was appended is durable, an append can be lost before it is."""

    def __init__(self, machine: Machine | None = None) -> None:
        self._records: list[Record] = []
        self._machine = machine
        self.last: RecordKind | None = None  # kind of the last record, notes aside
        self.committed = False
        self.durable = 0  # how many records outlive a crash of the kernel

    @property
    def records(self) -> tuple[Record, ...]:
        return tuple(self._records)

    @property
    def next_seq(self) -> int:
        return len(self._records) + 1

    def begin(self, planned: Record) -> None:
        """The upgrade has begun: its plan is recorded."""
        self._write(planned)
        self.sync()

    def sync(self) -> None:
        self.durable = len(self.records)

    def lose_unsynced(self) -> None:
        """The kernel ends without having written what it was not asked to write."""
        del self._records[self.durable :]

    def append(self, record: Record, *, durable: bool = True) -> None:
        machine = self._machine
        if machine is None:
            self._records.append(record)
            if durable:
                self.sync()
            return
        if machine.filesystems_frozen:
            raise Hung  # a write to a frozen file system waits for ever
        label = f"{record.kind.value} {'' if record.step is None else machine.plan.steps[record.step].kind}".strip()
        try:
            machine.tick(f"before record: {label}")
        except EndError:
            self._tear(record)
            raise
        self._write(record, durable=durable)
        if durable:
            self.sync()
        if record.kind is not RecordKind.NOTE:
            self.last = record.kind
        self.committed |= record.kind is RecordKind.COMMITTED
        if record.kind is RecordKind.COMMITTED:
            check_commit(machine)
        machine.tick(f"after record: {label}")

    def reopen(self) -> None:
        """A new process, or a new kernel, reads what is there."""

    def _write(self, record: Record, *, durable: bool = True) -> None:
        self._records.append(record)

    def _tear(self, record: Record) -> None:
        """An append that was cut short leaves nothing that counts."""


class FileLog(MemoryLog):
    """The real journal on a real file; an append that is cut short leaves a part of its line behind."""

    def __init__(self, machine: Machine, path: Path) -> None:
        super().__init__(machine)
        self._path = path
        self._journal = Journal.create(path)
        self._bytes = path.stat().st_size

    def sync(self) -> None:
        super().sync()
        self._journal.sync()
        self._bytes = self._path.stat().st_size

    def lose_unsynced(self) -> None:
        self._journal.close()
        os.truncate(self._path, self._bytes)
        self._journal = Journal.open(self._path)

    @property
    def records(self) -> tuple[Record, ...]:
        return self._journal.records

    @property
    def next_seq(self) -> int:
        return self._journal.next_seq

    def reopen(self) -> None:
        self._journal.close()
        self._journal = Journal.open(self._path)

    def close(self) -> None:
        self._journal.close()

    def _write(self, record: Record, *, durable: bool = True) -> None:
        self._journal.append(record, durable=durable)

    def _tear(self, record: Record) -> None:
        line = encode_line(encode(record))
        with self._path.open("ab") as file:
            file.write(line[: record.seq * 7 % len(line)])


def check_commit(machine: Machine) -> None:
    """What must hold when the point of no return is recorded."""
    for workload in machine.workloads:
        copy = machine.copies.get(workload.name)
        if copy is None or copy.running:
            machine.violate(f"committed while {workload.name} is {'gone' if copy is None else 'running'}")
        if workload.probe.kind is not ProbeKind.NONE and workload.name not in machine.probed:
            machine.violate(f"committed although the probe of {workload.name} never answered")
    if machine.lock != "both":
        machine.violate("committed with an open network")
    if machine.deadman or machine.watchdog:
        machine.violate("committed with a timer armed: it would reset a serving machine")
