"""One QEMU process: its command line, its control connection (QMP), its serial log with this machine's times."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kupgrade.errors import KupgradeError
from kupgrade.host.command import environment, find, run
from kupgrade.rehearsal.network import GUEST_MAC
from kupgrade.rehearsal.toolbox import Toolbox, kvm_usable

AGENT_PORT = "org.kupgrade.lab"
# Five-level paging is left out: with it no kernel can be left by the way that kspawn takes. So are fast string
# instructions: emulated they go byte by byte, and a kernel that is told of them copies memory a sixth as fast.
EMULATED_CPU = "max,-la57,-erms,-fsrm,-fzrm,-fsrs"
FAULT_PORT = "org.kupgrade.fault"
TAKING = 0.05  # seconds a MiB, at most
_STARTS = 20.0  # seconds
ANSWERS = 20.0  # seconds for an answer of a QEMU that runs
CLOSING = 5.0  # seconds for a thread to see that its connection has ended
PANIC = re.compile(rb"Kernel panic - not syncing|Unable to mount root fs|end Kernel panic")


@dataclass(frozen=True, slots=True)
class Machine:
    """A virtual machine to start: sizes, disk, and what it boots directly (None: its own boot loader)."""

    image: Path
    kernel: Path | None
    initrd: Path | None
    append: str
    memory_mib: int = 2048
    cpus: int = 2
    stubborn: bool = False  # beside the network card sits a device whose driver never lets go of it
    taken: bool = False  # all of its memory is taken from this machine before it starts, not as it is touched
    disk_rate: int = 0  # bytes a second that its disk reads and writes at most; 0: unlimited (it lies in memory)


@dataclass(frozen=True, slots=True)
class Event:
    """Something seen from outside: `time` as time.monotonic(), `name` as QMP spells it, or PANIC."""

    time: float
    name: str
    detail: str = ""


def arguments(machine: Machine, state: Path, tap: int, kvm: bool) -> list[str]:
    """QEMU's arguments for `machine`; its sockets lie in the directory `state`."""
    accelerator = ["-accel", "kvm", "-cpu", "host"] if kvm else ["-accel", "tcg,thread=multi", "-cpu", EMULATED_CPU]
    log = f"logfile={state}/serial2.log"
    memory = f"memory-backend-ram,id=ram,size={machine.memory_mib}M,prealloc=on,prealloc-threads=2"
    # The watchdog's driver has no callbacks for a device that pauses, so the bus it is on cannot be passed on.
    first, second = (",multifunction=on,addr=0", ",bus=nic,addr=0.1") if machine.stubborn else ("", "")
    rate = "".join(f",throttling.bps-{way}={machine.disk_rate}" for way in ("read", "write") if machine.disk_rate)
    words = [
        *("-name", "kupgrade-rehearsal", "-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35"),
        *accelerator,
        *("-smp", str(machine.cpus), "-m", str(machine.memory_mib)),
        *(("-object", memory, "-machine", "memory-backend=ram") if machine.taken else ()),
        *_behind("disk", 1),
        *("-drive", f"file={machine.image},if=none,id=disk0,format=raw,cache=unsafe,snapshot=on{rate}"),
        *("-device", "virtio-blk-pci,drive=disk0,bus=disk"),
        *_behind("nic", 2),
        *("-netdev", f"tap,id=net0,fd={tap}"),
        *("-device", f"virtio-net-pci,netdev=net0,mac={GUEST_MAC},romfile=,bus=nic{first}"),
        *_behind("control", 3),
        *("-device", "virtio-serial-pci,max_ports=4,bus=control", "-device", "virtio-rng-pci"),
        *("-device", f"i6300esb{second}", "-action", "watchdog=reset"),
        *("-serial", "chardev:serial0", "-chardev", f"socket,id=serial0,path={state}/serial,server=on,wait=off"),
        # ttyS1: no one's but that of a kernel which is started beside the first one.
        *("-serial", "chardev:serial1", "-chardev", f"socket,id=serial1,path={state}/serial2,{log},server=on,wait=off"),
    ]
    for number, (identity, port) in enumerate((("agent", AGENT_PORT), ("fault", FAULT_PORT)), 1):
        words += ["-chardev", f"socket,id={identity},path={state}/{identity},server=on,wait=off"]
        words += ["-device", f"virtserialport,nr={number},chardev={identity},name={port}"]
    for identity in ("qmp", "qmp2"):  # one for the process that keeps the machine, one for who passes by
        words += ["-chardev", f"socket,id={identity},path={state}/{identity},server=on,wait=off"]
        words += ["-mon", f"chardev={identity},mode=control"]
    if machine.kernel is not None:
        words += ["-kernel", str(machine.kernel), "-initrd", str(machine.initrd), "-append", machine.append]
    return words


def _behind(port: str, number: int) -> tuple[str, ...]:
    """A PCIe root port of its own for the next device: what two kernels pass on is a bus below such a port."""
    return ("-device", f"pcie-root-port,id={port},bus=pcie.0,chassis={number},slot={number},addr={number + 3:#x}")


def connect(path: Path, timeout: float, alive: Callable[[], bool] = lambda: True) -> socket.socket:
    """A connection to the unix socket at `path` of a QEMU that is `alive`, waiting up to `timeout` seconds for it."""
    deadline = time.monotonic() + timeout
    while True:
        link = socket.socket(socket.AF_UNIX)
        try:
            link.connect(str(path))
            return link
        except (FileNotFoundError, ConnectionRefusedError):
            link.close()
            if not alive():
                raise KupgradeError("QEMU did not start", "it has ended") from None
            if time.monotonic() > deadline:
                raise KupgradeError("QEMU did not start", f"no socket {path} after {timeout:g} s") from None
            time.sleep(0.05)


class Qmp:
    """A client of QEMU's control protocol; `on_event` is called with (name, data) in a thread of its own.

    `patience`: seconds until the first answer. A QEMU that takes its memory beforehand has its sockets long before
    it answers on them.
    """

    def __init__(
        self,
        path: Path,
        on_event: Callable[[str, dict[str, Any]], None] | None = None,
        patience: float = ANSWERS,
    ) -> None:
        self._socket = connect(path, ANSWERS)
        self._socket.settimeout(None)
        self._on_event = on_event
        self._answers: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self._closed = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self._execute("qmp_capabilities", {}, patience)
        except BaseException:
            self.close()
            raise

    def _read(self) -> None:
        with suppress(OSError, ValueError), self._socket.makefile("rb") as lines:
            for line in lines:
                message = json.loads(line)
                if "event" in message:
                    if self._on_event is not None:
                        self._on_event(message["event"], message.get("data", {}))
                elif "QMP" not in message:
                    with self._changed:
                        self._answers.append(message)
                        self._changed.notify_all()
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def command(self, name: str, **values: object) -> Any:
        """Execute a QMP command and return its result. Raises KupgradeError when it is refused or not answered."""
        return self._execute(name, values, ANSWERS)

    def _execute(self, name: str, values: dict[str, object], patience: float) -> Any:
        self._socket.sendall(json.dumps({"execute": name, "arguments": values}).encode() + b"\n")
        with self._changed:
            self._changed.wait_for(lambda: self._answers or self._closed, patience)
            silent = "the connection ended" if self._closed else f"no answer in {patience:g} s"
            answer = self._answers.pop(0) if self._answers else {"error": {"desc": silent}}
        if "error" in answer and not (name == "quit" and self._closed):
            raise KupgradeError(f"QEMU refused {name}", str(answer["error"].get("desc")))
        return answer.get("return")

    def close(self) -> None:
        """End the connection; the machine runs on."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._reader.join(CLOSING)


@dataclass(slots=True)
class Qemu:
    """A running machine. Its serial console goes to `state`/serial.log, its events to `events`."""

    process: subprocess.Popen[bytes]
    state: Path
    qmp: Qmp
    events: list[Event] = field(default_factory=list)

    def reset(self) -> None:
        """Pull the machine's reset line, at once."""
        self.qmp.command("system_reset")

    def type(self, text: str) -> None:
        """Type a line on the second serial port, the console of a kernel that waits beside the first one."""
        with connect(self.state / "serial2", 5.0) as console:
            console.sendall(text.encode() + b"\n")
            time.sleep(0.2)  # the port takes a byte at a time

    def stop(self, timeout: float = 10.0) -> None:
        """End the machine; what its disk held is gone. Safe to call twice."""
        if self.process.poll() is None:
            with suppress(KupgradeError, OSError):
                self.qmp.command("quit")
            try:
                self.process.wait(timeout)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.qmp.close()


def start(tools: Toolbox, machine: Machine, state: Path, tap: int) -> Qemu:
    """Start `machine` with its sockets and logs in the directory `state`; `tap` stays the caller's to close."""
    # Memory that is taken beforehand comes in portions of what the hypervisor below gives.
    patience = _STARTS + (machine.memory_mib * TAKING if machine.taken else 0.0)
    return launch(tools.qemu, arguments(machine, state, tap, kvm_usable()), state, patience, (tap,))


def launch(
    qemu: Sequence[str],
    words: Sequence[str],
    state: Path,
    patience: float = _STARTS,
    pass_fds: Sequence[int] = (),
    scratch: Path | None = None,
) -> Qemu:
    """Start QEMU (the words that name it, then its arguments); its sockets are there within `patience` seconds.

    `scratch`: where it keeps what is written to a disk and is to be gone with it; else in `state`.
    """
    command = [*qemu, *words]
    if "exit-with-parent" in run([*qemu, "-run-with", "help"], check=False).stdout:
        command += ["-run-with", "exit-with-parent=on"]  # even when we are killed, no machine is left behind
    elif setpriv := find("setpriv"):
        command = [setpriv, "--pdeathsig", "KILL", *command]
    (state / "qemu.command").write_text(" ".join(command) + "\n")
    with (state / "qemu.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=tuple(pass_fds),
            start_new_session=True,  # the operator's Ctrl-C is ours to handle
            env=environment({"TMPDIR": str(scratch or state)}),
        )
    events: list[Event] = []

    def on_event(name: str, data: dict[str, Any]) -> None:
        events.append(Event(time.monotonic(), name, json.dumps(data)))

    try:
        serial = connect(state / "serial", patience, lambda: process.poll() is None)
        qmp = Qmp(state / "qmp", on_event, patience)
    except BaseException as error:
        resident = "" if process.poll() is not None else f"it holds {_resident(process.pid)} MiB of memory"
        process.kill()
        process.wait()
        if not isinstance(error, KupgradeError):
            raise
        said = (state / "qemu.log").read_text(errors="replace").strip()
        raise KupgradeError("QEMU did not start", "; ".join(filter(None, (error.why, resident, said)))) from error
    threading.Thread(target=_log_serial, args=(serial, state / "serial.log", events), daemon=True).start()
    return Qemu(process, state, qmp, events)


def _resident(pid: int) -> int:
    """MiB of memory that a process has (proc_pid_statm(5))."""
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
    return 0


def _log_serial(serial: socket.socket, path: Path, events: list[Event]) -> None:
    started = time.monotonic()
    with path.open("ab", buffering=0) as log, serial, suppress(OSError), serial.makefile("rb") as lines:
        for line in lines:
            now = time.monotonic()
            log.write(b"%9.3f " % (now - started) + line.rstrip(b"\r\n") + b"\n")
            if PANIC.search(line):
                events.append(Event(now, "PANIC", line.decode(errors="replace").strip()))


def run_directory(parent: Path | None = None) -> Path:
    """A new directory with a path short enough for unix sockets (108 bytes); those of dead processes are removed."""
    base = parent or Path("/run")
    for old in base.glob("kupgrade-lab-*-*"):
        pid = old.name.split("-")[2]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(old, ignore_errors=True)
    path = base / f"kupgrade-lab-{os.getpid()}-{time.monotonic_ns() & 0xFFFFFF:x}"
    path.mkdir(mode=0o700, parents=True)
    return path
