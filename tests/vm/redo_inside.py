"""Run as root in a virtual host: a snapshot goes home by way of the journal; at each stage the kernel mounts a copy.

Prints progress to stderr, one line of JSON: what each copy held, and seconds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from kupgrade.kernel import blockfs, devmapper, loop, redo, snapshot
from kupgrade.kernel.libc import Libc
from kupgrade.kernel.snapshot import Target
from kupgrade.machine import going_home

NAME = "kupgrade-test"
ORIGIN, COPY, STORE = Path("/var/tmp/origin.img"), Path("/var/tmp/copy.img"), Path("/run/store.img")
POINT, ASIDE = Path("/mnt"), Path("/media")
BULK = os.urandom(1 << 20) * 5


def run(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


def seen(image: Path) -> str:
    """What a mount makes of it: the old state, the new one, or else; and no damage."""
    run("mount", "-o", "loop", str(image), str(ASIDE))
    names = {path.name for path in ASIDE.iterdir()} - {"lost+found"}
    state = "else"
    if names == {"before"} and (ASIDE / "before").read_bytes() == BULK[:9000]:
        state = "old"
    elif names == {"bulk", "d"} and (ASIDE / "bulk").read_bytes() == BULK:
        state = "new"
    run("umount", str(ASIDE))
    run("e2fsck", "-fn", str(image))
    return state


def copied() -> str:
    run("cp", "--sparse=always", str(ORIGIN), str(COPY))
    return seen(COPY)


def main() -> None:
    run("modprobe", "-a", "loop", "dm_snapshot")
    libc, found = Libc(), {}
    for path, size in ((ORIGIN, 512 << 20), (STORE, 256 << 20)):
        path.unlink(missing_ok=True)
        with path.open("wb") as file:
            file.truncate(size)
    run("mkfs.ext4", "-q", "-b", "4096", "-J", "size=32", str(ORIGIN))
    run("mount", "-o", "loop", str(ORIGIN), str(POINT))
    (POINT / "before").write_bytes(BULK[:9000])
    run("umount", str(POINT))
    store, origin = loop.attach(STORE), Path(run("losetup", "--find", "--show", str(ORIGIN)))
    with devmapper.open_control() as mapper:
        node = snapshot.snapshot(mapper, NAME, origin, store, snapshot.sectors_of(origin))
        libc.mount(str(node), POINT, "ext4", 0, "")
        (POINT / "bulk").write_bytes(BULK)
        os.sync()
        (POINT / "before").unlink()
        (POINT / "d").mkdir()
        blockfs.freeze(libc, POINT)
        state = snapshot.check_sound(snapshot.status(mapper, NAME), NAME)
        began = time.perf_counter()
        made = redo.plan(going_home.DirectDisk(origin), going_home.changed(STORE, state))
        found["planned"] = time.perf_counter() - began
        made.log()
        found["logged"] = time.perf_counter() - began
        found["after the log"] = copied()
        made.commit()
        found["after the commit"] = copied()
        part = sorted(made.home.items())
        made._write(iter(part[: len(part) // 2]))
        made.disk.flush()
        found["in the middle"] = copied()
        began = time.perf_counter()
        made.apply()
        found["applied"] = time.perf_counter() - began
        found["after it"] = copied()
        snapshot.reload(mapper, NAME, snapshot.table(Target.LINEAR, state.sectors, origin, None), frozen=True)
        blockfs.thaw(libc, POINT)
        (POINT / "d/later").write_bytes(BULK)
        run("umount", str(POINT))
        snapshot.remove(mapper, NAME)
    made.disk.close()
    loop.detach(store)
    loop.detach(origin)
    found["in the end"] = seen(ORIGIN)
    found["blocks"] = len(made.home)
    print(json.dumps(found))


if __name__ == "__main__":
    print(os.uname().release, file=sys.stderr)
    main()
