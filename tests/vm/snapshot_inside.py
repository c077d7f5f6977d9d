"""Run as root in a virtual host: a file system in a loop file is snapshotted, written, merged in use, mapped plainly.

`snapshot_inside.py`: with the ioctls, with udev and without it; and what dmsetup and losetup need for the same, in
milliseconds. Prints progress to stderr, one line of JSON.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kupgrade.errors import KernelError
from kupgrade.kernel import devmapper, loop, snapshot
from kupgrade.kernel.libc import Libc
from kupgrade.kernel.snapshot import Target

NAME = "kupgrade-test"
ORIGIN = Path("/var/tmp/origin.img")
STORE = Path("/run/store.img")
POINT = Path("/mnt")
BULK = os.urandom(1 << 20) * 5


def say(text: str) -> None:
    print(f"{time.monotonic():9.3f} {text}", file=sys.stderr, flush=True)


def run(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


def digest() -> str:
    return hashlib.sha256(ORIGIN.read_bytes()).hexdigest()


class Timed:
    """Milliseconds by name."""

    def __init__(self) -> None:
        self.took: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.took[name] = round((time.perf_counter() - began) * 1000, 1)


class Writer:
    """Appends numbered lines and calls fsync, all the time."""

    def __init__(self, path: Path) -> None:
        self.path, self.lines, self.longest, self.stop = path, 0, 0.0, False
        self.thread = threading.Thread(target=self._write)
        self.thread.start()

    def _write(self) -> None:
        with self.path.open("w") as file:
            while not self.stop:
                began = time.perf_counter()
                file.write(f"{self.lines}\n")
                file.flush()
                os.fsync(file.fileno())
                self.longest = max(self.longest, time.perf_counter() - began)
                self.lines += 1

    def end(self) -> None:
        self.stop = True
        self.thread.join()


def by_ioctl(libc: Libc, timed: Timed, hurt: Callable[[devmapper.DeviceMapper], None]) -> dict[str, Any]:
    """As machine/new_root.py does it; `hurt` is called in the middle."""
    with timed("loop"):
        store = loop.attach(STORE)
    origin = Path(run("losetup", "--find", "--show", str(ORIGIN)))
    before = digest()
    with timed("snapshot"), devmapper.open_control() as mapper:
        assert snapshot.status(mapper, NAME) is None
        node = snapshot.snapshot(mapper, NAME, origin, store, snapshot.sectors_of(origin))
    libc.mount(str(node), POINT, "ext4", 0, "")
    writer = Writer(POINT / "lines")
    (POINT / "bulk").write_bytes(BULK)
    os.sync()
    untouched = digest() == before
    with devmapper.open_control() as mapper:
        hurt(mapper)
        with timed("merge"):
            found = snapshot.check_sound(snapshot.status(mapper, NAME), NAME)
            snapshot.reload(mapper, NAME, snapshot.table(Target.MERGE, found.sectors, origin, store))
            with timed("merging"):
                while not snapshot.check_sound(snapshot.status(mapper, NAME), NAME).merged:
                    time.sleep(0.003)
            snapshot.reload(mapper, NAME, snapshot.table(Target.LINEAR, found.sectors, origin, None))
            loop.detach(store)
        text = mapper.table(NAME)
        linear = snapshot.status(mapper, NAME)
    time.sleep(0.3)
    writer.end()
    link = str(node.readlink()) if node.is_symlink() else "node"
    freed = STORE.name not in run("losetup", "--all")
    run("umount", str(POINT))
    with devmapper.open_control() as mapper:
        snapshot.remove(mapper, NAME)
        gone = mapper.info(NAME) is None and not node.is_symlink()
    loop.detach(origin)
    sound = checked(writer.lines)
    return {
        "untouched": untouched,
        "link": link,
        "linear": bool(linear and linear.target is Target.LINEAR and text and text[0].text.endswith(" 0")),
        "freed": freed,
        "gone": gone,
        "sound": sound,
        "longest_write": round(writer.longest * 1000, 1),
    }


def checked(lines: int) -> bool:
    """Whether the origin holds everything that was written, in a file system without damage."""
    run("e2fsck", "-fn", str(ORIGIN))
    run("mount", "-o", "loop,ro", str(ORIGIN), str(POINT))
    try:
        kept = (POINT / "lines").read_text().split()
        return kept == [str(number) for number in range(lines)] and (POINT / "bulk").read_bytes() == BULK
    finally:
        run("umount", str(POINT))


def hurt(mapper: devmapper.DeviceMapper) -> None:
    """A table that the kernel refuses: the device goes on. A node that is gone or wrong comes back."""
    found = snapshot.check_sound(snapshot.status(mapper, NAME), NAME)
    try:
        snapshot.reload(mapper, NAME, snapshot.table(Target.LINEAR, found.sectors, Path("/dev/none"), None))
    except KernelError as error:
        say(f"refused: {error}")
    else:
        raise AssertionError("a table over no device was taken")
    info = mapper.info(NAME)
    assert info is not None
    assert (info.suspended, info.active) == (False, True)
    node = snapshot.node(NAME)
    for wrong in (None, "../vda", "../no-such-device"):
        node.unlink()
        if wrong:
            node.symlink_to(wrong)
        snapshot.ensure_node(mapper, NAME)
        assert node.stat().st_rdev == info.device
    (POINT / "after").write_text("written")
    os.sync()


def by_tools(libc: Libc, timed: Timed) -> None:
    """The same by child processes, one a change and two a look."""

    def state() -> list[str]:
        run("dmsetup", "info", NAME)
        return run("dmsetup", "status", NAME).split()

    def reload(table: str) -> None:
        run("dmsetup", "suspend", NAME)
        run("dmsetup", "reload", NAME, "--table", table)
        run("dmsetup", "resume", NAME)

    with timed("loop"):
        store = run("losetup", "--find", "--show", str(STORE))
    origin = run("losetup", "--find", "--show", str(ORIGIN))
    sectors = snapshot.sectors_of(Path(origin))
    with timed("snapshot"):
        subprocess.run(["dmsetup", "info", NAME], capture_output=True)
        Path(store).write_bytes(bytes(4096))
        run("dmsetup", "create", NAME, "--table", f"0 {sectors} snapshot {origin} {store} P 8")
        if not snapshot.node(NAME).exists():
            run("dmsetup", "mknodes", NAME)
    libc.mount(f"/dev/mapper/{NAME}", POINT, "ext4", 0, "")
    writer = Writer(POINT / "lines")
    (POINT / "bulk").write_bytes(BULK)
    os.sync()
    with timed("merge"):
        state()
        reload(f"0 {sectors} snapshot-merge {origin} {store} P 8")
        with timed("merging"):
            while (words := state())[3].split("/")[0] != words[4]:
                time.sleep(0.003)
        reload(f"0 {sectors} linear {origin} 0")
        run("losetup", "--detach", store)
    time.sleep(0.3)
    writer.end()
    timed.took["longest_write"] = round(writer.longest * 1000, 1)
    run("umount", str(POINT))
    run("dmsetup", "remove", "--retry", NAME)
    run("losetup", "--detach", origin)
    assert checked(writer.lines)


def killed_before(mapper: devmapper.DeviceMapper) -> bool:
    """A device that never got a table is not in the way of the next one; one that has a table is."""
    store, origin = loop.attach(STORE), loop.attach(ORIGIN)
    mapper.create(NAME)
    snapshot.snapshot(mapper, NAME, origin, store, snapshot.sectors_of(origin))
    taken = False
    try:
        mapper.create(NAME)
    except KernelError as error:
        taken = error.errno == errno.EBUSY
    snapshot.remove(mapper, NAME)
    loop.detach(store)
    loop.detach(origin)
    return taken


def fresh() -> None:
    for path, size in ((ORIGIN, 128 << 20), (STORE, 256 << 20)):
        path.unlink(missing_ok=True)
        with path.open("wb") as file:
            file.truncate(size)
    run("mkfs.ext4", "-q", str(ORIGIN))
    os.sync()


def main() -> None:
    run("modprobe", "-a", "loop", "dm_snapshot")
    libc, found = Libc(), {}
    with devmapper.open_control() as mapper:
        found["version"] = mapper.version()
    for name in ("udev", "alone", "tools"):
        if name == "alone":
            units = ("systemd-udevd.service", "systemd-udevd-control.socket", "systemd-udevd-kernel.socket")
            run("systemctl", "stop", *units)
            Path("/run/udev/control").unlink(missing_ok=True)  # by which dmsetup knows
        fresh()
        timed = Timed()
        say(name)
        found[name] = by_tools(libc, timed) if name == "tools" else by_ioctl(libc, timed, hurt)
        found[name] = {**(found[name] or {}), "ms": timed.took}
        say(json.dumps(found[name]))
    fresh()
    with devmapper.open_control() as mapper:
        found["killed"] = killed_before(mapper)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
