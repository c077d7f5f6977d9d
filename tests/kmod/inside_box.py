"""Of inside.py: how a check is said, and the set-aside memory that is used as another kernel's box."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kupgrade.errors import KernelError
from kupgrade.kernel import kspawn

BOX, BOX_SIZE = 0x30000000, 64 << 20
TABLES, CODE, MAILBOX, PARK, SLOTS, WORD, FLAG = 0, 0x10000, 0x20000, 0x21000, 0x22000, 0x30000, 0x31000
COUNTER = bytes.fromhex("f048ff06f390ebf8")  # 1: lock incq (%rsi); pause; jmp 1b
CPU = Path("/sys/devices/system/cpu/cpu3")

failures: list[str] = []


def check(name: str, good: object, detail: object = "") -> None:
    if not good:
        failures.append(name)
    print("ok  " if good else "FAIL", name, detail, flush=True)


def refused(name: str, number: int, call: Callable[[], object]) -> None:
    try:
        call()
    except (KernelError, OSError) as error:
        check(name, error.errno == number, errno.errorcode.get(error.errno or 0))
    else:
        check(name, False, "was not refused")


def subprocess_errno(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return
    named = {"File exists": errno.EEXIST, "in use": errno.EBUSY, "Invalid": errno.EINVAL, "busy": errno.EBUSY}
    for text, number in named.items():
        if text in done.stderr:
            raise OSError(number, done.stderr)
    raise OSError(errno.EIO, done.stderr)


def write(path: Path, text: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


@contextmanager
def offline(cpu: Path = CPU) -> Iterator[None]:
    write(cpu / "online", "0")
    try:
        yield
    finally:
        write(cpu / "online", "1")


class Box:
    """The set-aside memory with page tables that map the first 4 GiB to themselves."""

    def __init__(self, device: kspawn.Kspawn) -> None:
        self.memory = device.map(BOX, BOX_SIZE)
        self.put(TABLES, struct.pack("<Q", BOX + TABLES + 0x1000 | 3))
        for gib in range(4):
            table = TABLES + 0x2000 + gib * 0x1000
            self.put(TABLES + 0x1000 + 8 * gib, struct.pack("<Q", BOX + table | 3))
            self.put(table, struct.pack("<512Q", *((gib << 30) + (n << 21) | 0x83 for n in range(512))))
        self.put(CODE, COUNTER)

    def put(self, offset: int, data: bytes) -> None:
        self.memory[offset : offset + len(data)] = data

    def word(self, offset: int) -> int:
        return struct.unpack_from("<Q", self.memory, offset)[0]

    def counts(self) -> bool:
        """Whether the counter moves; an emulated CPU may have to wait a while for its turn."""
        before, deadline = self.word(WORD), time.monotonic() + 1.5
        while time.monotonic() < deadline:
            time.sleep(0.05)
            if self.word(WORD) != before:
                return True
        return False

    def stops(self) -> bool:
        """Whether the counter comes to rest: an emulated CPU takes note of INIT when it has its turn."""
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            before = self.word(WORD)
            time.sleep(0.2)
            if self.word(WORD) == before:
                return True
        return False

    def entry(self) -> kspawn.Entry:
        return kspawn.Entry(BOX + CODE, BOX + TABLES, BOX + WORD)
