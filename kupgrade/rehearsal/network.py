"""A private network for one run: a network namespace without a name, a tap in it, gone when the run's processes are.

Nothing is left to clean up, and any number of runs use the same addresses at the same time.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from kupgrade.errors import KernelError

HOST_ADDRESS = "192.0.2.1"  # the client's side of the tap
GUEST_ADDRESS = "192.0.2.2"  # as in guest/network.network
GUEST_MAC = "52:54:00:6b:75:70"
TAP = "tap0"

CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
IFF_UP, IFF_RUNNING = 0x1, 0x40
SIOCSIFFLAGS, SIOCSIFADDR, SIOCSIFNETMASK = 0x8914, 0x8916, 0x891C

T = TypeVar("T")


def _libc_call(name: str, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        raise KernelError(name, "", ctypes.get_errno(), "Run the rehearsal as root")


def _in_thread(function: Callable[[], T]) -> T:
    """Run `function` in a thread of its own, whose namespace dies with it unless a descriptor keeps it."""
    result: Future[T] = Future()

    def target() -> None:
        try:
            result.set_result(function())
        except BaseException as error:  # handed to the caller, whatever it is
            result.set_exception(error)

    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
    return result.result()


@dataclass(frozen=True, slots=True)
class Network:
    """An open network namespace; `namespace` is a descriptor of it."""

    namespace: int

    @classmethod
    def create(cls) -> Network:
        """A new, empty namespace."""

        def unshare() -> int:
            _libc_call("unshare", CLONE_NEWNET)
            return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

        return cls(_in_thread(unshare))

    @classmethod
    def join(cls, path: Path) -> Network:
        """The namespace another process keeps open at `path` (/proc/PID/fd/N)."""
        return cls(os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    def inside(self, function: Callable[[], T]) -> T:
        """The result of `function` run in the namespace; sockets it makes stay there, wherever they are used."""

        def enter() -> T:
            _libc_call("setns", self.namespace, CLONE_NEWNET)
            return function()

        return _in_thread(enter)

    def tap(self) -> int:
        """A new tap device in the namespace with the host's address, as a descriptor to pass to QEMU."""
        return self.inside(_make_tap)

    def connect(self, port: int, timeout: float) -> socket.socket:
        """A TCP connection to the virtual host (timeout in seconds for the connect; then blocking)."""
        return self.inside(lambda: socket.create_connection((GUEST_ADDRESS, port), timeout))

    def close(self) -> None:
        """Let go of the namespace."""
        os.close(self.namespace)


def _make_tap() -> int:
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    name = TAP.encode()
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", name, IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for request, address in ((SIOCSIFADDR, HOST_ADDRESS), (SIOCSIFNETMASK, "255.255.255.0")):
            sockaddr = struct.pack("<HH4s8x", socket.AF_INET, 0, socket.inet_aton(address))
            fcntl.ioctl(control, request, struct.pack("16s16s8x", name, sockaddr))
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH22x", name, IFF_UP | IFF_RUNNING))
    return tap
