"""What is changed in criu's images after a dump, with pycriu: namespaces that are not made again, or only in part.

The images count from their seal on, which comes later: an edit that was cut short is a dump that was cut short.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from kupgrade.errors import BadInputError


def share_user_namespace(directory: Path) -> int:
    """Let all processes be restored into the user namespace of whoever restores; how many images were changed.

    criu cannot restore sockets of the host's network from inside of another one: it has no power over it there.
    """
    (inventory,) = _entries(directory / "inventory.img")
    ours = inventory.get("root_ids", {}).get("user_ns_id")
    if ours is None:
        raise BadInputError("criu's images name no user namespace of its own", f"{directory}/inventory.img")
    changed = 0
    for path in sorted(directory.glob("ids-*.img")):
        changed += _edit(path, lambda entry: _with_user_namespace(entry, ours))
    return changed


def _with_user_namespace(entry: dict[str, Any], number: int) -> bool:
    entry["user_ns_id"] = number
    return True


def keep_shared_memory(directory: Path, ids: Collection[int]) -> int:
    """Of the System V objects of the host leave only these segments, for the namespace that criu makes for them."""
    changed = 0
    for path in sorted(directory.glob("ipcns-shm-*.img")):
        changed += _edit(path, lambda entry: entry["desc"]["id"] in ids)
    for kind in ("msg", "sem"):
        for path in sorted(directory.glob(f"ipcns-{kind}-*.img")):
            changed += _edit(path, lambda _: False)
    return changed


def _edit(path: Path, keep: Callable[[dict[str, Any]], bool]) -> int:
    """Pass each entry by `keep`, which may change it; whether the image was written again."""
    images = _images()
    with path.open("rb") as file:
        image = images.load(file, pretty=False)
    before = repr(image["entries"])
    image["entries"] = [entry for entry in image["entries"] if keep(entry)]
    if repr(image["entries"]) == before:
        return 0
    with path.open("wb") as file:
        images.dump(image, file)
    return 1


def _entries(path: Path) -> list[dict[str, Any]]:
    with path.open("rb") as file:
        found: list[dict[str, Any]] = _images().load(file, pretty=False)["entries"]
    return found


def _images() -> Any:
    from pycriu import images  # late: protobuf costs more than anything else that is imported here

    return images
