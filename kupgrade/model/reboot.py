"""Who asks for a restart of the host: /run/reboot-required and the packages named in its .pkgs file."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from kupgrade.errors import BadInputError
from kupgrade.model.kernel import KernelRelease

# Debian and Ubuntu: package names of kernels end in the release. linux-base and the like name none, and stay.
_KERNEL = re.compile(r"linux-(?:image|image-unsigned|binary|binary-unsigned|modules|modules-extra)-([0-9].*)")


@dataclass(frozen=True, slots=True)
class RebootWishes:
    """`flag`: whether /run/reboot-required is there; `packages`: as named, in order; None: nobody is named."""

    flag: bool = False
    packages: tuple[str, ...] | None = None


def answered(package: str, running: str) -> bool:
    """Whether what `package` asked for is there: it brought the kernel `running`, or an older one than that."""
    match = _KERNEL.fullmatch(package)
    try:
        return match is not None and KernelRelease(match[1]) <= KernelRelease(running)
    except BadInputError:
        return False


def left(packages: Iterable[str], running: str) -> tuple[str, ...]:
    """Those that still ask for a restart, each once."""
    return tuple(dict.fromkeys(each for each in packages if not answered(each, running)))
