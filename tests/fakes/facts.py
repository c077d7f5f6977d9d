"""Facts, policy and target for tests of the planner: a healthy host, changed by keyword."""

from __future__ import annotations

import dataclasses
from typing import Any

from kupgrade.model.facts import Descriptor, Facts, ProcessFacts, StoreFacts, WorkloadFacts
from kupgrade.model.kernel import Compression, Initrd, KernelImage, KernelRelease
from kupgrade.model.policy import Policy, WorkloadPolicy
from kupgrade.model.target import Target
from kupgrade.model.workload import Workload

OLD, NEW = "6.12.1-amd64", "7.3.4-amd64"


def workload(**changes: Any) -> Workload:
    base = Workload("demo", "demo.service", "/system.slice/demo.service", 500, (500, 501), tcp_ports=(7070,))
    return dataclasses.replace(base, **changes)


def process(**changes: Any) -> ProcessFacts:
    base = ProcessFacts(500, "demo", root=True, below_root=True, session_leader=True, traced_by=0)
    return dataclasses.replace(base, **changes)


def descriptor(kind: str, name: str = "", **changes: Any) -> Descriptor:
    return dataclasses.replace(Descriptor(5, kind, name), **changes)


def seen(*processes: ProcessFacts, **changes: Any) -> WorkloadFacts:
    base = WorkloadFacts(
        "demo",
        "demo.service",
        workload(),
        processes=processes or (process(),),
        anonymous_bytes=64 << 20,
        own_clock=True,
    )
    return dataclasses.replace(base, **changes)


def facts(**changes: Any) -> Facts:
    base = Facts(
        boot_id="boot-a",
        release=OLD,
        architecture="x86_64",
        cmdline="root=/dev/vda ro quiet panic=3",
        root_user=True,
        systemd=True,
        kexec_loaded=False,
        kexec_disabled=False,
        lockdown="none",
        criu_version=(4, 2, 1),
        criu_check="",
        nft=True,
        panic_timeout=3,
        pid_max=4194304,
        highest_kernel_thread=90,
        memory_bytes=2 << 30,
        watchdog="watchdog0 (i6300ESB timer)",
        watchdog_why="",
        boot_loader="grub",
        boot_default="old",
        stores=StoreFacts("/var/lib/kupgrade/images", 10 << 30, "/dev/pmem0", 512 << 20),
        workloads=(seen(),),
        active_services=("cron.service", "dbus.service", "demo.service", "needed.service"),
        needed_services=("needed.service",),
        boot_seconds=5.0,
        early_agent=True,
    )
    return dataclasses.replace(base, **changes)


def policy(**changes: Any) -> Policy:
    return dataclasses.replace(Policy(workloads=(WorkloadPolicy("demo", unit="demo.service"),)), **changes)


def target(**changes: Any) -> Target:
    image = KernelImage(
        path=f"/boot/vmlinuz-{NEW}",
        release=KernelRelease(NEW),
        version=NEW,
        architecture="x86_64",
        size=1,
        sha256="0",
        compression=Compression.ZSTD,
        protocol=0x20F,
        relocatable=True,
        xloadflags=1,
        init_size=1,
        cmdline_limit=2047,
        signed=True,
    )
    initrd = Initrd(f"/boot/initrd.img-{NEW}", 1, "0", (Compression.ZSTD,), (KernelRelease(NEW),), True, True)
    base = Target(image, initrd, (), True, (), f"/boot/vmlinuz-{OLD}", f"/boot/initrd.img-{OLD}")
    for name in list(changes):
        if name in ("release", "architecture", "signed"):
            value = changes.pop(name)
            value = KernelRelease(value) if name == "release" else value
            base = dataclasses.replace(base, image=dataclasses.replace(base.image, **{name: value}))
        elif name in ("releases", "has_init", "has_shell"):
            base = dataclasses.replace(base, initrd=dataclasses.replace(base.initrd, **{name: changes.pop(name)}))
    return dataclasses.replace(base, **changes)
