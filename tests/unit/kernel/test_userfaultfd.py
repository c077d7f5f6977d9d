"""The binding against the header and against this machine's kernel: faults, events, errors, in processes of ours."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import re
import select
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kupgrade.errors import KernelError
from kupgrade.kernel import userfaultfd
from kupgrade.kernel.userfaultfd import PAGE, AgainError, Event, GoneError, Message

PAGES = 16
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mremap.restype = ctypes.c_void_p
LIBC.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
MAYMOVE = 1

needs_kernel = pytest.mark.skipif(
    userfaultfd.available() is not True, reason="this machine's kernel gives no userfaultfd to this user"
)


def test_request_numbers_are_those_of_the_header(tmp_path: Path) -> None:
    """What gcc makes of linux/userfaultfd.h, with the events and features."""
    if shutil.which("gcc") is None or not Path("/usr/include/linux/userfaultfd.h").exists():
        pytest.skip("no gcc or no kernel headers")
    names = [name for name in vars(userfaultfd) if name.startswith("_UFFDIO_")]
    wanted = {name[1:]: getattr(userfaultfd, name) for name in names}
    wanted |= {f"UFFD_EVENT_{each.name}": each.value for each in Event}
    wanted |= {f"UFFD_FEATURE_EVENT_{each.name}": each.value for each in userfaultfd.Feature}
    wanted |= {"UFFD_API": userfaultfd.API, "sizeof(struct uffd_msg)": userfaultfd.MESSAGE_SIZE}
    lines = "".join(f'printf("%llu\\n", (unsigned long long)({name}));' for name in wanted)
    headers = "".join(f"#include <{name}>\n" for name in ("stdio.h", "sys/ioctl.h", "linux/userfaultfd.h"))
    source, binary = tmp_path / "numbers.c", tmp_path / "numbers"
    source.write_text(f"{headers}int main(void) {{ {lines} return 0; }}")
    subprocess.run(["gcc", "-o", binary, source], check=True)
    out = subprocess.run([binary], capture_output=True, text=True, check=True).stdout
    found = [int(number) & 0xFFFFFFFF for number in re.findall(r"\d+", out)]
    assert dict(zip(wanted, found, strict=True)) == wanted


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        (bytes(32), None),
        (bytes([0x12]) + bytes(15) + (0x7000).to_bytes(8, "little") + bytes(8), Message(Event.PAGEFAULT, 0, 0x7000, 0)),
        (bytes([0x13]) + bytes(7) + b"\7\0\0\0" + b"\xff" * 4 + bytes(16), Message(Event.FORK, 7, 0, 0)),
        (bytes([0x16]) + bytes(7) + b"\0\x10" + bytes(22), Message(Event.UNMAP, 0x1000, 0, 0)),
    ],
)
def test_messages_are_read_as_the_kernel_writes_them(raw: bytes, wanted: Message | None) -> None:
    """By event; nothing where nothing was written."""
    assert userfaultfd.parse(raw) == wanted


def test_an_event_that_nobody_asked_for_is_an_error() -> None:
    """Never taken for another one."""
    with pytest.raises(KernelError) as caught:
        userfaultfd.parse(bytes([0x42]) + bytes(31))
    assert caught.value.errno == errno.EPROTO


@contextmanager
def child(body: Callable[[int], object]) -> Iterator[tuple[int, int, int, Callable[[], int]]]:
    """A process with 16 registered pages: descriptor, address, a source of other pages, and how it ended.

    The child runs `body` once it is let go; it ends with what that returns, 99 for an exception.
    """
    ours, theirs = os.pipe(), os.pipe()
    area = mmap.mmap(-1, PAGES * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            fd = userfaultfd.open_descriptor()
            userfaultfd.register(fd, address, PAGES * PAGE)
            os.write(ours[1], fd.to_bytes(4, "little"))
            os.read(theirs[0], 1)
            os.close(fd)
            code = int(body(address) or 0)  # type: ignore[call-overload]
        finally:
            os._exit(code)
    number = int.from_bytes(os.read(ours[0], 4), "little")
    from kupgrade.kernel.libc import Libc

    pidfd = os.pidfd_open(pid)
    fd = Libc().pidfd_getfd(pidfd, number)
    os.write(theirs[1], b"x")
    ended: list[int] = []

    def status() -> int:
        if not ended:
            ended.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        return ended[0]

    source = mmap.mmap(-1, PAGES * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for page in range(PAGES):
        source[page * PAGE] = page + 1
    try:
        yield fd, address, ctypes.addressof(ctypes.c_char.from_buffer(source)), status
    finally:
        if not ended:
            os.kill(pid, 9)
            status()
        for each in (*ours, *theirs, pidfd, fd):
            os.close(each)


def next_message(fd: int) -> Message:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    assert poll.poll(10_000), "no message came"
    place = memoryview(bytearray(32))
    assert userfaultfd.read_into(fd, place)
    found = userfaultfd.parse(place)
    assert found is not None
    return found


def byte(address: int) -> int:
    return ctypes.c_ubyte.from_address(address).value


@needs_kernel
def test_whoever_touches_a_missing_page_waits_for_it() -> None:
    """The message names the page; the placed one is read; a second copy is refused."""
    with child(lambda at: byte(at + 2 * PAGE + 5)) as (fd, at, source, status):
        found = next_message(fd)
        assert (found.event, found.second & ~(PAGE - 1)) == (Event.PAGEFAULT, at + 2 * PAGE)
        assert userfaultfd.copy(fd, at + 2 * PAGE, source + 5 * PAGE - 5, PAGE) == (PAGE, 0)
        assert status() == 6
        assert not userfaultfd.read_into(fd, memoryview(bytearray(32)))


@needs_kernel
@pytest.mark.parametrize(
    ("what", "wanted"),
    [
        ("there already", (0, errno.EEXIST)),
        ("some there", (3 * PAGE, 0)),
        ("beyond", (0, errno.ENOENT)),
        ("no source", (0, errno.EFAULT)),
    ],
)
def test_what_cannot_be_placed_is_told_by_its_error(what: str, wanted: tuple[int, int]) -> None:
    """And how far it came."""
    with child(byte) as (fd, at, source, _status):
        next_message(fd)
        userfaultfd.zero(fd, at + 3 * PAGE)
        calls = {
            "there already": (at + 3 * PAGE, source, PAGE),
            "some there": (at, source, 8 * PAGE),
            "beyond": (at + (PAGES - 1) * PAGE, source, 2 * PAGE),
            "no source": (at, 1 << 20, PAGE),
        }
        assert userfaultfd.copy(fd, *calls[what]) == wanted


def fork_and_read(at: int) -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(byte(at))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@needs_kernel
def test_a_forked_process_brings_its_own_descriptor() -> None:
    """Nothing can be placed before the event was read; then the child's pages are placed by the new one."""
    with child(fork_and_read) as (fd, at, source, status):
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        assert poll.poll(10_000)
        with pytest.raises(AgainError):
            userfaultfd.copy(fd, at + PAGE, source, PAGE)
        found = next_message(fd)
        assert found.event is Event.FORK and userfaultfd.is_descriptor(found.first)
        assert next_message(found.first).event is Event.PAGEFAULT
        assert userfaultfd.copy(found.first, at, source + 6 * PAGE, PAGE) == (PAGE, 0)
        assert status() == 7
        assert userfaultfd.gone(found.first)
        with pytest.raises(GoneError):
            userfaultfd.copy(found.first, at + PAGE, source, PAGE)
        os.close(found.first)


def move(at: int) -> int:
    there = LIBC.mremap(at + 2 * PAGE, 2 * PAGE, 4 * PAGE, MAYMOVE)
    return byte(there) + byte(there + 3 * PAGE)


@needs_kernel
def test_moved_memory_waits_where_it_is_now() -> None:
    """The event tells from, to and the old length; what the mapping grew by waits, too."""
    with child(move) as (fd, at, source, status):
        moved = next_message(fd)
        assert (moved.event, moved.first, moved.third) == (Event.REMAP, at + 2 * PAGE, 2 * PAGE)
        # munmap of the old place, then the faults
        rest = next_message(fd)
        while rest.event is not Event.PAGEFAULT:
            rest = next_message(fd)
        assert userfaultfd.copy(fd, moved.second, source, PAGE) == (PAGE, 0)
        assert next_message(fd).second & ~(PAGE - 1) == moved.second + 3 * PAGE
        assert userfaultfd.copy(fd, moved.second + 3 * PAGE, source + PAGE, PAGE) == (PAGE, 0)
        assert status() == 3


def give_up(at: int) -> int:
    ctypes.CDLL(None).madvise(ctypes.c_void_p(at + PAGE), ctypes.c_size_t(2 * PAGE), mmap.MADV_DONTNEED)
    LIBC.munmap(at + 8 * PAGE, PAGE)
    return byte(at + PAGE)


@needs_kernel
def test_given_up_and_unmapped_memory_is_told() -> None:
    """Whoever discards or unmaps waits until it was read."""
    with child(give_up) as (fd, at, source, status):
        first, second = next_message(fd), next_message(fd)
        assert (first.event, first.first, first.second) == (Event.REMOVE, at + PAGE, at + 3 * PAGE)
        assert (second.event, second.first, second.second) == (Event.UNMAP, at + 8 * PAGE, at + 9 * PAGE)
        assert next_message(fd).event is Event.PAGEFAULT
        assert userfaultfd.copy(fd, at + 8 * PAGE, source, PAGE) == (0, errno.ENOENT)
        assert userfaultfd.zero(fd, at + PAGE) == (PAGE, 0)
        assert status() == 0


@needs_kernel
def test_without_a_descriptor_missing_memory_reads_as_zeros() -> None:
    """What everything else here is made to prevent: the last close ends the registration."""
    with child(lambda at: 40 + byte(at)) as (fd, _at, _source, status):
        next_message(fd)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, fd)
        os.close(null)
        assert status() == 40


def test_a_closed_number_is_no_descriptor() -> None:
    """Nor is another file's."""
    assert not userfaultfd.is_descriptor(0)
    assert not userfaultfd.is_descriptor(1 << 20)
