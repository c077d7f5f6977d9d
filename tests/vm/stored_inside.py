"""A service in a virtual host that keeps its state in memory files, which systemd holds for it while it does not run.

Started without any it makes them: `table`, sealed, and `cache`, of several MiB, and an eventfd `wake`. Started with
some it looks at what it got. Either way it says so in `/var/lib/stored/BOOT-ID.json`. Standard library only.
"""

from __future__ import annotations

import array
import fcntl
import hashlib
import json
import os
import signal
import socket
import stat
from pathlib import Path
from typing import Any

TABLE = b"one row after another\n" * 1000
CACHE = hashlib.shake_128(b"cache").digest(1 << 20) * 5
SEALED = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
FIRST = 3  # SD_LISTEN_FDS_START
SAYS = Path("/var/lib/stored")


def notify(text: str, *fds: int) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect(os.environ["NOTIFY_SOCKET"].replace("@", "\0", 1))
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sender.sendmsg([text.encode()], rights)


def memory(name: str, content: bytes, seals: int) -> None:
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, content)
    if seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    notify(f"FDSTORE=1\nFDNAME={name}", fd)


def seen(fd: int) -> dict[str, Any]:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        return {"target": str(Path(f"/proc/self/fd/{fd}").readlink())}
    content = os.pread(fd, status.st_size, 0)
    seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    return {"size": status.st_size, "digest": hashlib.sha256(content).hexdigest(), "seals": seals}


def main() -> None:
    names = os.environ.get("LISTEN_FDNAMES", "").split(":") if int(os.environ.get("LISTEN_FDS", "0")) else []
    found = {name: seen(FIRST + number) for number, name in enumerate(names)}
    if not names:
        memory("table", TABLE, SEALED)
        memory("cache", CACHE, 0)
        notify("FDSTORE=1\nFDNAME=wake", os.eventfd(7))
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with (SAYS / f"{boot}.json").open("w") as file:
        json.dump(found, file)
        file.flush()
        os.fsync(file.fileno())
    notify("READY=1")
    signal.pause()


if __name__ == "__main__":
    main()
