"""Run as root in a virtual host whose kernel has KHO and LUO: the cases of liveupdate_cases.py, over three kernels.

`liveupdate_inside.py first|second|third OUT [RELEASE]`: runs the cases of this kernel and writes what was seen as JSON
to OUT; with RELEASE, hands over to that kernel by kexec, with sessions open. What `liveupdate_cases.FILES` names
lies in tests/fakes beside it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from kupgrade.errors import KernelError
from kupgrade.kernel import kexec, kho, liveupdate
from kupgrade.kernel.libc import Libc
from tests.fakes import liveupdate_cases as cases
from tests.fakes.liveupdate_made import leave as leave_sessions
from tests.fakes.liveupdate_rig import Rig

BULK = 64 << 20  # bytes
CHUNK = hashlib.shake_128(b"bulk").digest(1 << 20)


def milliseconds(began: float) -> float:
    return round((time.perf_counter() - began) * 1000, 1)


def preserve_bulk(rig: Rig) -> dict[str, float]:
    """64 MiB into a session of their own, which stays open."""
    fd = os.memfd_create("bulk")
    for _ in range(BULK // len(CHUNK)):
        os.write(fd, CHUNK)
    began = time.perf_counter()
    rig.kept["bulk"] = rig.create("bulk")
    took = {"create": milliseconds(began)}
    began = time.perf_counter()
    rig.kept["bulk"].preserve_fd(fd, 1)
    took["preserve 64 MiB"] = milliseconds(began)
    began = time.perf_counter()
    rig.lives("bulk")
    return took | {"does it live": milliseconds(began)}


def retrieve_bulk(rig: Rig) -> dict[str, Any]:
    began = time.perf_counter()
    with rig.retrieve("bulk") as session:
        fd = session.retrieve_fd(1)
        took = milliseconds(began)
        session.finish()
    equal = all(os.pread(fd, len(CHUNK), at) == CHUNK for at in range(0, BULK, len(CHUNK)))
    equal = equal and os.fstat(fd).st_size == BULK
    os.close(fd)
    return {"retrieve 64 MiB": took, "equal": equal}


def leave(release: str) -> None:
    """Nobody is told and nothing is stopped; the journal of the root file system is replayed over there."""
    libc = Libc()
    line = Path("/proc/cmdline").read_text().strip()
    kexec.load(libc, Path(f"/boot/vmlinuz-{release}"), Path(f"/boot/initrd.img-{release}"), line)
    os.sync()
    kexec.execute(libc)


def main() -> None:
    stage, out = sys.argv[1:3]
    rig = Rig(liveupdate.KERNEL, Path("/dev/shm"), os.dup)
    table = cases.TABLES[stage]
    found: dict[str, Any] = {"release": platform.release()}
    found["kho"] = dataclasses.asdict(kho.read())
    found["seen"] = {each.name: each.seen(rig) for each in table}
    try:
        if stage == "first":
            leave_sessions(rig)
            found["ms"] = preserve_bulk(rig)
        if stage == "second":
            found["ms"] = retrieve_bulk(rig)
    except (KernelError, OSError) as error:
        found["error"] = str(error)
    with Path(out).open("w") as file:
        json.dump(found, file)
        file.flush()
        os.fsync(file.fileno())
    if len(sys.argv) > 3:
        leave(sys.argv[3])


if __name__ == "__main__":
    main()
