"""The page server for real: small processes of the test's own are filled, and whoever fills them is killed."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import random
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kupgrade.errors import KupgradeError, NeedsHumanError
from kupgrade.host import memory_images
from kupgrade.host.manifest import checksum
from kupgrade.host.memory_images import Extent, Memory
from kupgrade.kernel import userfaultfd
from kupgrade.kernel.userfaultfd import PAGE
from kupgrade.machine import fill, fill_roles, fill_spaces, fill_start
from kupgrade.machine.fill_files import Files
from kupgrade.machine.fill_log import RECORDS, Field, FillLog, Kind, Stage
from kupgrade.machine.fill_roles import Role
from kupgrade.machine.page_server import FINISHED, SOCKET, Charge
from kupgrade.machine.places import Places

pytestmark = pytest.mark.skipif(
    userfaultfd.available() is not True, reason="this machine's kernel gives no userfaultfd to this user"
)
PAGES = 2048
HOLE = 512  # this page and the 15 behind it are in no image: they were never touched
NAME = "demo"
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mremap.restype = ctypes.c_void_p
LIBC.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
LIBC.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def word(page: int) -> int:
    """What the images have at the start of a page."""
    return 0 if HOLE <= page < HOLE + 16 else page * 7 + 1


def read(address: int) -> int:
    return ctypes.c_uint64.from_address(address).value


def whole(at: int) -> int:
    """0 when every page holds what its image says."""
    return int(any(read(at + page * PAGE) != word(page) for page in range(PAGES)))


class Lab:
    """One workload of one process, whose memory is in an image, and which plays criu for itself."""

    def __init__(self, tmp: Path) -> None:
        self.places = Places(tmp)
        self.places.memory.mkdir(parents=True, mode=0o700)
        self.image = tmp / "pages-1.img"
        content = bytearray((PAGES - 16) * PAGE)
        for number, page in enumerate(page for page in range(PAGES) if word(page)):
            struct.pack_into("<Q", content, number * PAGE, word(page))
        self.image.write_bytes(content)
        self.work = tmp / "work"
        self.work.mkdir()
        self.area = mmap.mmap(-1, PAGES * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.at = ctypes.addressof(ctypes.c_char.from_buffer(self.area))
        self.pid = 0
        self.sums = {self.image: checksum(self.image)}

    def start(self) -> None:
        """The ring, for the PID that the next process will tell: ours is played by any number."""
        hole = self.at + HOLE * PAGE
        extents = (
            Extent(self.at, hole, self.image, 0),
            Extent(hole + 16 * PAGE, self.at + PAGES * PAGE, self.image, HOLE * PAGE),
        )
        memory = Memory(self.pid, ((self.at, self.at + PAGES * PAGE),), extents)
        log = self.places.memory / f"{NAME}.log"
        fill_start.start(Charge(NAME, (memory,), "/no-such-cgroup", log, self.work, self.places.root, self.sums))

    def run(self, body: Callable[[int], int], *, finish: bool = True) -> None:
        """A process that registers its memory, hands its descriptor over as criu does, and runs `body`.

        As with criu it does not run before the page server has heard all there is to be heard.
        """
        pipe, go = os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            status = 99
            try:
                os.read(go[0], 1)
                fd = userfaultfd.open_descriptor()
                userfaultfd.register(fd, self.at, PAGES * PAGE)
                line = socket.socket(socket.AF_UNIX)
                line.connect(str(self.work / SOCKET))
                line.sendall(struct.pack("=i", os.getpid()))
                socket.send_fds(line, [b"\0"], [fd])
                line.sendall(struct.pack("=i", -12345))  # a zombie: no descriptor follows
                if finish:
                    line.sendall(struct.pack("=i", FINISHED))
                line.close()
                os.close(fd)
                os.write(pipe[1], b"x")
                os.read(go[0], 1)
                status = body(self.at)
            finally:
                os._exit(status)
        self.start()
        os.write(go[1], b"x")
        os.read(pipe[0], 1)
        if finish:
            self.until(Stage.FILLING)
        os.write(go[1], b"x")
        for each in (*pipe, *go):
            os.close(each)

    @property
    def log(self) -> FillLog:
        return FillLog(self.places.memory / f"{NAME}.log")

    def ended(self) -> int:
        """How the process ended."""
        pid, self.pid = self.pid, 0
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def until(self, stage: Stage) -> None:
        deadline = time.monotonic() + 60
        while self.log.stage < stage:
            assert time.monotonic() < deadline, f"it stays at {self.log.stage!r}"
            time.sleep(0.002)

    def close(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            self.ended()
        fill.end(self.places, NAME)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path)
    yield made
    made.close()


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some milliseconds for each chunk, so that things happen while memory is filled."""
    place = fill_spaces.Spaces.place

    def slowly(self: fill_spaces.Spaces, space: Any, limit: int = 0) -> None:
        time.sleep(0.004)
        place(self, space, 16 * PAGE)

    monkeypatch.setattr(fill_spaces.Spaces, "place", slowly)


def test_everything_is_filled_and_the_images_are_let_go(lab: Lab) -> None:
    """In the background, too, and what was never touched is zeros; nobody is left then."""
    lab.run(whole)
    figures = fill.await_filled(lab.places, [NAME], lambda _: pytest.fail("nothing failed"))
    assert lab.ended() == 0
    assert lab.log[Field.PLACED] == lab.log[Field.TOTAL] == (PAGES - 16) * PAGE
    assert figures["restarts"] == 0 and fill.unfilled(lab.places) == ()


def forks(at: int) -> int:
    """Two generations, while little is filled."""
    pid = os.fork()
    if pid == 0:
        again = os.fork()
        if again == 0:
            os._exit(whole(at))
        os._exit(whole(at) | os.waitstatus_to_exitcode(os.waitpid(again, 0)[1]))
    return whole(at) | os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def moves(at: int) -> int:
    """The upper half elsewhere, and larger; then all is read."""
    half = PAGES // 2
    there = LIBC.mremap(at + half * PAGE, half * PAGE, (half + 32) * PAGE, 1)
    good = all(read(there + (page - half) * PAGE) == word(page) for page in range(half, PAGES))
    good &= not any(read(there + page * PAGE) for page in range(half, half + 32))
    return int(not good or any(read(at + page * PAGE) != word(page) for page in range(half)))


def gives_up(at: int) -> int:
    """What is discarded is zeros from then on, what is unmapped and mapped anew is another's."""
    LIBC.madvise(at + 64 * PAGE, 64 * PAGE, mmap.MADV_DONTNEED)
    LIBC.munmap(at + 1024 * PAGE, 256 * PAGE)
    time.sleep(0.3)
    kept = [page for page in range(PAGES) if not 64 <= page < 128 and not 1024 <= page < 1280]
    good = not any(read(at + page * PAGE) for page in range(64, 128))
    return int(not good or any(read(at + page * PAGE) != word(page) for page in kept))


def changes_protection(at: int) -> int:
    """A mapping that becomes several while it is filled."""
    for page in range(100, PAGES, 200):
        LIBC.mprotect(ctypes.c_void_p(at + page * PAGE), ctypes.c_size_t(3 * PAGE), mmap.PROT_READ)
    return whole(at)


def keeps_from_children(at: int) -> int:
    """A part that a forked process has not (madvise(2), MADV_DONTFORK); it has the rest."""
    LIBC.madvise(at + 256 * PAGE, 1024 * PAGE, 10)
    pid = os.fork()
    if pid == 0:
        time.sleep(1.0)
        kept = [page for page in range(PAGES) if not 256 <= page < 1280]
        os._exit(int(any(read(at + page * PAGE) != word(page) for page in kept)))
    return whole(at) | os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def all_there(log: FillLog, but: set[int]) -> bool:
    """Three that are none of those that were killed."""
    return all(fill_roles.plays(log, role) and log[role.who] not in but for role in Role)


@pytest.mark.parametrize("body", [forks, moves, gives_up, changes_protection, keeps_from_children])
@pytest.mark.parametrize("killed", [False, True], ids=["undisturbed", "killed"])
@pytest.mark.usefixtures("slow")
def test_what_a_process_does_meanwhile_is_followed(lab: Lab, body: Callable[[int], int], killed: bool) -> None:
    """Each memory reads as it should, however often one or two of the three that fill it are killed."""
    lab.run(body)
    lab.until(Stage.FILLING)
    dice = random.Random(7)
    while killed and lab.log.stage < Stage.DONE:
        dead = {lab.log[role.who] for role in dice.sample(list(Role), dice.choice((1, 2)))}
        for pid in dead:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while lab.log.stage < Stage.DONE and not all_there(lab.log, dead):
            assert time.monotonic() < deadline, "nobody takes the place of one that was killed"
            time.sleep(0.005)
        time.sleep(0.02)
    assert lab.ended() == 0
    lab.until(Stage.DONE)
    assert killed == (lab.log[Field.RESTARTS] > 0)


def test_an_image_that_cannot_be_read_ends_the_workload(lab: Lab) -> None:
    """Before anybody reads a zero in its place; whoever asks is told why."""
    started = lab.start

    def cut() -> None:
        started()
        os.truncate(lab.image, 100 * PAGE)

    lab.start = cut  # type: ignore[method-assign]
    lab.run(lambda at: read(at + 1500 * PAGE) or 77)
    assert lab.ended() == -signal.SIGKILL
    lab.until(Stage.FAILED)
    with pytest.raises(KupgradeError, match="its image cannot be read"):
        fill.check(lab.places, [NAME])
    with pytest.raises(NeedsHumanError):
        fill.await_filled(lab.places, [NAME], lambda _: None)


def test_a_page_whose_checksum_is_wrong_is_never_placed(lab: Lab) -> None:
    """What was dumped and what is there now differ by one bit."""
    with lab.image.open("r+b") as file:
        file.seek(1400 * PAGE)
        file.write(b"\xff")
    lab.run(lambda at: read(at + 1416 * PAGE))
    assert lab.ended() == -signal.SIGKILL
    lab.until(Stage.FAILED)
    with pytest.raises(KupgradeError, match="checksum of 65536 bytes"):
        fill.check(lab.places, [NAME])


def test_a_restore_that_ends_before_its_last_word_ends_its_processes(lab: Lab) -> None:
    """criu was killed: half a tree must not be taken for a whole one."""
    lab.run(lambda at: signal.pause() or 0, finish=False)
    assert lab.ended() == -signal.SIGKILL
    lab.until(Stage.FAILED)


@pytest.mark.usefixtures("slow")
def test_a_workload_that_ends_is_no_failure(lab: Lab) -> None:
    """Its memory needs nobody any more."""
    lab.run(lambda _at: 3)
    assert lab.ended() == 3
    lab.until(Stage.DONE)
    fill.check(lab.places, [NAME])


@pytest.mark.usefixtures("slow")
def test_if_all_who_fill_are_gone_it_is_known(lab: Lab) -> None:
    """Then the workload is ended by whoever asks, and the images are no longer kept for it."""
    lab.run(lambda _at: signal.pause() or 0)
    assert fill.unfilled(lab.places) == (NAME,)
    while fill_roles.lives(lab.log):
        fill.strike(lab.places, everyone=True)
    ended: list[str] = []
    with pytest.raises(NeedsHumanError, match="was killed"):
        fill.await_filled(lab.places, [NAME], ended.append)
    assert ended == [NAME] and fill.unfilled(lab.places) == ()


def test_a_full_log_is_begun_anew_with_what_is_true(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay gives the same ranges before and after."""
    log = FillLog(lab.places.memory / "other.log", create=True)
    log.publish()
    spaces = fill_spaces.Spaces(log, {}, Files(()), {5: ((PAGE, 9 * PAGE), (20 * PAGE, 30 * PAGE))})
    space = spaces.add(3, 5, -1)
    space.todo.drop(2 * PAGE, 4 * PAGE)
    log.add(Kind.FILLED, space.number, 2 * PAGE, 4 * PAGE)
    wanted = list(space.todo)
    for compact in (False, True):
        if compact:
            log.compact(spaces.truth())
        again = fill_spaces.Spaces(FillLog(log.path), {}, Files(()), {})
        again.replay()
        assert list(again.all[space.number].todo) == wanted
        assert again.log.next == log.next


def test_more_mappings_than_the_log_holds_are_copied(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is known before anything is restored, and not when criu is at work."""
    regions = tuple((number << 21, (number << 21) + (1 << 20)) for number in range(1, RECORDS))
    monkeypatch.setattr(memory_images, "processes", lambda _directory: (5, 6))
    monkeypatch.setattr(memory_images, "memory", lambda _directory, pid: Memory(pid, regions, ()))
    images = lab.work / "demo/final"
    images.mkdir(parents=True)
    with pytest.raises(KupgradeError, match="too many mappings"):
        fill.begin(lab.places, NAME, images, "/no-such-cgroup", lab.work, checked=True)
    assert not (lab.places.memory / f"{NAME}.log").exists()
