"""Watching a kernel beside this one, against a fake device: its hello, its answers, its end."""

from __future__ import annotations

import errno
import mmap
import os
import struct
from pathlib import Path

import pytest

from kupgrade.errors import BadInputError, KernelError, KupgradeError
from kupgrade.kernel import acpi, park_code
from kupgrade.kernel.window import Channel, Side
from kupgrade.kernel.window_format import PANIC_FLAG
from kupgrade.machine import spawn_box
from kupgrade.machine.spawner import Spawner
from kupgrade.machine.standby_client import StandbyClient
from kupgrade.model import standby
from kupgrade.model.spawn import Instance
from kupgrade.model.standby import Answer
from tests.unit.spawning import UPGRADE, Device, blueprint, device, host, put, spawner

__all__ = ["device", "host", "put", "spawner"]  # fixtures


def said_hello(spawner: Spawner, instance: Instance, epoch: int = 2) -> Channel:
    other = spawner.device.map(instance.window.start, instance.window.size)
    channel = Channel(memoryview(other)[: spawn_box.channel_size()], Side.NEW, UPGRADE, epoch)
    channel.say_hello("boot", "7.3.4")
    channel.beat()
    return channel


def test_a_hello_is_heard(spawner: Spawner, tmp_path: Path) -> None:
    """Of this epoch, and once its heart beats."""
    laid = blueprint(spawner, tmp_path)
    spawner.start(laid)
    with spawner.watch(laid.instance) as watch:
        watch.pause = lambda _: said_hello(spawner, laid.instance) and None
        found = watch.await_hello(5.0)
    assert (found.boot_id, found.release) == ("boot", "7.3.4")


def test_a_closed_window_is_unmapped_whoever_holds_its_channel(spawner: Spawner, tmp_path: Path) -> None:
    """Or its memory could not go back; and one that is of another upgrade leaves nothing mapped."""
    laid = blueprint(spawner, tmp_path)
    spawner.start(laid)
    watch = spawner.watch(laid.instance)
    held = watch.channel
    watch.close()
    assert watch.window.mapping.closed
    with pytest.raises(ValueError, match="released"):
        held.heartbeat(Side.NEW)
    spawner.wipe(laid.instance)
    with pytest.raises(BadInputError, match="no shared window"):
        spawner.watch(laid.instance)


def test_a_watch_that_cannot_be_had_leaves_nothing_mapped(
    spawner: Spawner, device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever keeps the error must not keep the memory from going back."""
    laid = blueprint(spawner, tmp_path)
    spawner.start(laid)
    mapped, real = list[mmap.mmap](), device.map

    def first_alone(address: int, length: int, *, writable: bool = True) -> mmap.mmap:
        if mapped:
            raise KernelError("mmap", f"{address:#x}", errno.EBUSY)
        mapped.append(real(address, length, writable=writable))
        return mapped[0]

    monkeypatch.setattr(device, "map", first_alone)
    with pytest.raises(KernelError):
        spawner.watch(laid.instance)
    assert mapped[0].closed


def test_silence_ends_at_the_deadline(spawner: Spawner, tmp_path: Path) -> None:
    """And a hello of another epoch is silence."""
    laid = blueprint(spawner, tmp_path)
    spawner.start(laid)
    with spawner.watch(laid.instance) as watch:
        said_hello(spawner, laid.instance, epoch=1)
        with pytest.raises(KupgradeError, match="did not answer"):
            watch.await_hello(5.0)


@pytest.mark.parametrize(
    ("death", "said"),
    [
        ("panic", "panicked"),
        ("guard", "a reset: the guard stopped 2 CPUs"),
        ("register", "power off: no guard"),
        ("halt", "halted"),
    ],
)
def test_each_death_has_its_name(spawner: Spawner, device: Device, tmp_path: Path, death: str, said: str) -> None:
    """Long before the deadline."""
    laid = blueprint(spawner, tmp_path)
    spawner.start(laid)
    with spawner.watch(laid.instance) as watch:
        if death == "panic":
            os.pwrite(device.file, b"\1", laid.instance.window.start + PANIC_FLAG)
        elif death == "guard":
            os.write(device.fired, b"x")
            os.pwrite(device.file, b"\1", laid.instance.registers)
        elif death == "register":
            os.pwrite(device.file, b"\1", laid.instance.registers + acpi.SLEEP_CONTROL)
        else:
            slot = spawn_box.slots_at(laid.instance)
            os.pwrite(device.file, struct.pack("<I", 1), slot + park_code.SLOT_PARKED_OFFSET)
        with pytest.raises(KupgradeError, match=said):
            watch.await_hello(1e9)


def test_requests_are_answered_in_their_order(spawner: Spawner, tmp_path: Path) -> None:
    """An answer to an earlier request is dropped; an error comes out as one."""
    laid = blueprint(spawner, tmp_path)
    spawner.start(laid)
    with spawner.watch(laid.instance) as watch:
        there = said_hello(spawner, laid.instance)
        there.send(standby.pack(Answer(0, {"late": True})))

        def answer(_: float) -> None:
            found = there.take()
            if found.message is None:
                return
            request = standby.unpack_request(found.message.payload)
            wrong = request.verb == "status"
            there.send(standby.pack(Answer(request.number, {"pong": 1}, "no such thing" if wrong else "", "why not")))

        client = StandbyClient(watch.channel, lambda: None, answer, lambda: 0.0)
        assert client.ask("ping") == {"pong": 1}
        with pytest.raises(KupgradeError, match="no such thing: why not"):
            client.ask("status")
        client.clock = iter(range(100)).__next__
        client.pause = lambda _: None
        with pytest.raises(KupgradeError, match="longer than 5 s"):
            client.ask("ping", 5.0)
