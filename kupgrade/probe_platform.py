"""Facts of the platform that errata ask for: modules, devices, the machine below, single sysctls."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from kupgrade.host import command
from kupgrade.kernel import pci
from kupgrade.kernel.libc import read_text
from kupgrade.model.erratum import Erratum, PlatformFacts
from kupgrade.model.facts import Unknowns

_SYSCTL = re.compile(r"[a-z0-9_.-]+(?:\.[A-Za-z0-9_.*-]+)*")


def observe_platform(errata: Iterable[Erratum], root: Path = Path("/")) -> PlatformFacts:
    """What could not be determined is None; the matcher tells what that leaves open."""
    unknown = Unknowns()
    functions = unknown.ask("PCI devices", lambda: pci.functions(root), None)
    names = sorted({name for erratum in errata for name in erratum.match.sysctl})
    drivers = {each.driver.replace("-", "_") for each in functions or () if each.driver}
    loaded = unknown.ask("modules", lambda: _modules(root), None)
    return PlatformFacts(
        modules=None if loaded is None else tuple(sorted(loaded | drivers)),
        pci=None if functions is None else tuple(f"{each.vendor:04x}:{each.device:04x}" for each in functions),
        hypervisor=unknown.ask("hypervisor", _hypervisor, None),
        cpu_vendor=unknown.ask("CPU vendor", lambda: _vendor(root), None),
        sysctls={name: unknown.ask(name, lambda name=name: _sysctl(name, root), None) for name in names},  # type: ignore[misc]
    )


def _modules(root: Path) -> set[str]:
    """Loaded ones; a kernel that has no modules at all has no such file (kernel/module/procfs.c)."""
    if not (root / "proc/modules").exists() and (root / "proc/version").exists():
        return set()
    return {line.split()[0] for line in read_text(root / "proc/modules").splitlines() if line}


def _hypervisor() -> str | None:
    """systemd-detect-virt(1): exits with 1 when it says "none"."""
    return command.run(["systemd-detect-virt", "--vm"], check=False, timeout=10).stdout.strip() or None


def _vendor(root: Path) -> str | None:
    match = re.search(r"^vendor_id\s*:\s*(\S+)", read_text(root / "proc/cpuinfo"), re.MULTILINE)
    return match[1] if match else None


def _sysctl(name: str, root: Path) -> str | None:
    if not _SYSCTL.fullmatch(name) or ".." in name:
        return None
    return " ".join(read_text(root / "proc/sys" / name.replace(".", "/")).split())
