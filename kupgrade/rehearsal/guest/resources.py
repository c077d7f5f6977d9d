"""What the running kernel has of the machine, as one JSON object: CPUs, memory, devices, address map. Stdlib only."""

from __future__ import annotations

import errno
import glob
import json
import os
import re


def read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return ""


def blocks() -> dict[str, str]:
    """The memory blocks that are online, per zone, as ranges of their numbers."""
    found: dict[str, list[int]] = {}
    for path in glob.glob("/sys/devices/system/memory/memory[0-9]*"):
        if read(f"{path}/state") == "online":
            zone = (read(f"{path}/valid_zones").split() or [""])[0]
            found.setdefault(zone, []).append(int(os.path.basename(path).removeprefix("memory")))
    return {zone: ranges(sorted(numbers)) for zone, numbers in sorted(found.items())}


def ranges(numbers: list[int]) -> str:
    """As `0-3,7`."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(f"{first}-{last}" if first != last else str(first) for first, last in spans)


def drivers() -> dict[str, str]:
    """PCI functions with their identity and the driver that they are bound to."""
    found = {}
    for path in sorted(glob.glob("/sys/bus/pci/devices/*")):
        link = f"{path}/driver"
        driver = os.path.basename(os.readlink(link)) if os.path.islink(link) else ""
        found[os.path.basename(path)] = f"{read(path + '/vendor')}:{read(path + '/device')} {driver}".strip()
    return found


def processes() -> dict[str, int]:
    """How many processes with a program of their own there are, by its name; udev's workers come and go."""
    found: dict[str, int] = {}
    for path in glob.glob("/proc/[0-9]*"):
        name = read(f"{path}/comm")
        if read(f"{path}/cmdline") and name and not name.startswith("(udev-worker"):
            found[name] = found.get(name, 0) + 1
    return dict(sorted(found.items()))


def complaints() -> list[str]:
    """What the kernel complained about since it started."""
    with os.fdopen(os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as log:
        found = []
        while True:
            try:
                record = log.read(8192)
            except OSError as error:
                if error.errno == errno.EPIPE:  # overwritten meanwhile: the next one is there
                    continue
                break
            if not record:
                break
            text = record.decode(errors="replace").partition(";")[2].partition("\n")[0]
            if re.search(r"\b(BUG|WARNING|Oops|stall|hung task)\b", text):
                found.append(text)
        return found


def main() -> None:
    memory = dict(line.split(":", 1) for line in read("/proc/meminfo").splitlines())
    print(
        json.dumps(
            {
                "release": os.uname().release,
                "cpus": read("/sys/devices/system/cpu/online"),
                "present": read("/sys/devices/system/cpu/present"),
                "memory_kib": int(memory["MemTotal"].split()[0]),
                "blocks": blocks(),
                "drivers": drivers(),
                "iomem": [line for line in read("/proc/iomem").splitlines() if not line.startswith(" ")],
                "available_kib": int(memory["MemAvailable"].split()[0]),
                "descriptors": int(read("/proc/sys/fs/file-nr").split()[0]),
                "descriptors_of_init": len(os.listdir("/proc/1/fd")),
                "processes": processes(),
                "complaints": complaints(),
                "kspawn": any(line.startswith("kspawn ") for line in read("/proc/modules").splitlines()),
            }
        )
    )


if __name__ == "__main__":
    main()
