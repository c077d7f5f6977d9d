"""Hosts on which images cannot stay in memory, or only just: told before anything is touched."""

from __future__ import annotations

import json

import pytest

from kupgrade.errors import ExitCode
from kupgrade.rehearsal import inside, kho_kernel, virtual_host
from kupgrade.rehearsal.options import Options
from tests.vm.hosts import Guest, say, skipped_without, started
from tests.vm.test_preserved_descriptors import upgrade
from tests.vm.test_workloads import kupgrade

pytestmark = [pytest.mark.vm, pytest.mark.extended]

OLD, NEW, WITHOUT = "khokernel-7.2", "khokernel-7.3", "trixie-backports"
MEMORY = 2048  # MiB of the virtual host
TOO_MUCH = "kho_scratch=64M,4096M,64M"  # more than the virtual host has
LITTLE = "kho_scratch=32M,64M,128M"


def host(new: str, line: str) -> virtual_host.VirtualHost:
    with skipped_without():
        return virtual_host.build(OLD, new, say, line=virtual_host.command_line(line))


def refusal(guest: Guest) -> str:
    """What the plan says to images in memory; nothing was changed by asking."""
    status, value = kupgrade(guest.link, "plan", "--store", "luo", "--kernel", guest.release)
    assert status == ExitCode.REFUSED, value
    assert kupgrade(guest.link, "status")[1]["open"] is False
    return json.dumps(value)


def test_a_kernel_without_room_for_its_scratch_is_told_from_one_without_the_words() -> None:
    """It hands nothing over, though its command line says that it would; images go elsewhere by themselves."""
    with started(host(NEW, f"{kho_kernel.COMMAND_LINE} {TOO_MUCH}"), MEMORY) as guest:
        guest.start_workload()
        assert "no room for KHO's scratch areas" in refusal(guest)
        status, value = kupgrade(guest.link, "plan", "--kernel", guest.release)
        assert (status, value["store"] in ("pmem", "disk")) == (ExitCode.DONE, True), value


def test_a_target_that_takes_no_memory_over_and_a_workload_without_room_are_named() -> None:
    """Each for itself, by its own figures."""
    with started(host(WITHOUT, kho_kernel.COMMAND_LINE), MEMORY) as guest:
        guest.start_workload()
        assert "understands what this kernel hands over" in refusal(guest)
        inside.prepare(guest.link, Options(memory=700))
        assert "memory for" in refusal(guest)


def test_images_cross_with_little_scratch() -> None:
    """What the old kernel reserved is all that the new one starts in, and it is told the same words."""
    with started(host(NEW, f"{kho_kernel.COMMAND_LINE} {LITTLE}"), MEMORY) as guest:
        guest.start_workload()
        before = guest.link.boots[-1].boot_id
        last = upgrade(guest, "--store", "luo")
        assert last["outcome"] == "committed", last
        assert guest.link.boots[-1].boot_id != before
        assert LITTLE in guest.link.read("/proc/cmdline").decode()
        assert inside.leftovers(guest.link) == ()
