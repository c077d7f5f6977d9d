"""The port `Network`, and the addresses that sockets need before they can be restored."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kupgrade.errors import KernelError, KupgradeError
from kupgrade.host import command, criu, nft, retransmit
from kupgrade.journal import write_durably
from kupgrade.kernel import cgroup, process, sock_diag, sockets
from kupgrade.kernel.proc import GONE
from kupgrade.kernel.sockets import InetSocket, TcpState
from kupgrade.machine.images import store_of
from kupgrade.machine.places import Places
from kupgrade.model.codec import decode, encode
from kupgrade.model.network import Endpoint
from kupgrade.model.workload import Store, Workload

_POLL = 0.02  # seconds
# The last acknowledgements must get out between the lock and the freeze: peers' send state then equals what is dumped.
_SETTLE = 0.05  # seconds
_ACCEPT_PATIENCE = 1.0  # seconds, at most, for connections that came before the lock


def observe(root: Path = Path("/")) -> dict[str, Any]:
    """Links (name, MAC), addresses and routes as `ip -json` tells them, without loopback.

    `physical`: the kernel makes it by itself, once it has the driver; `temporary`: of the addresses, those that the
    next boot chooses anew (RFC 8981).
    """
    addresses = json.loads(command.run(["ip", "-json", "address", "show"]).stdout)
    links = [
        {
            "name": link["ifname"],
            "mac": link.get("address", ""),
            "addresses": [
                f"{a['local']}/{a['prefixlen']}" for a in link.get("addr_info", []) if a.get("scope") == "global"
            ],
            "temporary": [a["local"] for a in link.get("addr_info", []) if a.get("temporary")],
            "physical": (root / "sys/class/net" / link["ifname"] / "device").exists(),
        }
        for link in addresses
        if link["ifname"] != "lo" and link.get("link_type") == "ether" and "UP" in link.get("flags", [])
    ]
    routes = []
    for family in ("-4", "-6"):
        out = command.run(["ip", "-json", family, "route", "show"], check=False).stdout or "[]"
        routes += [{"family": family, **r} for r in json.loads(out) if r.get("protocol") != "kernel" and "dev" in r]
    return {"links": links, "routes": routes}


def _wanted(saved: dict[str, Any]) -> set[str]:
    """The addresses that have to be there before a restore: those of the host's cards, and what sockets are bound to.

    Others are of services (containers, virtual machines) that start when the boot goes on, and it waits for us. Whoever
    waits for the network manager waits for the way out of the host, too, whatever it is made of.
    """
    routes = saved["routes"] if saved.get("mode") == "wait" else []
    ways_out = {route["dev"] for route in routes if route["dst"] == "default"}
    found = set()
    for link in saved["links"]:
        hosts = link.get("physical", True) or link["name"] in ways_out
        passing = link.get("temporary", ())
        plain = {address.split("/")[0] for address in link["addresses"]}
        found |= {each for each in plain if each in saved.get("used", ()) or (hosts and each not in passing)}
    return found


def _present() -> set[str]:
    found = json.loads(command.run(["ip", "-json", "address", "show", "up"]).stdout)
    return {a["local"] for link in found for a in link.get("addr_info", []) if not a.get("tentative") and "local" in a}


@contextlib.contextmanager
def foreign_addresses(places: Places) -> Iterator[None]:
    """Let sockets be bound to addresses that are not here yet (Documentation/networking/ip-sysctl.rst)."""
    knobs = [places.root / f"proc/sys/net/{family}/ip_nonlocal_bind" for family in ("ipv4", "ipv6")]
    before = {knob: knob.read_text() for knob in knobs if knob.exists()}
    for knob in before:
        knob.write_text("1\n")
    try:
        yield
    finally:
        for knob, value in before.items():
            knob.write_text(value)


def bring_up(places: Places, timeout: float) -> None:
    """Wait until the saved addresses are there, or add them ourselves as soon as their NIC is (seconds).

    Behind the lock this is safe at any time; a network manager that comes later finds the same addresses.
    """
    try:
        saved = json.loads(places.addresses.read_text())
    except FileNotFoundError:
        return
    if places.lock_ruleset.exists():
        # Before any address: a packet without a lock is a reset. One that is there already may be of the time of the
        # plan, and not hold what was opened since.
        nft.apply(places.lock_ruleset.read_text())
    wanted = _wanted(saved)
    deadline = time.monotonic() + timeout
    while missing := wanted - _present():
        if saved.get("mode") == "early":
            _add(saved)
        if time.monotonic() > deadline:
            raise KupgradeError("The network did not come up", "missing: " + ", ".join(sorted(missing)))
        time.sleep(_POLL)


def _add(saved: dict[str, Any]) -> None:
    names = {}
    for path in Path("/sys/class/net").iterdir():
        with contextlib.suppress(OSError):
            names[(path / "address").read_text().strip()] = path.name
    lines = []
    for link in saved["links"]:
        name = names.get(link["mac"])
        if name is None or name != link["name"]:
            continue  # not probed, or not renamed by udev yet
        lines.append(f"link set {name} up")
        for address in link["addresses"]:
            lines.append(f"address add {address} dev {name}" + (" nodad" if ":" in address else ""))
    for route in saved["routes"]:
        anywhere = "::/0" if route["family"] == "-6" else "0.0.0.0/0"  # a batch takes no -6
        words = [anywhere if route["dst"] == "default" else route["dst"]]
        for key, word in (("gateway", "via"), ("dev", "dev"), ("metric", "metric"), ("prefsrc", "src")):
            if key in route:
                words += [word, str(route[key])]
        lines.append(f"route replace {' '.join(words)}")
    # One process for all: each costs a moment of the blackout. What exists already is no error.
    command.run(["ip", "-force", "-batch", "-"], stdin="\n".join(lines).encode() + b"\n", check=False)


def learn(places: Places, store: Store, workloads: Sequence[Workload]) -> None:
    """Find out whom to prompt, for `kick`, while criu is at work: reading it out of the images takes a moment."""
    entries = json.dumps(encode(stalled(store, workloads)))
    with contextlib.suppress(OSError):  # then it is read when it is needed
        _known(places, store).write_text(entries)


def stalled(store: Store, workloads: Sequence[Workload]) -> tuple[retransmit.Stalled, ...]:
    """Every established connection in the images; what cannot be read is left out."""
    found: list[retransmit.Stalled] = []
    for workload in workloads:
        directory = store_of(store).path / workload.name / "final"
        with contextlib.suppress(KupgradeError, OSError, KeyError, ValueError):
            found += [retransmit.Stalled(connection, seq) for connection, seq in criu.received(directory).items()]
    return tuple(found)


def _known(places: Places, store: Store) -> Path:
    return places.run / f"stalled.{Path(store.path).name}.json"


def _sockets(workloads: Sequence[Workload], root: Path) -> list[InetSocket]:
    """All TCP and UDP sockets that they have now. Raises KernelError.

    More than at the time of the plan: each connection that one has opened itself since then has a port of its own.
    """
    found = []
    for workload in workloads:
        inodes: set[int] = set()
        for pid in cgroup.members(workload.cgroup, root) if cgroup.exists(workload.cgroup, root) else ():
            try:
                inodes |= process.socket_inodes(pid, root)
            except KernelError as error:
                if error.errno not in GONE:  # it has ended meanwhile
                    raise
        everything = sockets.inet_sockets(workload.root_pid, root) if inodes else ()  # nobody is there: nothing is open
        found += [each for each in everything if each.inode in inodes and each.protocol.startswith(("tcp", "udp"))]
    return found


@dataclass
class RealNetwork:
    """The lock table on this machine; `mode` is how the next boot's addresses come up (early, wait).

    `durable`: the lock is for the next boots, too; else for TCP alone, whose peers send again what was dropped.
    """

    places: Places
    mode: str = "early"
    durable: bool = True

    def lock(self, workloads: Sequence[Workload], *, both: bool) -> None:
        """Durable for the next boots first (there in both directions), then here.

        What they open while it is put on is locked, too; what waits to be accepted then gets a moment to be, for criu
        dumps no listener with such connections.
        """
        ports = {
            "tcp": {port for each in workloads for port in each.tcp_ports},
            "udp": {port for each in workloads for port in each.udp_ports},
        }
        observed = observe(self.places.root)
        deadline = time.monotonic() + _ACCEPT_PATIENCE
        known: set[tuple[str, Endpoint]] | None = None
        while known is None or time.monotonic() < deadline:  # after that criu says which listener it is
            now = _sockets(workloads, self.places.root)
            found = {(each.protocol[:3], each.local) for each in now if each.local.port}
            if known is None or found - known:
                known = found | (known or set())
                self._put_on(known, ports, observed, both=both)
                time.sleep(_SETTLE)
            elif any(each.state is TcpState.LISTEN and each.rx_queue for each in now):
                time.sleep(_POLL)
            else:
                return

    def _put_on(
        self, ends: set[tuple[str, Endpoint]], ports: dict[str, set[int]], observed: dict[str, Any], *, both: bool
    ) -> None:
        tcp, udp = (sorted(ports[each] | {end.port for kind, end in ends if kind == each}) for each in ("tcp", "udp"))
        if self.durable:
            saved = {**observed, "used": sorted({end.address for _, end in ends}), "mode": self.mode}
            write_durably(self.places.addresses, json.dumps(saved).encode())
            write_durably(self.places.lock_ruleset, nft.ruleset(tcp, udp, nft.Direction.BOTH).encode())
        nft.lock(tcp, udp if self.durable else (), nft.Direction.BOTH if both else nft.Direction.INPUT)

    def locked(self) -> bool | None:
        """Whether the table is there."""
        return nft.locked()

    def unlock(self) -> None:
        """The durable one first: killed in between, the table here is there to tell that it was not done."""
        self.places.lock_ruleset.unlink(missing_ok=True)
        self.places.addresses.unlink(missing_ok=True)
        nft.unlock()

    def kick(self, store: Store, workloads: Sequence[Workload]) -> int:
        """Forged unreachables for every established connection in the images; never fails the upgrade."""
        known = _known(self.places, store)
        try:
            waiting = decode(tuple[retransmit.Stalled, ...], json.loads(known.read_text()), "stalled")
        except (KupgradeError, OSError, ValueError):
            waiting = stalled(store, workloads)
        known.unlink(missing_ok=True)
        if not waiting:
            return 0
        try:
            with sock_diag.connect() as diag, contextlib.closing(retransmit.RawIcmp()) as port:
                prompted = retransmit.prompt(
                    waiting, port, lambda: {i.connection: i.bytes_received for i in sock_diag.tcp_infos(diag)}
                )
        except (KupgradeError, OSError):
            return 0  # an improvement, never a condition: the peers' own timers still fire
        return sum(1 for entry in prompted if entry.sent)
