"""An instance looked at and kept, against a fake device: what can be told of it, and that nothing stays mapped."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kupgrade.errors import KernelError
from kupgrade.kernel import acpi
from kupgrade.kernel.printk import Line
from kupgrade.kernel.shared_window import part_for_channel
from kupgrade.kernel.window import Channel, Side
from kupgrade.kernel.window_format import PANIC_FLAG
from kupgrade.machine import instances
from kupgrade.machine.spawner import Spawner
from kupgrade.model.instance import Life
from kupgrade.model.spawn import Instance
from tests.unit.spawning import Device, blueprint, device, host, put, spawner

__all__ = ["device", "host", "put", "spawner"]  # fixtures


@pytest.fixture
def started(spawner: Spawner, device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Instance:
    made = blueprint(spawner, tmp_path)
    spawner.start(made)
    monkeypatch.setattr(instances, "LOOK", 0.02)
    monkeypatch.setattr(instances, "POLL", 0.001)
    monkeypatch.setattr("kupgrade.kernel.kspawn.open_device", lambda *_, **__: contextlib.nullcontext(device))
    return made.instance


@contextlib.contextmanager
def beating(device: Device, instance: Instance) -> Iterator[Channel]:
    """The agent's end; each look at the clock is a beat."""
    where = part_for_channel(instance.window)
    mapping = device.map(where.start, where.size)
    view = memoryview(mapping)
    channel = Channel(view, Side.NEW, instance.upgrade, instance.epoch)
    yield channel
    channel.release()
    view.release()
    mapping.close()


def poke(device: Device, address: int, value: bytes) -> None:
    os.pwrite(device.file, value, address)


def test_a_heart_that_beats_is_alive(
    device: Device, started: Instance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alive, with an age within the look; silent when it stands still, with the keeper's note of its age."""
    with beating(device, started) as channel:
        monkeypatch.setattr("time.sleep", lambda _: channel.beat())
        seen = instances.look(started, "rt", True, "6.12", tmp_path)
        assert seen.life is Life.ALIVE and seen.age is not None and seen.age < 1.0
    monkeypatch.undo()
    monkeypatch.setattr(instances, "LOOK", 0.02)
    monkeypatch.setattr("kupgrade.kernel.kspawn.open_device", lambda *_, **__: contextlib.nullcontext(device))
    assert instances.look(started, "rt", True, "6.12", tmp_path).life is Life.SILENT


@pytest.mark.parametrize(
    ("address", "value", "life", "why"),
    [
        (lambda i: i.window.start + PANIC_FLAG, b"\1\0\0\0", Life.PANICKED, "0x1"),
        (lambda i: i.registers + acpi.RESET_REGISTER, b"\1", Life.ENDED, "reset"),
        (lambda i: i.registers + acpi.SLEEP_CONTROL, b"\x34", Life.ENDED, "power off"),
    ],
)
def test_each_end_is_told_apart(
    device: Device, started: Instance, tmp_path: Path, address: Any, value: bytes, life: Life, why: str
) -> None:
    """A panic, a reset and a power-off; without an agent as well."""
    poke(device, address(started), value)
    for agent in (True, False):
        seen = instances.look(started, "rt", agent, "6.12", tmp_path)
        assert seen.life is life and why in seen.why


def test_without_an_agent_little_is_known(device: Device, started: Instance, tmp_path: Path) -> None:
    """Unknown, and why; once none of its CPUs is started it has ended."""
    assert instances.look(started, "rt", False, "6.12", tmp_path).life is Life.UNKNOWN
    device.running.clear()
    assert instances.look(started, "rt", False, "6.12", tmp_path).life is Life.ENDED


def test_the_log_tells_of_a_panic_where_no_agent_can(
    device: Device, started: Instance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last words, without a flag; with an innocent log it is unknown."""
    said = [Line(0, 0.0, 5, "Linux version 6.12")]
    monkeypatch.setattr(instances, "read_log", lambda *_: tuple(said))
    assert instances.look(started, "rt", False, "6.12", tmp_path).life is Life.UNKNOWN
    said.append(Line(1, 1.0, 0, "Kernel panic - not syncing: VFS"))
    seen = instances.look(started, "rt", False, "6.12", tmp_path)
    assert seen.life is Life.PANICKED and seen.why.endswith("VFS")


def test_a_device_that_is_not_there_tells_nothing(
    started: Instance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error is unknown, not dead; so is a window that is not its own."""

    def missing(*_: Any, **__: Any) -> None:
        raise KernelError("open", "/dev/kspawn", 2)

    other = dataclasses.replace(started, window=dataclasses.replace(started.window, start=started.box.start))
    assert instances.look(other, "rt", True, "6.12", tmp_path).life is Life.UNKNOWN
    monkeypatch.setattr("kupgrade.kernel.kspawn.open_device", missing)
    assert instances.look(started, "rt", True, "6.12", tmp_path).life is Life.UNKNOWN


def test_a_keeper_that_can_note_nothing_goes_on_keeping(
    spawner: Spawner, device: Device, started: Instance, tmp_path: Path
) -> None:
    """The note is an aid; with its keeper the guard would end, and a reset of that kernel be one of the machine."""
    (instances.folder_of("rt", tmp_path) / "pulse.json").mkdir(parents=True)
    looks = iter((False, False, True))
    beside: Any = SimpleNamespace(spawner=lambda: spawner)
    with beating(device, started) as channel:
        channel.beat()
        instances._keep(beside, started, "rt", tmp_path, lambda: next(looks))
    assert device.guarded == started.apic_ids
