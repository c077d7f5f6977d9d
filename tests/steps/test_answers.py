"""What steps make of a machine's answers: refusals before anything is touched, the order of acts, what is done."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from kupgrade.errors import KupgradeError
from kupgrade.model.record import Verdict
from kupgrade.model.spawn import CpusBefore, GivenCpu, Standby
from kupgrade.model.workload import Store, StoreKind
from kupgrade.steps.base import Nothing, UndoContext
from kupgrade.steps.beside import SpawnKernel, TakeCpus
from kupgrade.steps.checkpoint import Dump, PreDump, Restore, Thaw
from kupgrade.steps.crossing import Disarm, LoadKernel, PanicWas
from kupgrade.steps.filling import FillMemory
from kupgrade.steps.freeze import Freeze
from kupgrade.steps.handover import ReadyStandby
from kupgrade.steps.health import FilesWere, ProbeWorkloads
from kupgrade.steps.images import PrepareStore
from kupgrade.steps.network import LockNetwork
from kupgrade.steps.services import HoldUnits
from tests.fakes.drive import WORKLOADS

STORE = Store(StoreKind.DISK, "/var/lib/images")
ONE = WORKLOADS[:1]
SPAWN = SpawnKernel("7.3", "k", "i", "20261121-041503-9f2c1a", 1, (3, 2), 1 << 30, 2 << 20, "", 1.0)
HERE = UndoContext(same_boot=True, in_new_kernel=False, images_valid=True)


class Host:
    """Every port at once: each question has one answer, or raises it; `calls` in their order."""

    def __init__(self, **answers: Any) -> None:
        self.calls: list[str] = []
        self.answers = answers

    def __getattr__(self, _port: str) -> Port:
        return Port(self)


class Port:
    def __init__(self, host: Host) -> None:
        self.host = host

    def __getattr__(self, question: str) -> Callable[..., Any]:
        def ask(*_: object, **__: object) -> Any:
            self.host.calls.append(question)
            answer = self.host.answers.get(question)
            if isinstance(answer, Exception):
                raise answer
            return answer

        return ask


@pytest.mark.parametrize("answer", [True, None])
@pytest.mark.parametrize(
    ("step", "question"),
    [(LoadKernel("k", "i", "c"), "loaded"), (LockNetwork(ONE, STORE), "locked"), (Freeze(ONE), "frozen")],
)
def test_what_is_there_already_or_cannot_be_told_is_refused(step: Any, question: str, answer: bool | None) -> None:
    """Somebody else's kernel, lock or freeze: nothing of it is replaced, and unknown is not absent."""
    with pytest.raises(KupgradeError, match="already"):
        step.observe(Host(**{question: answer}))
    step.observe(Host(**{question: False}))


def test_images_and_holds_of_another_upgrade_are_refused() -> None:
    """They would be wiped, or taken away, with this one's."""
    for step, question in ((PrepareStore(STORE), "present"), (HoldUnits(ONE, "x", 5), "held")):
        with pytest.raises(KupgradeError):
            step.observe(Host(**{question: True}))  # type: ignore[arg-type]
        step.observe(Host(**{question: False}))  # type: ignore[arg-type]


def test_an_earlier_mark_goes_before_the_images_change() -> None:
    """Killed in a second dump, what is there is not taken for the whole of the first."""
    host: Any = Host(dump=1, seal=1)
    Dump(STORE, ONE, "x", "6.12", "7.3", 1.0).do(host, Nothing())
    assert host.calls == ["withdraw", "dump", "seal"]


def test_what_was_dumped_is_let_go_before_it_is_thawed() -> None:
    """In this boot the originals go on: with dead images, and with all that a criu that was killed left on them."""
    host: Any = Host()
    here = UndoContext(same_boot=True, in_new_kernel=False, images_valid=False)
    Dump(STORE, ONE, "x", "6.12", "7.3", 1.0).undo(host, Nothing(), here)
    assert host.calls == ["withdraw", "let_go"]


def test_half_a_tree_is_ended_and_images_are_read_before_they_are_restored() -> None:
    """A bad image costs nothing but the way back."""
    restore = Restore(STORE, ONE, 1.0)
    host: Any = Host(restored=None, fetched={}, restore={})
    restore.do(host, Nothing())
    deeds = [call for call in host.calls if call not in ("restored", "fetched")]
    assert deeds == ["kill", "summon", "prepare", "verify", "restore"]
    host = Host(restored=False, verify=KupgradeError("A checkpoint image is damaged"))
    with pytest.raises(KupgradeError):
        restore.do(host, Nothing())
    assert "restore" not in host.calls and "kill" not in host.calls


def test_memory_that_will_not_come_is_told_before_anything_runs() -> None:
    """A restore is not done then, and nothing is thawed."""
    fails = KupgradeError("The memory was not filled to the end")
    host: Any = Host(restored=True, adopted="", sound=fails)
    for deed in (Restore(STORE, ONE, 1.0, in_place=True).verify, Thaw(ONE).do):
        with pytest.raises(KupgradeError, match="not filled"):
            deed(host, Nothing())
    assert "thaw_restored" not in host.calls


@pytest.mark.parametrize(
    ("filled", "verdict"), [(True, Verdict.DONE), (False, Verdict.NOT_DONE), (None, Verdict.UNKNOWN)]
)
def test_the_wait_for_memory_is_over_when_nothing_waits(filled: bool | None, verdict: Verdict) -> None:
    """A workload that was ended for want of it is no success."""
    host: Any = Host(filled=filled)
    assert FillMemory(ONE).verify(host, Nothing()) is verdict


@pytest.mark.parametrize(
    ("deadman", "panic", "verdict"),
    [(False, 3, Verdict.DONE), (True, 3, Verdict.NOT_DONE), (False, 10, Verdict.NOT_DONE)],
)
def test_it_is_disarmed_when_no_timer_runs_and_panics_end_as_before(
    deadman: bool, panic: int, verdict: Verdict
) -> None:
    """Either alone would still end workloads that serve."""
    host: Any = Host(deadman=deadman, panic_timeout=panic)
    assert Disarm(3).verify(host, PanicWas(10)) is verdict


def test_a_probed_workload_is_stopped_again_whatever_it_answered() -> None:
    """Before the commit no copy may go on running."""
    host: Any = Host(probe=KupgradeError("It does not answer"))
    with pytest.raises(KupgradeError):
        ProbeWorkloads(ONE).do(host, FilesWere(()))
    assert host.calls == ["probe", "pause"]


def test_cpus_are_taken_when_all_of_them_are() -> None:
    """One that this kernel still runs on cannot be given."""
    before = CpusBefore((GivenCpu(3, 6, True), GivenCpu(2, 4, True)))
    half = CpusBefore(before.given[:1])
    take = TakeCpus((3, 2))
    for taken, verdict in ((before.numbers, Verdict.DONE), (half.numbers, Verdict.NOT_DONE)):
        host: Any = Host(cpus_taken=taken)
        assert take.verify(host, before) is verdict


def test_a_kernel_beside_is_the_one_that_was_asked_for_and_is_stopped_before_it_is_wiped() -> None:
    """It says which release it is; nothing runs in memory that is overwritten."""
    instance: Any = SimpleNamespace()
    host: Any = Host(spawn=Standby("boot", "6.12", 1.0))
    with pytest.raises(KupgradeError, match=r"not 7\.3"):
        SPAWN.do(host, instance)
    SPAWN.undo(host, instance, HERE)
    assert host.calls == ["spawn", "fence", "wipe"]


@pytest.mark.parametrize(("answered", "verdict"), [(True, Verdict.DONE), (False, Verdict.NOT_DONE)])
def test_a_new_kernel_is_ready_when_it_said_so(answered: bool, verdict: Verdict) -> None:
    """To this process: what it told one that was killed since is not known."""
    host: Any = Host(answered=answered)
    assert ReadyStandby((), ONE, 1, ()).verify(host, Nothing()) is verdict


@pytest.mark.parametrize(
    ("rounds", "ready", "verdict"), [(1, True, Verdict.DONE), (0, True, Verdict.NOT_DONE), (1, False, Verdict.NOT_DONE)]
)
def test_a_pre_dump_is_done_when_whole_rounds_are_there(rounds: int, ready: bool, verdict: Verdict) -> None:
    """And where they can be built on."""
    host: Any = Host(rounds=rounds, ready=ready)
    assert PreDump(STORE, ONE, 3).verify(host, Nothing()) is verdict
