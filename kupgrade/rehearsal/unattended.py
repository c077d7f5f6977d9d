"""A rehearsal without anybody looking on: the two kernels of a plan, in a virtual host, with its workload.

It is a rehearsal of the kernels and of the engine, not of this host's workloads.
"""

from __future__ import annotations

import sys

from kupgrade.errors import KupgradeError, RefusedError, UsageError
from kupgrade.host import command
from kupgrade.model.plan import Plan
from kupgrade.rehearsal.options import ENGINES, Options

_STORES = ("luo", "pmem", "disk")


def rehearse(plan: Plan) -> tuple[str, str]:
    """Outcome (committed, rolled-back, refused, failed) and the reason; takes minutes.

    Raises RefusedError where there is none for this host: the laboratory takes its kernels out of Debian's suites,
    and is not installed by itself.
    """
    missing = [tool for tool in ("apt-get", "mmdebstrap", "mkfs.ext4") if command.find(tool) is None]
    if missing:
        remedy = "Install what is missing, or set [automation] mode"
        raise RefusedError("There is no rehearsal on this host", f"{', '.join(missing)} is not installed", remedy)
    from kupgrade.rehearsal import scenario

    options = Options(
        engine=plan.engine if plan.engine in ENGINES else ENGINES[0],
        store=plan.store if plan.store in _STORES else "auto",
        old=plan.old_release,
        new=plan.new_release,
        memory_mode="in-place" if any(step.kind == "fill-memory" for step in plan.steps) else "copy",
    )
    try:
        judged = scenario.rehearse(options, lambda text: print(text, file=sys.stderr, flush=True)).judged  # noqa: T201
    except UsageError as error:
        raise RefusedError("There is no rehearsal for these kernels", str(error), "Set another mode") from error
    except KupgradeError as error:
        return "failed", str(error)
    return str(judged["outcome"]), str(judged["reason"]) or "; ".join(map(str, judged["findings"]))
