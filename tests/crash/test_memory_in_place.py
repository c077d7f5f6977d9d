"""Memory that is filled in place: every fault point, with images that must outlive the last page placed."""

from __future__ import annotations

import pytest

from kupgrade.model.policy import MemoryMode
from kupgrade.model.record import Outcome, Record, RecordKind
from tests.crash.matrix import KINDS
from tests.crash.spawn_matrix import KINDS as SPAWN_KINDS
from tests.crash.test_matrix import clean
from tests.fakes import filling
from tests.fakes.drive import Run, play
from tests.fakes.drive_spawn import play_spawn, two_kernels
from tests.fakes.endings import Behaviour
from tests.fakes.two_kernels_parts import SpawnBehaviour

GOOD = Behaviour("in place", in_place=True)
CARRIED = Behaviour("in place, out of images in memory", in_place=True, store="luo")
BEFORE = Behaviour("a page cannot be placed before the commit", in_place=True, unplaceable="before")
AFTER = Behaviour("a page cannot be placed after it", in_place=True, unplaceable="after", hands_off=True)
HOSTS = {
    GOOD: Outcome.COMMITTED,
    CARRIED: Outcome.COMMITTED,
    BEFORE: Outcome.ROLLED_BACK,
    Behaviour("in place, not healthy", in_place=True, probe_fails=True): Outcome.ROLLED_BACK,
    Behaviour("in place, restored nowhere new", in_place=True, restore_fails=("new",)): Outcome.ROLLED_BACK,
}
ids = [host.name for host in HOSTS]


@pytest.mark.parametrize(("host", "end"), HOSTS.items(), ids=ids)
def test_each_host_ends_as_it_should(host: Behaviour, end: Outcome) -> None:
    """Committed with all memory, or taken back with none lost."""
    run = play(host, {})
    clean([run])
    assert run.state is not None and run.state.outcome is end
    assert run.machine.cold_starts == 0


@pytest.mark.parametrize("host", HOSTS, ids=ids)
def test_a_fault_at_any_point_loses_nothing(host: Behaviour) -> None:
    """Whoever fills goes on when the tool is killed; images live until the last page is placed."""
    ticks = play(host, {}).ticks
    step = 1 if host in (GOOD, CARRIED) else 3
    assert clean(play(host, {at: kind}) for at in range(1, ticks + 1, step) for kind in KINDS) > 30


def test_images_are_wiped_when_all_is_placed() -> None:
    """The wait ends before the boot default changes and before the first image goes."""
    trace = play(GOOD, {}).machine.trace
    last = max(at for at, label in enumerate(trace) if label.startswith("wait for the memory"))
    assert last < trace.index("wipe web")


def test_a_page_that_cannot_be_placed_after_the_commit_ends_with_a_person() -> None:
    """The workload was ended, the journal says why, and the images are kept."""
    run = play(AFTER, {})
    assert run.problems == []
    assert run.state is not None and run.state.hands_off
    assert {r.data["error"] for r in errors(run)} == {"The memory was not filled to the end"}
    assert run.machine.images


@pytest.mark.parametrize(("ticks", "committed"), [(3, False), (40, True)])
def test_a_round_that_rots_on_its_way_is_never_placed(
    monkeypatch: pytest.MonkeyPatch, ticks: int, committed: bool
) -> None:
    """Met before the commit it is taken back; met after it the workload is ended, and a person is told why."""
    monkeypatch.setattr(filling, "ROTTEN", ticks)
    run = play(Behaviour("rots", in_place=True, damaged_images="a round", hands_off=True), {})
    assert run.problems == []
    assert run.log.committed is committed
    assert not committed or "The memory was not filled to the end" in {r.data["error"] for r in errors(run)}


def test_beside_another_kernel_a_fault_at_any_point_loses_nothing() -> None:
    """Kills, panics and cuts in either kernel, sampled; the old one ends when all is placed."""
    with two_kernels(MemoryMode.IN_PLACE):
        host = SpawnBehaviour()
        good = play_spawn(host, {})
        last = max(at for at, label in enumerate(good.box.trace) if "wait for the memory" in label)
        assert last < next(at for at, label in enumerate(good.box.trace) if "wipe" in label and at > last - 1)
        runs = [play_spawn(host, {at: kind}) for at in range(last - 60, last + 20, 5) for kind in SPAWN_KINDS]
        bad = [run for run in (good, *runs) if run.problems]
        assert not bad, bad[0].report()


def errors(run: Run) -> list[Record]:
    return [r for r in run.log.records if r.kind is RecordKind.FAILED]
