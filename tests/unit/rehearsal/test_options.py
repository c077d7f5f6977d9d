"""The size of the virtual host."""

from __future__ import annotations

import pytest

from kupgrade.rehearsal import options
from kupgrade.rehearsal.faults import Fault
from kupgrade.rehearsal.options import Options


@pytest.mark.parametrize(("memory", "least"), [(64, 4096), (1024, 7168)])
def test_both_kernels_have_room_beside_each_other(memory: int, least: int) -> None:
    """What can be taken away holds the second kernel, and as much as the first one needs stays."""
    wanted = Options(engine="spawn", memory=memory)
    assert options.movable_memory(wanted) >= options.second_kernel(wanted) + memory
    assert options.machine_memory(wanted) - options.movable_memory(wanted) >= 2048
    assert options.machine_memory(wanted) >= least
    assert options.cpus(wanted) == 4
    assert f"movablecore={options.movable_memory(wanted)}M" in options.kernel_line(wanted)


def test_a_host_for_a_kernel_beside_sets_no_memory_aside() -> None:
    """Images travel through memory that both kernels see; a host whose memory is to refuse keeps none movable."""
    assert "memmap" not in options.kernel_line(Options(engine="spawn"))
    assert "memmap=512M!1G" in options.kernel_line(Options())
    assert "memmap=1792M!4G" in options.kernel_line(Options(memory=1024))
    stuck = Options(engine="spawn", faults=(Fault("memory-refuses-offline"),))
    assert "movablecore" not in options.kernel_line(stuck)
