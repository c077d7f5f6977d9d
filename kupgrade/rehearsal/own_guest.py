"""What the copy of this host is given so that it starts as a guest: only what the policy's workloads need, and nothing
that reaches out.

Nothing that an administrator or a package enabled is enabled in it (own_image.py takes those links out); its default
target wants the units of the policy, and systemd starts what these need. There is no network card.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kupgrade.model.kernel import CommandLine
from kupgrade.model.policy import Policy
from kupgrade.model.workload import ProbeKind
from kupgrade.rehearsal.own_image import Link, Settings
from kupgrade.rehearsal.tree import GUEST

TARGET = "kupgrade-rehearsal.target"
AGENT = "kupgrade-lab-agent.service"
NETWORK = "kupgrade-rehearsal-network.service"
LIVE_TARGET = "kupgrade-rehearsal-live.target"  # of the boot that restores images of what runs here: no workload
LIVE_WORD = "kupgrade.rehearsal=live"  # on its command line
_SYSTEM = "etc/systemd/system"
# Of what an administrator enables early, this decides over what a workload may do.
EARLY = ("apparmor.service", "kupgrade-lock.service", "kupgrade-resume.service")
_ALWAYS_KEPT = "kupgrade-*"
# Of this host's command line: where its root is, what is split among its processors and memory, its consoles, its
# devices, and what belongs to one boot.
_OWN = (
    *("BOOT_IMAGE", "initrd", "root", "rootflags", "rootfstype", "rootdelay", "bootdev", "zfs", "ip", "nfsroot"),
    *("cryptdevice", "cryptopts", "resume", "resume_offset", "init", "rdinit", "systemd.unit"),
    *("mem", "memmap", "hugepages", "hugepagesz", "default_hugepagesz", "hugetlb_cma", "cma", "crashkernel"),
    *("movablecore", "kernelcore", "reserve_mem", "maxcpus", "nr_cpus", "possible_cpus", "isolcpus", "nohz_full"),
    *("rcu_nocbs", "irqaffinity", "housekeeping", "numa_balancing", "console", "earlycon", "earlyprintk", "netconsole"),
    *("iommu", "intel_iommu", "amd_iommu", "pci", "acpi", "efi", "vfio-pci.ids", "noapic", "softlockup_panic"),
    *("kupgrade.ticket", "kupgrade.return"),
)
_OWN_PREFIXES = ("rd.lvm", "rd.luks", "rd.md", "rd.dm", "rd.iscsi", "rd.znet", "rd.multipath", "luks.", "hugetlb")

UNIT_TARGET = """[Unit]
Description=Rehearsal of a kernel upgrade of this host
Requires=sysinit.target
Wants={wanted}
After=sysinit.target
AllowIsolate=yes
"""
UNIT_NETWORK = """[Unit]
Description=This host's addresses, on the loopback interface of its rehearsal, and its PIDs
DefaultDependencies=no
After=local-fs.target
Before=network-pre.target network.target network-online.target {before}
Wants=network-pre.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=-/bin/sh -c 'exec ip -force -batch /usr/lib/kupgrade-lab/addresses'
# The first processes of so small a boot would have PIDs that kernel threads of the next boot take.
ExecStart=-/bin/sh -c 'grep -qw {live} /proc/cmdline || echo {last_pid} > /proc/sys/kernel/ns_last_pid'
# A way to the peers of connections that are restored; it ends nowhere.
ExecStart=-/bin/sh -c 'grep -qw {live} /proc/cmdline && ip -force -batch /usr/lib/kupgrade-lab/peers'

[Install]
WantedBy=sysinit.target
"""


def command_line(own: str, uuid: str, slow: float) -> str:
    """The guest's kernel command line: this host's, without what belongs to its machine."""
    line = CommandLine.parse(own)
    strange = [name for name, _ in line if name.replace("-", "_").startswith(_OWN_PREFIXES)]
    line = line.without(*_OWN, *strange).with_("root", f"UUID={uuid}").appended("console", "ttyS0")
    if not line.has("ro"):
        line = line.with_("rw")
    if slow > _BRISK:  # an initrd gives the disk half a minute, and a kernel its own tasks seconds
        line = line.with_("rootdelay", str(round(30 * slow))).with_("nowatchdog")
        line = line.with_("systemd.default_device_timeout_sec", str(round(90 * slow)))
    return str(line)


_BRISK = 4.0  # so many times slower than this host is taken for ordinary


def settings(
    policy: Policy,
    units: Sequence[str],
    addresses: Iterable[str],
    last_pid: int,
    slow: float,
    fstab: str,
    interfaces: Iterable[str] = (),
) -> Settings:
    """All files that are written over the copy.

    `last_pid`: workloads get PIDs after it; `slow`: how many times slower it is expected to be; `interfaces`: those of
    this host with addresses.
    """
    agent, own = (GUEST / AGENT).read_text(), tuple(addresses)
    spans = "".join(f"DefaultTimeout{which}Sec={round(90 * slow)}\n" for which in ("Start", "Stop"))
    early = "".join(f"Wants={unit}\n" for unit in (*EARLY, NETWORK))
    found: dict[str, str | bytes | Link] = {
        "etc/fstab": fstab,
        "etc/crypttab": "",
        "usr/lib/kupgrade-lab/agent.py": (GUEST / "agent.py").read_bytes(),
        "usr/lib/kupgrade-lab/addresses": "".join(f"address replace {each} dev lo\n" for each in own),
        "usr/lib/kupgrade-lab/peers": peers(interfaces, own),
        f"{_SYSTEM}/{AGENT}": agent,
        f"{_SYSTEM}/{NETWORK}": UNIT_NETWORK.format(before=" ".join(units), last_pid=last_pid, live=LIVE_WORD),
        f"{_SYSTEM}/{TARGET}": UNIT_TARGET.format(wanted=" ".join(("dbus.socket", AGENT, *units))),
        f"{_SYSTEM}/{LIVE_TARGET}": UNIT_TARGET.format(wanted=f"dbus.socket {AGENT}"),
        f"{_SYSTEM}/default.target": Link(TARGET),
        f"{_SYSTEM}/sysinit.target.d/kupgrade-rehearsal.conf": f"[Unit]\n{early}",
        "etc/systemd/system.conf.d/zzz-kupgrade-rehearsal.conf": f"[Manager]\n{spans}",
        "etc/kupgrade/policy.d/zzz-rehearsal.toml": policy_text(policy, slow),
    }
    if slow > _BRISK:
        for unit in units:
            path = f"{_SYSTEM}/{unit}.d/kupgrade-rehearsal.conf"
            found[path] = "[Service]\nTimeoutStartSec=infinity\nWatchdogSec=0\n"
    return found


def peers(interfaces: Iterable[str], addresses: Iterable[str]) -> str:
    """For `ip -batch`: interfaces of these names, with a route to everybody. What is sent there is gone.

    criu connects a restored socket, without a packet, to a peer that a route has to lead to. Where a kernel has no
    dummy interfaces, loopback's own route does for IPv4. With its prefix an address on loopback has all its neighbours
    there, too: they would answer with a reset.
    """
    lines = []
    for address in addresses:
        alone = f"{address.partition('/')[0]}/{128 if ':' in address else 32}"
        if alone != address:
            lines += [f"address del {address} dev lo", f"address add {alone} dev lo"]
    for number, name in enumerate(interfaces, 1000):
        lines += [f"link add {name} type dummy", f"link set {name} up"]
        lines += [f"route append {anywhere} dev {name} metric {number}" for anywhere in ("0.0.0.0/0", "::/0")]
    return "\n".join((*lines, "route append 0.0.0.0/0 dev lo metric 9000")) + "\n"


def volatile_policy(root: Path) -> Settings:
    """Drop-ins of this boot, which a copy without /run has not; where the vendor's are, /etc wins over them as ever."""
    found: dict[str, str | bytes | Link] = {}
    for path in sorted((root / "run/kupgrade/policy.d").glob("*.toml")):
        masked = path.is_symlink() and path.resolve() == Path("/dev/null")
        found[f"usr/lib/kupgrade/policy.d/{path.name}"] = Link("/dev/null") if masked else path.read_bytes()
    return found


def policy_text(policy: Policy, slow: float) -> str:
    """A drop-in above this host's policy: its spans for a slower machine, no limits, nothing told to other programs.

    What is predicted and seen is held against this host's own limits afterwards.
    """
    lines = [f'deadline = "{_span(policy.deadline, slow)}"', 'soak = "0s"', "respect_inhibitors = false"]
    if policy.max_blackout is not None:
        lines.append(f'max_blackout = "{_NO_LIMIT}"')
    if not policy.keeps_service(AGENT):
        lines.append(f"keep_services = {json.dumps([*policy.keep_services, _ALWAYS_KEPT])}")
    tables: dict[str, Mapping[str, Any]] = {
        "engine.kexec": {"network_timeout": _span(policy.engine.kexec.network_timeout, slow)},
        "hooks": {
            "timeout": _span(policy.hooks.timeout, slow),
            "blackout_timeout": _span(policy.hooks.blackout_timeout, slow),
        },
        "metrics": {"textfile": ""},
    }
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    for workload in policy.workloads:
        lines += ["", "[[workload]]", f"name = {json.dumps(workload.name)}"]
        if workload.max_blackout is not None:
            lines.append(f'max_blackout = "{_NO_LIMIT}"')
        if workload.probe.kind is not ProbeKind.NONE:
            lines += ["[workload.probe]", f'timeout = "{_span(workload.probe.timeout, slow)}"']
    return "\n".join(lines) + "\n"


_NO_LIMIT = "1d"


def _span(seconds: float, slow: float) -> str:
    return f"{round(seconds * slow)}s"
