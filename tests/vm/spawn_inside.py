"""Run as root in a virtual host: starts a kernel beside the running one and takes everything back, several times.

`spawn_inside.py cycles RELEASE KO OTHER_KO TIMES`: the new kernel's release, kspawn for this kernel and for that one.
`spawn_inside.py deaths ...`: the new kernel panics, resets, switches off. Prints progress to stderr, one line of JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from kupgrade.errors import KupgradeError
from kupgrade.host import kernels, standby
from kupgrade.host.initramfs import CpioEntry, append_cpio
from kupgrade.kernel import cpu, kspawn, memory_blocks
from kupgrade.machine import spawn_box
from kupgrade.machine.spawner import Spawner
from kupgrade.machine.standby_client import StandbyClient
from kupgrade.model.codec import decode, encode
from kupgrade.model.ids import UpgradeId
from kupgrade.model.kernel import KernelRelease
from kupgrade.model.memory import BlockState
from kupgrade.model.spawn import CpusBefore, Instance, MemoryBefore, Order
from kupgrade.probe_spawn import observe_spawn

UPGRADE = UpgradeId("20260101-000000-abcdef")
FIRST = (3, 2)
WINDOW = 64 << 20
INITRD = Path("/run/standby.cpio")
PINGS = 200


def say(text: str) -> None:
    print(f"{time.monotonic():9.3f} {text}", file=sys.stderr, flush=True)


def resources() -> dict[str, Any]:
    """What must be the same before and after."""
    online = [each.number for each in memory_blocks.blocks() if each.state is BlockState.ONLINE]
    zones = [each.zones[:1] for each in memory_blocks.blocks()]
    total = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    return {"cpus": str(cpu.masks().online), "blocks": online, "zones": str(zones), "memory": total}


def journaled(value: Any) -> Any:
    """As another process would have it: out of the journal's JSON."""
    return decode(type(value), json.loads(json.dumps(encode(value))))


def ping(client: StandbyClient) -> list[float]:
    took = []
    for _ in range(PINGS):
        began = time.perf_counter()
        client.ask("ping")
        took.append((time.perf_counter() - began) * 1000)
    return sorted(took)


def cycle(number: int, release: str, timeout: float = 90.0) -> dict[str, Any]:
    result: dict[str, Any] = {}
    kernel = kernels.locate(KernelRelease(release)).kernel
    with kspawn.open_device() as device:
        spawner = Spawner(device)
        cpus: CpusBefore = journaled(spawner.cpus_before(FIRST))
        memory: MemoryBefore = journaled(spawner.memory_before())
        began = time.monotonic()
        spawner.take_cpus(cpus)
        result["cpus taken in"] = time.monotonic() - began
        began = time.monotonic()
        size = spawn_box.needed_memory(kernel, INITRD, WINDOW)
        place = spawner.take_memory(memory, size)
        result["memory taken in"], result["memory"] = time.monotonic() - began, place.size
        line = Path("/proc/cmdline").read_text()
        extra = os.environ.get("SPAWN_EXTRA", "")
        serial = 2 if number % 2 == 0 else 0  # with a console of its own, and without any
        order = Order(UPGRADE, 2, 1, str(kernel), str(INITRD), line, place, WINDOW, serial=serial, extra=extra)
        began = time.monotonic()
        blueprint = spawner.lay_out(order, cpus)
        say(f"{blueprint.instance}")
        say(f"command line: {spawn_box.command_line(blueprint)}")
        spawner.start(blueprint)
        result["prepared and started in"] = time.monotonic() - began
        with spawner.watch(blueprint.instance) as watch:
            hello = watch.await_hello(timeout)
            result["hello after"], result["release"], result["boot_id"] = hello.seconds, hello.release, hello.boot_id
            say(f"hello: {hello}")
            client = watch.client()
            took = ping(client)
            result["ping ms"] = {"median": statistics.median(took), "p99": took[int(PINGS * 0.99)], "max": took[-1]}
            result["status"] = client.ask("status")
            beats = watch.beats()
            time.sleep(0.5)
            result["beats in 0.5 s"] = watch.beats() - beats
            if number == 0:
                began = time.monotonic()
                result["modules"] = client.ask("modules", 60.0, names=["nf_tables", "tcp_diag", "dm_snapshot"])
                result["modules took"] = time.monotonic() - began
                began = time.monotonic()
                result["criu"] = client.ask("prepare", 90.0, writes=1 << 20, tcp=[], udp=[])
                result["criu took"] = time.monotonic() - began
                try:
                    client.ask("load-ssdt", table="AAAA")
                except KupgradeError as error:
                    result["bad ssdt"] = str(error)
    # The process was killed: another one goes on from what the journal says.
    with kspawn.open_device() as device:
        spawner = Spawner(device)
        instance: Instance = journaled(blueprint.instance)
        began = time.monotonic()
        spawner.fence(instance)
        result["fenced in"] = time.monotonic() - began
        with spawner.watch(instance) as watch:
            beats = watch.beats()
            time.sleep(0.2)
            result["still beats"] = watch.beats() - beats
        began = time.monotonic()
        spawner.wipe(instance)
        result["wiped in"] = time.monotonic() - began
        with spawner.mapped(instance.window) as view:
            result["window after wipe"] = (
                hashlib.sha256(view).hexdigest() == hashlib.sha256(bytes(len(view))).hexdigest()
            )
        began = time.monotonic()
        spawner.give_cpus(cpus)
        spawner.give_cpus(cpus)
        spawner.give_memory(memory)
        spawner.give_memory(memory)
        result["given back in"] = time.monotonic() - began
        result["left"] = [str(spawner.cpus_taken(cpus)), list(spawner.memory_taken(memory)), device.info().nr_started]
    return result


def deaths(release: str) -> dict[str, Any]:
    """How each end of the new kernel is seen from here; this kernel goes on."""
    result: dict[str, Any] = {}
    kernel = kernels.locate(KernelRelease(release)).kernel
    deadly = INITRD.with_name("deadly.cpio")
    with kspawn.open_device() as device:
        spawner = Spawner(device)
        cpus, memory = spawner.cpus_before(FIRST), spawner.memory_before()
        spawner.take_cpus(cpus)
        place = spawner.take_memory(memory, spawn_box.needed_memory(kernel, INITRD, WINDOW) + (1 << 20))
        for key in ("c", "b", "o"):
            # Long after the agent's hello, which a busy emulator may delay: before it nobody has set a panic flag.
            end = b"(sleep 20; echo %s > /proc/sysrq-trigger) &\n(\n\tuntil python3" % key.encode()
            script = standby.INIT.replace(b"(\n\tuntil python3", end)
            assert script != standby.INIT
            append_cpio(INITRD, [CpioEntry("init", 0o100755, script)], deadly)
            line = Path("/proc/cmdline").read_text()
            order = Order(UPGRADE, 2, 1, str(kernel), str(deadly), line, place, WINDOW, serial=2)
            blueprint = spawner.lay_out(order, cpus)
            spawner.start(blueprint)
            began = time.monotonic()
            with spawner.watch(blueprint.instance) as watch:
                try:
                    hello = watch.await_hello(60.0)
                    say(f"{hello}")
                    while time.monotonic() - began < 60.0:
                        watch.check_alive()
                        time.sleep(0.001)
                    said = "nothing"
                except KupgradeError as error:
                    said = str(error)
                result[key] = [said, time.monotonic() - began, watch.registers()]
            say(f"{key}: {result[key]}")
            spawner.fence(blueprint.instance)
            spawner.wipe(blueprint.instance)
        spawner.give_cpus(cpus)
        spawner.give_memory(memory)
    return result


def main() -> None:
    verb, release, own, other = sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])
    if not Path("/dev/kspawn").exists():
        subprocess.run(["insmod", str(own)], check=True)
    began = time.monotonic()
    modules = ("virtio_net", "virtio_blk", "ext4")
    built = standby.build(KernelRelease(release), INITRD, modules, kspawn=other)
    found: dict[str, Any] = {"initrd": built.size, "built in": time.monotonic() - began, "absent": built.absent}
    say(f"{built}")
    found["facts"] = encode(observe_spawn())
    before = resources()
    try:
        if verb == "deaths":
            found["deaths"] = deaths(release)
        else:
            found["same"] = built == standby.build(KernelRelease(release), INITRD, modules, kspawn=other)
            found["cycles"] = []
            for number in range(int(sys.argv[5])):
                result = cycle(number, release)
                result["resources kept"] = resources() == before
                found["cycles"].append(result)
                say(f"cycle {number}: {json.dumps(result)}")
    except KupgradeError as error:
        found["error"] = str(error)
    found["before"], found["after"] = before, resources()
    found["complaints"] = [
        line
        for line in subprocess.run(["dmesg"], capture_output=True, text=True).stdout.splitlines()
        if any(word in line for word in ("WARNING:", "BUG:", "Oops", "Call Trace", "rcu: INFO"))
    ]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
