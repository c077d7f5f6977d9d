"""Who holds a flock(2): /proc/locks, read only, so that asking never gets in the holder's way."""

from __future__ import annotations

import re
from pathlib import Path

# "1: FLOCK  ADVISORY  WRITE 1234 fe:01:131 0 EOF"; waiters have "->" after the number.
_HELD = re.compile(r"\d+:\s+FLOCK\s+\S+\s+WRITE\s+(\d+)\s+[0-9a-f]+:[0-9a-f]+:(\d+)\s")


def holder(path: Path, root: Path = Path("/")) -> int | None:
    """The PID that holds an exclusive flock on `path`; None: nobody, or it cannot be told.

    Compared by inode number only: stat and /proc/locks name different devices on btrfs and overlayfs.
    """
    try:
        inode = path.stat().st_ino
        text = (root / "proc/locks").read_text()
    except OSError:
        return None
    for line in text.splitlines():
        match = _HELD.match(line)
        if match and int(match[2]) == inode:
            return int(match[1])
    return None
