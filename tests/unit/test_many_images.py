"""Images by the thousand: each connection of a workload is one, and each has to be open to be handed on."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from kupgrade.kernel.liveupdate import RETRIEVE_FD
from kupgrade.machine.image_holder import fetch
from kupgrade.machine.live_update import LiveUpdate
from kupgrade.machine.places import Places
from kupgrade.model.workload import Store, StoreKind
from tests.fakes.liveupdate import FakeLiveUpdate

MANY, FEW = 300, 128


def limit(soft: int) -> int:
    """Files that this process may have open from now on; how many it might have before."""
    before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return before


class Roomy(FakeLiveUpdate):
    """What the kernel keeps for itself counts among no process's open files."""

    def ioctl(self, fd: int, request: int, argument: bytearray) -> None:
        if request == RETRIEVE_FD:
            return super().ioctl(fd, request, argument)  # a descriptor of the process that asks
        before = limit(resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        super().ioctl(fd, request, argument)
        limit(before)
        return None


@pytest.fixture
def store() -> Iterator[Store]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with TemporaryDirectory(dir="/dev/shm") as top:
        images = Path(top) / "20261121-041503-9f2c1a/demo/final"
        images.mkdir(parents=True)
        for at in range(MANY):
            (images / f"tcp-stream-{at:x}.img").write_bytes(b"stream")
        yield Store(StoreKind.LUO, str(images.parent.parent), "tmpfs", top)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_more_images_come_through_than_a_process_may_have_open(store: Store, tmp_path: Path) -> None:
    """In the old kernel and in the new one, which takes them over and hands them on; and it can go on then."""
    places, device = Places(tmp_path), Roomy()
    limit(FEW)
    assert LiveUpdate(places, device).preserve(store)[0] == MANY
    limit(FEW)
    device.kexec()
    held = fetch(store, places.root, device)
    assert len(held.fds) == MANY and held.session is not None
    os.close(os.dup(0))
    held.drop()
