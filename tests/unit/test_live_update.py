"""Images in memory, from kernel to kernel: preserved without a copy, fetched once, held by a process of their own."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import hypothesis.strategies as st
import pytest
from hypothesis import given

from kupgrade.errors import BadInputError, KernelError, KupgradeError
from kupgrade.host.images import ImageStore
from kupgrade.host.preserved import PreservedFile, PreservedIndex, PreservedLink, read_index, session_name, take_stock
from kupgrade.kernel.liveupdate import PRESERVE_FD, RETRIEVE_SESSION
from kupgrade.machine import image_holder
from kupgrade.machine.image_holder import Held, fetch
from kupgrade.machine.images import RealImages
from kupgrade.machine.live_update import LiveUpdate
from kupgrade.machine.places import Places
from kupgrade.model.workload import Store, StoreKind
from tests.fakes.liveupdate import FakeLiveUpdate

CONTENT = {"manifest.json": b"{}", "demo/pre-1/pages-1.img": b"one" * 5000, "demo/final/pages-1.img": b"two" * 70}


@pytest.fixture
def store() -> Iterator[Store]:
    """Images as a dump leaves them, on a tmpfs: the kernel takes no other files."""
    with TemporaryDirectory(dir="/dev/shm") as top:
        path = Path(top) / "20261121-041503-9f2c1a"
        write(path)
        yield Store(StoreKind.LUO, str(path), "tmpfs", top)


def write(path: Path) -> None:
    for name, content in CONTENT.items():
        (path / name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    (path / "demo/final/parent").symlink_to("../pre-1")


@pytest.fixture
def places(tmp_path: Path) -> Places:
    made = Places(tmp_path)
    made.run.mkdir(parents=True)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cmdline").write_text("kho=on quiet\n")
    return made


def crossed(places: Places, store: Store) -> FakeLiveUpdate:
    """A kernel that got the images from another one."""
    device = FakeLiveUpdate()
    LiveUpdate(places, device).preserve(store)
    device.kexec()
    return device


def contents(held: Held) -> dict[str, bytes]:
    return {name: os.pread(fd, 1 << 20, 0) for name, fd in held.fds.items()}


def test_preserved_images_lose_their_names_and_live_in_a_session(store: Store, places: Places) -> None:
    """Nothing is copied, so nothing is left below the store's path; the session lives until it is given up."""
    device = FakeLiveUpdate()
    update = LiveUpdate(places, device)
    assert update.preserved(store) is False
    assert update.preserve(store) == (3, sum(map(len, CONTENT.values())))
    assert not [path for path in Path(store.path).rglob("*") if path.is_file()]
    assert update.preserved(store) is True
    update.give_up(store)
    assert update.preserved(store) is False


def test_a_worker_that_dies_takes_the_session_along(store: Store, places: Places) -> None:
    """Then the next one is told that nothing would be handed over."""
    device = FakeLiveUpdate()
    LiveUpdate(places, device).preserve(store)
    device.die(*list(device._fds))
    assert LiveUpdate(places, device).preserved(store) is False


def test_a_kernel_that_cannot_be_asked_is_unknown(store: Store, places: Places) -> None:
    """No device: neither yes nor no."""
    assert LiveUpdate(places, FakeLiveUpdate(there=False)).preserved(store) is None


def test_an_image_that_cannot_be_preserved_leaves_no_session(store: Store, places: Places) -> None:
    """Half a session is none: what was put in already is given up."""
    device = FakeLiveUpdate(refusals={PRESERVE_FD: [errno.ENOMEM]})
    with pytest.raises(KernelError):
        LiveUpdate(places, device).preserve(store)
    assert not device.outgoing


def test_images_come_through_any_number_of_kernels(store: Store, places: Places) -> None:
    """Each kernel finds all of them, whole, and hands them on without being asked."""
    device = crossed(places, store)
    for _ in range(3):
        held = fetch(store, places.root, device)
        assert contents(held) == CONTENT
        assert held.index.links == (PreservedLink("demo/final/parent", "../pre-1"),)
        assert session_name(store).encode() in device.outgoing and not device.incoming
        device.kexec()


def test_without_a_way_back_the_images_are_there_all_the_same(
    store: Store, places: Places, capfd: pytest.CaptureFixture[str]
) -> None:
    """A session that cannot be made again is told; to drop the images for it would lose them for sure."""
    device = crossed(places, store)
    device.refusals = {PRESERVE_FD: [errno.ENOMEM]}
    held = fetch(store, places.root, device)
    assert held.session is None and contents(held) == CONTENT
    assert "no way back" in capfd.readouterr().err


def test_a_kernel_that_got_nothing_says_why(store: Store, places: Places) -> None:
    """Lost on the way, or no device at all: the reason stands in the error, with the kernel's own words."""
    device = crossed(places, store)
    device.kexec()  # nobody had taken them
    update = LiveUpdate(places, device)
    update.fetch(store)
    assert "no session of that name" in update.missing(store)
    assert "kho=on liveupdate=(none)" in update.missing(store)
    gone = LiveUpdate(places, FakeLiveUpdate(there=False))
    gone.fetch(store)
    assert "no live update device" in gone.missing(store)


def test_an_image_that_came_short_is_refused(store: Store, places: Places) -> None:
    """The index knows every size; the kernel's word that all is there is not enough."""
    device = FakeLiveUpdate()
    LiveUpdate(places, device).preserve(store)
    session = device.outgoing[session_name(store).encode()]
    os.truncate(f"/proc/self/fd/{session.files[2].fd}", 3)
    device.kexec()
    with pytest.raises(KupgradeError, match="did not come whole"):
        fetch(store, places.root, device)


def test_only_a_sure_answer_says_that_images_are_lost(store: Store, places: Places) -> None:
    """A device that is busy, or images that came in part, leave it open: nothing may be started anew for that."""
    busy = LiveUpdate(places, FakeLiveUpdate(refusals={RETRIEVE_SESSION: [errno.EIO]}))
    with pytest.raises(KupgradeError):
        busy.fetch(store)
    assert not busy.lost(store)
    gone = LiveUpdate(places, FakeLiveUpdate())
    gone.fetch(store)
    assert gone.lost(store)
    (Path(store.path) / "manifest.json").unlink()
    assert RealImages(gone).came(store) is False
    assert RealImages(busy).came(store) is None
    (Path(store.path) / "manifest.json").touch()
    assert RealImages(gone).came(store) is True


def test_an_image_that_cannot_be_opened_leaves_all_of_them_as_they_were(store: Store, places: Places) -> None:
    """Names are taken only when every file is in hand: another try may follow."""
    device = FakeLiveUpdate()
    other = Path(store.path) / "demo/final/pages-1.img"
    opened = os.open
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KernelError):
        patch.setattr(
            os, "open", lambda path, *more: opened("/missing", 0) if Path(path) == other else opened(path, *more)
        )
        LiveUpdate(places, device).preserve(store)
    assert {name: (Path(store.path) / name).read_bytes() for name in CONTENT} == CONTENT and not device.outgoing
    assert LiveUpdate(places, device).preserve(store)[0] == len(CONTENT)


class Late:
    """A kernel that has the images for whoever asks first, in the process that asks: forks share no fake."""

    def __init__(self, places: Places, store: Store) -> None:
        self.places, self.store, self.device = places, store, FakeLiveUpdate()
        self.begun = False

    def open_device(self, path: Path) -> int:
        if not self.begun:
            self.begun = True
            shutil.rmtree(self.store.path)
            write(Path(self.store.path))
            self.device = crossed(self.places, self.store)
        return self.device.open_device(path)

    def ioctl(self, fd: int, request: int, argument: bytearray) -> None:
        self.device.ioctl(fd, request, argument)

    def close(self, fd: int) -> None:
        self.device.close(fd)


def ends(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}/fd").exists() and time.monotonic() < deadline:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        if state in "ZX":
            return True
        time.sleep(0.01)
    return not Path(f"/proc/{pid}").exists()


def test_the_holder_shows_the_images_until_it_is_told_that_they_are_dead(store: Store, places: Places) -> None:
    """Files by their names, readable by any process of ours; afterwards neither they nor the holder are there."""
    top = Path(store.path)
    files, size, seconds = image_holder.start(places, store, Late(places, store))
    assert (files, size) == (len(CONTENT), sum(map(len, CONTENT.values()))) and seconds > 0
    held = image_holder.holder(places, store)
    assert held is not None and held.pid != os.getpid()
    assert {name: (top / name).read_bytes() for name in CONTENT} == CONTENT
    assert (top / "demo/final/parent/pages-1.img").read_bytes() == CONTENT["demo/pre-1/pages-1.img"]
    os.kill(held.pid, signal.SIGTERM)  # what can be ignored is
    assert image_holder.alive(places, store)
    image_holder.release(places, store)
    assert ends(held.pid)
    assert not image_holder.alive(places, store) and not (top / "manifest.json").exists()
    image_holder.release(places, store)  # done already


def test_held_images_are_overwritten_before_they_are_let_go(store: Store, places: Places) -> None:
    """What they hold are secrets: whoever has a descriptor left reads zeros, and links are no hiding place."""
    image_holder.start(places, store, Late(places, store))
    with (Path(store.path) / "demo/final/pages-1.img").open("rb") as still_open:
        ImageStore(store).wipe()
        assert still_open.read() == bytes(len(CONTENT["demo/final/pages-1.img"]))
        image_holder.release(places, store)
        assert os.fstat(still_open.fileno()).st_size == 0
    assert not Path(store.path).exists()


def test_a_killed_holder_is_no_holder(store: Store, places: Places) -> None:
    """Its PID alone, or another store's, does not count; what it held is gone."""
    image_holder.start(places, store, Late(places, store))
    held = image_holder.holder(places, store)
    assert held is not None
    other = Store(StoreKind.LUO, store.path + "-other", "tmpfs", store.mountpoint)
    assert not image_holder.alive(places, other)
    os.kill(held.pid, signal.SIGKILL)
    assert ends(held.pid)
    assert not image_holder.alive(places, store)


def test_the_holder_tells_why_there_is_nothing_to_hold(store: Store, places: Places) -> None:
    """An error in the forked process reaches whoever started it; no process stays behind."""
    with pytest.raises(KupgradeError, match="RETRIEVE_SESSION") as caught:
        image_holder.start(places, store, FakeLiveUpdate())
    assert "no session of that name" in caught.value.why
    assert not image_holder.alive(places, store)


names = st.text("abc/.-0", min_size=1, max_size=20)


@given(st.binary(max_size=200) | st.text(max_size=80).map(str.encode))
def test_a_damaged_index_is_bad_input(data: bytes) -> None:
    """Whatever the bytes, nothing but BadInputError is raised."""
    with pytest.raises(BadInputError):
        read_index(data)


@given(names)
def test_an_index_names_nothing_outside_of_the_store(name: str) -> None:
    """A path that leads out is refused; any other is read back as it was."""
    index = PreservedIndex((PreservedFile(name, 1),), ())
    try:
        assert read_index(index.encoded()) == index
        assert not name.startswith("/") and ".." not in Path(name).parts
    except BadInputError:
        assert name.startswith("/") or ".." in Path(name).parts


def test_a_link_that_leads_out_of_the_store_is_refused() -> None:
    """criu's own links stay between the rounds of a workload."""
    index = PreservedIndex((), (PreservedLink("demo/final/parent", "../../../etc"),))
    with pytest.raises(BadInputError, match="no image"):
        read_index(index.encoded())


def test_stock_is_taken_of_files_and_links(store: Store) -> None:
    """Names and sizes in a fixed order; links are not followed."""
    stock = take_stock(Path(store.path))
    assert [each.name for each in stock.files] == sorted(CONTENT)
    assert [each.size for each in stock.files] == [len(CONTENT[name]) for name in sorted(CONTENT)]
