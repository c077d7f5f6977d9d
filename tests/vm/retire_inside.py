"""Run as root in a virtual host, apart from its link, which ends with it: spawns a kernel and retires in its favour.

`retire_inside.py RELEASE KO OTHER_KO`: the new kernel's release, kspawn for this kernel and for that one. Lines that
begin with RETIRE, JSON behind it, go to the first serial port; what the new kernel inherited to the second.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from kupgrade.host import kernels, standby
from kupgrade.host.initramfs import CpioEntry, append_cpio
from kupgrade.kernel import cpu, kspawn, pci
from kupgrade.machine import buses, retirement, spawn_box
from kupgrade.machine.spawner import Spawner
from kupgrade.model.ids import UpgradeId
from kupgrade.model.kernel import KernelRelease
from kupgrade.model.machine import PciAddress
from kupgrade.model.spawn import Order

UPGRADE = UpgradeId("20260101-000000-abcdef")
FIRST = (3,)  # the others pass at the end
RESTING = 2  # offline in the old kernel before; it is only parked
WINDOW = 64 << 20
PLAIN, INITRD = Path("/run/plain.cpio"), Path("/run/standby.cpio")
NETWORK, CONTROL = 0x0200, 0x0780  # PCI classes
MODULES = ("virtio_pci", "virtio_net", "virtio_console")

# In the new kernel: what it came into, and its network, by hand.
REPORT = b"""(
until [ -e /run/kupgrade/inherited.json ]; do sleep 0.2; done
echo "INHERITED $(cat /run/kupgrade/inherited.json)" > /dev/ttyS1
ip addr add 192.0.2.2/24 dev eth0
ip link set eth0 up
echo "PCI $(ls /sys/bus/pci/devices)" > /dev/ttyS1
echo 1 > /sys/devices/system/cpu/cpu3/online
echo "ONLINE $(cat /sys/devices/system/cpu/online) $(cat /sys/devices/system/cpu/present)" > /dev/ttyS1
sleep 3
echo "END" > /dev/ttyS1
) &
until """


def tell(what: str, value: Any) -> None:
    with Path("/dev/ttyS0").open("w") as console:
        console.write(f"\nRETIRE {json.dumps({what: value})}\n")


def port_of(class_code: int) -> PciAddress:
    found = next(each for each in pci.functions() if each.class_code >> 8 == class_code and each.root_port)
    assert found.root_port is not None
    return found.root_port


def initramfs(release: KernelRelease, module: Path) -> None:
    standby.build(release, PLAIN, MODULES, kspawn=module)
    append_cpio(PLAIN, [CpioEntry("init", 0o100755, standby.INIT.replace(b"until ", REPORT, 1))], INITRD)


def run(release: str, other: Path) -> None:
    initramfs(KernelRelease(release), other)
    ports = [port_of(NETWORK), port_of(CONTROL)]
    tell("facts", {"meminfo": Path("/proc/meminfo").read_text().split()[1], "online": str(cpu.masks().online)})
    device = kspawn.open_device()
    spawner = Spawner(device)
    kernel = kernels.locate(KernelRelease(release)).kernel
    cpus, memory = spawner.cpus_before(FIRST), spawner.memory_before()
    spawner.take_cpus(cpus)
    place = spawner.take_memory(memory, spawn_box.needed_memory(kernel, INITRD, WINDOW))
    line = Path("/proc/cmdline").read_text()
    order = Order(
        UPGRADE, 2, 1, str(kernel), str(INITRD), line, place, WINDOW, serial=2, extra="loglevel=7 net.ifnames=0"
    )
    blueprint = spawner.lay_out(order, cpus)
    tell("box", str(place))
    spawner.start(blueprint)
    cpu.take_offline(RESTING)
    with spawner.watch(blueprint.instance) as watch:
        tell("hello", watch.await_hello(90.0).seconds)
        client = watch.client()
        client.ask("modules", 60.0, names=list(MODULES))
        tell("table", len(buses.table(buses.find(ports), 1)))
        retirement.retire(device, blueprint.instance, client, ports, 1, told=tell)


def main() -> None:
    release, own, other = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if not Path("/dev/kspawn").exists():
        subprocess.run(["insmod", str(own)], check=True)
    try:
        run(release, other)
    except Exception as error:
        tell("failed", f"{type(error).__name__}: {error}")
        time.sleep(1)
        raise


if __name__ == "__main__":
    main()
