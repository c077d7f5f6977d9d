"""/run/reboot-required (its presence is a wish) and /run/reboot-required.pkgs (who wishes, one package a line).

Written by package scripts of Debian and Ubuntu with touch and >>, read by unattended-upgrades, kured and people.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kupgrade.host.durable import write_durably
from kupgrade.model.reboot import RebootWishes, left

FLAG = "run/reboot-required"
PACKAGES = "run/reboot-required.pkgs"
TEXT = b"*** System restart required ***\n"
_LARGEST = 1 << 16  # bytes
_MODE = 0o644


def read(root: Path = Path("/")) -> RebootWishes:
    """Who asks for a restart. Names that are no names are left out, as is what is beyond a page or two."""
    try:
        with (root / PACKAGES).open("rb") as file:
            text = file.read(_LARGEST).decode(errors="replace")
        lines = tuple(line.strip() for line in text.splitlines())
        packages = tuple(line for line in lines if line and line.isascii() and line.isprintable())
    except OSError:
        packages = None
    return RebootWishes((root / FLAG).exists(), packages)


def settle(release: str, others: Sequence[str], root: Path = Path("/")) -> None:
    """Take out what the running `release` answers, and name `others`; may be done again after any interruption.

    A wish without a name stays: what it asks for is not known. When nobody is left the flag goes first, so that no
    moment shows a wish without its names; who asked in that very moment gets the flag back.
    """
    found = read(root)
    rest = tuple(dict.fromkeys((*left(found.packages or (), release), *others)))
    if rest:
        if rest != found.packages:
            write_durably(root / PACKAGES, "".join(f"{each}\n" for each in rest).encode(), _MODE)
        _raise_flag(root)
    elif found.packages:
        (root / FLAG).unlink(missing_ok=True)
        if not left(read(root).packages or (), release):
            (root / PACKAGES).unlink(missing_ok=True)
        if read(root).packages:
            _raise_flag(root)


def _raise_flag(root: Path) -> None:
    if not (root / FLAG).exists():
        write_durably(root / FLAG, TEXT, _MODE)
