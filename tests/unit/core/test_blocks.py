"""The choice of memory blocks: one adjoining run, tried in a sensible order, and it always ends."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kupgrade.core import blocks
from kupgrade.core.blocks import Attempt, GiveBack, Retry, Taken, TakeOffline
from kupgrade.errors import BadInputError
from kupgrade.model.machine import MemoryRange
from kupgrade.model.memory import BlockState, MemoryBlock
from kupgrade.model.plan import Refusal

SIZE = 128 << 20
GIB = 1 << 30
ONLINE = BlockState.ONLINE


def run(known: list[MemoryBlock], wanted: int, stuck: dict[int, int], **options: Any):
    """Play the machine: block n refuses `stuck[n]` times. Returns the end, the moves, and what is offline."""
    attempt, moves, left = Attempt(), [], dict(stuck)
    while True:
        move = blocks.next_move(known, SIZE, wanted, attempt, **options)
        moves.append(move)
        assert len(moves) < 10_000
        match move:
            case TakeOffline(number):
                if left.get(number, 0):
                    left[number] -= 1
                    attempt = attempt.was_refused(number)
                else:
                    attempt = attempt.took(number)
            case GiveBack(numbers):
                assert set(numbers) <= set(attempt.taken)
                attempt = attempt.gave_back(numbers)
            case _:
                return move, moves, attempt


def online(*numbers: int, zones: tuple[str, ...] = ("Normal",)) -> list[MemoryBlock]:
    return [MemoryBlock(number, ONLINE, True, zones) for number in numbers]


def test_the_highest_run_is_taken_first() -> None:
    """From the top down."""
    end, moves, _ = run(online(*range(8)), 3 * SIZE, {})
    assert moves[:3] == [TakeOffline(7), TakeOffline(6), TakeOffline(5)]
    assert end == Taken(MemoryRange(5 * SIZE, 3 * SIZE), (5, 6, 7))


def test_many_blocks_are_no_matter_of_minutes() -> None:
    """A machine of 1 TiB may have its memory in blocks of 128 MiB; the question is asked for each block of the run."""
    known, began = online(*range(8192)), time.process_time()
    for _ in range(3):
        blocks.next_move(known, SIZE, 4096 * SIZE, Attempt(tuple(range(5000, 8192))))
    assert time.process_time() - began < 3


def test_movable_memory_is_preferred_to_higher_memory() -> None:
    """There it is likely to work; memory below 4 GiB is the last choice."""
    known = online(1, 2, zones=("DMA32",)) + online(4, 5, zones=("Movable", "Normal")) + online(7, 8)
    assert run(known, 2 * SIZE, {})[0].numbers == (4, 5)
    assert run(known, 2 * SIZE, {4: 9})[0].numbers == (7, 8)
    assert run(known, 2 * SIZE, {4: 9, 7: 9})[0].numbers == (1, 2)


def test_a_refusal_leads_to_another_run_and_what_is_useless_is_given_back() -> None:
    """The part above the stuck block is online again before the next run is tried."""
    end, moves, attempt = run(online(*range(10)), 4 * SIZE, {7: 99})
    assert end.numbers == (3, 4, 5, 6)
    assert moves[2] == TakeOffline(7)
    assert GiveBack((8, 9)) in moves
    assert set(attempt.taken) == {3, 4, 5, 6}


def test_a_block_gets_a_second_chance_when_nothing_else_is_left() -> None:
    """Pages are often pinned for a moment only."""
    end, _, _ = run(online(1, 2, 3), 3 * SIZE, {2: 1})
    assert end.numbers == (1, 2, 3)


def test_when_nothing_works_all_is_given_back_and_the_remedy_named() -> None:
    """The memory of the host is as before."""
    end, _, attempt = run(online(1, 2, 3), 2 * SIZE, {2: 99})
    assert isinstance(end, Refusal)
    assert attempt.taken == ()
    assert "movablecore=1G" in end.remedy
    assert "1 blocks refused" in end.fact


def test_what_is_taken_already_is_made_use_of() -> None:
    """Giving back and taking anew moves pages for nothing."""
    assert blocks.next_move(online(1, 2, 3, 4), SIZE, 2 * SIZE, Attempt(taken=(2,))) == TakeOffline(3)


def test_blocks_of_the_wanted_node_come_first() -> None:
    """All other things being equal."""
    known = [MemoryBlock(number, ONLINE, True, ("Movable",), node=number // 4) for number in range(8)]
    assert run(known, 2 * SIZE, {}, node=0)[0].numbers == (2, 3)


def test_what_an_administrator_took_offline_is_left_alone() -> None:
    """So is block 0, and one of unknown state."""
    known = [
        *online(0, 1),
        MemoryBlock(2, BlockState.OFFLINE),
        *online(3),
        MemoryBlock(4, BlockState.UNKNOWN),
        *online(5),
    ]
    assert isinstance(run(known, 2 * SIZE, {})[0], Refusal)
    assert run(known, SIZE, {5: 9, 3: 9})[0].numbers == (1,)


def test_too_many_refusals_end_the_search() -> None:
    """Each one moves pages about under the workloads."""
    end, moves, _ = run(online(*range(1, 200)), 2 * SIZE, dict.fromkeys(range(1, 200), 99), retry=Retry(2, 10))
    assert isinstance(end, Refusal)
    assert "too many refusals" in end.fact
    assert sum(isinstance(move, TakeOffline) for move in moves) == 10


@pytest.mark.parametrize(("wanted", "size"), [(0, SIZE), (-1, SIZE), (1, 0)])
def test_sizes_that_make_no_sense_are_refused(wanted: int, size: int) -> None:
    """Nothing is taken for them."""
    with pytest.raises(BadInputError):
        blocks.next_move([], size, wanted, Attempt())


@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from(["Movable", "Normal", "DMA32"])), max_size=24),
    st.integers(1, 6),
    st.dictionaries(st.integers(0, 24), st.integers(1, 4)),
)
@settings(deadline=None)
def test_the_search_ends_and_is_right(shape: list[tuple[bool, str]], count: int, stuck: dict[int, int]) -> None:
    """A run that works is found where there is one, in one piece; nothing else stays offline."""
    known = [MemoryBlock(number, ONLINE, None, (zone,)) for number, (there, zone) in enumerate(shape) if there]
    end, _, attempt = run(known, count * SIZE, stuck)
    workable = {each.number for each in known if each.number > 0 and stuck.get(each.number, 0) < 2}
    possible = any(all(n in workable for n in range(first, first + count)) for first in workable)
    if isinstance(end, Taken):
        assert end.range == MemoryRange(end.numbers[0] * SIZE, count * SIZE)
        assert set(attempt.taken) == set(end.numbers) <= workable
        assert list(end.numbers) == list(range(end.numbers[0], end.numbers[0] + count))
    else:
        assert not possible
        assert not attempt.taken
    assert possible == isinstance(end, Taken)


def test_memmap_is_advised_at_the_top_of_the_highest_ram_and_escaped() -> None:
    """A bare $ would be eaten by GRUB, and by the shell before it."""
    ram = [MemoryRange.between(1 << 20, 0xBFFDC000), MemoryRange.between(4 * GIB, 9 * GIB)]
    advice = blocks.advise_memmap(4 * GIB, SIZE, ram)
    assert advice.kernel == "memmap=4G$0x140000000"
    assert advice.grub_cfg == r"memmap=4G\$0x140000000"
    assert advice.default_grub == r"memmap=4G\\\$0x140000000"
    assert advice.range == MemoryRange(0x140000000, 4 * GIB)


def test_memmap_advice_keeps_whole_blocks() -> None:
    """The size is rounded up, the end down."""
    advice = blocks.advise_memmap(200 << 20, SIZE, [MemoryRange.between(4 * GIB, 6 * GIB - 4096)])
    assert advice.range == MemoryRange(6 * GIB - 3 * SIZE, 2 * SIZE)
    assert advice.kernel == "memmap=256M$0x168000000"


def test_no_advice_without_room() -> None:
    """The largest stretch is named."""
    found = blocks.advise_memmap(4 * GIB, SIZE, [MemoryRange(GIB, GIB)])
    assert isinstance(found, Refusal)
    assert "1024 MiB" in found.fact


def test_a_set_aside_range_is_ready_only_when_it_is_unused_memory() -> None:
    """Not where no memory is, not where the kernel still uses it, not when what is there is unknown."""
    firmware = [MemoryRange.between(1 << 20, 3 * GIB), MemoryRange.between(4 * GIB, 5 * GIB), MemoryRange(5 * GIB, GIB)]
    good, device, used = MemoryRange(4 * GIB + SIZE, GIB), MemoryRange(3 * GIB, SIZE), MemoryRange(GIB, SIZE)
    small = MemoryRange(2 * GIB, SIZE)
    ram = [MemoryRange.between(1 << 20, 2 * GIB)]
    assert blocks.ready_boxes([small, good, device, used], ram, firmware) == (good, small)
    assert blocks.ready_boxes([good], ram, None) == ()


@pytest.mark.parametrize(("wanted", "word"), [(1, "1G"), (GIB, "2G"), (4 * GIB, "6G")])
def test_movablecore_leaves_room(wanted: int, word: str) -> None:
    """Half as much again."""
    assert blocks.movablecore(wanted) == f"movablecore={word}"


def test_a_block_that_cannot_be_removed_is_never_tried() -> None:
    """The kernel itself lies in it: a run goes around it, or there is none."""
    known = [MemoryBlock(number, ONLINE, number != 6, ("Movable",)) for number in range(1, 10)]
    end, moves, _ = run(known, 5 * SIZE, {})
    assert isinstance(end, Taken) and end.numbers == (1, 2, 3, 4, 5)
    end, moves, _ = run(known, 6 * SIZE, {})
    assert isinstance(end, Refusal) and len(moves) == 1
