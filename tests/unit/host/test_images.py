"""Checkpoint images on a store: private, sealed, verified, wiped."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kupgrade.errors import BadInputError
from kupgrade.host import images
from kupgrade.host.images import ImageStore, last_dump
from kupgrade.host.manifest import MANIFEST
from kupgrade.model.workload import Store, StoreKind

SECRET = b"correct horse battery staple" * 100


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    made = ImageStore(Store(StoreKind.DISK, str(tmp_path / "images" / "20261121-041503-9f2c1a")))
    made.prepare()
    for name in ("pre-1", "final"):
        directory = made.round_directory("demo", name)
        (directory / "pages-1.img").write_bytes(SECRET)
    return made


def sealed(store: ImageStore) -> ImageStore:
    store.seal("20261121-041503-9f2c1a", "6.12", "7.3", {})
    return store


def test_directories_are_roots_alone(store: ImageStore) -> None:
    """Everything on the way to an image is 0700, the manifest 0600."""
    sealed(store)
    for path in (store.path, store.path / "demo", store.path / "demo" / "final"):
        assert path.stat().st_mode & 0o777 == 0o700
    assert (store.path / MANIFEST).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_a_directory_that_others_can_enter_is_refused(store: ImageStore, mode: int) -> None:
    """Hostile modes are refused before anything is read or written."""
    store.path.chmod(mode)
    with pytest.raises(BadInputError, match="open to others"):
        store.prepare()
    with pytest.raises(BadInputError, match="open to others"):
        store.manifest()


def test_a_link_in_place_of_the_directory_is_refused(store: ImageStore, tmp_path: Path) -> None:
    """A link could lead the images anywhere."""
    store.path.rename(tmp_path / "elsewhere")
    store.path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadInputError, match="not a directory"):
        store.prepare()


def test_without_the_mark_images_do_not_count(store: ImageStore) -> None:
    """Files alone are not enough: the complete mark is written last."""
    assert not store.sealed()
    with pytest.raises(BadInputError, match="not complete"):
        store.verify()
    assert sealed(store).sealed()
    assert set(store.verify().files) == {"demo/final/pages-1.img", "demo/pre-1/pages-1.img"}


@pytest.mark.parametrize("damage", ["flip", "truncate", "grow", "remove"])
@pytest.mark.parametrize("name", ["demo/final/pages-1.img", "demo/pre-1/pages-1.img"])
def test_any_damage_to_any_image_is_found_and_named(store: ImageStore, damage: str, name: str) -> None:
    """A flipped bit, a missing or an extra byte, a missing file: refused, with the file's name."""
    path = sealed(store).path / name
    data = path.read_bytes()
    match damage:
        case "flip":
            path.write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:])
        case "truncate":
            path.write_bytes(data[:-1])
        case "grow":
            path.write_bytes(data + b"x")
        case "remove":
            path.unlink()
    with pytest.raises(BadInputError) as caught:
        store.verify()
    assert name in str(caught.value)


def test_the_quick_check_reads_the_last_round_and_the_sizes_of_the_others(store: ImageStore) -> None:
    """A flip in the last round is found, one in an earlier round only by the full check, a size anywhere."""
    early, late = (sealed(store).path / f"demo/{name}/pages-1.img" for name in ("pre-1", "final"))
    early.write_bytes(b"C" + SECRET[1:])
    store.verify(last_dump)
    with pytest.raises(BadInputError):
        store.verify()
    early.write_bytes(SECRET[1:])
    with pytest.raises(BadInputError):
        store.verify(last_dump)
    early.write_bytes(SECRET)
    late.write_bytes(b"C" + SECRET[1:])
    with pytest.raises(BadInputError):
        store.verify(last_dump)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": "kupgrade.images/1"}'])
def test_a_damaged_manifest_is_refused(store: ImageStore, content: bytes) -> None:
    """A torn or foreign manifest is no manifest."""
    (sealed(store).path / MANIFEST).write_bytes(content)
    with pytest.raises(BadInputError):
        store.manifest()


def test_sealing_trusts_checksums_taken_before_only_for_files_of_the_same_size(store: ImageStore) -> None:
    """What was summed before the blackout is not summed again, unless it changed in size."""
    known = store.checksums({})
    (store.path / "demo/pre-1/pages-1.img").write_bytes(SECRET + b"more")
    store.seal("20261121-041503-9f2c1a", "6.12", "7.3", known)
    store.verify()


def test_withdrawing_makes_the_images_dead_and_keeps_them(store: ImageStore) -> None:
    """The mark goes, the evidence stays; twice is no error."""
    sealed(store).withdraw()
    store.withdraw()
    assert not store.sealed() and store.used_bytes() == 2 * len(SECRET)


def test_a_directory_that_cannot_be_read_is_not_one_without_images(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is sealed, counted or wiped as if its images were not there."""
    listing = os.scandir

    def scandir(path: str) -> object:
        if os.fspath(path).endswith("final"):
            raise PermissionError(13, "Permission denied", path)
        return listing(path)

    monkeypatch.setattr(os, "scandir", scandir)
    for act in (lambda: sealed(store), store.used_bytes, store.wipe):
        with pytest.raises(PermissionError):
            act()
    assert not store.sealed()


def test_wiping_overwrites_before_it_removes(store: ImageStore) -> None:
    """A second name of an image holds nothing but zeros afterwards, and no file is left."""
    twin = store.path.parent / "twin"
    os.link(sealed(store).path / "demo/final/pages-1.img", twin)
    store.wipe()
    assert not store.path.exists() and twin.read_bytes() == bytes(len(SECRET))
    store.wipe()


def test_a_round_begins_empty(store: ImageStore) -> None:
    """What an interrupted attempt left is not mixed with the next one."""
    assert list(store.round_directory("demo", "final").iterdir()) == []


def test_a_file_that_was_written_again_is_summed_again(store: ImageStore) -> None:
    """Of the same size as before, but not the same: the manifest holds what is there now."""
    known = store.checksums({})
    path = store.path / "demo/pre-1/pages-1.img"
    path.write_bytes(b"C" + SECRET[1:])
    os.utime(path, ns=(0, known["demo/pre-1/pages-1.img"].written + 1))
    store.seal("20261121-041503-9f2c1a", "6.12", "7.3", known)
    store.verify()


def test_images_are_on_disk_before_their_mark(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the mark there after a power cut, so is all that it speaks for."""
    marked: list[bool] = []
    monkeypatch.setattr(os, "sync", lambda: marked.append(store.sealed()))
    sealed(store)
    assert marked == [False]


def test_withdrawn_images_do_not_come_back_with_a_power_cut(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mark's removal is on disk when withdrawing ends: the originals run on right after it."""
    marked: list[bool] = []
    monkeypatch.setattr(images, "sync_directory", lambda path: marked.append(ImageStore.sealed(store)))
    sealed(store)
    del marked[:]
    store.withdraw()
    assert marked == [False]


def test_the_mark_goes_before_any_image_does(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while wiping, what is left is never taken for a checkpoint."""
    monkeypatch.setattr(images, "_overwrite", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        sealed(store).wipe()
    assert not store.sealed()


def test_room_in_memory_is_what_memory_there_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A tmpfs may promise more than is available; on a disk only the file system's word counts."""
    monkeypatch.setattr(images, "_available_memory", lambda: 12345)
    assert ImageStore(Store(StoreKind.LUO, str(tmp_path), "tmpfs", str(tmp_path))).free_bytes() == 12345
    assert ImageStore(Store(StoreKind.DISK, str(tmp_path))).free_bytes() > 1 << 20
    monkeypatch.undo()
    assert 0 < images._available_memory() < 1 << 50


def test_what_a_killed_seal_left_is_no_image(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mark that was being written is written again, and the images are whole."""
    with monkeypatch.context() as killed:
        killed.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            sealed(store)
    assert not store.sealed()
    sealed(store).verify()


@pytest.mark.parametrize("target", ["", "../pre-2"], ids=["missing", "another"])
def test_the_way_to_the_round_before_is_a_part_of_the_images(store: ImageStore, target: str) -> None:
    """By a link criu finds the memory that was not dumped again: of another round it would be another one's."""
    link = store.path / "demo/final/parent"
    link.symlink_to("../pre-1")
    sealed(store).verify()
    link.unlink()
    if target:
        link.symlink_to(target)
    with pytest.raises(BadInputError, match="demo/final/parent"):
        store.verify(lambda _: False)


def test_sealed_images_are_roots_alone(store: ImageStore) -> None:
    """Whoever wrote them, and whatever the umask was."""
    before = os.umask(0)
    (store.path / "demo/final/meta.json").write_text("{}")
    os.umask(before)
    sealed(store).verify()
    found = {path.name: path.stat().st_mode & 0o777 for path in store.path.rglob("*") if path.is_file()}
    assert set(found.values()) == {0o600}, found


def test_what_a_round_finds_in_its_place_is_overwritten(store: ImageStore, tmp_path: Path) -> None:
    """Images of a dump that was cut short hold secrets as others do; a link leads nowhere."""
    image, elsewhere = store.path / "demo/final/pages-1.img", tmp_path / "elsewhere"
    (tmp_path / "second-name").hardlink_to(image)
    elsewhere.write_bytes(SECRET)
    (image.parent / "link").symlink_to(elsewhere)
    assert not list(store.round_directory("demo", "final").iterdir())
    assert not (tmp_path / "second-name").read_bytes().strip(b"\0")
    assert elsewhere.read_bytes() == SECRET


@pytest.mark.parametrize(
    ("body", "formats"),
    [
        ("exit 2", True),  # nothing was found
        ("exit 0", False),  # a partition table, which has no TYPE
        ("exit 8", False),  # signs of several
        ("exit 4", False),
        ("printf 'kupgrade\\next4\\n'", False),
        ("echo xfs", False),
    ],
)
def test_only_a_device_with_nothing_on_it_is_formatted(
    body: str, formats: bool, tool: Callable[[str, str], Path], tmp_path: Path
) -> None:
    """What blkid cannot tell is not nothing."""
    made = tmp_path / "formatted"
    tool("blkid", body)
    tool("mkfs.ext4", f": > {made}")
    store = ImageStore(Store(StoreKind.PMEM, str(tmp_path / "on/x"), str(tmp_path / "pmem0"), str(tmp_path / "on")))
    with contextlib.nullcontext() if formats or "kupgrade" in body else pytest.raises(BadInputError, match="pmem0"):
        store.format()
    assert made.exists() is formats
