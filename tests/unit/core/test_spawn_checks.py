"""What forbids a kernel beside this one, and what an operator should know before."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from kupgrade.core import spawn_checks
from kupgrade.model.pci import DomainType
from kupgrade.model.policy import Concern, OnUnknown
from kupgrade.model.spawn_facts import ModuleState, Nic, OtherFileSystem, Stack
from tests.fakes import facts as fake
from tests.fakes.facts import PORT_BUS, PORT_DISK, PORT_NIC

VAR = OtherFileSystem("/var", "/dev/vdb1", "ext4", True, (PORT_BUS,))
EFI = OtherFileSystem("/boot/efi", "/dev/vda15", "vfat", True, (PORT_DISK,))
CD = OtherFileSystem("/mnt", "/dev/sr0", "iso9660", False)
NVME = fake.root_port(PORT_DISK, "nvme")
REST = fake.spawn().ports[1:]


def root(**changes: Any) -> Any:
    return dataclasses.replace(fake.spawn().root or pytest.fail(), **changes)


def rules(facts: Any, policy: Any = None) -> list[str]:
    found = spawn_checks.refusals(facts, policy or fake.policy())
    assert all(each.rule and each.fact and each.remedy for each in found)
    return [each.rule for each in found]


def concerns(**spawn: Any) -> list[Concern]:
    return [each.concern for each in spawn_checks.warned(fake.facts(spawn=fake.spawn(**spawn)))]


def test_a_prepared_host_can() -> None:
    """Nothing forbids it, and only the virtual machine is remarked upon."""
    facts = fake.facts(spawn=fake.spawn())
    assert rules(facts) == []
    assert [each.concern for each in spawn_checks.warned(facts)] == [Concern.MACHINE]


STACK = "the root file system lies on one partition or disk"
ROOT_PLACE = "the root's disk is alone behind a root port"
NIC_PLACE = "each interface is alone behind a root port"
ONE = "only one file system is carried over in use"
IOMMU = "nothing of this kernel is in use once it has ended"


@pytest.mark.parametrize(
    ("spawn", "found"),
    [
        ({"module": ModuleState.MISSING}, ["kspawn is installed"]),
        ({"module": ModuleState.UNKNOWN}, ["kspawn is installed"]),
        ({"module": ModuleState.LOADED}, []),
        ({"xen": True}, ["no Xen guest"]),
        ({"encrypted": True}, ["memory is not encrypted"]),
        ({"interrupt_remapping": True}, []),
        ({"interrupt_remapping": True, "hypervisor": False}, ["no interrupt remapping"]),
        ({"ecam": False}, ["PCI configuration space is memory-mapped"]),
        ({"ecam": None}, ["PCI configuration space is memory-mapped"]),
        ({"longest_run": 0}, ["memory can be taken offline"]),
        ({"topology": fake.topology(1)}, ["cores"]),
        ({"root": root(stack=Stack.LINEAR)}, []),
        ({"root": root(stack=Stack.MAPPED)}, [STACK]),
        ({"root": root(stack=Stack.RAID, ports=(PORT_DISK, PORT_BUS))}, [STACK]),
        ({"root": root(stack=Stack.OTHER, ports=(), uuid="1")}, [STACK]),
        ({"root": root(ports=("",))}, [ROOT_PLACE]),
        ({"root": root(ports=())}, [ROOT_PLACE]),
        ({"root": root(ports=("0000:00:1f.0",))}, [ROOT_PLACE]),
        ({"root": root(ports=(PORT_DISK, PORT_DISK))}, []),
        ({"root": root(ports=(PORT_DISK, PORT_BUS))}, [ROOT_PLACE]),
        ({"root": root(uuid="")}, ["the root file system has a UUID"]),
        ({"root": None}, ["the root file system is known"]),
        ({"others": (VAR,)}, [ONE]),
        ({"others": (VAR, dataclasses.replace(VAR, mountpoint="/srv"))}, [ONE, ONE]),
        ({"others": (EFI, CD)}, []),
        ({"others": (dataclasses.replace(EFI, fstype="ext4"),)}, [ONE]),
        ({"swaps": ("/dev/vdb2",)}, ["no swap on a disk"]),
        ({"nics": ()}, []),
        ({"nics": (Nic("eth0", "", ""),)}, [NIC_PLACE]),
        ({"nics": (Nic("eth0", "", "0000:00:1f.0"),)}, [NIC_PLACE]),
        ({"nics": (Nic("eth0", "", PORT_NIC, ("br0",)),)}, ["addresses are on plain interfaces"]),
        ({"ports": (NVME, *REST)}, []),
        ({"ports": (fake.root_port(PORT_DISK, "xhci_hcd"), *REST)}, ["the drivers let their devices go"]),
        ({"ports": (fake.root_port(PORT_DISK, iommu=DomainType.IDENTITY), *REST)}, [IOMMU]),
        ({"ports": (*fake.spawn().ports[:-1], fake.root_port(PORT_BUS, iommu=DomainType.IDENTITY))}, [IOMMU]),
        ({"ports": (fake.root_port(PORT_DISK, iommu=DomainType.DMA_FQ), *REST)}, ["the IOMMU passes devices through"]),
        ({"ports": (fake.root_port(PORT_DISK, iommu=DomainType.UNKNOWN), *REST)}, ["the IOMMU passes devices through"]),
    ],
)  # fmt: skip
def test_what_forbids_it(spawn: Any, found: list[str]) -> None:
    """Each obstacle is one refusal with a rule, a fact and a remedy; what is fine is none."""
    assert rules(fake.facts(spawn=fake.spawn(**spawn))) == found


def test_a_kernel_that_stays_keeps_the_tables_of_its_iommu() -> None:
    """Then nobody else writes to their memory."""
    port = fake.root_port(PORT_DISK, iommu=DomainType.IDENTITY)
    facts = fake.facts(spawn=fake.spawn(ports=(port, *REST)))
    assert rules(facts, fake.spawn_policy(retire=False)) == []


@pytest.mark.parametrize("lockdown", ["integrity", "confidentiality"])
def test_lockdown_forbids_it(lockdown: str) -> None:
    """Under either kind no other kernel may be started."""
    assert rules(fake.facts(spawn=fake.spawn(), lockdown=lockdown)) == ["kernel lockdown permits another kernel"]


def test_files_elsewhere_forbid_it() -> None:
    """A workload whose files lie on another file system would not find them."""
    seen = fake.seen(elsewhere=("/srv/nfs",))
    assert rules(fake.facts(spawn=fake.spawn(), workloads=(seen,))) == ["files of demo lie on the root file system"]


def test_another_architecture_forbids_it() -> None:
    """The mechanism is one of x86."""
    assert rules(fake.facts(spawn=fake.spawn(), architecture="aarch64")) == ["x86-64"]


def test_unexamined_is_refused() -> None:
    """Without root nothing is known of the machine."""
    assert rules(fake.facts()) == ["the machine is known"]
    assert spawn_checks.warnings(fake.facts()) == ()


def test_high_apic_ids_forbid_it() -> None:
    """A CPU that an xAPIC cannot name is not given; one that stays behind is a warning."""
    cpus = fake.topology(4).cpus
    last = dataclasses.replace(fake.topology(4), cpus=(*cpus[:3], dataclasses.replace(cpus[3], apic_id=300)))
    assert rules(fake.facts(spawn=fake.spawn(topology=last))) == ["APIC IDs below 255"]
    assert Concern.CPUS in concerns(topology=last)


def test_the_policy_keeps_what_is_needed() -> None:
    """Keeping the root's disk is a contradiction; keeping anything else is not."""
    facts = fake.facts(spawn=fake.spawn())
    assert rules(facts, fake.spawn_policy(keep=(PORT_DISK,))) == ["needed devices may be handed over"]
    assert rules(facts, fake.spawn_policy(keep=(PORT_BUS,))) == []


@pytest.mark.parametrize(
    ("spawn", "concern"),
    [
        ({"ipi_broadcast": True}, Concern.PANIC),
        ({"hypervisor": False}, Concern.MACHINE),
        ({"interrupt_remapping": True}, Concern.INTERRUPTS),
        ({"interrupt_remapping": None}, Concern.INTERRUPTS),
        ({"movable_bytes": 0}, Concern.MEMORY),
        ({"topology": fake.topology(4, 2, (1, 3, 5, 7)), "smt": "off"}, Concern.SMT),
        ({"topology": fake.topology(4, offline=(1,))}, Concern.CPUS),
        ({"root": root(fstype="xfs")}, Concern.ROOT_FSTYPE),
        ({"others": (EFI,)}, Concern.MOUNTS),
        ({"others": (CD,)}, Concern.MOUNTS),
        ({"ports": (fake.root_port(PORT_DISK, "ahci"), *REST)}, Concern.DRIVERS),
        ({"ports": (*fake.spawn().ports[:2], fake.root_port(PORT_BUS, "xhci_hcd"))}, Concern.DEVICES),
        ({"nics": ()}, Concern.NETWORK),
        ({"unknown": {"swap": "no permission"}}, Concern.UNKNOWN),
    ],
)
def test_what_is_remarked_upon(spawn: Any, concern: Concern) -> None:
    """Each is a warning by default, and a refusal where the policy names it."""
    assert concern in concerns(**spawn)
    facts = fake.facts(spawn=fake.spawn(**spawn))
    assert rules(facts) == []
    assert rules(facts, fake.spawn_policy(refuse_on=(concern,))) == [f"no concern {concern.value} (refuse_on)"]
    assert all(spawn_checks.warnings(facts))


def test_unknown_lockdown_is_remarked_upon() -> None:
    """securityfs may not be mounted."""
    found = spawn_checks.warned(fake.facts(spawn=fake.spawn(), lockdown="unknown"))
    assert Concern.LOCKDOWN in [each.concern for each in found]


def test_a_policy_that_refuses_the_unknown() -> None:
    """on_unknown counts here as well."""
    facts = fake.facts(spawn=fake.spawn(unknown={"swap": "no permission"}))
    assert rules(facts, fake.policy(on_unknown=OnUnknown.REFUSE)) == ["swap is known"]


def test_the_digest_rests_on_what_does_not_change_by_itself() -> None:
    """Free memory and unused blocks leave it alone; another disk, driver or CPU does not."""
    before = fake.facts(spawn=fake.spawn()).digest

    def after(**changes: Any) -> str:
        return fake.facts(spawn=fake.spawn(**changes)).digest

    assert after(memory_available=1, memory_total=1, blocks_online=3, longest_run=1, movable_bytes=5) == before
    assert after(module=ModuleState.LOADED) == before
    assert after(root=root(uuid="other")) != before
    assert after(ports=(NVME, *REST)) != before
    assert after(topology=fake.topology(4, offline=(3,))) != before
    assert after(nics=()) != before
