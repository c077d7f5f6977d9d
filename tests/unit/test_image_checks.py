"""When images are compared with their checksums, and by whom: nothing runs before all of them were."""

from __future__ import annotations

from pathlib import Path

import pytest

from kupgrade.errors import BadInputError, KupgradeError
from kupgrade.host.images import ImageStore
from kupgrade.machine import fill
from kupgrade.machine import images as port
from kupgrade.machine.images import RealImages
from kupgrade.model.workload import Store, StoreKind

CONTENT = b"memory " * 1000
IMAGES = ("demo/pre-1/pages-1.img", "demo/pre-1/mm-7.img", "demo/final/pages-1.img", "demo/final/core-7.img")


def sealed(top: Path, kind: StoreKind) -> Store:
    """Sealed images of one workload. The file system is the test's own: nothing is mounted."""
    store = Store(kind, str(top / "images"), "", "")
    images = ImageStore(store)
    images.prepare()
    for name in IMAGES:
        path = images.path / name
        images.round_directory("demo", path.parent.name) if not path.parent.exists() else None
        path.write_bytes(CONTENT)
    images.seal("20260101-000000-abcdef", "6.12.1", "7.3.4", {})
    return store


def flip(store: Store, name: str) -> None:
    path = Path(store.path) / name
    path.write_bytes(b"M" + CONTENT[1:])


@pytest.mark.parametrize("kind", [StoreKind.DISK, StoreKind.WINDOW])
def test_whole_images_pass(kind: StoreKind, tmp_path: Path) -> None:
    """At once, and at the end; asked again by somebody who began nothing, too."""
    store, images = sealed(tmp_path, kind), RealImages()
    images.verify(store)
    images.verified(store)
    images.verified(store)
    images.recheck(store)


@pytest.mark.parametrize("kind", [StoreKind.DISK, StoreKind.WINDOW])
@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("began", [True, False], ids=["the same process", "another process"])
def test_a_flipped_byte_is_found_before_anything_may_run(
    kind: StoreKind, name: str, began: bool, tmp_path: Path
) -> None:
    """What criu is steered by before it starts, the rest at the latest when it has ended.

    Earlier rounds that came through a window were compared on their way.
    """
    store, images = sealed(tmp_path, kind), RealImages()
    flip(store, name)
    steers = name == "demo/final/core-7.img"
    if began:
        if steers:
            with pytest.raises(BadInputError, match="damaged"):
                images.verify(store)
            return
        images.verify(store)
    if kind is StoreKind.WINDOW and "pre-1" in name:
        images.verified(store)
        return
    with pytest.raises(BadInputError, match="damaged") as caught:
        images.verified(store)
    assert name in caught.value.why


@pytest.mark.parametrize("kind", [StoreKind.DISK, StoreKind.WINDOW])
@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("began", [True, False], ids=["the same process", "another process"])
@pytest.mark.parametrize("placed", [True, False], ids=["placed", "copied after all"])
def test_memory_in_place_is_left_to_whoever_places_it(
    kind: StoreKind, name: str, began: bool, placed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory of earlier rounds and nothing else, and only where somebody compares it; what leads to it comes first."""
    store, images = sealed(tmp_path, kind), RealImages()
    monkeypatch.setattr(fill, "checks", lambda _places, workload: placed and workload == "demo")
    flip(store, name)
    window, earlier, memory = kind is StoreKind.WINDOW, "pre-1" in name, "pages-" in name
    if began:
        if not memory and not (window and earlier):
            with pytest.raises(BadInputError, match="damaged"):
                images.verify(store, in_place=True)
            return
        images.verify(store, in_place=True)
    if earlier and (window or (memory and placed)):
        images.verified(store)
        return
    with pytest.raises(BadInputError, match="damaged") as caught:
        images.verified(store)
    assert name in caught.value.why


def test_a_shorter_image_is_found_at_once(tmp_path: Path) -> None:
    """Sizes are compared of all of them."""
    store = sealed(tmp_path, StoreKind.DISK)
    (Path(store.path) / IMAGES[0]).write_bytes(CONTENT[1:])
    with pytest.raises(BadInputError):
        RealImages().verify(store)


def test_a_check_that_ends_early_is_no_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed for want of memory, say: that nothing was found means nothing then."""
    store, images = sealed(tmp_path, StoreKind.DISK), RealImages()
    monkeypatch.setattr(port._Check, "_read", lambda *_: port.os._exit(9))
    images.verify(store)
    with pytest.raises(KupgradeError, match="not checked"):
        images.verified(store)


def test_another_try_begins_another_check(tmp_path: Path) -> None:
    """What the first one found is of the first try."""
    store, images = sealed(tmp_path, StoreKind.DISK), RealImages()
    flip(store, IMAGES[0])
    images.verify(store)
    (Path(store.path) / IMAGES[0]).write_bytes(CONTENT)
    images.verify(store)
    images.verified(store)


@pytest.mark.parametrize(("kind", "read"), [(StoreKind.DISK, True), (StoreKind.LUO, True), (StoreKind.WINDOW, False)])
def test_a_dump_is_read_back_while_that_costs_nothing(kind: StoreKind, read: bool, tmp_path: Path) -> None:
    """Beside another kernel the originals are there until it was read; sizes are compared everywhere."""
    store, images = sealed(tmp_path, kind), RealImages()
    flip(store, IMAGES[2])
    if read:
        with pytest.raises(BadInputError):
            images.recheck(store)
    else:
        images.recheck(store)
    (Path(store.path) / IMAGES[2]).write_bytes(b"")
    with pytest.raises(BadInputError):
        images.recheck(store)
