"""Rules that a host and a target must meet before anything is staged: facts in, refusals and warnings out."""

from __future__ import annotations

from kupgrade.core.hooks import hook_refusals
from kupgrade.core.live_update import live_update_refusals
from kupgrade.core.obstacles import obstacles
from kupgrade.core.stops import stop_losses, stop_refusals
from kupgrade.model.facts import Facts
from kupgrade.model.kernel import CommandLine
from kupgrade.model.plan import Loss, Refusal
from kupgrade.model.policy import OnUnknown, Policy
from kupgrade.model.spawn import WINDOW_PARAMETER
from kupgrade.model.target import Target
from kupgrade.model.workload import Fate, StoreKind

PMEM_HEADROOM = 1.5  # images of a forked tree hold shared pages once per process
# Of host_refusals, those that concern kexec only.
KEXEC_RULES = (
    *("kexec is allowed", "this kernel has kexec", "no kexec image is loaded"),
    "the firmware started this kernel",
)
STORE_EXTRA = 32 << 20  # bytes for everything that is not memory


def host_refusals(facts: Facts, policy: Policy) -> tuple[Refusal, ...]:
    """Why this host can do no upgrade at all, whatever the target."""
    found: list[Refusal] = []

    def no(rule: str, fact: str, remedy: str) -> None:
        found.append(Refusal(rule, fact, remedy))

    if not facts.root_user:
        no("root is needed", "this process is not root", "Run kupgrade as root")
    if not facts.systemd:
        no("systemd is PID 1", "/run/systemd/system is missing", "Boot the host with systemd")
    if facts.missing_units:
        fact = f"{', '.join(facts.missing_units)}: not there, or masked"
        no("kupgrade's units are installed", fact, "Install kupgrade's package; a wheel has no units")
    if facts.criu_version is None:
        no(
            "criu is installed",
            facts.unknown.get("criu version", "not found"),
            "Install criu and python3-pycriu >= 4.2.1",
        )
    if facts.criu_check:
        no("criu works on this kernel", facts.criu_check, "See criu check --all")
    if not facts.nft:
        no("nftables is installed", "there is no nft", "Install nftables")
    if facts.boot_once:
        # It goes before the default, which a new kernel that dies needs: that one would be started by the reset.
        fact = f"the boot loader was told to start {facts.boot_once!r:.80} next"
        remedy = "Take it back: grub-editenv - unset next_entry; or bootctl set-oneshot ''"
        no("a reset boots the default", fact, remedy)
    if facts.kexec_disabled:
        no("kexec is allowed", "kernel.kexec_load_disabled is 1", "It can only be cleared by a restart")
    if facts.kexec_loaded is None:
        no("this kernel has kexec", "there is no /sys/kernel/kexec_loaded", "Boot a kernel with CONFIG_KEXEC_FILE")
    if facts.kexec_loaded:
        no("no kexec image is loaded", "another tool loaded one", "Unload it: kexec -u")
    if facts.cmdline and CommandLine.parse(facts.cmdline).has(WINDOW_PARAMETER):
        fact = "it was started beside another one, and knows the machine only as that one described it"
        no("the firmware started this kernel", fact, "Use the spawn engine, or restart the machine first")
    if facts.lockdown == "confidentiality":
        no("kernel lockdown permits kexec", "lockdown is confidentiality", "Use signed kernels without lockdown")
    found += hook_refusals(facts, policy)
    if policy.on_unknown is OnUnknown.REFUSE:
        for name, why in facts.unknown.items():
            no(f"{name} is known", f"unknown: {why}", "The policy refuses unknown facts (on_unknown)")
    return tuple(found)


def workload_refusals(facts: Facts, policy: Policy) -> tuple[Refusal, ...]:
    """Workloads that are not there or cannot be kept."""
    found: list[Refusal] = []
    if not any(w.fate is Fate.KEEP for w in policy.workloads):
        found.append(
            Refusal("a workload is named", "the policy keeps none", "Add [[workload]] to /etc/kupgrade/policy.d")
        )
    for entry, seen in zip(policy.workloads, facts.workloads, strict=True):
        if entry.fate is Fate.REFUSE and seen.workload is not None:
            found.append(Refusal(f"{entry.name} does not run", "it runs, and the policy says refuse", "Stop it"))
        if entry.fate is not Fate.KEEP:
            continue
        if seen.workload is None:
            why = seen.absent or facts.unknown.get(f"workload {entry.name}", "it does not run")
            found.append(Refusal(f"{entry.name} runs", why, "Start it, or take it out of the policy"))
            continue
        found += [
            Refusal(
                f"{entry.name} can be checkpointed", f"process {o.pid} ({o.comm}) {o.what}", "Give it fate = restart"
            )
            for o in obstacles(seen)
            if o.fatal
        ]
    return (*found, *stop_refusals(facts, policy))


def target_refusals(facts: Facts, policy: Policy, target: Target) -> tuple[Refusal, ...]:
    """Why this target cannot be crossed into."""
    found: list[Refusal] = []
    release = str(target.image.release)

    def no(rule: str, fact: str, remedy: str) -> None:
        found.append(Refusal(rule, fact, remedy))

    if target.image.architecture != facts.architecture:
        no(
            "same architecture",
            f"{release} is for {target.image.architecture}",
            f"Take a kernel for {facts.architecture}",
        )
    if release == facts.release:
        no("another release", f"{release} already runs", "Nothing to do")
    if not policy.kernels.permits(release):
        no("the policy allows this kernel", f"{release} is blocked, or not among those allowed", "See [kernels]")
    named = [str(r) for r in target.initrd.releases]
    if target.initrd.releases and release not in named:
        no("the initrd belongs to the kernel", f"{target.initrd.path} is for {', '.join(named)}", "update-initramfs -u")
    if not target.initrd.has_init and not target.initrd.unread:
        no("the initrd can start", f"{target.initrd.path} has no /init", "update-initramfs -u -k " + release)
    if not target.initrd.has_shell and not target.initrd.unread:
        no(
            "the initrd has a shell",
            "kupgrade's early init is a shell script",
            "Build the initrd with busybox or a shell",
        )
    for option in target.missing_options:
        no("the kernel is configured for criu", f"{release} lacks {option}", "Take a kernel with that option")
    for module in target.missing_modules:
        no("modules for this host", f"{release} has no {module}", "Install the modules package of that kernel")
    if facts.lockdown == "integrity" and not target.image.signed:
        no("a signed image under lockdown", f"{target.image.path} carries no signature", "Install the signed image")
    return tuple(found)


def store_refusals(facts: Facts, policy: Policy, kind: StoreKind, target: Target | None = None) -> tuple[Refusal, ...]:
    """Why images cannot go to this store. Without a target only what this host lacks is told."""
    memory = sum(w.anonymous_bytes + w.shared_bytes for w in facts.workloads)
    need = int(memory * PMEM_HEADROOM) + STORE_EXTRA
    stores = facts.stores
    if kind is StoreKind.LUO:
        return live_update_refusals(facts, policy, target, memory, need)
    if kind is StoreKind.PMEM:
        if stores.pmem_size is None:
            return (
                Refusal(
                    f"{stores.pmem_device} exists",
                    stores.pmem_why,
                    "Boot this kernel with memmap=SIZE!ADDRESS (legacy persistent memory), or use store disk",
                ),
            )
        if stores.pmem_size < need:
            fact = f"{stores.pmem_size >> 20} MiB, and the images may need {need >> 20} MiB"
            return (Refusal(f"room on {stores.pmem_device}", fact, "Set more aside with memmap="),)
    elif kind is StoreKind.DISK and stores.disk_free is not None and stores.disk_free < need:
        fact = f"{stores.disk_free >> 20} MiB free, and the images may need {need >> 20} MiB"
        return (Refusal(f"room in {stores.disk_path}", fact, "Free space, or set disk_path"),)
    return ()


def losses(facts: Facts, policy: Policy, stopped: tuple[str, ...]) -> tuple[Loss, ...]:
    """What is not kept, and why."""
    found = [
        Loss(f"{entry.name}: process {o.pid} ({o.comm})", o.what)
        for entry, seen in zip(policy.workloads, facts.workloads, strict=True)
        if entry.fate is Fate.KEEP
        for o in obstacles(seen)
        if not o.fatal
    ]
    found += stop_losses(facts, policy)
    found += [Loss(unit, "not kept: stopped cleanly, started again by the new boot") for unit in stopped]
    found.append(Loss("login sessions and everything outside services", "they end with the old kernel"))
    return tuple(found)


def warnings(facts: Facts, target: Target, *, beside: bool = False) -> tuple[str, ...]:
    """What an operator should know before saying yes. `beside`: the old kernel watches the new one itself."""
    found = [f"unknown: {name}: {why}" for name, why in facts.unknown.items()]
    found += target.problems
    if not target.config_known:
        found.append(f"the configuration of {target.image.release} is unknown; criu's needs could not be checked")
    if not facts.watchdog and not beside:
        found.append(f"a new kernel that hangs before user space is not recovered: {facts.watchdog_why}")
    if not facts.boot_default:
        found.append(
            f"the boot default is unknown ({facts.boot_loader}): make sure that a reset starts {facts.release}"
        )
    if facts.lockdown == "unknown":
        found.append("kernel lockdown is unknown (securityfs is not mounted)")
    lowest = min((p for w in facts.workloads if w.workload for p in w.workload.pids), default=0)
    if 0 < lowest <= facts.highest_kernel_thread + 200:
        found.append(
            f"PID {lowest} lies among those that kernel threads of a boot take (up to {facts.highest_kernel_thread});"
            " the restore falls back if the new kernel took it"
        )
    return tuple(found)
