"""From a wish (a kernel, an engine, a store) to a stored plan: reads the target's files, asks the pure planner."""

from __future__ import annotations

import contextlib
import datetime
import os
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from kupgrade.core import memory_mode, planner
from kupgrade.core.allocate import pid_floor
from kupgrade.core.checks import store_refusals
from kupgrade.core.errata import Finding, errata_refusals, errata_warnings, findings
from kupgrade.core.experience import lateness
from kupgrade.engines.base import Engine, Order
from kupgrade.engines.kexec import KexecEngine
from kupgrade.engines.spawn import SpawnEngine
from kupgrade.errors import BadInputError, ExitCode, KupgradeError, RefusedError, UsageError
from kupgrade.host import image, initramfs, kernels, kho_abi
from kupgrade.kernel import blockfs, devices, proc
from kupgrade.model.facts import Facts
from kupgrade.model.ids import UpgradeId
from kupgrade.model.kernel import KernelImage, KernelRelease
from kupgrade.model.kho import differs
from kupgrade.model.plan import Plan, Refusal
from kupgrade.model.policy import Policy
from kupgrade.model.target import Target
from kupgrade.model.workload import StoreKind
from kupgrade.statedir import StateDirectory

USERFAULTFD = "CONFIG_USERFAULTFD"
_MAKE_INITRD = "update-initramfs -c -k {0}, or dracut --kver {0}"
ENGINES: Mapping[str, Engine] = {"kexec": KexecEngine(), "spawn": SpawnEngine()}


class PlanRefused(RefusedError):  # noqa: N818  # a verdict on a plan, in the operator's words
    """No plan can be made; `refusals` say why, all of them at once."""

    def __init__(self, refusals: tuple[Refusal, ...]) -> None:
        first = refusals[0]
        more = f" (and {len(refusals) - 1} more)" if len(refusals) > 1 else ""
        super().__init__(f"The upgrade is refused: {first.rule}{more}", first.fact, first.remedy)
        self.refusals = refusals


def capabilities(facts: Facts, policy: Policy) -> dict[str, tuple[Refusal, ...]]:
    """Per engine, why this host cannot use it; empty: it can."""
    result = {}
    for name, engine in ENGINES.items():
        _, stores, _ = planner.choose_store(facts, policy, engine.stores(policy))
        known = errata_refusals(facts, policy, None, name)
        result[name] = (*engine.refusals(facts, policy), *known, *stores)
    return result


def stores(
    facts: Facts, policy: Policy, kernel: str | None, root: Path
) -> tuple[str, Mapping[str, tuple[Refusal, ...]], Mapping[str, str]]:
    """The release that was looked at, why images cannot go to each of the policy's stores, and of memory in place.

    Without `kernel` the newest installed one; what only a target can tell is left out when there is none to be read.
    Raises BadInputError for a `kernel` that cannot be read.
    """
    target: Target | None = None
    try:
        target = read_target(kernel, facts, root)
    except KupgradeError:
        if kernel is not None:
            raise
    found = {kind.value: store_refusals(facts, policy, kind, target) for kind in policy.engine.kexec.stores}
    disk = StoreKind.DISK.value
    if disk in found:
        found[disk] = (*found[disk], *_in_memory(policy, root))
    return "" if target is None else str(target.image.release), found, memory_mode.told(policy, target)


def errata(facts: Facts, policy: Policy, kernel: str | None, root: Path) -> Mapping[str, tuple[Finding, ...]]:
    """Per engine, the known problems that apply or may; for the newest kernel without `kernel`, if it can be read."""
    target: Target | None = None
    with contextlib.suppress(KupgradeError):  # that it cannot be read is told by `stores`
        target = read_target(kernel, facts, root)
    return {name: findings(facts, policy, target, name) for name in ENGINES}


def make_plan(
    policy: Policy,
    facts: Facts,
    *,
    kernel: str | None,
    engine: str,
    store: str,
    retry_failed: bool,
    root: Path,
    rejected: Mapping[str, str],
) -> Plan:
    """The plan, or PlanRefused with every reason. Changes nothing."""
    if kernel is None:
        _require_newer(facts, root)
    target = read_target(kernel, facts, root)
    chosen, fallbacks = _choose_engine(engine, facts, policy)
    found = [*chosen.refusals(facts, policy)]
    taken = proc.numbers((p for w in planner.kept(facts, policy) for p in w.pids), root)
    found += planner.refusals(facts, policy, target, rejected, retry_failed=retry_failed, taken=taken)
    found += errata_refusals(facts, policy, target, chosen.name)
    preferred = chosen.stores(policy) if store == "auto" else (_store_of(chosen, policy, store),)
    lost = _in_memory(policy, root) if StoreKind.DISK in preferred else ()
    able = tuple(each for each in preferred if not (lost and each is StoreKind.DISK))
    kind, no_store, notes = planner.choose_store(facts, policy, able, target)
    found += lost if kind is None else ()
    if lost and kind in preferred[preferred.index(StoreKind.DISK) :]:
        notes = (f"store disk passed over: {lost[0].fact}", *notes)
    if kind is None:
        found += no_store
    if found or kind is None:
        raise PlanRefused(tuple(dict.fromkeys(found)))  # a store and what is preserved may lack the same
    upgrade = new_id()
    facts = replace(facts, lateness=lateness(StateDirectory(root).history(), chosen.name))
    workloads = planner.kept(facts, policy)
    where = planner.store_for(upgrade, policy, kind)
    order = Order(
        upgrade=upgrade,
        facts=facts,
        policy=policy,
        target=target,
        store=where,
        workloads=workloads,
        stopped=planner.to_stop(facts, policy),
        pid_floor=pid_floor(taken, facts.pid_max),
        staging=f"{planner.STATE}/staged/{upgrade}",
    )
    known = errata_warnings(facts, policy, target, chosen.name)
    phases = chosen.phases(order)
    if long := planner.too_long(phases, target):
        raise PlanRefused(long)
    remarks = (*fallbacks, *notes, *memory_mode.notes(policy, target))
    return planner.assemble(upgrade, time.time(), facts, policy, target, chosen.name, where, phases, remarks, known)


def _require_newer(facts: Facts, root: Path) -> None:
    """Raise (with exit code 0: nothing to do) unless an installed kernel is newer than the running one, and usable."""
    running = KernelRelease(facts.release)
    newer = [entry for entry in kernels.installed(root) if entry.release > running]
    if not newer:
        raise KupgradeError(
            f"{facts.release} is the newest installed kernel",
            "nothing to do",
            "Install a newer kernel, or name one with --kernel",
            code=ExitCode.DONE,
        )
    if all(entry.initrd is None for entry in newer):
        raise _no_initrd(newer[-1].release)


def _no_initrd(release: KernelRelease, why: str = "none in a known place") -> BadInputError:
    return BadInputError(f"There is no initrd for {release}", why, _MAKE_INITRD.format(release))


def installed(root: Path) -> dict[str, bool]:
    """The releases that are installed, each with whether it has an initrd, too."""
    return {str(entry.release): entry.initrd is not None for entry in kernels.installed(root)}


def this_boot(root: Path) -> str:
    """The boot ID; a plan of another one cannot be carried out any more."""
    return proc.boot_id(root)


def new_id() -> UpgradeId:
    """A fresh upgrade ID."""
    now = datetime.datetime.now(datetime.UTC)
    return UpgradeId(f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}")


def _in_memory(policy: Policy, root: Path) -> tuple[Refusal, ...]:
    """Why the store "disk" would keep nothing here: what lies in memory ends with the old kernel."""
    path = policy.engine.kexec.disk_path
    real = "/" + os.path.relpath(os.path.realpath(root / path.lstrip("/")), os.path.realpath(root))
    mount = blockfs.holding(blockfs.mounts(root), real)
    if mount is None or mount.fstype not in ("tmpfs", "ramfs", "devtmpfs"):
        return ()
    fact = f"{mount.mountpoint} is in memory ({mount.fstype}), which ends with it"
    return (Refusal(f"{path} outlives the kernel", fact, "Set disk_path to a directory on a disk"),)


def _store_of(engine: Engine, policy: Policy, text: str) -> StoreKind:
    try:
        kind = StoreKind(text)
    except ValueError:
        raise UsageError(f"{text!r} is no image store", "", "Use auto, luo, pmem or disk") from None
    if (kind is StoreKind.WINDOW) != (StoreKind.WINDOW in engine.stores(policy)):
        raise UsageError(f"The engine {engine.name} cannot use the store {text}", "it has its own", "Use --store auto")
    return kind


def _choose_engine(name: str, facts: Facts, policy: Policy) -> tuple[Engine, tuple[str, ...]]:
    if name != "auto":
        if name not in ENGINES:
            raise UsageError(f"{name!r} is no engine", "", "Use auto or " + ", ".join(ENGINES))
        return ENGINES[name], ()
    notes: list[str] = []
    order = [entry for entry in policy.engine.order if entry in ENGINES] or list(ENGINES)
    for candidate in order:
        found = ENGINES[candidate].refusals(facts, policy)
        if not found or not policy.engine.fallback:
            return ENGINES[candidate], tuple(notes)
        notes.append(f"engine {candidate} passed over: {found[0].fact}")
    return ENGINES[order[0]], tuple(notes)


def read_target(kernel: str | None, facts: Facts, root: Path) -> Target:
    """The target's files: a path, a release, or the newest installed one. Raises BadInputError."""
    installed = locate(kernel, root, KernelRelease(facts.release))
    back = kernels.locate(KernelRelease(facts.release), root)
    if installed.initrd is None:
        raise _no_initrd(installed.release)
    if back.initrd is None:
        raise _no_initrd(back.release, "it runs, and the way back needs it")
    read = image.read(installed.kernel)
    if kernels.modules_directory(read.release, root) is None:
        raise BadInputError(
            f"The modules of {read.release} are not installed",
            f"/usr/lib/modules/{read.release} is missing",
            "Install the modules package of that kernel",
        )
    config = read.config or kernels.config_beside(read.release, root)
    missing: tuple[str, ...] = ()
    if config is not None:
        missing = tuple(
            need.option
            for need in kernels.config_needs(config, lambda module: _has(read.release, module, root))
            if need.required
        )
    drivers = _comparable(devices.drivers_in_use(root, blockfs.mounts(root)), back.release, root)
    presence = kernels.modules_present(read.release, drivers, root)
    problems = tuple(
        f"whether {read.release} has the driver {name} is unknown"
        for name, found in presence.items()
        if found is kernels.Presence.UNKNOWN
    )
    if read.unread:
        problems = (*problems, f"the payload of {read.path} could not be unpacked: {read.unread}")
    initrd = initramfs.read(installed.initrd)
    if initrd.unread:
        problems = (*problems, f"{initrd.path} could not be unpacked: {initrd.unread}")
    return Target(
        image=read,
        initrd=initrd,
        missing_options=missing,
        config_known=config is not None,
        config=config,
        userfaultfd=None if config is None else config.get(USERFAULTFD) == "y",
        missing_modules=tuple(n for n, found in presence.items() if found is kernels.Presence.MISSING),
        back_kernel=str(back.kernel),
        back_initrd=str(back.initrd),
        handover=_handover(facts, read, back.kernel),
        problems=problems,
    )


def _handover(facts: Facts, target: KernelImage, running: Path) -> tuple[str, ...]:
    """Why the target cannot take over what the running kernel hands over. Images are compared, neither is started."""
    if facts.kho is None or not facts.kho.device_there:
        return ("this kernel hands nothing over",)
    return differs(kho_abi.read(running), kho_abi.of_image(target))


def _comparable(drivers: Iterable[str], running: KernelRelease, root: Path) -> tuple[str, ...]:
    """Drivers that a release's module indices can tell of.

    What can only be compiled in (pcieportdrv) stands in no index, of no release: it says nothing that it is absent
    from the target's. A module that is loaded counts even when the running release's index does not have it.
    """
    here = kernels.modules_present(running, drivers, root)
    return tuple(
        name
        for name, found in here.items()
        if found is not kernels.Presence.MISSING or devices.loaded_as_module(name, root)
    )


def _has(release: KernelRelease, module: str, root: Path) -> bool:
    found = kernels.modules_present(release, [module], root)[module]
    return found in (kernels.Presence.MODULE, kernels.Presence.BUILTIN)


def locate(kernel: str | None, root: Path, running: KernelRelease) -> kernels.Installed:
    """A kernel by release or path; None: the newest with an initrd, of the running flavour if one of those is newer.

    One for real-time or for debugging that is installed besides is not taken for the upgrade. Raises BadInputError.
    """
    if kernel is None:
        every = [entry for entry in kernels.installed(root) if entry.initrd is not None]
        if not every:
            raise BadInputError("No kernel has an initrd", "none in the known places", _MAKE_INITRD.format("RELEASE"))
        alike = [each for each in every if each.release > running and each.release.flavour == running.flavour]
        return (alike or every)[-1]
    if "/" in kernel:
        path = Path(kernel).absolute()  # the worker, who loads it, has another working directory
        release = image.read(path).release
        try:
            return kernels.Installed(release, path, kernels.locate(release, root).initrd)
        except BadInputError:
            return kernels.Installed(release, path, None)
    return kernels.locate(KernelRelease(kernel), root)
