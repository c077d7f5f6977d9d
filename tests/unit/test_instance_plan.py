"""An instance's plan from its files: whole ones give steps, others a refusal that names what is wrong."""

from __future__ import annotations

import dataclasses
import random
import struct
from pathlib import Path
from typing import Any

import pytest

from kupgrade.errors import BadInputError, RefusedError
from kupgrade.instance_plan import make_instance_plan
from kupgrade.model.instance import Wish
from kupgrade.model.plan import Plan
from tests.fakes import facts as fake
from tests.unit.host.conftest import RELEASE, make_bzimage, make_elf

MODULES = f"usr/lib/modules/{RELEASE}"


def a_kernel(**changes: Any) -> bytes:
    """One that bootparams takes, too."""
    noise = random.Random(1).randbytes(4096)  # so that the packed payload is long enough to be entered
    data = bytearray(make_bzimage(**{"payload": make_elf(extra=noise), **changes}))
    for form, offset, value in (
        ("<H", 0x1FE, 0xAA55), ("<H", 0x200, 0x6AEB), ("<B", 0x211, 1), ("<I", 0x230, 2 << 20), ("<Q", 0x258, 16 << 20)
    ):  # fmt: skip
        struct.pack_into(form, data, offset, value)
    return bytes(data)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for path, content in (
        (f"boot/vmlinuz-{RELEASE}", a_kernel()),
        (f"{MODULES}/modules.dep", b"extra/kspawn.ko:\n"),
        (f"{MODULES}/modules.builtin", b""),
        (f"{MODULES}/modules.order", b"extra/kspawn.ko\n"),
        (f"{MODULES}/extra/kspawn.ko", b"\x7fELF"),
        ("own.img", b"initrd"),
        ("empty.img", b""),
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    return tmp_path


def made(root: Path, kernel: str = RELEASE, spawn: dict[str, Any] | None = None, **wish: Any) -> Plan:
    facts = fake.facts(spawn=dataclasses.replace(fake.spawn(), **(spawn or {})))
    return make_instance_plan(fake.policy(), facts, Wish("rt", kernel, **wish), root)


def test_an_installed_release_is_started_with_our_agent(root: Path) -> None:
    """Module, initramfs, CPUs, memory, kernel: what can fail without having taken anything comes first."""
    plan = made(root, append="threadirqs")
    kinds = [step.kind for step in plan.steps]
    assert kinds == ["load-spawn-module", "build-standby", "take-cpus", "take-memory", "spawn-kernel"]
    assert (plan.engine, plan.new_release, plan.budgets) == ("instance", RELEASE, ())
    assert plan.steps[-1].params["extra"] == "kupgrade.instance=rt threadirqs"


def test_an_own_initrd_is_started_without_an_agent(root: Path) -> None:
    """By path; no module of that release is needed, and the plan says that little can be told of it."""
    kernel = root / "elsewhere"
    kernel.write_bytes(a_kernel())
    plan = made(root, str(kernel), initrd=str(root / "own.img"))
    assert [step.kind for step in plan.steps] == ["load-spawn-module", "take-cpus", "take-memory", "start-kernel"]
    assert plan.steps[-1].params["kernel"] == str(kernel)
    assert any("no agent" in each for each in plan.warnings)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it is empty"),
        (b"garbage" * 200, "no setup header"),
        (a_kernel()[:3000], "truncated"),
        (a_kernel(payload=make_elf(machine=3)), "i386|x86-64|for"),
        (b"MZ" + bytes(0x36) + b"ARM\x64" + bytes(4096), "arm64"),
        (None, "No such file"),
    ],
)
def test_a_kernel_that_is_none_is_refused(root: Path, content: bytes | None, why: str) -> None:
    """Damaged, cut off, of another architecture, not there: said before anything is taken."""
    path = root / "bad"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInputError, match=why):
        made(root, str(path), initrd=str(root / "own.img"))


@pytest.mark.parametrize(
    ("remove", "wish", "why"),
    [
        (f"{MODULES}/extra/kspawn.ko", {}, "no kspawn"),
        (f"{MODULES}", {}, "not installed"),
        (f"boot/vmlinuz-{RELEASE}", {}, "not installed"),
        ("own.img", {"initrd": "own.img"}, "no such file"),
        ("", {"initrd": "empty.img"}, "it is empty"),
        ("", {"initrd": "usr"}, "no file"),
    ],
)
def test_what_is_missing_is_named(root: Path, remove: str, wish: dict[str, Any], why: str) -> None:
    """The module for that release, its modules, the kernel, the initrd."""
    if remove:
        (root / remove).rename(root / "gone")
    if remove.endswith("kspawn.ko"):
        for name in ("dep", "order"):
            (root / MODULES / f"modules.{name}").write_text("extra/other.ko:\n")
    if "initrd" in wish:
        wish = {"initrd": str(root / wish["initrd"])}
    with pytest.raises(BadInputError, match=why):
        made(root, **wish)


def test_every_refusal_is_told_at_once(root: Path) -> None:
    """CPUs and memory that are not there: one error with all reasons."""
    with pytest.raises(RefusedError) as caught:
        made(root, cpus=64, memory=1 << 45)
    assert len(caught.value.refusals) >= 3  # type: ignore[attr-defined]
