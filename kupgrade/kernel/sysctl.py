"""Settings below /proc/sys."""

from __future__ import annotations

from pathlib import Path

_PANIC = "proc/sys/kernel/panic"


def panic_timeout(root: Path = Path("/")) -> int:
    """kernel.panic: seconds from a panic to the restart; 0: it waits for ever. Raises OSError."""
    return int((root / _PANIC).read_text())


def set_panic_timeout(seconds: int, root: Path = Path("/")) -> None:
    """kernel.panic. Raises OSError."""
    (root / _PANIC).write_text(f"{seconds}\n")
