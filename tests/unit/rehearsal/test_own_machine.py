"""The machine of a copy of this host: bootable by its own initrds, without a way out, only with what is needed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kupgrade import policy as policies
from kupgrade.errors import RefusedError
from kupgrade.host import command
from kupgrade.host.initramfs import CpioEntry, write_cpio
from kupgrade.model.kernel import CommandLine
from kupgrade.model.policy import Policy, WorkloadPolicy
from kupgrade.model.workload import Probe, ProbeKind
from kupgrade.rehearsal import own_guest, own_image, own_inside, own_machine

OLD, NEW = "6.12.1", "7.3.0"
VIRTIO = ("virtio_pci.ko.xz", "virtio-blk.ko", "ext4.ko.zst")
SATA = ("ahci.ko", "sd_mod.ko", "ext4.ko", "nvme.ko")


def installed(root: Path, release: str, modules: tuple[str, ...]) -> None:
    """A kernel with these modules in its initrd."""
    for path in (f"boot/vmlinuz-{release}", f"usr/lib/modules/{release}/modules.dep"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    entries = [CpioEntry(f"usr/lib/modules/{release}/kernel/{name}", 0o100644, b"x") for name in modules]
    (root / f"boot/initrd.img-{release}").write_bytes(write_cpio(entries))


def test_the_disk_is_one_that_both_initrds_can_drive(tmp_path: Path) -> None:
    """A physical host's initrds know SATA; a disk that only one of the two could see is not taken."""
    installed(tmp_path, OLD, (*VIRTIO, *SATA))
    installed(tmp_path, NEW, SATA)
    assert own_machine.controller((OLD, OLD), tmp_path).name == "virtio-blk"
    assert own_machine.controller((OLD, NEW), tmp_path).name == "ahci"


def test_initrds_without_any_driver_are_refused(tmp_path: Path) -> None:
    """It is told which release lacks what, and how to build another."""
    installed(tmp_path, OLD, VIRTIO)
    installed(tmp_path, NEW, ("virtio_pci.ko", "virtio_blk.ko"))
    with pytest.raises(RefusedError, match="initrds") as caught:
        own_machine.controller((OLD, NEW), tmp_path)
    assert NEW in caught.value.why
    assert "ext4" in caught.value.why.split(NEW)[1]
    assert "MODULES=most" in caught.value.remedy


def test_too_little_memory_is_refused_with_figures() -> None:
    """The machine grows with its workloads; what it takes and what there is stand in the message."""
    assert own_machine.memory(100 << 20, None, 4 << 30) == own_machine.BASE_MIB + 300
    assert own_machine.memory(100 << 20, 700, 1 << 30) == 700
    with pytest.raises(RefusedError) as caught:
        own_machine.memory(1 << 30, None, 2 << 30)
    assert "4096 MiB" in caught.value.why
    assert "2048 MiB" in caught.value.why


def test_a_missing_tool_is_told_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU is not installed by itself."""
    monkeypatch.setattr(command, "find", lambda tool: None if tool == own_machine.QEMU else f"/usr/bin/{tool}")
    with pytest.raises(RefusedError) as caught:
        own_machine.require_tools()
    assert "apt install qemu-system-x86" in caught.value.remedy


def test_the_machine_has_no_network_card(tmp_path: Path) -> None:
    """Nobody outside can be reached, whatever the copy believes to be."""
    shape = own_machine.Shape(
        tmp_path / "disk.img", own_machine.CONTROLLERS[0], tmp_path / "k", tmp_path / "i", "root=x", 1024, 2, kvm=False
    )
    words = own_machine.arguments(shape, tmp_path)
    assert words[words.index("-nic") + 1] == "none"
    assert not any("netdev" in word or "virtio-net" in word for word in words)


def test_the_command_line_is_the_hosts_without_its_machine() -> None:
    """Settings of the kernel stay; where the root is, shares of memory and consoles are the guest's own."""
    own = "BOOT_IMAGE=/vmlinuz root=/dev/vda1 ro quiet memmap=512M!1G rd.lvm.lv=vg/root lsm=apparmor console=tty0"
    line = CommandLine.parse(own_guest.command_line(own, "1-2", 2.0))
    assert line.words == ("ro", "quiet", "lsm=apparmor", "root=UUID=1-2", "console=ttyS0")
    slow = CommandLine.parse(own_guest.command_line(own, "1-2", 20.0))
    assert (slow.get("rootdelay"), slow.has("nowatchdog")) == ("600", True)


def test_only_the_policys_units_are_wanted_and_clocks_are_slower(tmp_path: Path) -> None:
    """The default target wants them and the agent; the drop-in is a policy, with longer spans and no limits."""
    probe = Probe(ProbeKind.TCP, port=80, timeout=10.0)
    workloads = (WorkloadPolicy("web", "web.service", max_blackout=2.0, probe=probe), WorkloadPolicy("x", "x.service"))
    policy = replace(Policy(), workloads=workloads, keep_services=("dbus*",), max_blackout=3.0)
    found = own_guest.settings(policy, ("web.service",), ("192.0.2.7/24",), 650, 20.0, "fstab\n")
    target = str(found["etc/systemd/system/kupgrade-rehearsal.target"])
    assert "Wants=dbus.socket kupgrade-lab-agent.service web.service\n" in target
    assert found["usr/lib/kupgrade-lab/addresses"] == "address replace 192.0.2.7/24 dev lo\n"
    assert "echo 650 >" in str(found["etc/systemd/system/kupgrade-rehearsal-network.service"])
    assert "WatchdogSec=0" in str(found["etc/systemd/system/web.service.d/kupgrade-rehearsal.conf"])

    directory = tmp_path / "etc/kupgrade/policy.d"
    directory.mkdir(parents=True)
    own = '[[workload]]\nname = "web"\nunit = "web.service"\n[workload.probe]\nkind = "tcp"\nport = 80\n'
    (directory / "50-own.toml").write_text(own + '[[workload]]\nname = "x"\nunit = "x.service"\n')
    (directory / "zzz-rehearsal.toml").write_text(str(found["etc/kupgrade/policy.d/zzz-rehearsal.toml"]))
    merged = policies.load(tmp_path)
    assert merged.deadline == 20 * policy.deadline
    assert merged.workloads[0].probe == replace(probe, timeout=200.0)
    assert min(merged.limit(each) or 0.0 for each in merged.workloads) == 86400.0
    assert merged.keeps_service("kupgrade-lab-agent.service")
    assert merged.keeps_service("dbus.service")


def test_policy_of_this_boot_goes_along(tmp_path: Path) -> None:
    """Drop-ins in /run lie where the vendor's are, and masks stay masks."""
    directory = tmp_path / "run/kupgrade/policy.d"
    directory.mkdir(parents=True)
    (directory / "60-now.toml").write_text("soak = 1\n")
    (directory / "50-default.toml").symlink_to("/dev/null")
    assert own_guest.volatile_policy(tmp_path) == {
        "usr/lib/kupgrade/policy.d/50-default.toml": own_image.Link("/dev/null"),
        "usr/lib/kupgrade/policy.d/60-now.toml": b"soak = 1\n",
    }
    assert own_guest.volatile_policy(tmp_path / "no") == {}


def test_addresses_are_the_global_ones() -> None:
    """Of every interface, each once; loopback's and link-local ones are none."""
    links = [
        {"ifname": "lo", "addr_info": [{"local": "127.0.0.1", "prefixlen": 8, "scope": "host"}]},
        {
            "ifname": "eth0",
            "addr_info": [
                {"local": "192.0.2.7", "prefixlen": 24, "scope": "global"},
                {"local": "fe80::1", "prefixlen": 64, "scope": "link"},
            ],
        },
    ]
    assert own_inside.addresses(links) == ("192.0.2.7/24",)


def test_whoever_was_connected_has_a_way_there_that_ends_nowhere() -> None:
    """Interfaces of this host's names, and a route to everybody; names that a batch could not hold are left out."""
    address = [{"local": "192.0.2.7", "prefixlen": 24, "scope": "global"}]
    links: list[dict[str, Any]] = [
        {"ifname": "lo", "addr_info": [{**address[0], "local": "192.0.2.9"}]},
        {"ifname": "eth0", "addr_info": address},
        {"ifname": "x'y", "addr_info": address},
        {"ifname": "eth1", "addr_info": []},
    ]
    assert own_inside.interfaces(links) == ("eth0",)
    lines = own_guest.peers(("eth0", "br-0"), ("192.0.2.7/24", "2001:db8::1/64", "10.0.0.1/32")).splitlines()
    alone = ["address del 192.0.2.7/24 dev lo", "address add 192.0.2.7/32 dev lo"]
    alone += ["address del 2001:db8::1/64 dev lo", "address add 2001:db8::1/128 dev lo"]
    assert lines[:6] == [*alone, "link add eth0 type dummy", "link set eth0 up"]
    assert "route append ::/0 dev br-0 metric 1001" in lines
    assert lines[-1] == "route append 0.0.0.0/0 dev lo metric 9000"


def test_the_boot_that_restores_images_starts_no_workload() -> None:
    """It has a target of its own, and PIDs that its initrd has chosen."""
    found = own_guest.settings(Policy(), ("web.service",), (), 650, 2.0, "", ("eth0",))
    assert "web.service" not in str(found[f"etc/systemd/system/{own_guest.LIVE_TARGET}"])
    network = str(found["etc/systemd/system/kupgrade-rehearsal-network.service"])
    assert f"grep -qw {own_guest.LIVE_WORD} /proc/cmdline || echo 650 >" in network
    assert "link add eth0" in str(found["usr/lib/kupgrade-lab/peers"])
