"""From an operator's wish for an instance to its plan: reads the kernel's files, asks the pure choice."""

from __future__ import annotations

import time
from pathlib import Path

from kupgrade.core import box
from kupgrade.core.instance_choice import WINDOW, InstanceChoice, choose
from kupgrade.core.planner import STATE
from kupgrade.engines.instance import InstanceOrder, phases
from kupgrade.errors import BadInputError, RefusedError
from kupgrade.host import image, kernels
from kupgrade.kernel import bootparams
from kupgrade.model import spawn
from kupgrade.model.facts import Facts
from kupgrade.model.instance import ENGINE, Wish
from kupgrade.model.kernel import KernelImage, KernelRelease
from kupgrade.model.plan import Plan, Refusal
from kupgrade.model.policy import Policy
from kupgrade.planning import locate, new_id

NO_STORE = "none"
OFFERED = (kernels.Presence.MODULE, kernels.Presence.BUILTIN)


class InstanceRefused(RefusedError):  # noqa: N818  # a verdict, in the operator's words
    """No instance can be started; `refusals` say why, all of them at once."""

    def __init__(self, refusals: tuple[Refusal, ...]) -> None:
        first = refusals[0]
        more = f" (and {len(refusals) - 1} more)" if len(refusals) > 1 else ""
        super().__init__(f"The instance is refused: {first.rule}{more}", first.fact, first.remedy)
        self.refusals = refusals


def make_instance_plan(policy: Policy, facts: Facts, wish: Wish, root: Path = Path("/")) -> Plan:
    """The plan, or InstanceRefused with every reason; BadInputError for files that are no good. Changes nothing."""
    kernel = image.read(locate(wish.kernel, root, KernelRelease(facts.release)).kernel)
    if kernel.architecture != "x86_64":
        raise BadInputError(f"{kernel.path} is a kernel for {kernel.architecture}", "an instance is x86-64")
    _check_initrd(wish, kernel, root)
    found = choose(facts, policy, wish, _least(kernel, wish))
    if not isinstance(found, InstanceChoice):
        raise InstanceRefused(found)
    upgrade = new_id()
    order = InstanceOrder(
        upgrade=str(upgrade),
        wish=wish,
        release=str(kernel.release),
        kernel=kernel.path,
        standby=f"{STATE}/staged/{upgrade}/standby",
        choice=found,
        options=policy.engine.spawn,
    )
    return Plan(
        upgrade=upgrade,
        created=time.time(),
        engine=ENGINE,
        store=NO_STORE,
        boot_id=facts.boot_id,
        old_release=facts.release,
        new_release=str(kernel.release),
        facts_digest=facts.digest,
        facts=facts.values,
        phases=phases(order),
        budgets=(),
        losses=(),
        warnings=_warnings(facts, wish),
    )


def _check_initrd(wish: Wish, kernel: KernelImage, root: Path) -> None:
    """What its user space is made of is there; beforehand, for nothing has been taken yet."""
    if wish.initrd:
        path = Path(wish.initrd)
        if not path.is_file():
            raise BadInputError(f"{path} is no initrd", "there is no such file" if not path.exists() else "no file")
        if path.stat().st_size == 0:
            raise BadInputError(f"{path} is no initrd", "it is empty")
        return
    release = KernelRelease(str(kernel.release))
    if kernels.modules_directory(release, root) is None:
        why = f"/usr/lib/modules/{release} is missing"
        raise BadInputError(f"The modules of {release} are not installed", why, "Install them, or give it an --initrd")
    if kernels.modules_present(release, [spawn.MODULE], root)[spawn.MODULE] not in OFFERED:
        raise BadInputError(
            f"There is no kspawn for {release}",
            "the agent in the instance needs it, to share memory with this kernel",
            "Build and install it (kmod/README.md), e.g. by dkms, or give it an --initrd",
        )


def _least(kernel: KernelImage, wish: Wish) -> int:
    """Bytes below which it cannot come up; 0 where its initramfs is still to be built. Raises BadInputError."""
    parsed = bootparams.parse(Path(kernel.path).read_bytes())
    if not wish.initrd:
        return 0
    size = Path(wish.initrd).stat().st_size
    needs = box.BoxNeeds(
        init_size=parsed.init_size,
        initrd=size,
        root_image=0,
        window=WINDOW,
        alignment=max(parsed.alignment, box.SMALL_ALIGNMENT),
        spare=box.DEFAULT_SPARE + size,
    )
    return box.needed_size(needs)


def _warnings(facts: Facts, wish: Wish) -> tuple[str, ...]:
    found = []
    if facts.spawn is not None and facts.spawn.ipi_broadcast:
        found.append("a panic of this kernel would stop the instance, too: boot with no_ipi_broadcast=1")
    if wish.initrd:
        found.append("no agent is in that initrd: whether the instance is well can hardly be told from here")
    return tuple(found)
