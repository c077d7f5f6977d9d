"""The kernel an upgrade leads to, as read from its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kupgrade.model.kernel import Initrd, KernelImage


@dataclass(frozen=True, slots=True)
class Target:
    """Image, initrd, and what is missing. `back_*`: files of the running release, for the way back."""

    image: KernelImage
    initrd: Initrd
    missing_options: tuple[str, ...]  # of the kernel configuration, that criu and the lock need
    config_known: bool
    missing_modules: tuple[str, ...]  # of this host's storage and network
    back_kernel: str
    back_initrd: str
    handover: tuple[str, ...] = ("it was not looked at",)  # why it cannot take over what the running kernel leaves it
    config: Mapping[str, str] | None = None  # its configuration; None: unknown
    userfaultfd: bool | None = None  # whether memory can be filled in place; None: unknown
    problems: tuple[str, ...] = ()  # what could not be determined, in words
