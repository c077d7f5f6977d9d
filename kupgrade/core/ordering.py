"""The order of workloads among each other: who was started after whom comes after them, and is frozen before them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kupgrade.model.workload import Workload


def in_order(workloads: Sequence[Workload], after: Mapping[str, Sequence[str]]) -> tuple[Workload, ...]:
    """The workloads in the order in which a boot starts them: `after` has, by unit, those that it names in After=.

    Who is not named by any keeps its place. A circle, which systemd would have broken, too, is broken at its first.
    """
    by_unit = {each.unit: each for each in workloads if each.unit}
    placed: dict[str, Workload] = {}
    entered: set[str] = set()

    def place(workload: Workload) -> None:
        if workload.name in entered:
            return
        entered.add(workload.name)
        for unit in after.get(workload.unit, ()):
            if unit in by_unit:
                place(by_unit[unit])
        placed[workload.name] = workload

    for each in workloads:
        place(each)
    return tuple(placed.values())
