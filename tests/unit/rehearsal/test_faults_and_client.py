"""Fault spelling, and the client's book-keeping against a real socket."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from kupgrade.errors import UsageError
from kupgrade.rehearsal.client import Client, Clients, Recording, together
from kupgrade.rehearsal.faults import AFTER_COMMIT, parse
from kupgrade.rehearsal.options import Options, Trial


@pytest.mark.parametrize(
    ("text", "armed"),
    [
        ("kill-tool@freeze", {"fault": "kill-tool", "step": "freeze", "moment": "intent"}),
        ("power-cut@dump:effect", {"fault": "power-cut", "step": "dump", "moment": "effect"}),
        ("kill-page-server@thaw", {"fault": "kill-page-server", "step": "thaw", "moment": "intent"}),
        ("restore-fails", {"fault": "restore-fails", "step": "", "moment": ""}),
        ("panic-new-kernel", {}),
        ("bad-initrd", {}),
    ],
)
def test_a_fault_arms_the_product_or_is_the_labs_own(text: str, armed: dict[str, str]) -> None:
    """Faults at steps and in the product are armed by file, those of kernel and initrd by the lab."""
    assert parse(text).armed == armed


@pytest.mark.parametrize("text", ["", "kill-tool", "kill-tool@", "panic-new-kernel@x", "power-cut@x:never", "melt"])
def test_a_misspelt_fault_is_a_usage_error_that_lists_the_known_ones(text: str) -> None:
    """Nothing is guessed."""
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert "panic-new-kernel" in caught.value.remedy


def test_a_step_that_does_not_exist_is_refused() -> None:
    """A fault at a misspelt step would never strike, and what it was to show would seem shown."""
    steps = ("dump", "cross")
    assert parse("kill-tool@cross:effect", steps).step == "cross"
    assert parse("power-cut@commit", steps).moment == "intent"
    with pytest.raises(UsageError, match=r"dumb.*no step") as caught:
        parse("kill-tool@dumb", steps)
    assert "dump" in caught.value.remedy


@pytest.mark.parametrize(
    ("text", "armed", "relayed"),
    [
        ("panic-new-kernel@dump", {"fault": "panic-new-kernel", "step": "dump", "moment": "intent"}, True),
        ("kill-tool@dump:effect", {"fault": "kill-tool", "step": "dump", "moment": "effect"}, False),
        ("panic-old-kernel@after-commit", {"fault": "panic-old-kernel", "step": "commit", "moment": "effect"}, True),
        ("cpu-refuses-offline", {}, False),
    ],
)
def test_a_kernel_beside_the_other_has_faults_of_its_own(text: str, armed: dict[str, str], relayed: bool) -> None:
    """They are known for that engine only, and keep their spelling."""
    fault = parse(text, ("dump",), "spawn")
    assert (fault.armed, fault.relayed) == (armed, relayed)
    assert parse(str(fault), ("dump",), "spawn") == fault
    if text.startswith("panic"):
        with pytest.raises(UsageError):
            parse(text)


@pytest.mark.parametrize(
    ("text", "alone"),
    [("kill-tool@cross:frozen", True), ("kill-tool@cross", False), ("kill-tool@hand-over:frozen", False)],
)
def test_only_where_nothing_can_be_written_a_fault_stays_armed(text: str, alone: bool) -> None:
    """Everywhere else a fault that is still armed afterwards never struck, which the judge has to know."""
    assert parse(text, (), "spawn" if "hand-over" in text else "kexec").leaves_itself is alone


@pytest.mark.parametrize(
    ("text", "costs"),
    [
        ("hang-new-kernel@restore", False),
        ("hang-new-kernel@take-disk", False),
        ("hang-new-kernel@take-disk:effect", True),
        ("panic-new-kernel@thaw", True),
        ("panic-new-kernel@fill-memory", True),
        ("kill-agent@thaw", False),
        ("power-cut@gate", True),
    ],
)
def test_a_new_kernel_that_ends_after_the_commit_costs_the_run(text: str, costs: bool) -> None:
    """Before it the old one goes on."""
    assert parse(text, engine="spawn").costs_the_run(beside=True) is costs


@pytest.mark.parametrize(
    ("text", "costs"),
    [
        ("holder-dies", True),
        ("memory-not-taken", True),
        ("panic-new-kernel", True),
        ("bad-initrd", True),
        ("power-cut@restore", True),
        ("restore-fails", False),
        ("images-corrupted", False),
        ("kill-tool@restore", False),
    ],
)
def test_images_in_memory_end_with_whatever_is_no_kexec(text: str, costs: bool) -> None:
    """On a store that outlives a restart none of them would."""
    assert parse(text).costs_the_run(beside=False, in_memory=True) is costs
    assert not parse(text).costs_the_run(beside=False)


@pytest.mark.parametrize(("moment", "where"), [("told", "/run/"), ("quiesced", "/run/"), ("effect", "/var/lib/")])
def test_a_fault_in_the_middle_of_the_handover_can_be_spent(moment: str, where: str) -> None:
    """File systems are frozen there; a file on one of them could not be removed."""
    assert parse(f"kill-tool@hand-over:{moment}", (), "spawn").path.startswith(where)


def serve(listener: socket.socket, pause_at: int, pause: float, stop_at: int) -> None:
    connection, _ = listener.accept()
    with connection, connection.makefile("rb") as lines:
        for number, line in enumerate(lines):
            if number == pause_at:
                time.sleep(pause)
            if number == stop_at:
                return
            connection.sendall(line.strip() + b" %d 10 11 0.5\n" % (number + 1))


def run(pause_at: int = -1, pause: float = 0.0, stop_at: int = -1) -> Client:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener, pause_at, pause, stop_at), daemon=True).start()
        client = Client(socket.create_connection(listener.getsockname()), 0.005)
        time.sleep(0.4)
        client.stop(2.0)
    return client


def test_requests_keep_coming_while_the_server_is_silent_and_all_are_answered() -> None:
    """A pause shows as the longest gap; nothing is lost, and the order holds."""
    seen = run(pause_at=10, pause=0.2).recording
    assert len(seen.sent) == len(seen.answered) > 20
    assert seen.in_order and seen.counter_continuous and seen.resets == 0
    assert 0.18 < seen.longest_gap < 0.4


def test_a_closed_connection_counts_as_a_reset() -> None:
    """A server that closes early is a lost connection, not a short run."""
    seen = run(stop_at=10).recording
    assert seen.resets == 1 and len(seen.answered) == 10


def test_a_pause_divides_what_one_connection_saw() -> None:
    """Requests before and after a pause are judged apart, over the same connection, and the pause is no gap."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener, -1, 0.0, -1), daemon=True).start()
        client = Client(socket.create_connection(listener.getsockname()), 0.005)
        time.sleep(0.2)
        first = client.pause(2.0)
        time.sleep(0.3)
        client.go_on()
        time.sleep(0.2)
        second = client.pause(2.0)
        whole = client.stop(2.0)
    assert len(first.sent) == len(first.answered) > 10
    assert len(second.sent) == len(second.answered) > 10
    assert second.longest_gap < 0.2 < whole.longest_gap
    assert len(whole.sent) == len(first.sent) + len(second.sent) and whole.in_order


def test_connections_to_one_server_are_counted_together() -> None:
    """Each answer counts once, whoever got it; a gap is one connection's, not between two."""
    first = Recording([0.0, 1.0, 2.0], [0.1, 1.1, 2.1], counters=[1, 3, 5], pids={(10, 11)})
    second = Recording([0.5, 1.5], [0.6, 1.6], counters=[2, 4], pids={(10, 11)})
    whole = together([first, second])
    assert whole.counter_continuous and whole.in_order and whole.pids == {(10, 11)}
    assert whole.longest_gap == pytest.approx(1.0)
    assert [round(sent, 1) for sent, _ in whole.latencies()] == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert len(whole.sent) == len(whole.answered) == 5


@pytest.mark.parametrize(
    ("one", "other"),
    [([1, 3], [2, 5]), ([1, 3], [3, 4]), ([3, 1], [2, 4])],
    ids=["an answer was lost", "one was counted twice", "time went back"],
)
def test_an_answer_that_is_lost_or_repeated_shows_among_connections(one: list[int], other: list[int]) -> None:
    """The server's counter is what tells."""
    assert not together([Recording(counters=one), Recording(counters=other)]).counter_continuous


def test_trouble_on_one_connection_is_trouble_of_all() -> None:
    """Resets add up, and each problem names its connection."""
    whole = together([Recording(), Recording(resets=1, in_order=False, problems=["connection lost"])])
    assert (whole.resets, whole.in_order, whole.problems) == (1, False, ["connection 1: connection lost"])


@pytest.mark.parametrize(
    ("text", "repeatable"),
    [("kill-tool@dump", True), ("probe-fails", True), ("bad-initrd", False), (AFTER_COMMIT, False)],
)
def test_only_faults_that_change_nothing_for_good_can_be_followed(text: str, repeatable: bool) -> None:
    """The virtual host has to be the one it was."""
    assert parse(text, (), "spawn").repeatable is repeatable


def test_cycles_end_with_an_upgrade_that_is_let_through() -> None:
    """And each fault has an upgrade of its own."""
    assert Options(cycles=2, rollback="gate").trials == (Trial(None, "gate"), Trial(None, "gate"), Trial())
    assert Options(cycles=1).trials[0].rollback == "ready-standby"
    two = (parse("kill-tool@dump"), parse("kill-tool@gate"))
    assert Options(faults=two).trials == (Trial(two[0]), Trial(two[1]))
    assert Options(rollback="gate").trials == (Trial(None, "gate"),)


@pytest.mark.parametrize(
    ("text", "engine", "fatal"),
    [
        ("panic-new-kernel", "kexec", True),
        ("hang-new-kernel", "kexec", True),
        ("bad-initrd", "spawn", True),
        ("cpu-refuses-offline", "spawn", True),
        ("memory-refuses-offline", "spawn", True),
        ("device-refuses", "spawn", True),
        ("probe-fails", "kexec", True),
        ("hang-new-kernel@thaw", "spawn", False),
        ("kill-agent@restore", "spawn", False),
        ("kill-tool@freeze", "kexec", False),
        ("holder-dies", "kexec", False),
    ],
)
def test_some_faults_let_no_upgrade_commit(text: str, engine: str, fatal: bool) -> None:
    """Those that keep the new kernel from ever serving; others can be gone through."""
    assert parse(text, (), engine).fatal is fatal


def test_silence_is_waited_for_once_and_not_once_for_each_connection() -> None:
    """A host that is gone answers none of them."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        clients = Clients((socket.create_connection(listener.getsockname()) for _ in range(6)), 0.001)
        time.sleep(0.1)
        begun = time.monotonic()
        assert len(clients.pause(0.5).answered) == 0
        paused = time.monotonic()
        seen = clients.stop(0.5)
        stopped = time.monotonic()
    assert len(seen.sent) > 0 == len(seen.answered)
    assert 0.5 <= paused - begun < 1.5 and stopped - paused < 1.5


def test_many_connections_are_held_as_fast_as_one() -> None:
    """Each is slow, but they are so at the same time."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        clients = Clients((socket.create_connection(listener.getsockname()) for _ in range(20)), 0.02)
        begun = time.monotonic()
        clients.pause(0.0)
        clients.stop(0.0)
        assert time.monotonic() - begun < 4.0


@pytest.mark.parametrize(
    ("text", "engine"),
    [
        ("kill-tool@dump:frozen", "kexec"),
        ("kill-tool@cross:told", "kexec"),
        ("kill-tool@hand-over:quiesced", "kexec"),
        ("power-cut@cross:frozen", "spawn"),
        ("kill-tool@dump:told", "spawn"),
    ],
)
def test_a_moment_that_a_step_has_not_is_refused(text: str, engine: str) -> None:
    """Its file lies below /run, which the new kernel has anew: unspent it would be gone, and seem spent."""
    with pytest.raises(UsageError, match="has no moment"):
        parse(text, (), engine)
