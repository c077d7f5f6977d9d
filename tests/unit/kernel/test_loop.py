"""A file gets a free loop device, whoever else looks for one."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from kupgrade.errors import KernelError
from kupgrade.kernel import loop


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "dev").mkdir()
    for name in ("loop-control", "loop3", "loop4"):
        (tmp_path / "dev" / name).touch()
    (tmp_path / "backing").touch()
    return tmp_path


class Ioctls:
    """Answers GET_FREE with `free` in turn; the other calls fail with `errors` in turn."""

    def __init__(self, free: list[int], errors: list[int]) -> None:
        self.free, self.errors = free, errors
        self.calls: list[int] = []

    def __call__(self, _fd: int, request: int, _argument: int) -> int:
        self.calls.append(request)
        if request == loop.LOOP_CTL_GET_FREE:
            return self.free.pop(0)
        if self.errors and (error := self.errors.pop(0)):
            raise OSError(error, "")
        return 0


def test_a_device_taken_by_somebody_else_is_left_to_them(root: Path) -> None:
    """EBUSY: the next free one."""
    ioctls = Ioctls([3, 4], [errno.EBUSY])
    assert loop.attach(root / "backing", root, ioctls) == root / "dev/loop4"
    assert ioctls.calls == [loop.LOOP_CTL_GET_FREE, loop.LOOP_SET_FD] * 2


@pytest.mark.parametrize(("errors", "tries"), [([errno.EBUSY] * 99, 16), ([errno.EPERM], 1)])
def test_attaching_does_not_go_on_for_ever(root: Path, errors: list[int], tries: int) -> None:
    """Any other error ends it at once."""
    ioctls = Ioctls([3] * 99, list(errors))
    with pytest.raises(KernelError) as caught:
        loop.attach(root / "backing", root, ioctls)
    assert caught.value.errno == errors[0]
    assert ioctls.calls.count(loop.LOOP_SET_FD) == tries


def test_detaching_what_has_no_file_is_done(root: Path) -> None:
    """ENXIO is the wanted state; any other error is one."""
    loop.detach(root / "dev/loop3", Ioctls([], [errno.ENXIO]))
    with pytest.raises(KernelError, match="LOOP_CLR_FD"):
        loop.detach(root / "dev/loop3", Ioctls([], [errno.EPERM]))
