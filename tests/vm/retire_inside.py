"""Run as root in a virtual host, apart from its link, which ends with it: spawns a kernel and retires in its favour.

`retire_inside.py first RELEASE KO OTHER_KO [again]`: the new kernel's release, kspawn for this kernel and for that one.
Lines that begin with RETIRE, JSON behind it, go to the first serial port. The new kernel says on the second what it
inherited; with `again` it starts the old release beside itself in its turn (`retire_inside.py next`), fences it,
starts it once more and retires, and the third kernel says on the first port what it inherited.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from kupgrade.kernel import cpu, kspawn, pci
from kupgrade.machine import buses, retirement, spawn_box
from kupgrade.machine.spawner import Spawner
from kupgrade.model.ids import UpgradeId
from kupgrade.model.kernel import KernelRelease
from kupgrade.model.machine import MemoryRange, PciAddress
from kupgrade.model.spawn import Order

UPGRADE = UpgradeId("20260101-000000-abcdef")
FIRST = (3,)  # the others pass at the end
RESTING = 2  # offline in the first kernel when it ends: it is only parked
WINDOW = 64 << 20
PLAIN, INITRD = Path("/run/plain.cpio"), Path("/run/standby.cpio")
NETWORK, CONTROL, DISK = 0x0200, 0x0780, 0x0100  # PCI classes
MODULES = ("virtio_pci", "virtio_net", "virtio_console")
NEXT = "next"  # a directory in the second kernel's initramfs

# In a spawned kernel: what it came into, and its network, by hand.
REPORT = """(
until [ -e /run/kupgrade/inherited.json ]; do sleep 0.2; done
echo "INHERITED $(cat /run/kupgrade/inherited.json)" > /dev/{port}
ip addr add 192.0.2.2/24 dev eth0
ip link set eth0 up
echo "PCI $(ls /sys/bus/pci/devices)" > /dev/{port}
echo 1 > /sys/devices/system/cpu/cpu3/online
echo "ONLINE $(cat /sys/devices/system/cpu/online) $(cat /sys/devices/system/cpu/present)" > /dev/{port}
{then}
sleep 2
echo "END" > /dev/{port}
) &
until """
AGAIN = f"python3 -sP /{NEXT}/retire_inside.py next > /dev/ttyS1 2>&1"


def tell(what: str, value: Any) -> None:
    with Path("/dev", os.environ.get("RETIRE_PORT", "ttyS0")).open("w") as console:
        console.write(f"\nRETIRE {json.dumps({what: value})}\n")


def port_of(class_code: int) -> PciAddress:
    """The root port of a device, or the device itself where its bus has none."""
    found = next(each for each in pci.functions() if each.class_code >> 8 == class_code)
    return found.root_port or found.address


def initramfs(release: str, module: Path, port: str, further: dict[str, bytes]) -> None:
    from kupgrade.host import standby
    from kupgrade.host.initramfs import CpioEntry, append_cpio

    standby.build(KernelRelease(release), PLAIN, MODULES, kspawn=module)
    text = REPORT.format(port=port, then=AGAIN if further else "")
    entries = [CpioEntry("init", 0o100755, standby.INIT.replace(b"until ", text.encode(), 1))]
    if further:
        entries.append(CpioEntry(NEXT, 0o40755))
    entries += [CpioEntry(f"{NEXT}/{name}", 0o100644, data) for name, data in further.items()]
    append_cpio(PLAIN, entries, INITRD)


def facts() -> dict[str, str]:
    return {"meminfo": Path("/proc/meminfo").read_text().split()[1], "online": str(cpu.masks().online)}


def hand_disk(device: kspawn.Kspawn) -> None:
    """As after a handover of the disk: it stands still, and on CPU 1 somebody waits for it for ever."""
    ctypes.CDLL(None).mlockall(3)  # nothing of this program may have to come from it
    fd, place = os.open("/dev/vda", os.O_RDONLY | os.O_DIRECT), mmap.mmap(-1, 4096)
    buses.quiesce(device, buses.find([port_of(DISK)]))
    if os.fork() == 0:
        os.sched_setaffinity(0, {1})
        os.preadv(fd, [place], 1 << 30)
        os._exit(0)
    time.sleep(0.5)


def retire(order: Order, *, rest: int | None = None, fence: bool = False) -> None:
    """Start it and end in its favour; with `fence` start, stop and give everything back once before."""
    ports = [port_of(NETWORK), port_of(CONTROL)]
    tell("facts", facts())
    device = kspawn.open_device()
    spawner = Spawner(device)
    for go in (False, True) if fence else (True,):
        before = facts()
        cpus, memory = spawner.cpus_before(FIRST), spawner.memory_before()
        spawner.take_cpus(cpus)
        size = spawn_box.needed_memory(Path(order.kernel), Path(order.initrd), WINDOW)
        order = replace(order, memory=spawner.take_memory(memory, size))
        blueprint = spawner.lay_out(order, cpus)
        tell("box", str(order.memory))
        spawner.start(blueprint)
        if rest is not None:
            cpu.take_offline(rest)
        with spawner.watch(blueprint.instance) as watch:
            tell("hello", watch.await_hello(90.0).seconds)
            client = watch.client()
            client.ask("modules", 60.0, names=list(MODULES))
            if go and rest is not None:
                hand_disk(device)
            if go:
                retirement.retire(device, blueprint.instance, client, ports, 1, told=tell)
        began = time.monotonic()
        spawner.fence(blueprint.instance)
        spawner.wipe(blueprint.instance)
        spawner.give_cpus(cpus)
        spawner.give_memory(memory)
        tell("given back", {"kept": facts() == before, "seconds": time.monotonic() - began})


def first(release: str, own: Path, other: Path, again: bool) -> None:
    from kupgrade.host import kernels

    if not Path("/dev/kspawn").exists():
        subprocess.run(["insmod", str(own)], check=True)
    further: dict[str, bytes] = {}
    if again:
        running = os.uname().release
        initramfs(running, own, "ttyS0", {})
        kernel = kernels.locate(KernelRelease(running)).kernel
        found = {"kernel": kernel, "initrd": INITRD, "retire_inside.py": Path(__file__)}
        further = {name: path.read_bytes() for name, path in found.items()}
    initramfs(release, other, "ttyS1", further)
    retire(an_order(1, kernels.locate(KernelRelease(release)).kernel, INITRD, 2), rest=RESTING)


def an_order(generation: int, kernel: Path, initrd: Path, serial: int) -> Order:
    line, extra = Path("/proc/cmdline").read_text(), "loglevel=7 net.ifnames=0"
    nowhere = MemoryRange(0, 1)  # until it is taken
    return Order(UPGRADE, 2, generation, str(kernel), str(initrd), line, nowhere, WINDOW, serial=serial, extra=extra)


def main() -> None:
    try:
        if sys.argv[1] == "first":
            first(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]), len(sys.argv) > 5)
        else:
            os.environ["RETIRE_PORT"] = "ttyS1"
            folder = Path("/", NEXT)
            retire(an_order(2, folder / "kernel", folder / "initrd", 1), fence=True)
    except Exception as error:
        tell("failed", f"{type(error).__name__}: {error}")
        time.sleep(1)
        raise


if __name__ == "__main__":
    main()
