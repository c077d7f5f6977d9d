"""The steps after the commit: soak time and the wish for a restart."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest

from kupgrade.cli.auto_modes import prepared
from kupgrade.core.chronicle import rejection
from kupgrade.engines.base import made_good
from kupgrade.model.plan import Plan
from kupgrade.model.reboot import RebootWishes, left
from kupgrade.model.record import Outcome, Record, RecordKind, Verdict
from kupgrade.model.workload import StoreKind
from kupgrade.steps.after import ServedSince, SettleReboot, Soak
from kupgrade.steps.base import load, spec
from tests.fakes.drive import plan, play
from tests.fakes.drive_spawn import spawn_plan
from tests.fakes.endings import Behaviour
from tests.fakes.facts import NEW, OLD

MADE_GOOD = ("mark-good", "settle-reboot", "tell-hooks")


@dataclass
class After:
    now: float = 100.0
    packages: tuple[str, ...] = ()
    waited: list[float] = field(default_factory=list)

    def uptime(self) -> float:
        return self.now

    def wait_until(self, uptime: float) -> None:
        self.waited.append(uptime)
        self.now = max(self.now, uptime)

    def reboot_wishes(self) -> RebootWishes:
        return RebootWishes(bool(self.packages), self.packages or None)

    def settle_reboot(self, release: str, others: Any) -> None:
        self.packages = tuple(dict.fromkeys((*left(self.packages, release), *others)))


def host(**changes: Any) -> Any:
    return SimpleNamespace(after=After(**changes))


def test_a_soak_time_is_waited_for_once() -> None:
    """A worker that was killed and comes again waits for the rest only."""
    here, step = host(), Soak(600.0)
    before = step.observe(here)
    assert (before, step.verify(here, before)) == (ServedSince(100.0), Verdict.NOT_DONE)
    here.after.now = 500.0
    step.do(here, before)
    assert here.after.waited == [700.0] and step.verify(here, before) is Verdict.DONE
    assert load(spec(step)) == step


@pytest.mark.parametrize(
    ("packages", "asked", "after"),
    [
        ((), (), ()),
        ((f"linux-image-{NEW}",), (), ()),
        (("libc6",), (f"linux-image-{NEW}", "dbus"), ("libc6", "dbus")),
        (("linux-image-99.1",), ("linux-image-99.1",), ("linux-image-99.1",)),
    ],
)
def test_wishes_are_settled(packages: tuple[str, ...], asked: tuple[str, ...], after: tuple[str, ...]) -> None:
    """Before it is not done unless nothing is to be done, afterwards it is, twice as well."""
    here, step = host(packages=packages), SettleReboot(NEW, asked)
    before = step.observe(here)
    assert (step.verify(here, before) is Verdict.DONE) is (set(packages) == set(after))
    for _ in range(2):
        step.do(here, before)
        assert (here.after.packages, step.verify(here, before)) == (after, Verdict.DONE)
    assert load(spec(step)) == step


def kinds(of: Plan) -> list[str]:
    return [each.kind for each in of.steps]


def test_without_a_soak_time_the_new_kernel_is_made_good_at_once() -> None:
    """In both engines: right after the units are there again, then the wish for a restart, then hooks are told."""
    for each in (plan(), spawn_plan()):
        found = kinds(each)
        at = found.index("mark-good")
        assert found[at - 1 : at + 4] == ["start-units", *MADE_GOOD, "wipe-images"]
        assert "soak" not in found


def test_with_a_soak_time_it_comes_last() -> None:
    """Images are wiped and the old kernel has left before: nothing secret or needed lies about for that long."""
    assert kinds(plan(StoreKind.LUO))[-4:] == ["soak", *MADE_GOOD]
    order: Any = SimpleNamespace(
        target=SimpleNamespace(image=SimpleNamespace(release=NEW)),
        policy=SimpleNamespace(soak=60.0),
        facts=SimpleNamespace(reboot_packages=(), hooks=()),
    )
    assert [each.kind for each in made_good(order)] == ["soak", *MADE_GOOD[:-1]]


def test_what_is_held_before_is_told() -> None:
    """A kernel to be loaded, or CPUs to be taken: what comes first in each engine is where an upgrade is held."""
    assert prepared(plan()).endswith("stage-initrd, not yet: " + plan().steps[5].describe)
    assert prepared(spawn_plan()).startswith(
        "prepared: call-hooks, prepare-store, pin-boot-default, load-spawn-module, build-standby, not yet: "
    )


def soaking() -> list[Record]:
    """The journal of an upgrade with a soak time, up to its begin."""
    run = play(Behaviour("in memory", store="luo"), {})
    assert run.state is not None and run.state.outcome is Outcome.COMMITTED
    steps = kinds(plan(StoreKind.LUO))
    at = next(
        n for n, r in enumerate(run.log.records)
        if r.kind is RecordKind.DONE and r.step is not None and steps[r.step] == "soak"
    )  # fmt: skip
    return list(run.log.records[:at])


@pytest.mark.parametrize(("release", "rejected"), [(OLD, True), (NEW, False)])
def test_a_kernel_that_does_not_last_its_soak_time_is_not_tried_again(release: str, rejected: bool) -> None:
    """A restart that leads back to the old release speaks against the new one; one that leads to it does not."""
    records = soaking()
    assert rejection(records) == ""
    last = records[-1]
    cold = replace(
        last, seq=last.seq + 1, kind=RecordKind.COLD, boot_id="boot-z", epoch=last.epoch + 1, step=None,
        data={"release": release, "reason": "restarted"},
    )  # fmt: skip
    assert ("soak time" in rejection([*records, cold])) is rejected
