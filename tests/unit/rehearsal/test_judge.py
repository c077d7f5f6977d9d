"""The judge of a rehearsal, on evidence made by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from kupgrade.rehearsal import report, resources
from kupgrade.rehearsal.client import Recording
from kupgrade.rehearsal.judge import file_intact, judge, marks, phases
from kupgrade.rehearsal.scenario import Result
from tests.unit.rehearsal.evidence import AFTER, BEFORE, HAD, HAS, beside, evidence, recording


def test_an_upgrade_without_a_flaw_is_committed() -> None:
    """Everything intact: the outcome is the journal's, with the figures of client and blackout."""
    result = judge(evidence())
    assert result["outcome"] == "committed" and result["findings"] == []
    assert result["client"] == {
        "sent": 5,
        "answered": 5,
        "in_order": True,
        "resets": 0,
        "longest_gap_ms": pytest.approx(9019.0, abs=1.5),
    }
    assert result["workloads"][0]["blackout_ms"] == 8500.0
    assert result["phases"] == [{"name": "staging", "ms": 500.0}]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"running_release": "6.12"}, "expected 7.3"),
        ({"after": None}, "could not be asked"),
        ({"after": dataclasses.replace(AFTER, pids=(329, 999))}, "processes"),
        ({"after": dataclasses.replace(AFTER, main_pid=1)}, "main 329 became 1"),
        ({"after": dataclasses.replace(AFTER, active=False)}, "not active"),
        ({"after": dataclasses.replace(AFTER, restarts=1)}, "restarted"),
        ({"after": dataclasses.replace(AFTER, memory="check bad 3")}, "memory"),
        ({"after": dataclasses.replace(AFTER, lines=("1 329 0", "3 329 5"))}, "append-only"),
        ({"client": recording(5, 4)}, "never answered"),
        ({"leftovers": ("the network lock",)}, "left behind"),
        ({"journal": ()}, "did not end"),
    ],
)
def test_each_flaw_makes_it_failed_and_is_named(changes: dict[str, Any], words: str) -> None:
    """A single flaw is enough for `failed`, and the finding says which."""
    result = judge(evidence(**changes))
    assert result["outcome"] == "failed"
    assert any(words in finding for finding in result["findings"]), result["findings"]


def test_a_lost_connection_and_a_second_copy_are_flaws() -> None:
    """A reset, and answers from other processes or with a repeated counter, are never overlooked."""
    reset = recording()
    reset.resets = 1
    assert judge(evidence(client=reset))["outcome"] == "failed"
    twice = recording(2)
    twice.sent.append(0.06)
    twice.take("2 1 400 401 1.0", 0.1)
    result = judge(evidence(client=twice))
    assert result["outcome"] == "failed" and not result["client"]["in_order"]


def test_a_rollback_must_end_on_the_old_release() -> None:
    """Rolled back and intact is `rolled-back`; rolled back on the new release is a flaw."""
    ended = {"kind": "finished", "step": None, "time": 2.0, "data": {"outcome": "rolled-back"}}
    rolled = evidence(journal=(*evidence().journal[:-1], ended), running_release="6.12")
    assert judge(rolled)["outcome"] == "rolled-back"
    assert judge(dataclasses.replace(rolled, running_release="7.3"))["outcome"] == "failed"


def test_after_an_ordinary_power_cut_one_healthy_copy_is_enough_and_two_are_not() -> None:
    """Started anew with other PIDs is accepted there, but not a missing, damaged or doubled workload."""
    ended = {"kind": "finished", "step": None, "time": 2.0, "data": {"outcome": "rolled-back"}}
    anew = dataclasses.replace(AFTER, pids=(900, 901), main_pid=900, lines=(*BEFORE.lines, "1 900 0"))
    cut = evidence(journal=(*evidence().journal[:-1], ended), running_release="6.12", after=anew, cold_expected=True)
    assert judge(cut)["outcome"] == "rolled-back"
    for flaw in ({"pids": (900, 901, 902, 903)}, {"active": False}, {"lines": ("1 900 0",)}, {"memory": "check bad 1"}):
        assert judge(dataclasses.replace(cut, after=dataclasses.replace(anew, **flaw)))["outcome"] == "failed"


def test_a_refusal_leaves_everything_as_it_was() -> None:
    """Refused needs the old release and an intact workload, too."""
    refused = evidence(refused="initrd is damaged", journal=(), running_release="6.12")
    assert judge(refused)["outcome"] == "refused" and judge(refused)["reason"] == "initrd is damaged"


@pytest.mark.parametrize(
    ("lines", "intact"),
    [
        ((), False),
        (("1 9 0",), True),
        (("2 9 0",), False),
        (("1 9 0", "2 9 0", "2 9 1"), False),
        (("1 9 5", "2 9 4"), False),
        (("1 9 5", "\0\0\0"), False),
    ],
)
def test_the_file_is_intact_only_without_gap_and_repetition(lines: tuple[str, ...], intact: bool) -> None:
    """Numbered from 1, no gap, no repeated line, a counter that never falls."""
    assert file_intact(lines) is intact


def test_a_kernel_beside_the_other_has_everything_in_the_end() -> None:
    """Committed: all CPUs, nearly all memory, every device behind a root port; other engines are not asked."""
    assert beside()["outcome"] == "committed"
    assert beside()["resources"]["after"]["memory_kib"] == 3700000
    assert "resources" not in judge(evidence())
    for change, words in (
        ({"cpus": "2-3"}, "old kernel is not gone: 2 of 4"),
        ({"memory_kib": 3000000}, "only 75% of the memory"),
        ({"drivers": {}}, "0x1af4:0x1042 virtio-pci"),
    ):
        result = beside(resources_after={**HAS, **change})
        assert result["outcome"] == "failed" and words in result["findings"][0]
    assert "could not be counted" in beside(resources_after=None)["findings"][0]


def test_taken_back_a_kernel_has_what_it_had_and_was_never_restarted() -> None:
    """Rolled back: the same blocks in the same zones, drivers, address map and module, in the same boot."""
    ended = {"kind": "finished", "step": None, "time": 2.0, "data": {"outcome": "rolled-back"}}
    back = {"journal": (*evidence().journal[:-1], ended), "running_release": "6.12", "boot_ids": ("a",)}
    assert beside(**back, resources_after=HAD)["outcome"] == "rolled-back"
    changed = {**HAD, "blocks": {"DMA32": "0-15", "Movable": "32-46", "Normal": "47"}, "kspawn": True}
    found = beside(**back, resources_after=changed)["findings"]
    assert found[0].startswith("memory blocks and their zones changed: Movable: 32-47 -> 32-46")
    assert "kspawn loaded changed" in found[1]
    restarted = beside(**{**back, "boot_ids": ("a", "b")}, resources_after=HAD)
    assert restarted["findings"] == ["the old kernel was restarted"]


def test_marks_are_told_in_the_clients_time() -> None:
    """Each phase and each turn stands once, where it began, corrected by the clock of the boot it happened in."""
    plan = {"phases": [{"name": "staging", "steps": [{}, {}]}, {"name": "verifying", "steps": [{}]}]}
    seen = (
        {"kind": "planned", "step": None, "time": 100.0, "boot_id": "a", "data": {"plan": plan}},
        {"kind": "started", "step": 0, "time": 101.0, "boot_id": "a", "data": {}},
        {"kind": "done", "step": 0, "time": 101.5, "boot_id": "a", "data": {}},
        {"kind": "started", "step": 1, "time": 102.0, "boot_id": "a", "data": {}},
        {"kind": "crossed", "step": None, "time": 110.0, "boot_id": "b", "data": {}},
        {"kind": "started", "step": 2, "time": 111.0, "boot_id": "b", "data": {}},
    )
    assert marks(seen, {"b": -0.5}, 100.0) == ((1.0, "staging"), (10.5, "crossed"), (11.5, "verifying"))
    assert marks((), {}, 0.0) == ()


def test_undoing_is_a_phase_of_its_own() -> None:
    """A rolled back upgrade does not make its first phase look as long as the whole."""
    plan = {"phases": [{"name": "staging", "steps": [{}]}]}
    kinds = (("started", 1.0), ("done", 2.0), ("undo-started", 60.0), ("undone", 61.5))
    seen = [{"kind": kind, "step": 0, "time": when, "data": {}} for kind, when in kinds]
    seen.insert(0, {"kind": "planned", "step": None, "time": 0.0, "data": {"plan": plan}})
    assert phases(seen) == [{"name": "staging", "ms": 1000.0}, {"name": "rolling back", "ms": 1500.0}]


@pytest.mark.parametrize(
    ("after", "told"),
    [
        ({}, ""),
        ({"descriptors": 1100, "available_kib": 990_000, "processes": {"systemd": 1, "sh": 3}}, ""),
        ({"descriptors": 1400}, "descriptors"),
        ({"descriptors_of_init": 90}, "descriptors_of_init"),
        ({"available_kib": 700_000}, "available_kib"),
        ({"processes": {"systemd": 1, "criu": 1}}, "criu"),
        ({"cpus": "0-2"}, "CPUs online"),
    ],
)
def test_what_many_cycles_left_behind_is_told(after: dict[str, Any], told: str) -> None:
    """Processes, descriptors, memory, CPUs; a little more is in use somewhere at any time."""
    before = {**HAD, "descriptors": 1000, "descriptors_of_init": 60, "available_kib": 1_000_000}
    before["processes"] = {"systemd": 1}
    found = resources.leaks(before, {**before, **after})
    assert (told in " ".join(found)) if told else not found


def test_images_that_stayed_in_memory_are_told_with_their_times() -> None:
    """Files and bytes, how long it took to leave them there and to find them again; of other stores nothing."""
    kinds = [{"kind": "preserve-images"}, {"kind": "restore"}]
    plan = {"store": "luo", "phases": [{"name": "handing over", "steps": kinds}]}
    left = {"files": 23, "bytes": 144_000_000, "seconds": 0.04}
    found = {"retrieved_files": 23, "retrieved_bytes": 144_000_000, "retrieve_seconds": 0.12, "seconds": 1.5}
    journal = (
        {"kind": "planned", "step": None, "time": 1.0, "data": {"plan": plan}},
        {"kind": "done", "step": 0, "time": 1.5, "data": left},
        {"kind": "done", "step": 1, "time": 3.5, "data": found},
        {"kind": "finished", "step": None, "time": 4.0, "data": {"outcome": "committed"}},
    )
    judged = judge(evidence(journal=journal))
    assert judged["carried"]["preserve_seconds"] == 0.04
    assert "in memory: 23 files, 144 MB, left there in 0.04 s, found in 0.12 s" in report.text(Result(judged, (), ()))
    again = judge(evidence(journal=(journal[0], {**journal[1], "data": {"found": "done"}}, *journal[2:])))
    assert "in memory:" not in report.text(Result(again, (), ()))
    assert judge(evidence())["carried"] == {}


def test_a_life_that_ended_before_the_upgrade_is_no_flaw_and_one_that_ends_in_it_is() -> None:
    """After an earlier power cut the file holds two lives; a third may not begin unasked."""
    lines = ("1 329 0", "2 329 5", "1 400 0", "2 400 3")
    assert file_intact((*lines, "3 400 9"), known=4)
    assert not file_intact((*lines, "1 500 0"), known=4)
    assert not file_intact((*lines, "3 400 9"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"client": Recording()}, "no request was answered"),
        (
            {
                "before": dataclasses.replace(BEFORE, pids=(), main_pid=0),
                "after": dataclasses.replace(AFTER, pids=(), main_pid=0),
            },
            "no process",
        ),
        ({"boot_ids": ("a",)}, "the kernel was not replaced"),
    ],
)
def test_nothing_seen_is_nothing_proven(changes: dict[str, Any], words: str) -> None:
    """A client that asked nothing, a unit without a process, a kernel that never left: none of them is a success."""
    result = judge(evidence(**changes))
    assert result["outcome"] == "failed"
    assert any(words in finding for finding in result["findings"]), result["findings"]


def test_a_refusal_without_a_client_shows_nothing() -> None:
    """Zero of zero requests say nothing there, either."""
    refused = evidence(refused="no", journal=(), running_release="6.12", boot_ids=("a",), client=Recording())
    assert "no request was answered" in judge(refused)["findings"][0]


@pytest.mark.parametrize(("outcome", "release"), [("rolled-back", "7.3"), ("committed", "unknown")])
def test_after_an_ordinary_power_cut_one_of_the_two_kernels_runs(outcome: str, release: str) -> None:
    """Rolled back it is the old one; one that nobody could ask is none of them."""
    ended = {"kind": "finished", "step": None, "time": 2.0, "data": {"outcome": outcome}}
    cut = evidence(journal=(*evidence().journal[:-1], ended), running_release=release, cold_expected=True)
    assert any(f"{release} runs" in finding for finding in judge(cut)["findings"])


def test_a_fault_that_nothing_can_commit_through_never_struck_if_it_did() -> None:
    """The upgrade was not struck then, and says nothing about the fault."""
    assert judge(evidence(fault="panic-new-kernel", fatal=True))["outcome"] == "failed"
    assert "never struck" in judge(evidence(fault="panic-new-kernel", fatal=True))["findings"][0]
    assert judge(evidence(fault="kill-tool@freeze:intent"))["outcome"] == "committed"


def test_an_operator_who_never_came_to_ask_is_told() -> None:
    """The step was not in the plan: that it committed is no answer to what was asked."""
    result = judge(evidence(rollback="ready-standby"))
    assert result["outcome"] == "failed" and "ready-standby" in result["findings"][0]
    assert judge(evidence(rollback="prepare-store"))["outcome"] == "committed"


def test_an_apply_that_broke_is_no_refusal() -> None:
    """It said neither yes nor no."""
    broke = evidence(broke="exit status 1", journal=(), running_release="6.12", boot_ids=("a",))
    assert judge(broke)["outcome"] == "failed" and judge(broke)["upgrade_outcome"] == "failed"
    assert "exit status 1" in judge(broke)["reason"]


def test_an_upgrade_that_fell_back_by_itself_was_not_taken_back_by_the_operator() -> None:
    """Of many cycles each has to be the one that was asked for, not a failure that looks like it."""
    ended = {"kind": "finished", "step": None, "time": 2.0, "data": {"outcome": "rolled-back"}}
    asked = {"kind": "undo-requested", "step": None, "time": 1.8, "data": {"reason": "x", "by": "operator"}}
    failed = {**asked, "data": {"reason": "take-memory failed", "by": "kupgrade"}}
    begun = evidence().journal[:-1]
    back: dict[str, Any] = {"running_release": "6.12", "boot_ids": ("a",), "rollback": "prepare-store"}
    assert judge(evidence(**back, journal=(*begun, asked, ended)))["outcome"] == "rolled-back"
    result = judge(evidence(**back, journal=(*begun, failed, ended)))
    assert result["outcome"] == "failed" and "take-memory failed" in result["findings"][0]
    assert judge(evidence(**back, journal=(*begun, failed, ended), fault="kill-tool@dump"))["outcome"] == "rolled-back"


def test_cpus_that_could_not_be_counted_before_are_told() -> None:
    """None of none is no proof that the old kernel has given all back."""
    uncounted = judge(evidence(engine="spawn", resources_before={**HAD, "cpus": ""}, resources_after=HAS))
    assert uncounted["outcome"] == "failed" and "could not be counted" in uncounted["findings"][0]
