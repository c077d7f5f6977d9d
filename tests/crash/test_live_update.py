"""Images that stay in memory: every fault point of an upgrade whose images a kernel has to hand to the next one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kupgrade.model.record import Outcome, RecordKind, Verdict
from kupgrade.steps.crossing import Cross
from kupgrade.steps.descriptors import HoldDescriptors, ReturnDescriptors
from tests.crash.matrix import KINDS
from tests.crash.test_matrix import clean
from tests.fakes.drive import play
from tests.fakes.endings import Behaviour
from tests.fakes.judge import Run
from tests.fakes.stored import LABEL, LOST, RETURNED, Stored

Patch = pytest.MonkeyPatch

GOOD = Behaviour("in memory", store="luo")
DROPS = Behaviour("the new kernel takes over nothing", store="luo", drops_memory=True)
DIES = Behaviour("whoever holds stored descriptors ends", store="luo", descriptors_die=True)
UNHEALTHY = Behaviour("in memory, not healthy", store="luo", probe_fails=True)
# What an upgrade without further faults comes to. Cold: the units start anew, as the plan said.
KEPT, COLD = 0, 2
HOSTS = {
    GOOD: (Outcome.COMMITTED, KEPT),
    Behaviour("restored nowhere but in the old kernel", store="luo", restore_fails=("new",)): (
        Outcome.ROLLED_BACK,
        KEPT,
    ),
    UNHEALTHY: (Outcome.ROLLED_BACK, KEPT),
    Behaviour("in memory, no kexec back", store="luo", probe_fails=True, back_kexec_fails=True): (
        Outcome.ROLLED_BACK,
        COLD,
    ),
    Behaviour("in memory, the new kernel panics", store="luo", new_kernel="panics"): (Outcome.ROLLED_BACK, COLD),
    Behaviour("in memory, the new kernel hangs", store="luo", new_kernel="hangs"): (Outcome.ROLLED_BACK, COLD),
    Behaviour("in memory, PIDs taken", store="luo", new_kernel="panics", plain_boot_takes_pids=True): (
        Outcome.ROLLED_BACK,
        COLD,
    ),
    DROPS: (Outcome.ROLLED_BACK, COLD),
    DIES: (Outcome.ROLLED_BACK, KEPT),
}
ids = [host.name for host in HOSTS]


@pytest.mark.parametrize(("host", "end"), HOSTS.items(), ids=ids)
def test_each_host_ends_as_its_plan_said(host: Behaviour, end: tuple[Outcome, int]) -> None:
    """Kept wherever a kexec follows a kexec; started anew where a restart came between, and only there."""
    run = play(host, {})
    clean([run])
    assert run.state is not None
    assert (run.state.outcome, run.machine.cold_starts) == end


@pytest.mark.parametrize("host", HOSTS, ids=ids)
def test_a_fault_at_any_point_loses_nothing_but_what_is_told(host: Behaviour) -> None:
    """Kills anywhere are survived; a power cut costs what any power cut costs."""
    ticks = play(host, {}).ticks
    step = 1 if host is GOOD else 4
    runs = [play(host, {at: kind}) for at in range(1, ticks + 1, step) for kind in KINDS]
    assert clean(runs) > 30


@pytest.mark.parametrize("host", [GOOD, DROPS], ids=lambda host: host.name)
def test_a_second_fault_is_survived_too(host: Behaviour) -> None:
    """Kills and cuts after a first one, sampled."""
    ticks = play(host, {}).ticks
    runs = [
        play(host, {first: one, second: other})
        for first in range(1, ticks + 1, 13)
        for second in range(first + 1, ticks + 20, 23)
        for one, other in (("kill", "kill"), ("kill", "cut"), ("cut", "kill"))
    ]
    assert clean(runs) > 100


def at(run: Run, label: str) -> int:
    return run.machine.trace.index(label) + 1


def test_a_worker_killed_before_the_jump_costs_nothing() -> None:
    """The session went with it: no crossing is made, the originals go on in the kernel they were in."""
    good = play(GOOD, {})
    for tick in range(at(good, "preserve") + 1, at(good, "jump") + 1):
        run = play(GOOD, {tick: "kill"})
        clean([run])
        assert run.state is not None and run.state.outcome is Outcome.ROLLED_BACK
        assert run.machine.cold_starts == 0
        assert run.machine.boots == 1


def test_a_kernel_that_got_nothing_goes_back_and_says_why() -> None:
    """The workloads are lost with the jump; the journal names the reason, and the old release runs in the end."""
    run = play(DROPS, {})
    clean([run])
    failed = [r.data["error"] for r in run.log.records if r.kind is RecordKind.FAILED]
    assert failed == ["The images did not come through the crossing"]
    assert run.machine.release == run.machine.plan.old_release
    assert run.state is not None and "did not come through" in run.state.undo_reason


def told_of_descriptors(run: Run) -> list[tuple[str, str]]:
    """What the journal says became of the stored descriptor, with the kind of the step that says it."""
    kinds = [spec.kind for spec in run.machine.plan.steps]
    wanted = (RecordKind.DONE, RecordKind.UNDONE)
    records = [r for r in run.log.records if r.kind in wanted and r.step is not None and LABEL in r.data]
    return [(kinds[r.step or 0], str(r.data[LABEL])) for r in records if r.data[LABEL] in (RETURNED, LOST)]


@pytest.mark.parametrize(
    ("host", "told"),
    [
        (GOOD, [("return-descriptors", RETURNED)]),
        (UNHEALTHY, [("hold-descriptors", RETURNED)]),
        (Behaviour("it panics", store="luo", new_kernel="panics"), [("hold-descriptors", LOST)]),
        (DROPS, [("hold-descriptors", LOST)]),
        (DIES, []),
    ],
    ids=lambda value: value.name if isinstance(value, Behaviour) else "",
)
def test_stored_descriptors_come_back_or_are_told(host: Behaviour, told: list[tuple[str, str]]) -> None:
    """In the new kernel, on the way back by kexec too; after a restart by name. Before the jump nobody loses any."""
    run = play(host, {})
    clean([run])
    assert told_of_descriptors(run) == told
    assert run.machine.stored.in_store is not any(word == LOST for _, word in told)


def _jumps_unasked(patch: Patch) -> None:
    patch.setattr(Cross, "do", lambda _self, host, _before: host.crossing.cross())


def _held_for_ever(patch: Patch) -> None:
    patch.setattr(HoldDescriptors, "undo", lambda *_: None)


def _let_go_in_any_boot(patch: Patch) -> None:
    patch.setattr(HoldDescriptors, "undo", lambda self, host, *_: host.descriptors.let_go(self.session))


def _told_before_it_is_done(patch: Patch) -> None:
    patch.setattr(ReturnDescriptors, "do", lambda self, host, _: dict.fromkeys(self.expected, RETURNED))
    patch.setattr(ReturnDescriptors, "verify", lambda *_: Verdict.DONE)


def _not_fetched_before_the_way_back(patch: Patch) -> None:
    patch.setattr(Stored, "fetch", lambda _: None)


BUGS: tuple[tuple[Callable[[Patch], None], Behaviour, str], ...] = (
    (_jumps_unasked, DIES, "left stored descriptors behind"),
    (_held_for_ever, UNHEALTHY, "left behind: the session"),
    (_let_go_in_any_boot, UNHEALTHY, "let go of before anybody else had them"),
    (_told_before_it_is_done, GOOD, "left behind: the session"),
    (_not_fetched_before_the_way_back, UNHEALTHY, "left stored descriptors behind"),
)


@pytest.mark.parametrize(("plant", "host", "words"), BUGS, ids=[plant.__name__.strip("_") for plant, _, _ in BUGS])
def test_a_planted_bug_is_caught(
    plant: Callable[[Patch], None], host: Behaviour, words: str, monkeypatch: Patch
) -> None:
    """Each of these mistakes with stored descriptors violates what must hold, on a host where it matters."""
    plant(monkeypatch)
    assert any(words in problem for problem in play(host, {}).problems)
