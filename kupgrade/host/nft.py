"""The network lock: an nftables table that drops a workload's packets while it is not there (nft(8)).

And silence: a second table, by which nothing at all is sent through an interface whose device stands still.

The lock holds for the network namespace of the caller, and dies with its kernel: the new kernel locks again before
its interfaces come up. Dropped packets are retransmitted by the peer; a port that has lost its socket would be
answered with a reset.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from kupgrade.errors import BadInputError, KupgradeError, ToolError
from kupgrade.host import command, libnftables

FAMILY = "inet"
TABLE = "kupgrade_lock"
PRIORITY = -300  # raw: before connection tracking (-200) and every other filter
TIMEOUT = 10.0  # seconds
_WAYS = {"input": ("iifname", "dport"), "output": ("oifname", "sport")}  # of a packet, as a rule names it
_QUIET = "netdev kupgrade_quiet"


class Direction(enum.Enum):
    """Which packets are dropped. INPUT lets the last acknowledgements out: peers then know what came."""

    INPUT = "input"
    BOTH = "both"


def _ports(ports: Iterable[int]) -> str:
    chosen = sorted(set(ports))
    if any(not 0 < port < 65536 for port in chosen):
        raise BadInputError("A port to be locked is not between 1 and 65535", ", ".join(map(str, chosen)))
    return ", ".join(map(str, chosen))


def _chain(hook: str, tcp: str, udp: str) -> str:
    _, port = _WAYS[hook]
    rules = [f"{name} {port} {{ {ports} }} drop" for name, ports in (("tcp", tcp), ("udp", udp)) if ports]
    body = "".join(f"\t\t{rule}\n" for rule in (f"jump open_{hook}", *rules))
    return f"\tchain {hook} {{\n\t\ttype filter hook {hook} priority {PRIORITY}; policy accept;\n{body}\t}}\n"


_REMOVE = f"table {FAMILY} {TABLE}\ndelete table {FAMILY} {TABLE}\n"  # the first line makes the second succeed


def ruleset(tcp_ports: Iterable[int], udp_ports: Iterable[int], direction: Direction) -> str:
    """The lock as nft(8) reads it: one transaction that replaces the table. The ports are local ones.

    Raises BadInputError for a port out of range.
    """
    tcp, udp = _ports(tcp_ports), _ports(udp_ports)
    hooks = ("input",) if direction is Direction.INPUT else ("input", "output")
    chains = "".join(f"\tchain open_{way} {{\n\t}}\n" for way in _WAYS) + "".join(_chain(h, tcp, udp) for h in hooks)
    return f"{_REMOVE}table {FAMILY} {TABLE} {{\n{chains}}}\n"


def open_loopback(tcp_ports: Iterable[int], udp_ports: Iterable[int]) -> None:
    """On lo let the packets to and from these local ports pass the lock, and no others; without any: none.

    What else is locked stays so, whatever it is. Raises BadInputError, ToolError (there is no lock), KupgradeError.
    """
    tcp, udp = _ports(tcp_ports), _ports(udp_ports)
    lines = []
    for way, (interface, port) in _WAYS.items():
        chain = f"{FAMILY} {TABLE} open_{way}"
        lines.append(f"flush chain {chain}")
        for name, ports in (("tcp", tcp), ("udp", udp)):
            if ports:
                lines.append(f'add rule {chain} {interface} "lo" {name} {port} {{ {ports} }} accept')
    apply("\n".join(lines) + "\n")


def _ask(commands: str, *, dry: bool = False) -> command.Completed:
    """By the library where it is there, else by the program. Raises KupgradeError without either."""
    library = libnftables.load()
    if library is not None:
        return libnftables.run(library, commands, dry=dry)
    words = ["nft", *(["-c"] if dry else []), "-f", "-"]
    return command.run(words, stdin=commands.encode(), timeout=TIMEOUT, check=False)


def apply(rules: str, *, dry: bool = False) -> None:
    """One transaction; only checked by the kernel when it is `dry`. Raises ToolError, KupgradeError without nft."""
    done = _ask(rules, dry=dry)
    if done.status != 0:
        said = done.stderr or done.stdout
        why = next((line for line in said.splitlines() if "Error" in line), said)  # below stand the rule and a ^
        raise ToolError(("nft", "-f", "-"), done.status, why)


def lock(tcp_ports: Iterable[int], udp_ports: Iterable[int], direction: Direction) -> None:
    """Put the lock on, replacing an older one at once. Raises ToolError, KupgradeError without nft."""
    apply(ruleset(tcp_ports, udp_ports, direction))


def unlock() -> None:
    """Take the lock off; done as well when there is none. Raises ToolError, KupgradeError without nft."""
    apply(_REMOVE)


def locked() -> bool | None:
    """Whether the lock is on and drops something; None when nft cannot tell."""
    try:
        done = _ask(f"list table {FAMILY} {TABLE}")
    except KupgradeError:
        return None
    if done.status == 0:
        return " drop" in done.stdout
    return False if "No such file or directory" in done.stderr else None


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface of the caller's namespace by name and index (ip-link(8))."""

    name: str
    index: int


def silence(interfaces: Iterable[Interface], *, dry: bool = False) -> None:
    """Nothing is sent through them any more, whoever sends it; done as well when they are silent. `dry`: could it be?

    A driver may be asked to send although its device is quiesced: virtio_net up to Linux 6.16 wakes the queue of a
    device that it has just detached (fixed by kernel commit 45d8ef6322b8), and the next packet is written to memory
    that is no queue any more. Packets end before the queue, at the hook "egress" (Linux 5.16, CONFIG_NETFILTER_EGRESS).
    Raises ToolError, KupgradeError without nft.
    """
    for each in interfaces:
        apply(f"table {_QUIET} {{\n{_quiet_chain(each)}}}\n", dry=dry)


def end_silence(interfaces: Iterable[Interface]) -> None:
    """As before `silence`; done as well when they are not silent. Raises ToolError, KupgradeError without nft."""
    for each in interfaces:
        chain = f"chain {_QUIET} if{each.index}"
        apply(f"table {_QUIET} {{\n{_quiet_chain(each)}}}\nflush {chain}\ndelete {chain}\n")


def _quiet_chain(interface: Interface) -> str:
    if set(interface.name) & set('"\\'):
        raise BadInputError("nft cannot be told of an interface", f"its name is {interface.name!r}", "Rename it")
    head = f'type filter hook egress device "{interface.name}" priority {PRIORITY}; policy drop;'
    return f"\tchain if{interface.index} {{\n\t\t{head}\n\t}}\n"
