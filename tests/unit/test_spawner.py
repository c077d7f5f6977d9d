"""Starting a kernel beside this one, against a fake device: what is written, started, stopped, given back."""

from __future__ import annotations

import errno
import json
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kupgrade.errors import BadInputError, KernelError, KupgradeError, RefusedError
from kupgrade.kernel import acpi, kspawn, park_code
from kupgrade.kernel.kspawn import Entry, Info
from kupgrade.kernel.window import Channel, Side
from kupgrade.kernel.window_format import PANIC_FLAG
from kupgrade.machine import spawn_box
from kupgrade.machine.spawner import Spawner
from kupgrade.machine.standby_client import StandbyClient
from kupgrade.model import standby
from kupgrade.model.codec import decode, encode
from kupgrade.model.ids import UpgradeId
from kupgrade.model.machine import MemoryRange
from kupgrade.model.spawn import CpusBefore, Instance, MemoryBefore, Order
from kupgrade.model.standby import Answer
from tests.unit.kernel.test_bootparams import a_bzimage

UPGRADE = UpgradeId("20261121-041503-9f2c1a")
MIB = 1 << 20
BLOCK = 128 * MIB
WINDOW = 2 * MIB


class Device:
    """A kspawn over a file of memory (sparse, from physical address 0). A started CPU in the park loop says so."""

    def __init__(self, folder: Path) -> None:
        self.file = os.open(folder / "memory", os.O_RDWR | os.O_CREAT)
        os.ftruncate(self.file, 1 << 36)
        self.fd, self.fired = os.pipe()
        self.running: dict[int, Entry] = {}
        self.calls: list[tuple[object, ...]] = []
        self.guarded: tuple[int, ...] = ()
        self.deaf: set[int] = set()
        self.refuse: dict[int, int] = {}

    def info(self) -> Info:
        return Info(1, 0, 0x3F, 0x10000, 0x5000, 2_400_000, 0, 0, 1, 0xFE, len(self.running))

    def start(self, apic_id: int, entry: Entry) -> None:
        self.calls.append(("start", apic_id))
        if apic_id in self.refuse:
            raise KernelError("KSPAWN_START", f"APIC id {apic_id}", self.refuse[apic_id])
        assert apic_id not in self.running
        self.running[apic_id] = entry
        code = os.pread(self.file, len(park_code.CODE), entry.rip)
        if code == park_code.CODE and apic_id not in self.deaf:
            _, slots, count = park_code.PARAMETERS.unpack(
                os.pread(self.file, park_code.PARAMETERS.size, entry.rip + park_code.PARAMETERS_OFFSET)
            )
            for at in range(slots, slots + count * park_code.SLOT.size, park_code.SLOT.size):
                if struct.unpack("<I", os.pread(self.file, 4, at))[0] == apic_id:
                    os.pwrite(self.file, struct.pack("<I", 1), at + park_code.SLOT_PARKED_OFFSET)

    def stop(self, apic_id: int) -> None:
        self.calls.append(("stop", apic_id))
        if apic_id in self.refuse:
            raise KernelError("KSPAWN_STOP", f"APIC id {apic_id}", self.refuse[apic_id])
        self.running.pop(apic_id, None)

    def guard(self, address: int, mask: int, apic_ids: tuple[int, ...]) -> None:
        if self.guarded:
            raise KernelError("KSPAWN_GUARD", "", errno.EBUSY)
        self.guarded = tuple(apic_ids)
        self.calls.append(("guard", address, mask))

    def disarm(self) -> None:
        self.guarded = ()

    def read_event(self) -> kspawn.Event:
        os.read(self.fd, 1)
        return kspawn.Event(1, 2, 1, 2)

    def map(self, address: int, length: int, *, writable: bool = True) -> mmap.mmap:
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        return mmap.mmap(self.file, length, mmap.MAP_SHARED, protection, offset=address)


class Host:
    """A root with four CPUs and 24 memory blocks, of which the kernel's answers are files."""

    def __init__(self, root: Path, put: Callable[[str, str], Path]) -> None:
        self.root, self.put = root, put
        processors = (f"processor\t: {n}\napicid\t\t: {2 * n}\nflags\t\t: lm\n" for n in range(4))
        put("proc/cpuinfo", "\n".join(processors))
        put("proc/cmdline", "root=/dev/vda1 quiet\n")
        for name in ("present", "possible", "online"):
            put(f"sys/devices/system/cpu/{name}", "0-3\n")
        put("sys/devices/system/memory/block_size_bytes", f"{BLOCK:x}\n")
        for number in range(1, 4):
            put(f"sys/devices/system/cpu/cpu{number}/online", "1\n")
        for number in range(24):
            put(f"sys/devices/system/memory/memory{number}/state", "online\n")
            put(f"sys/devices/system/memory/memory{number}/valid_zones", "Movable\n" if number > 19 else "Normal\n")
        put("sys/firmware/memmap/0/start", "0x0\n")
        put("sys/firmware/memmap/0/end", "0x9fbff\n")
        put("sys/firmware/memmap/0/type", "System RAM\n")
        tables = root / "sys/firmware/acpi/tables"
        tables.mkdir(parents=True)
        (tables / "MCFG").write_bytes(acpi.mcfg([acpi.EcamRange(0xB0000000, 0, 0, 255)]))

    def online(self) -> list[int]:
        blocks = (self.root / "sys/devices/system/memory").glob("memory*")
        return sorted(int(each.name[6:]) for each in blocks if (each / "state").read_text().startswith("online"))


@pytest.fixture
def put(tmp_path: Path) -> Callable[[str, str], Path]:
    def write(path: str, text: str) -> Path:
        target = tmp_path / "root" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        return target

    return write


@pytest.fixture
def host(tmp_path: Path, put: Callable[[str, str], Path]) -> Host:
    return Host(tmp_path / "root", put)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    found = Device(tmp_path)
    yield found
    for fd in (found.file, found.fd, found.fired):
        os.close(fd)


@pytest.fixture
def spawner(device: Device, host: Host, monkeypatch: pytest.MonkeyPatch) -> Spawner:
    now = [0.0]

    def pause(seconds: float) -> None:
        now[0] += seconds

    def turn(number: int, state: str) -> None:
        host.put(f"sys/devices/system/cpu/cpu{number}/online", state)
        online = [
            0,
            *(n for n in range(1, 4) if (host.root / f"sys/devices/system/cpu/cpu{n}/online").read_text()[0] == "1"),
        ]
        host.put("sys/devices/system/cpu/online", ",".join(map(str, online)))

    monkeypatch.setattr("kupgrade.kernel.cpu.take_offline", lambda number, _root: turn(number, "0"))
    monkeypatch.setattr("kupgrade.kernel.cpu.bring_online", lambda number, _root: turn(number, "1"))
    return Spawner(device, host.root, pause, lambda: now[0])  # type: ignore[arg-type]


def through_json(value):
    return decode(type(value), json.loads(json.dumps(encode(value))))


def blueprint(spawner: Spawner, tmp_path: Path, size: int = 6 * BLOCK, **changes) -> spawn_box.Blueprint:
    (tmp_path / "kernel").write_bytes(a_bzimage())
    (tmp_path / "initrd").write_bytes(b"initrd" * 1000)
    values = {
        "upgrade": UPGRADE,
        "epoch": 2,
        "generation": 1,
        "kernel": str(tmp_path / "kernel"),
        "initrd": str(tmp_path / "initrd"),
        "cmdline": "root=/dev/vda1 quiet",
        "memory": MemoryRange(8 * BLOCK, size),
        "window": WINDOW,
        **changes,
    }
    return spawner.lay_out(Order(**values), spawner.cpus_before((3, 2)))


def test_cpus_are_taken_and_come_back_as_they_were(spawner: Spawner, host: Host, device: Device) -> None:
    """From what another process reads in the journal; done twice is done once."""
    before = through_json(spawner.cpus_before((3, 2)))
    assert (before.apic_ids, before.others) == ((6, 4), (0, 2))
    for _ in range(2):
        spawner.take_cpus(before)
    assert str(spawner.cpus_taken(before)) == "2-3"
    for _ in range(2):
        spawner.give_cpus(before)
    assert not spawner.cpus_taken(before)
    assert [call for call in device.calls if call[0] == "stop"] == [("stop", 6), ("stop", 4)]


def test_a_cpu_that_was_offline_stays_so(spawner: Spawner) -> None:
    """What an administrator took offline is not brought online; whatever ran there is stopped."""
    before = spawner.cpus_before((3, 2))
    first = before.given[0]
    was_offline = CpusBefore((type(first)(first.number, first.apic_id, False), before.given[1]), before.others)
    spawner.take_cpus(was_offline)
    spawner.give_cpus(was_offline)
    assert str(spawner.cpus_taken(was_offline)) == "3"


def test_an_offline_cpu_without_apic_id_is_refused(spawner: Spawner, put: Callable[[str, str], Path]) -> None:
    """Nobody can be sent an interrupt without one."""
    put("proc/cpuinfo", "processor\t: 0\napicid\t\t: 0\nflags\t: lm\n")
    put("sys/devices/system/cpu/online", "0-2")
    with pytest.raises(BadInputError, match="CPU 3"):
        spawner.cpus_before((3,))


def test_memory_is_taken_in_one_piece_and_comes_back(
    spawner: Spawner, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Movable blocks first; what was online before comes back into its zone, whoever gives it back, however often."""
    before: MemoryBefore = through_json(spawner.memory_before())
    assert spawner.take_memory(before, 3 * BLOCK) == MemoryRange(21 * BLOCK, 3 * BLOCK)
    assert spawner.memory_taken(before) == (21, 22, 23)
    assert spawner.take_memory(before, 3 * BLOCK) == MemoryRange(21 * BLOCK, 3 * BLOCK)
    asked: list[tuple[int, str]] = []
    monkeypatch.setattr(
        "kupgrade.kernel.memory_blocks.bring_online", lambda number, zone, _root: asked.append((number, zone))
    )
    spawner.give_memory(before)
    assert [each for each in asked if each[0] > 20] == [(21, "Movable"), (22, "Movable"), (23, "Movable")]
    assert (0, "Normal") in asked


def test_blocks_that_refuse_cost_nothing(spawner: Spawner, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """When no run can be had, everything is online again, and the error says what would help."""
    import kupgrade.kernel.memory_blocks as module

    real = module.take_offline

    def stubborn(number: int, root: Path) -> None:
        if number % 2:
            raise KernelError("write", "state", errno.EBUSY)
        real(number, root)

    monkeypatch.setattr(module, "take_offline", stubborn)
    monkeypatch.setattr(
        module, "bring_online", lambda n, _zone, root: host.put(f"{module.BLOCKS}/memory{n}/state", "online\n")
    )
    before = spawner.memory_before()
    with pytest.raises(RefusedError, match="movablecore"):
        spawner.take_memory(before, 3 * BLOCK)
    assert host.online() == list(range(24))


def test_a_kernel_is_started_where_everything_lies(spawner: Spawner, device: Device, tmp_path: Path) -> None:
    """First CPU at the kernel's entry point with its zero page, the others in the park loop; the guard is armed."""
    laid = blueprint(spawner, tmp_path)
    spawner.start(laid)
    instance = through_json(laid.instance)
    assert instance == laid.instance
    assert (instance.apic_ids, instance.later, instance.bsp) == ((6, 4), (0, 2), 0)
    assert device.running[6] == Entry(laid.box.entry, instance.page_tables, laid.box.zero_page)
    with spawner.watch(instance) as watch:
        assert watch.parked() == (4,)
        assert watch.registers() == (0, 0)
    assert device.guarded == (6, 4)
    assert os.pread(device.file, 6000, laid.box.initrd.start) == b"initrd" * 1000
    line = os.pread(device.file, 2048, laid.box.cmdline.start).split(b"\0")[0].decode()
    assert line == str(spawn_box.command_line(laid))


def test_starting_again_stops_what_ran_there(spawner: Spawner, device: Device, tmp_path: Path) -> None:
    """A process that was killed in the middle leaves nothing that another one trips over."""
    laid = blueprint(spawner, tmp_path)
    spawner.start(laid)
    spawner.start(laid)
    assert sorted(device.running) == [4, 6]


@pytest.mark.parametrize("broken", ["refused", "deaf"])
def test_a_cpu_that_does_not_come_stops_the_others(
    spawner: Spawner, device: Device, tmp_path: Path, broken: str
) -> None:
    """The error says which; nothing runs in the box afterwards."""
    laid = blueprint(spawner, tmp_path)
    spawner.fence(laid.instance)
    if broken == "deaf":
        device.deaf.add(4)
        with pytest.raises(KupgradeError, match="APIC ID 4"):
            spawner.start(laid)
    else:
        device.start = lambda *_: (_ for _ in ()).throw(KernelError("KSPAWN_START", "6", errno.ETIMEDOUT))  # type: ignore[method-assign]
        with pytest.raises(KernelError):
            spawner.start(laid)
    assert not device.running
    assert not device.guarded


def test_a_fenced_kernel_is_forgotten(spawner: Spawner, device: Device, tmp_path: Path) -> None:
    """All CPUs get INIT, one that is online here does not count; its box holds zeros, window and all."""
    laid = blueprint(spawner, tmp_path)
    spawner.start(laid)
    spawner.fence(laid.instance, further=(2,))
    assert not device.running
    device.refuse[4] = errno.EBUSY
    spawner.fence(laid.instance)
    spawner.wipe(laid.instance)
    assert not os.pread(device.file, laid.instance.box.size, laid.instance.box.start).strip(b"\0")


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


@pytest.mark.parametrize(
    ("changes", "said"), [({"window": 4096}, "window"), ({"memory": MemoryRange(BLOCK, BLOCK)}, "box")]
)
def test_what_does_not_fit_is_refused(spawner: Spawner, tmp_path: Path, changes: dict[str, object], said: str) -> None:
    """With the sizes in the message, before anything is taken."""
    with pytest.raises(RefusedError, match=said):
        blueprint(spawner, tmp_path, **changes)


def test_a_machine_without_memory_mapped_configuration_is_refused(spawner: Spawner, tmp_path: Path) -> None:
    """The new kernel would not register its window."""
    (spawner.root / "sys/firmware/acpi/tables/MCFG").unlink()
    with pytest.raises(RefusedError, match="mmconfig"):
        blueprint(spawner, tmp_path)


def test_a_child_of_a_spawned_kernel_gets_other_low_memory(
    spawner: Spawner, tmp_path: Path, put: Callable[[str, str], Path]
) -> None:
    """The stretch of the parent is in use, and the firmware's map is not known to it."""
    first = blueprint(spawner, tmp_path).instance.low
    put("proc/cmdline", f"quiet kupgrade.low={first.start:#x}:{first.size:#x}\n")
    assert not blueprint(spawner, tmp_path).instance.low.overlaps(first)


def test_the_bootstrap_processor_is_never_given(spawner: Spawner, tmp_path: Path, device: Device) -> None:
    """INIT would reset the machine; nor is anything given while it is not known."""
    with pytest.raises(BadInputError, match="bootstrap"):
        spawner.lay_out(blueprint(spawner, tmp_path).order, spawner.cpus_before((0, 1)))
