"""The network lock: no packet reaches a port whose process is not there, so no peer sees a reset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from kupgrade.errors import KupgradeError
from kupgrade.model.plan import Scope
from kupgrade.model.record import Verdict
from kupgrade.model.workload import Store, Workload
from kupgrade.steps.base import Figures, Nothing, UndoContext, register
from kupgrade.steps.ports import Network


class HasNetwork(Protocol):
    """A host with the lock table."""

    network: Network


@register
@dataclass(frozen=True, slots=True)
class LockNetwork:
    """Drops input to the workloads' ports now, and in each next boot before the NIC comes up.

    Input only in the old kernel: the last acknowledgements must still get out, or the peers' retransmit state differs
    from what is checkpointed.
    """

    kind: ClassVar[str] = "lock-network"
    scope: ClassVar[Scope] = Scope.DISK
    irreversible: ClassVar[bool] = False
    before: ClassVar[type] = Nothing
    workloads: tuple[Workload, ...]
    store: Store

    def describe(self) -> str:
        """One clause."""
        ports = sorted({p for w in self.workloads for p in (*w.tcp_ports, *w.udp_ports)})
        return "drop packets to " + (f"ports {', '.join(map(str, ports))}" if ports else "no port (no sockets)")

    def describe_undo(self) -> str:
        """One clause."""
        return "remove the lock and make peers retransmit at once"

    def observe(self, host: HasNetwork) -> Nothing:
        """A lock table that is already there is not ours."""
        if host.network.locked() is not False:
            raise KupgradeError("A network lock of kupgrade is already there, or that cannot be told", "nft list table")
        return Nothing()

    def do(self, host: HasNetwork, before: Nothing) -> None:
        """Lock."""
        host.network.lock(self.workloads, both=False)

    def undo(self, host: HasNetwork, before: Nothing, context: UndoContext) -> None:
        """Unlock and kick."""
        host.network.unlock()
        host.network.kick(self.store, self.workloads)

    def verify(self, host: HasNetwork, before: Nothing) -> Verdict:
        """The table is there. Without any port in it, it drops nothing, and counts as none."""
        locked = host.network.locked()
        needed = any(w.tcp_ports or w.udp_ports for w in self.workloads)
        return _verdict(locked if needed or locked is None else True)


@register
@dataclass(frozen=True, slots=True)
class UnlockNetwork:
    """Removes the lock in the new kernel and makes peers retransmit at once instead of at their backed-off timer."""

    kind: ClassVar[str] = "unlock-network"
    scope: ClassVar[Scope] = Scope.DISK
    irreversible: ClassVar[bool] = True
    before: ClassVar[type] = Nothing
    workloads: tuple[Workload, ...]
    store: Store

    def describe(self) -> str:
        """One clause."""
        return "remove the network lock and make peers retransmit at once"

    def describe_undo(self) -> str:
        """One clause."""
        return "none: packets have been sent"

    def observe(self, host: HasNetwork) -> Nothing:
        """Nothing to remember."""
        return Nothing()

    def do(self, host: HasNetwork, before: Nothing) -> Figures:
        """Unlock, kick."""
        host.network.unlock()
        return {"kicked": host.network.kick(self.store, self.workloads)}

    def undo(self, host: HasNetwork, before: Nothing, context: UndoContext) -> None:
        """Irreversible; never called."""

    def verify(self, host: HasNetwork, before: Nothing) -> Verdict:
        """The table is gone."""
        locked = host.network.locked()
        return _verdict(None if locked is None else not locked)


def _verdict(answer: bool | None) -> Verdict:
    if answer is None:
        return Verdict.UNKNOWN
    return Verdict.DONE if answer else Verdict.NOT_DONE
