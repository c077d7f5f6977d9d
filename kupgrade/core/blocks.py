"""Which memory blocks become the box: the next move in taking a run of them offline, and advice when none works.

Whether a block can go offline shows only when it is tried. So the choice is a decision that is asked again after each
try, with what was taken and what refused; it ends, because each block may refuse only so often.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from kupgrade.errors import BadInputError
from kupgrade.model.machine import MemoryRange
from kupgrade.model.memory import BlockState, MemoryBlock
from kupgrade.model.plan import Refusal

GIB = 1 << 30
MIB = 1 << 20

_ZONES = {"Movable": 0, "Normal": 1, "DMA32": 2}  # what lies in the lower zones is scarcer and moves less often


@dataclass(frozen=True, slots=True)
class Attempt:
    """What was tried: the blocks that are offline because of it, and each refusal (one block may stand there twice)."""

    taken: tuple[int, ...] = ()
    refused: tuple[int, ...] = ()

    def took(self, number: int) -> Attempt:
        """One more block is offline."""
        return Attempt((*self.taken, number), self.refused)

    def was_refused(self, number: int) -> Attempt:
        """A block could not be taken offline."""
        return Attempt(self.taken, (*self.refused, number))

    def gave_back(self, numbers: Sequence[int]) -> Attempt:
        """Blocks are online again."""
        return Attempt(tuple(each for each in self.taken if each not in numbers), self.refused)


@dataclass(frozen=True, slots=True)
class TakeOffline:
    """Try to take this block offline."""

    number: int


@dataclass(frozen=True, slots=True)
class GiveBack:
    """Bring these blocks online: the run now in view does not need them."""

    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Taken:
    """Enough is offline, in one piece."""

    range: MemoryRange
    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Retry:
    """How often one block may refuse, and all of them together."""

    per_block: int = 2
    in_all: int = 64


Move = TakeOffline | GiveBack | Taken | Refusal


def next_move(
    blocks: Sequence[MemoryBlock],
    block_size: int,
    wanted: int,
    attempt: Attempt,
    *,
    node: int | None = None,
    retry: Retry = Retry(),
) -> Move:
    """What to do next to get `wanted` bytes offline in one run of blocks.

    `blocks`: as they were before the first try. Runs are preferred in movable zones, then without earlier refusals,
    then on `node`, then those that use what is already taken, then the highest. Left alone are block 0, blocks that are
    not removable, and blocks that were not online: an administrator took those offline for a reason. Raises
    BadInputError for sizes that make no sense.
    """
    if wanted < 1 or block_size < 1:
        raise BadInputError("The size of a box makes no sense", f"{wanted} bytes in blocks of {block_size}")
    count = -(-wanted // block_size)
    refusals = Counter(attempt.refused)
    usable = {
        each.number: each
        for each in blocks
        if each.number > 0
        and each.state is BlockState.ONLINE
        and each.removable is not False
        and refusals[each.number] < retry.per_block
    }
    numbers = sorted(usable)
    runs = [at for at in range(len(numbers) - count + 1) if numbers[at + count - 1] - numbers[at] == count - 1]
    if not runs or len(attempt.refused) >= retry.in_all:
        if attempt.taken:
            return GiveBack(tuple(sorted(attempt.taken)))
        return _no_run(count, block_size, attempt, bool(runs))

    # Sums up to each block: there may be thousands, and a run of hundreds is asked for anew with each one taken.
    taken = frozenset(attempt.taken)
    columns = (
        [_ZONES.get(each.zones[0], 1) if each.zones else 1 for each in map(usable.__getitem__, numbers)],
        [refusals[number] for number in numbers],
        [int(node is not None and usable[number].node != node) for number in numbers],
        [-int(number in taken) for number in numbers],
    )
    sums = [list(accumulate(column, initial=0)) for column in columns]
    first = min(runs, key=lambda at: (*(each[at + count] - each[at] for each in sums), -numbers[at]))
    best = range(numbers[first], numbers[first] + count)
    if outside := tuple(sorted(number for number in attempt.taken if number not in best)):
        return GiveBack(outside)
    for number in reversed(best):
        if number not in attempt.taken:
            return TakeOffline(number)
    return Taken(MemoryRange(best.start * block_size, count * block_size), tuple(best))


def _no_run(count: int, block_size: int, attempt: Attempt, given_up: bool) -> Refusal:
    tried = f"; {len(set(attempt.refused))} blocks refused to go offline" if attempt.refused else ""
    why = "too many refusals" if given_up else f"no {count} adjoining blocks of {block_size // MIB} MiB are left to try"
    return Refusal(
        "memory-offline",
        f"{count * block_size // MIB} MiB could not be taken offline in one piece: {why}{tried}",
        f"Boot with {movablecore(count * block_size)}, which makes it likely, or with memmap=, which makes it certain",
    )


def movablecore(wanted: int) -> str:
    """The kernel parameter that keeps enough memory movable: half as much again, for what moves late or never."""
    return f"movablecore={-(-wanted * 3 // 2 // GIB) or 1}G"


@dataclass(frozen=True, slots=True)
class MemmapAdvice:
    """memmap=SIZE$ADDRESS for the next boot, as each place has to write it.

    `kernel`: as the kernel must see it (systemd-boot, UKI, /proc/cmdline). `grub_cfg`: in grub.cfg and in boot loader
    entries that GRUB reads, where $ begins a variable. `default_grub`: inside the double quotes of /etc/default/grub,
    which a shell reads first.
    """

    range: MemoryRange
    kernel: str
    grub_cfg: str
    default_grub: str


def advise_memmap(wanted: int, block_size: int, ram: Sequence[MemoryRange]) -> MemmapAdvice | Refusal:
    """Where to set `wanted` bytes aside for good: at the top of the highest RAM that is large enough.

    Rounded to whole blocks, so that the rest of the RAM keeps whole blocks too. RAM below 4 GiB is the last choice.
    """
    size = -(-wanted // block_size) * block_size
    for each in sorted(ram, reverse=True):
        start = (each.end - size) // block_size * block_size
        if start >= max(each.start, block_size):
            number, suffix = (size // GIB, "G") if size % GIB == 0 else (size // MIB, "M")
            before, after = f"memmap={number}{suffix}", f"{start:#x}"
            return MemmapAdvice(
                MemoryRange(start, size), f"{before}${after}", rf"{before}\${after}", rf"{before}\\\${after}"
            )
    largest = max((each.size for each in ram), default=0)
    return Refusal(
        "memory-size",
        f"{size // MIB} MiB in one piece are wanted; the largest stretch of RAM has {largest // MIB} MiB",
        "Ask for less, or use a machine with more memory",
    )


def ready_boxes(
    set_aside: Sequence[MemoryRange], ram: Sequence[MemoryRange], firmware_ram: Sequence[MemoryRange] | None
) -> tuple[MemoryRange, ...]:
    """The set-aside ranges that are real memory and that the running kernel does not use, largest first.

    `set_aside`: from the command line. `ram`: what the running kernel uses. `firmware_ram`: what there is; None, when
    unknown, proves nothing, so no range is ready.
    """
    if firmware_ram is None:
        return ()
    present = joined(firmware_ram)
    ready = (
        each
        for each in set_aside
        if any(each in whole for whole in present) and not any(each.overlaps(used) for used in ram)
    )
    return tuple(sorted(ready, key=lambda each: (-each.size, each.start)))


def joined(ranges: Sequence[MemoryRange]) -> list[MemoryRange]:
    """Adjoining ranges as one."""
    whole: list[MemoryRange] = []
    for each in sorted(ranges):
        if whole and each.start <= whole[-1].end:
            whole[-1] = MemoryRange.between(whole[-1].start, max(whole[-1].end, each.end))
        else:
            whole.append(each)
    return whole
