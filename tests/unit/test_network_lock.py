"""What the network lock holds back: the ports that the workloads have when it is put on."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from kupgrade.errors import KernelError
from kupgrade.host import nft
from kupgrade.kernel import process
from kupgrade.machine import network
from kupgrade.machine.network import RealNetwork
from kupgrade.machine.places import Places
from kupgrade.model.record import Verdict
from kupgrade.model.workload import Store, StoreKind, Workload
from kupgrade.steps.base import Nothing
from kupgrade.steps.network import LockNetwork, UnlockNetwork

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
LINE = "   0: {}:{:04X} {}:{:04X} {:02X} 00000000:00000000 00:00000000 00000000     0        0 {} 1 0 100 0 0 10 0\n"
V4, V6 = "0100007F", "00000000000000000000000001000000"
STORE = Store(StoreKind.DISK, "/var/lib/kupgrade/images/x")


def workload(**ports: Any) -> Workload:
    return Workload("demo", "demo.service", "/system.slice/demo.service", 10, (10,), **ports)


@dataclass
class Machine:
    """A machine below a directory of its own; `locked`: what nft was last told, None for no table."""

    places: Places
    locked: tuple[Sequence[int], Sequence[int], nft.Direction] | None = None

    @property
    def network(self) -> RealNetwork:
        return RealNetwork(self.places)

    def process(self, pid: int, *inodes: int) -> None:
        root = self.places.root
        folder = root / "proc" / str(pid)
        (folder / "fd").mkdir(parents=True)
        for number, inode in enumerate(inodes, 3):
            (folder / "fd" / str(number)).symlink_to(f"socket:[{inode}]")
        cgroup = root / "sys/fs/cgroup/system.slice/demo.service"
        cgroup.mkdir(parents=True, exist_ok=True)
        (root / "sys/fs/cgroup/cgroup.controllers").touch()
        with (cgroup / "cgroup.procs").open("a") as file:
            file.write(f"{pid}\n")

    def sockets(self, table: str, *rows: tuple[int, int, int, int]) -> None:
        """Local port, remote port, state, inode."""
        path = self.places.root / "proc/10/net" / table
        path.parent.mkdir(parents=True, exist_ok=True)
        where = V6 if table.endswith("6") else V4
        lines = [LINE.format(where, ours, where, theirs, state, inode) for ours, theirs, state, inode in rows]
        path.write_text(HEAD + "".join(lines))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(Places(tmp_path))
    made.places.state.mkdir(parents=True)

    def lock(tcp: Sequence[int], udp: Sequence[int], direction: nft.Direction, **_: Any) -> None:
        made.locked = (list(tcp), list(udp), direction)

    def unlock() -> None:
        made.locked = None

    def locked() -> bool:
        return made.locked is not None and bool(made.locked[0] or made.locked[1])

    for name, function in (("lock", lock), ("unlock", unlock), ("locked", locked)):
        monkeypatch.setattr(network.nft, name, function)
    monkeypatch.setattr(network, "observe", lambda _root: {"links": [], "routes": []})
    monkeypatch.setattr(network, "_SETTLE", 0.0)
    return made


def test_a_connection_that_is_opened_during_the_lock_is_locked(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever answers it must not find the port without a lock in the next boot."""
    machine.process(10, 100, 101)
    machine.sockets("tcp", (80, 0, 10, 100))

    def settle(_: float) -> None:
        machine.sockets("tcp", (80, 0, 10, 100), (40001, 5432, 1, 101))

    monkeypatch.setattr(network.time, "sleep", settle)
    machine.network.lock([workload(tcp_ports=(80,))], both=False)
    assert machine.locked == ([80, 40001], [], nft.Direction.INPUT)
    assert "{ 80, 40001 }" in machine.places.lock_ruleset.read_text()


def test_a_lock_for_a_moment_leaves_nothing_for_the_next_boot(machine: Machine) -> None:
    """And no datagram is dropped, for nobody sends it again: images are taken of what goes on."""
    machine.process(10, 100)
    machine.sockets("tcp", (80, 0, 10, 100))
    RealNetwork(machine.places, durable=False).lock([workload(tcp_ports=(80,), udp_ports=(53,))], both=False)
    assert machine.locked == ([80], [], nft.Direction.INPUT)
    assert not machine.places.lock_ruleset.exists() and not machine.places.addresses.exists()


def test_workloads_that_are_not_there_yet_are_locked_as_planned(machine: Machine) -> None:
    """In the boot after a crossing it is put on before they are restored."""
    (machine.places.root / "sys/fs/cgroup").mkdir(parents=True)
    (machine.places.root / "sys/fs/cgroup/cgroup.controllers").touch()
    machine.network.lock([workload(tcp_ports=(80,), udp_ports=(53,))], both=True)
    assert machine.locked == ([80], [53], nft.Direction.BOTH)


@pytest.mark.parametrize(("looks", "accepts"), [(3, True), (1000, False)])
def test_what_waits_to_be_accepted_gets_a_moment(
    looks: int, accepts: bool, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listener with such connections cannot be dumped; one that never accepts them does not hold the lock up."""
    machine.process(10, 100)
    path = machine.places.root / "proc/10/net/tcp"
    machine.sockets("tcp", (80, 0, 10, 100))
    accepted = path.read_text()
    path.write_text(accepted.replace("00000000:00000000", "00000000:00000002"))
    now, paused = [0.0], []

    def sleep(seconds: float) -> None:
        now[0] += 0.02
        paused.append(seconds)
        if len(paused) == looks:
            path.write_text(accepted)

    monkeypatch.setattr(network.time, "sleep", sleep)
    monkeypatch.setattr(network.time, "monotonic", lambda: now[0])
    machine.network.lock([workload(tcp_ports=(80,))], both=False)
    assert (path.read_text() == accepted) is accepts
    assert len(paused) == looks if accepts else now[0] > network._ACCEPT_PATIENCE


def test_connections_that_were_opened_since_the_plan_are_locked(machine: Machine) -> None:
    """A client's port is another one with each connection; whoever answers it must not be told that nobody is there."""
    machine.process(10, 100, 101, 102)
    machine.process(11, 103, 104)
    machine.sockets("tcp", (80, 0, 10, 100), (40001, 5432, 1, 101), (50000, 22, 1, 999))
    machine.sockets("tcp6", (40002, 443, 1, 103))
    machine.sockets("udp6", (40003, 53, 1, 104))
    machine.network.lock((workload(tcp_ports=(80, 39999), udp_ports=(53,)),), both=False)
    assert machine.locked == ([80, 39999, 40001, 40002], [53, 40003], nft.Direction.INPUT)
    durable = machine.places.lock_ruleset.read_text()
    assert "40002" in durable and "40003" in durable and "50000" not in durable and "hook output" in durable
    assert json.loads(machine.places.addresses.read_text())["mode"] == "early"


def test_a_process_that_has_ended_meanwhile_has_no_sockets(machine: Machine) -> None:
    """A server may have one for each connection."""
    machine.process(10, 100)
    machine.process(11, 101)
    machine.sockets("tcp", (80, 0, 10, 100))
    shutil.rmtree(machine.places.root / "proc/11")
    machine.network.lock((workload(),), both=True)
    assert machine.locked == ([80], [], nft.Direction.BOTH)


def test_sockets_that_cannot_be_told_are_not_taken_for_none(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """To lock only what is known would lose what is not."""

    def refused(*_: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    machine.process(10, 100)
    machine.sockets("tcp", (80, 0, 10, 100))
    monkeypatch.setattr(process.os, "readlink", refused)
    with pytest.raises(KernelError, match="readlink"):
        machine.network.lock((workload(tcp_ports=(80,)),), both=False)
    assert machine.locked is None


def test_a_workload_without_sockets_needs_no_lock(machine: Machine) -> None:
    """There is nothing to hold back, which is no failure of the step; a lock that is missing is one."""
    machine.process(10)
    host, alone = cast(Any, machine), LockNetwork((workload(),), STORE)
    alone.do(host, alone.observe(host))
    assert alone.verify(host, Nothing()) is Verdict.DONE
    missing = LockNetwork((workload(tcp_ports=(80,)),), STORE)
    assert missing.verify(host, Nothing()) is Verdict.NOT_DONE


def test_a_lock_that_was_half_taken_off_is_taken_off(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in between, nothing is left that would lock a later boot, when nobody takes it off any more."""
    machine.process(10, 100)
    machine.sockets("tcp", (80, 0, 10, 100))
    step, host = UnlockNetwork((workload(tcp_ports=(80,)),), STORE), cast(Any, machine)
    machine.network.lock(step.workloads, both=True)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for name, where in (("unlink", Path), ("unlock", network.nft)):
        with monkeypatch.context() as patched:
            patched.setattr(where, name, killed)
            with pytest.raises(KeyboardInterrupt):
                host.network.unlock()
        left = machine.places.lock_ruleset.exists()
        assert not (left and step.verify(host, Nothing()) is Verdict.DONE), name
