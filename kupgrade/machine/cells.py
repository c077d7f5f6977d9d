"""The cgroups below a unit's own in which its processes were, and are to be again."""

from __future__ import annotations

from collections.abc import Sequence

from kupgrade.errors import KupgradeError
from kupgrade.kernel import cgroup_tree
from kupgrade.kernel.cgroup_tree import Cell


def unit_cgroup(planned: str, starter: str) -> str:
    """The cgroup of the unit whose start process is in `starter`: that itself, or one above (DelegateSubgroup=)."""
    return planned if starter.startswith(f"{planned}/") else starter


def fill(where: str, cells: Sequence[Cell]) -> None:
    """Every restored, still stopped process into its own. criu does that only where it is not inside of a sandbox.

    Raises KupgradeError: a service that looks after its processes by their cgroups would take one for another.
    """
    cgroup_tree.make(where, cells)
    if wrong := cgroup_tree.misplaced(where, cells):
        why = f"of those below {where} the processes {' '.join(map(str, wrong[:8]))} are in others than before"
        raise KupgradeError("The cgroups of restored processes differ", why)
