"""/run/reboot-required: what asked for the running kernel goes, everything else stays."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kupgrade.host.reboot_required import FLAG, PACKAGES, TEXT, read, settle
from kupgrade.model.reboot import RebootWishes, answered, left

NEW = "6.12.57+deb13-amd64"
IMAGE = f"linux-image-{NEW}"


@pytest.mark.parametrize(
    ("package", "gone"),
    [
        (IMAGE, True),
        (f"linux-modules-extra-{NEW}", True),
        (f"linux-image-unsigned-{NEW}", True),
        (f"linux-binary-{NEW}", True),
        ("linux-image-6.12.48+deb13-amd64", True),  # an older one than runs
        ("linux-image-6.12.60+deb13-amd64", False),
        ("linux-image-6.12.60", False),
        ("linux-image-amd64", False),
        ("linux-base", False),
        ("linux-firmware", False),
        ("libc6", False),
        ("systemd", False),
        (f"x{IMAGE}", False),
        ("linux-image-6.12 57", False),
        ("", False),
    ],
)
def test_what_a_running_kernel_answers(package: str, gone: bool) -> None:
    """Packages of this kernel or an older one; never those of a newer one, of no kernel, or that name no release."""
    assert answered(package, NEW) is gone


def lay(root: Path, flag: bool, packages: str | None) -> None:
    (root / "run").mkdir(exist_ok=True)
    if flag:
        (root / FLAG).write_bytes(TEXT)
    if packages is not None:
        (root / PACKAGES).write_text(packages)


CASES: dict[str, tuple[bool, str | None, tuple[str, ...], bool, str | None]] = {
    "nobody asks": (False, None, (), False, None),
    "the kernel": (True, f"{IMAGE}\n", (), False, None),
    "twice": (True, f"{IMAGE}\n{IMAGE}\n", (), False, None),
    "and a library": (True, f"libc6\n{IMAGE}\nlibssl3\n", (), True, "libc6\nlibssl3\n"),
    "only a library": (True, "libc6\n", (), True, "libc6\n"),
    "a newer kernel": (True, f"{IMAGE}\nlinux-image-6.12.60\n", (), True, "linux-image-6.12.60\n"),
    "nobody is named": (True, None, (), True, None),
    "an empty list": (True, "", (), True, ""),
    "names without the flag": (False, f"{IMAGE}\n", (), False, None),
    "a library without the flag": (False, f"{IMAGE}\nlibc6\n", (), True, "libc6\n"),
    "from the old kernel": (False, None, ("libc6",), True, "libc6\n"),
    "from both": (True, f"{IMAGE}\ndbus\n", ("libc6", "dbus"), True, "dbus\nlibc6\n"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_left(tmp_path: Path, name: str) -> None:
    """Flag and names agree afterwards; doing it again changes nothing."""
    flag, packages, others, flag_after, after = CASES[name]
    lay(tmp_path, flag, packages)
    for _ in range(2):
        settle(NEW, others, tmp_path)
        assert (tmp_path / FLAG).exists() is flag_after
        assert ((tmp_path / PACKAGES).read_text() if (tmp_path / PACKAGES).exists() else None) == after
    assert {each.name for each in (tmp_path / "run").iterdir()} <= {"reboot-required", "reboot-required.pkgs"}


NAMES = st.lists(
    st.sampled_from([IMAGE, "linux-image-6.12.60", "libc6", "dbus", "linux-image-6.1.0-1-amd64"]), max_size=6
)


@given(st.booleans(), st.none() | NAMES, NAMES, st.integers(0, 3))
def test_it_may_be_cut_short_anywhere(
    tmp_path_factory: pytest.TempPathFactory, flag: bool, names: list[str] | None, others: list[str], cut: int
) -> None:
    """Killed before any of its changes and done again, the end is the same, and no unanswered wish was ever lost."""
    import kupgrade.host.reboot_required as module

    ends = []
    for stop in (None, cut):
        root = tmp_path_factory.mktemp("r")
        lay(root, flag, None if names is None else "".join(f"{each}\n" for each in names))
        kept = left([*(names or ()), *others], NEW)
        if stop is not None:
            with pytest.MonkeyPatch.context() as patch:
                _stop_before(patch, module, stop)
                try:
                    settle(NEW, left(others, NEW), root)
                except InterruptedError:
                    assert set(left(names or (), NEW)) <= set(read(root).packages or ())
        settle(NEW, left(others, NEW), root)
        assert set(read(root).packages or ()) == set(kept)
        ends.append(read(root))
    assert ends[0] == ends[1]


def _stop_before(patch: pytest.MonkeyPatch, module: object, number: int) -> None:
    """The change with this number, from 0, is not made: the process ends there."""
    count = iter(range(100))
    write, unlink = module.write_durably, Path.unlink  # type: ignore[attr-defined]

    def cut(deed: object) -> object:
        def done(*words: object, **named: object) -> object:
            if next(count) == number:
                raise InterruptedError
            return deed(*words, **named)  # type: ignore[operator]

        return done

    patch.setattr(module, "write_durably", cut(write))
    patch.setattr(Path, "unlink", cut(unlink))


@pytest.mark.parametrize("data", [b"\xff\n\0\n libc6 \n", b"\x1b[2J\nlibc6\n", b"libc6\n" + b"\n" * 100_000])
def test_hostile_lists_are_read(tmp_path: Path, data: bytes) -> None:
    """Bytes that are no names are left out; the size is bounded."""
    lay(tmp_path, True, None)
    (tmp_path / PACKAGES).write_bytes(data)
    assert read(tmp_path) == RebootWishes(True, ("libc6",))
