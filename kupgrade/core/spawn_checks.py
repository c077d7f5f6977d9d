"""Rules that a host must meet before a kernel is started beside this one: facts in, refusals and warnings out. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kupgrade.core.blocks import movablecore
from kupgrade.core.spawn_choice import (
    UNWILLING,
    SpawnChoice,
    apic_ids,
    choose,
    memory_size,
    needed_ports,
    translated,
)
from kupgrade.model.facts import Facts
from kupgrade.model.pci import CLASS_DISPLAY, DomainType
from kupgrade.model.plan import Refusal
from kupgrade.model.policy import Concern, OnUnknown, Policy, SpawnOptions
from kupgrade.model.spawn_facts import ModuleState, Nic, OtherFileSystem, SpawnFacts, Stack
from kupgrade.model.workload import Fate

KNOWN_DRIVERS = frozenset(("virtio-pci", "nvme"))  # seen to let their devices go and to take them back
BOOT_PARTITIONS = ("/boot/efi", "/efi", "/boot")
XAPIC_LIMIT = 255  # without interrupt remapping the new kernel runs its local APICs in xAPIC mode
KEXEC = "Use the kexec engine"
REMAPPING = "no interrupt remapping"  # a rule about devices: a kernel without any does without it


@dataclass(frozen=True, slots=True)
class Warned:
    """Something to know beforehand, which a policy may forbid. `text`: a sentence without its full stop."""

    concern: Concern
    text: str
    remedy: str = ""


def refusals(facts: Facts, policy: Policy) -> tuple[Refusal, ...]:
    """What makes it impossible, and what the policy forbids. Those of every engine (core/checks) are not among them."""
    chosen = choose(facts, policy)
    found = list(chosen) if isinstance(chosen, tuple) else []
    spawn, options = facts.spawn, policy.engine.spawn
    if spawn is None:
        return tuple(found)
    found += about_machine(facts, spawn)
    if isinstance(chosen, SpawnChoice):
        found += unreachable(spawn, chosen.cpus)
    found += [*_storage(facts, spawn), *_network(spawn), *_devices(spawn, options), *_sandboxes(facts, policy)]
    if policy.on_unknown is OnUnknown.REFUSE:
        remedy = "The policy refuses unknown facts (on_unknown)"
        found += [Refusal(f"{name} is known", f"unknown: {why}", remedy) for name, why in spawn.unknown.items()]
    for each in warned(facts):
        if each.concern in options.refuse_on:
            remedy = each.remedy or "Change the host, or the policy"
            found.append(Refusal(f"no concern {each.concern.value} (refuse_on)", each.text, remedy))
    return tuple(found)


def warnings(facts: Facts) -> tuple[str, ...]:
    """What an operator should know before saying yes."""
    return tuple(f"{each.text}: {each.remedy}" if each.remedy else each.text for each in warned(facts))


def _sandboxes(facts: Facts, policy: Policy) -> Iterator[Refusal]:
    """Beside an old kernel no systemd runs yet; what it alone can make cannot be made again there."""
    for entry, seen in zip(policy.workloads, facts.workloads, strict=True):
        workload = seen.workload
        if entry.fate is not Fate.KEEP or workload is None:
            continue
        if seen.sandbox.unmade:
            what = ", ".join(seen.sandbox.unmade[:4])
            fact = f"{entry.unit or entry.name} has mounts that only systemd makes ({what})"
            yield Refusal(f"{entry.name} can be restored before systemd", fact, f"{KEXEC}, or give it fate = restart")


def about_machine(facts: Facts, spawn: SpawnFacts) -> Iterator[Refusal]:
    """What makes it impossible to start any kernel beside this one."""
    if facts.architecture != "x86_64":
        yield Refusal("x86-64", f"this is {facts.architecture}", KEXEC)
    if spawn.module not in (ModuleState.LOADED, ModuleState.INSTALLED):
        why = spawn.unknown.get("kspawn", f"there is no module kspawn for {facts.release}")
        yield Refusal("kspawn is installed", why, "Build and install it (kmod/README.md), e.g. by dkms")
    if facts.lockdown not in ("none", "unknown"):
        fact = f"lockdown is {facts.lockdown}, under which no other kernel may be started"
        yield Refusal("kernel lockdown permits another kernel", fact, "Switch Secure Boot off, or boot lockdown=none")
    if spawn.xen:
        yield Refusal("no Xen guest", "this is one: its CPUs are not started by INIT and SIPI", KEXEC)
    if spawn.encrypted:
        yield Refusal("memory is not encrypted", "SME, SEV or TDX is on", "Boot with mem_encrypt=off, or use kexec")
    if spawn.interrupt_remapping and not spawn.hypervisor:
        fact = "interrupt remapping is on: it blocks the message-signalled interrupts of another kernel's devices"
        yield Refusal(REMAPPING, fact, "Boot with intremap=off")
    if not spawn.ecam:
        why = spawn.unknown.get("ECAM", "the firmware has no MCFG table")
        yield Refusal("PCI configuration space is memory-mapped", why, "Use a PCI Express machine (QEMU: q35)")


def unreachable(spawn: SpawnFacts, cpus: tuple[int, ...]) -> Iterator[Refusal]:
    """CPUs that a new kernel could not address."""
    far = [i for i in apic_ids(spawn.topology, cpus) if i >= XAPIC_LIMIT] if spawn.topology else []
    if far:
        fact = f"the new kernel would get CPUs with the APIC IDs {', '.join(map(str, far))}"
        yield Refusal(f"APIC IDs below {XAPIC_LIMIT}", fact, "Set [engine.spawn] cores lower, or use the kexec engine")


def _storage(facts: Facts, spawn: SpawnFacts) -> Iterator[Refusal]:
    root = spawn.root
    if root is not None:
        if root.stack not in (Stack.PLAIN, Stack.LINEAR):
            fact = f"{root.source} on / lies on {root.stack.value}"
            yield Refusal("the root file system lies on one partition or disk", fact, KEXEC)
        elif len(set(root.ports)) != 1 or spawn.port(root.ports[0]) is None:
            fact = f"{root.source}: {' '.join(root.ports).strip() or 'it lies behind no root port'}"
            yield Refusal("the root's disk is alone behind a root port", fact, "Put it there (QEMU: pcie-root-port)")
        if not root.uuid:
            why = spawn.unknown.get("root UUID", "it has none")
            yield Refusal("the root file system has a UUID", f"{root.source}: {why}", "Give it one, e.g. tune2fs -U")
    for each in spawn.others:
        if each.writable and not _for_booting(each):
            fact = f"{each.source} is mounted read-write on {each.mountpoint}"
            remedy = f"Unmount it (umount {each.mountpoint}), or use the kexec engine"
            yield Refusal("only one file system is carried over in use", fact, remedy)
    if spawn.swaps:
        yield Refusal("no swap on a disk", f"in use: {', '.join(spawn.swaps)}", "swapoff -a, or use zram")
    for workload in facts.workloads:
        if workload.elsewhere:
            fact = f"it uses files on {', '.join(workload.elsewhere)}"
            yield Refusal(f"files of {workload.name} lie on the root file system", fact, KEXEC)


def _for_booting(mounted: OtherFileSystem) -> bool:
    """Whether nothing but an update of kernels or boot loaders writes there."""
    return mounted.mountpoint in BOOT_PARTITIONS and mounted.fstype in ("vfat", "msdos")


def _network(spawn: SpawnFacts) -> Iterator[Refusal]:
    for nic in spawn.nics:
        if nic.through:
            fact = f"the addresses of {nic.name} are those of {', '.join(nic.through)}"
            yield Refusal("addresses are on plain interfaces", fact, "Configure it without bridge, bond or VLAN")
        if not nic.port or spawn.port(nic.port) is None:
            yield Refusal("each interface is alone behind a root port", _place(nic), "Put it there, or take it down")


def _place(nic: Nic) -> str:
    return f"{nic.name} lies behind {nic.port or 'none'}" + (", with others" if nic.port else "")


def _devices(spawn: SpawnFacts, options: SpawnOptions) -> Iterator[Refusal]:
    """What is wrong with the devices that must change hands."""
    for address in needed_ports(spawn):
        port = spawn.port(address)
        if port is None:
            continue  # said above
        if options.keeps(address):
            fact = f"the policy keeps {address} ({' '.join(port.drivers)})"
            yield Refusal("needed devices may be handed over", fact, "Shorten [engine.spawn] keep")
        if unwilling := sorted(UNWILLING & set(port.drivers)):
            fact = f"{address}: {', '.join(unwilling)} cannot make one device still"
            yield Refusal("the drivers let their devices go", fact, KEXEC)
        if translated(port):
            kinds = sorted({each.iommu_type.value for each in port.movable.functions if each.iommu_type})
            fact = f"the IOMMU domain of {address} is {', '.join(kinds)}"
            yield Refusal("the IOMMU passes devices through", fact, "Boot with intel_iommu=off amd_iommu=off")
    # Passing through is a word in the IOMMU's tables, too; and who changes them is gone.
    passed = [
        each.address for each in spawn.ports for f in each.movable.functions if f.iommu_type is DomainType.IDENTITY
    ]
    if passed and options.retire:
        fact = f"an IOMMU passes {passed[0]} through by tables in memory of this kernel, which others will write to"
        remedy = "Boot with intel_iommu=off amd_iommu=off, or keep this kernel: [engine.spawn] retire = false"
        yield Refusal("nothing of this kernel is in use once it has ended", fact, remedy)


def warned(facts: Facts) -> tuple[Warned, ...]:
    """The warnings with their names."""
    spawn = facts.spawn
    if spawn is None:
        return ()
    parts: tuple[Callable[[Facts, SpawnFacts], Iterator[Warned]], ...]
    parts = (_about_machine, _about_cpus, _about_storage, _about_devices)
    found = [each for part in parts for each in part(facts, spawn)]
    found += [Warned(Concern.UNKNOWN, f"unknown: {name}: {why}") for name, why in spawn.unknown.items()]
    return tuple(found)


def _about_machine(facts: Facts, spawn: SpawnFacts) -> Iterator[Warned]:
    if spawn.ipi_broadcast:
        text = "a panic of this kernel would stop the new one, too, until this one has retired"
        yield Warned(Concern.PANIC, text, "boot with no_ipi_broadcast=1")
    if spawn.hypervisor:
        yield Warned(
            Concern.MACHINE, "this is a virtual machine: what its hypervisor set up for a CPU does not move along"
        )
    else:
        yield Warned(
            Concern.MACHINE, "this is real hardware: a kernel beside another was seen in virtual machines only"
        )
    if spawn.hypervisor and spawn.interrupt_remapping:
        text = "interrupt remapping is on; a hypervisor that enforces it blocks the new kernel's interrupts"
        yield Warned(Concern.INTERRUPTS, text, "boot with intremap=off")
    if spawn.interrupt_remapping is None:
        yield Warned(Concern.INTERRUPTS, "whether interrupts are remapped is unknown", "boot with intremap=off")
    if facts.lockdown == "unknown":
        yield Warned(Concern.LOCKDOWN, "kernel lockdown is unknown (securityfs is not mounted)")
    if spawn.block_size and not spawn.movable_bytes:
        text = "no memory is kept movable, so it may not be had when it is asked for"
        yield Warned(Concern.MEMORY, text, f"boot with {movablecore(memory_size(facts, SpawnOptions()))}")


def _about_cpus(_: Facts, spawn: SpawnFacts) -> Iterator[Warned]:
    if spawn.topology is None:
        return
    offline = [each for each in spawn.topology.cpus if not each.online]
    if offline and spawn.smt in ("off", "forceoff"):
        yield Warned(Concern.SMT, "SMT is off: the second threads wait in this kernel's memory and may stay behind")
    elif lost := [each.number for each in offline if each.apic_id is None]:
        text = f"CPUs {', '.join(map(str, lost))} are offline and their APIC IDs unknown: they stay behind"
        yield Warned(Concern.CPUS, text, "bring them online before")
    if any(each.apic_id is not None and each.apic_id >= XAPIC_LIMIT for each in spawn.topology.cpus):
        yield Warned(Concern.CPUS, f"CPUs with an APIC ID of {XAPIC_LIMIT} or more stay behind")


def _about_storage(_: Facts, spawn: SpawnFacts) -> Iterator[Warned]:
    if spawn.root is not None and spawn.root.fstype != "ext4":
        yield Warned(Concern.ROOT_FSTYPE, f"the root file system is {spawn.root.fstype}; ext4 alone was tried")
    left = [each for each in spawn.others if not each.writable or _for_booting(each)]
    if left:
        names = ", ".join(each.mountpoint for each in left)
        yield Warned(Concern.MOUNTS, f"not mounted in the new kernel: {names}", "mount them again afterwards")


def _about_devices(_: Facts, spawn: SpawnFacts) -> Iterator[Warned]:
    needed = needed_ports(spawn)
    if not spawn.nics:
        yield Warned(Concern.NETWORK, "no interface carries an address, so no connection is kept")
    for port in spawn.ports:
        strange = sorted(set(port.drivers) - KNOWN_DRIVERS - UNWILLING)
        if strange and port.address in needed:
            text = f"whether {', '.join(strange)} lets {port.address} go is only known when it is asked"
            yield Warned(Concern.DRIVERS, text)
        display = any(each.class_code >> 16 == CLASS_DISPLAY for each in port.movable.functions)
        if port.address not in needed and (display or UNWILLING & set(port.drivers) or translated(port)):
            yield Warned(Concern.DEVICES, f"the device behind {port.address} ({' '.join(port.drivers)}) stays behind")
