"""The address spaces that a page server fills: which ranges still wait, where their pages are, and what happened.

Everything here can be had again from the log: a server that goes on after a killed one places what is there already
once more, which the kernel refuses page by page (EEXIST).
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from kupgrade.core.ranges import Range, Ranges
from kupgrade.kernel import userfaultfd
from kupgrade.kernel.userfaultfd import PAGE, AgainError, Event, GoneError, Message
from kupgrade.machine.fill_files import Files, PlacingError, Source
from kupgrade.machine.fill_log import Entry, Field, FillLog, Kind

CHUNK = 1 << 20  # bytes placed between two looks for faults
AROUND = 16 * PAGE  # and for a fault: what is behind the page that somebody waits for is likely the next one


@dataclass
class Space:
    """One descriptor. `pid`: whose images fill it; `pidfd`: its process, -1 for one that a workload forked."""

    number: int
    fd: int
    pid: int
    pidfd: int
    todo: Ranges
    closing: bool = False


@dataclass
class Spaces:
    """All of them. `regions` by PID, as dumped."""

    log: FillLog
    sources: Mapping[int, Source]
    files: Files
    regions: Mapping[int, Sequence[tuple[int, int]]]
    all: dict[int, Space] = field(default_factory=dict)
    _numbers: int = 0

    def replay(self, *, answer: bool = True) -> None:
        """Everything as the log says. A fault that nobody has dealt with is dealt with now, if it is to be answered."""
        self.all.clear()
        self._numbers = 0
        for entry in self.log.entries():
            self._numbers = max(self._numbers, entry.space)
            self._replayed(entry, answer)
        for space in [each for each in self.all.values() if each.closing]:
            if userfaultfd.is_descriptor(space.fd):
                os.close(space.fd)
            self._closed(space)

    def _replayed(self, entry: Entry, answer: bool) -> None:
        match entry.kind:
            case Kind.SPACE:
                fd, pid, pidfd = entry.words
                self.all[entry.space] = Space(entry.space, fd, pid, pidfd - 1, Ranges())
            case Kind.RANGE:
                self.all[entry.space].todo.add(Range(*entry.words))
            case Kind.FILLED:
                self.all[entry.space].todo.drop(entry.words[0], entry.words[1])
            case Kind.COUNT:
                self._numbers = max(self._numbers, entry.words[0])
            case Kind.CLOSING:
                self.all[entry.space].closing = True
            case Kind.CLOSED:
                self.all.pop(entry.space, None)
            case Kind.MESSAGE:
                message = userfaultfd.parse(entry.raw)
                if message is None or message.event is Event.PAGEFAULT:
                    # The slot at the end: nothing came, or a fault that was perhaps not answered.
                    self.log.next -= 1
                    if answer and message is not None and entry.space in self.all:
                        self.fault(self.all[entry.space], message.second)
                    self.log.forget()
                else:
                    self.happened(self.all[entry.space], message)

    def add(self, fd: int, pid: int, pidfd: int) -> Space:
        """A process that criu restores; its ranges are all that its images say. Recorded."""
        self._numbers += 1
        space = Space(self._numbers, fd, pid, pidfd, Ranges(Range(a, b, a) for a, b in self.regions.get(pid, ())))
        self.log.add(Kind.SPACE, space.number, fd, pid, pidfd + 1)
        for each in space.todo:
            self.log.add(Kind.RANGE, space.number, each.start, each.end, each.image)
        self.all[space.number] = space
        return space

    def truth(self) -> Iterator[tuple[Kind, int, tuple[int, ...]]]:
        """What a log has to say, at least."""
        yield Kind.COUNT, 0, (self._numbers,)
        for space in self.all.values():
            yield Kind.SPACE, space.number, (space.fd, space.pid, space.pidfd + 1)
            for each in space.todo:
                yield Kind.RANGE, space.number, (each.start, each.end, each.image)

    def happened(self, space: Space, message: Message) -> None:
        """An event other than a fault."""
        match message.event:
            case Event.FORK:
                # Its number follows from the log alone: a replay gives the same.
                self._numbers += 1
                child = Space(self._numbers, message.first, space.pid, -1, Ranges(space.todo))
                self.all[child.number] = child
            case Event.REMAP:
                space.todo.move(message.first, message.second, message.third)
            case Event.REMOVE | Event.UNMAP:
                space.todo.drop(message.first, message.second)

    def read(self, space: Space) -> bool:
        """Deal with the next message of a space; whether there was one."""
        self._make_room()
        with self.log.slot(space.number) as place:
            there = userfaultfd.read_into(space.fd, place)
            message = userfaultfd.parse(place) if there else None
        if message is None:
            self.log.forget()
            return False
        if message.event is Event.PAGEFAULT:
            self.fault(space, message.second)
            self.log.forget()
            self.log[Field.FAULTS] += 1
        else:
            self.log.keep()
            self.happened(space, message)
            self.log[Field.EVENTS] += 1
        return True

    def fault(self, space: Space, address: int) -> None:
        """The page that somebody waits for. What no image has was never touched, or given up since: zeros."""
        page = address & ~(PAGE - 1)
        waiting = space.todo.find(page)
        at, source, size = (page, 0, 0) if waiting is None else self.sources[space.pid].find(waiting.image)
        with contextlib.suppress(AgainError, GoneError):  # it waits on and is told again, or it waits no more
            if waiting is not None and size and at == waiting.image:
                around = min(AROUND, size, waiting.end - waiting.start)
                self.files.check(source, around)
                placed, why = userfaultfd.copy(space.fd, page, source, around)
                if why == errno.ENOENT and around > PAGE:  # a mapping ends within
                    placed, why = userfaultfd.copy(space.fd, page, source, PAGE)
                self.log[Field.PLACED] += placed
            else:
                placed, why = userfaultfd.zero(space.fd, page)
            if placed == 0 and why not in (errno.EEXIST, errno.ENOENT):
                raise PlacingError(f"A page of process {space.pid} cannot be placed", _why(page, why))
            userfaultfd.wake(space.fd, page)
            return
        userfaultfd.wake(space.fd, page)

    def place(self, space: Space, limit: int = CHUNK) -> None:
        """Place up to `limit` bytes from the lowest range on. Raises PlacingError, GoneError, AgainError."""
        waiting = space.todo.first()
        if waiting is None:
            return
        at, source, size = self.sources[space.pid].find(waiting.image)
        begin = waiting.start + at - waiting.image
        if not size or begin >= waiting.end:
            space.todo.drop(waiting.start, waiting.end)
            return
        end = min(begin + size, waiting.end, begin + limit)
        self.files.check(source, end - begin)
        done, step = begin, end - begin
        try:
            while done < end:
                placed, why = userfaultfd.copy(space.fd, done, source + done - begin, min(step, end - done))
                self.log[Field.PLACED] += placed
                done += placed
                if placed:
                    continue
                if why == errno.EEXIST:  # placed for a fault, which woke whoever waited for it
                    done += PAGE
                elif why == errno.ENOENT and step > PAGE:
                    step = max(PAGE, step // 2 & ~(PAGE - 1))  # a mapping was divided: no call may cross the border
                elif why == errno.ENOENT and space.pidfd < 0:  # a fork has not all that was there (MADV_DONTFORK)
                    done += PAGE
                else:
                    raise PlacingError(f"Memory of process {space.pid} cannot be placed", _why(done, why))
        finally:
            space.todo.drop(waiting.start, done)
            self._make_room()
            self.log.add(Kind.FILLED, space.number, waiting.start, done)

    def close(self, space: Space) -> None:
        """It waits for nothing any more: from now on it is memory like any other."""
        self._make_room()
        self.log.add(Kind.CLOSING, space.number)
        os.close(space.fd)
        self._closed(space)

    def _make_room(self) -> None:
        if self.log.full:
            self.log.compact(self.truth())

    def _closed(self, space: Space) -> None:
        self.log.add(Kind.CLOSED, space.number)
        self.all.pop(space.number, None)


def _why(address: int, number: int) -> str:
    reasons = {errno.EFAULT: "its image cannot be read", errno.ENOENT: "it is not registered for being filled"}
    return f"{address:#x}: {reasons.get(number, errno.errorcode.get(number, str(number)))}"
