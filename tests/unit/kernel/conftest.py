"""Fakes for kernel/: a root to write files into, and a recorder instead of Libc."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kupgrade.errors import KernelError
from tests.fakes.pci_tree import Tree, a_tree


@dataclass
class FakeLibc:
    """Records calls; `errors` holds errno values to fail with, one a call, by call name."""

    calls: list[tuple[object, ...]] = field(default_factory=list)
    errors: dict[str, list[int]] = field(default_factory=dict)

    def _record(self, name: str, *arguments: object) -> None:
        self.calls.append((name, *arguments))
        if self.errors.get(name):
            raise KernelError(name, "", self.errors[name].pop(0))

    def kexec_file_load(self, kernel_fd: int, initrd_fd: int, cmdline: bytes, flags: int) -> None:
        self._record("kexec_file_load", kernel_fd >= 0, initrd_fd >= 0, cmdline, flags)

    def reboot(self, command: int) -> None:
        self._record("reboot", command)

    def ioctl(self, fd: int, request: int, argument: int = 0) -> int:
        self._record("ioctl", request, argument)
        return argument


@pytest.fixture
def libc() -> FakeLibc:
    return FakeLibc()


@pytest.fixture
def put(tmp_path: Path) -> Callable[[str, str], Path]:
    """Write a file below the fake root (tmp_path)."""

    def write(path: str, text: str) -> Path:
        target = tmp_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        return target

    return write


@pytest.fixture
def tree(tmp_path: Path, put: Callable[[str, str], Path]) -> Tree:
    return a_tree(tmp_path, put)
