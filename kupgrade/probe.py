"""Facts of this host: read-only, and every failure becomes a recorded UNKNOWN with its reason."""

from __future__ import annotations

import os
import time
import zlib
from pathlib import Path

from kupgrade.errata.load import load as load_errata
from kupgrade.errors import KernelError, KupgradeError
from kupgrade.host import bootloader, command, hooks, reboot_required
from kupgrade.host.criu import Criu
from kupgrade.host.descriptor_store import Stores
from kupgrade.host.systemd import Systemd
from kupgrade.kernel import blockfs, kexec, kho, memory, proc, sysctl, watchdog
from kupgrade.model.facts import Facts, StoreFacts, Unknowns, WorkloadFacts
from kupgrade.model.policy import Policy
from kupgrade.probe_descriptors import observe_stores
from kupgrade.probe_platform import observe_platform
from kupgrade.probe_spawn import observe_spawn
from kupgrade.probe_workload import observe_workload

# What the worker, the lock and the agent of the next boot are started by.
UNITS = ("kupgrade-apply.service", "kupgrade-crossing.target", "kupgrade-lock.service", "kupgrade-resume.service")


def probe(root: Path, policy: Policy) -> Facts:
    """Read everything a plan rests on."""
    unknown = Unknowns()
    state = kexec.read_state(root)
    systemd = Systemd(root)
    criu = Criu()
    version = unknown.ask("criu version", criu.version, None)
    dog, dog_why = _watchdog(root)
    workloads = tuple(
        unknown.ask(
            f"workload {entry.name}",
            lambda entry=entry: observe_workload(entry, policy, systemd, root),  # type: ignore[misc]
            WorkloadFacts(entry.name, entry.unit, None, "it could not be examined"),
        )
        for entry in policy.workloads
    )
    called, hook_faults = hooks.find(root)
    errata = load_errata(root)
    kept = [w.unit for w in workloads if w.unit and w.workload is not None]
    stored = [*(each.unit for each in policy.preserve), *kept]
    descriptor_stores = observe_stores(stored, Stores(root), root, unknown) if systemd.running else ()
    return Facts(
        boot_id=proc.boot_id(root),
        release=str(proc.release(root)),
        architecture=os.uname().machine,
        cmdline=str(proc.cmdline(root)),
        root_user=os.geteuid() == 0,
        systemd=systemd.running,
        kexec_loaded=state.loaded,
        kexec_disabled=state.load_disabled,
        lockdown=state.lockdown.value,
        criu_version=version,
        criu_check=_criu_check(criu) if version and os.geteuid() == 0 else "",
        nft=command.find("nft") is not None,
        panic_timeout=unknown.ask("kernel.panic", lambda: sysctl.panic_timeout(root), 0),
        pid_max=unknown.ask("pid_max", lambda: proc.pid_max(root), 32768),
        highest_kernel_thread=unknown.ask("kernel threads", lambda: _early_threads(root), 0),
        memory_bytes=unknown.ask("memory", lambda: proc.meminfo(root)["MemTotal"], 0),
        watchdog=dog,
        watchdog_why=dog_why,
        boot_loader=unknown.ask("boot loader", lambda: bootloader.detect(root).value, "unknown"),
        boot_default=unknown.ask("boot default", lambda: _boot_default(root), ""),
        boot_once=unknown.ask("next boot", lambda: bootloader.chosen_once(root), ""),
        stores=_stores(policy, root, unknown),
        workloads=workloads,
        active_services=unknown.ask("services", systemd.active_services, ()),
        needed_services=unknown.ask("dependencies", lambda: tuple(sorted(systemd.needed_by(kept))), ()) if kept else (),
        boot_seconds=unknown.ask("boot time", systemd.boot_seconds, 0.0),
        checksum_rate=_checksum_rate(),
        early_agent=unknown.ask("mounts", lambda: _early_agent(policy, workloads, root), False),
        missing_units=systemd.missing(UNITS),
        unknown=dict(unknown),
        spawn=observe_spawn(root) if os.geteuid() == 0 else None,
        kho=kho.read(root),
        hooks=called,
        hook_faults=hook_faults,
        errata=errata,
        platform=observe_platform(errata, root),
        descriptor_stores=descriptor_stores,
        reboot_packages=reboot_required.read(root).packages or (),
    )


def _early_agent(policy: Policy, workloads: tuple[WorkloadFacts, ...], root: Path) -> bool:
    """Whether the agent can run before any other unit of the boot: state, images and workloads on the root's mount."""
    everything = blockfs.mounts(root)
    paths = ["/var/lib/kupgrade", policy.engine.kexec.disk_path, "/usr/lib/python3", "/usr/sbin"]
    on_root = all((m := blockfs.holding(everything, p)) is not None and m.mountpoint == "/" for p in paths)
    return on_root and not any(w.elsewhere or w.confined for w in workloads)


def _boot_default(root: Path) -> str:
    found = bootloader.read_default(root)
    return "" if found.obstacle or found.entry is None else found.entry.id


def _criu_check(criu: Criu) -> str:
    try:
        criu.check()
    except KupgradeError as error:
        return str(error)
    return ""


def _early_threads(root: Path) -> int:
    """The highest PID among the kernel threads that are older than every process of user space but PID 1."""
    everybody = proc.processes(root)
    first = min((p.starttime for p in everybody if not p.kernel_thread and p.pid != 1), default=0)
    return max((p.pid for p in everybody if p.kernel_thread and p.starttime < first), default=0)


def _watchdog(root: Path) -> tuple[str, str]:
    devices = watchdog.watchdogs(root)
    if not devices:
        return "", "this host has no watchdog device"
    outliving = [device for device in devices if device.identity != watchdog.SOFTWARE]
    if not outliving:
        return "", "this host's only watchdog is softdog, a timer of the kernel that ends"
    if watchdog.stop_on_reboot(root) is not False:
        return "", "watchdog.stop_on_reboot is not 0, so kexec stops it (options watchdog stop_on_reboot=0)"
    return f"{outliving[0].name} ({outliving[0].identity})", ""


def _stores(policy: Policy, root: Path, unknown: Unknowns) -> StoreFacts:
    options = policy.engine.kexec
    disk = root / options.disk_path.lstrip("/")
    while not disk.exists():
        disk = disk.parent
    free = unknown.ask("free disk space", lambda: blockfs.free_bytes(disk), None)
    name = Path(options.pmem_device).name
    size: int | None = None
    why = f"there is no {options.pmem_device}"
    for device in memory.pmem_devices(root):
        if device.name == name:
            size, why = device.size, ""
    available = unknown.ask("available memory", lambda: proc.meminfo(root)["MemAvailable"], None)
    rate = _disk_rate(disk, root)
    return StoreFacts(options.disk_path, free, options.pmem_device, size, why, available, rate)


def _disk_rate(directory: Path, root: Path) -> float | None:
    """By the newest kernel image on the same file system: nothing is written to find out."""
    device = directory.stat().st_dev
    images = [path for path in (root / "boot").glob("vmlinu*") if path.is_file() and path.stat().st_dev == device]
    return blockfs.read_rate(max(images, key=lambda path: path.stat().st_size)) if images else None


def _checksum_rate() -> float:
    data = bytes(8 << 20)
    begun = time.perf_counter()
    zlib.crc32(data)
    return len(data) / max(time.perf_counter() - begun, 1e-6)


def gone(error: KernelError) -> bool:
    """Whether what was asked about has ended meanwhile."""
    return error.errno in (2, 3)
