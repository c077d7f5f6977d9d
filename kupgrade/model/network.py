"""Words for the network: the two ends of a connection."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from kupgrade.errors import BadInputError


@dataclass(frozen=True, slots=True, order=True)
class Endpoint:
    """An IP address and a port. The address is kept in its canonical text; IPv4 inside IPv6 becomes IPv4."""

    address: str
    port: int

    def __post_init__(self) -> None:
        try:
            parsed = ipaddress.ip_address(self.address)
        except ValueError as error:
            raise BadInputError(f"{self.address!r:.60} is not an IP address") from error
        if not 0 <= self.port <= 0xFFFF:
            raise BadInputError(f"{self.port} is not a port number")
        mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
        object.__setattr__(self, "address", str(mapped or parsed))

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"

    @property
    def version(self) -> int:
        """4 or 6."""
        return 6 if ":" in self.address else 4

    @property
    def packed(self) -> bytes:
        """The address in network byte order: 4 or 16 bytes."""
        return ipaddress.ip_address(self.address).packed


@dataclass(frozen=True, slots=True, order=True)
class Connection:
    """One TCP connection, seen from this host."""

    local: Endpoint
    remote: Endpoint

    def __str__(self) -> str:
        return f"{self.local} <- {self.remote}"
