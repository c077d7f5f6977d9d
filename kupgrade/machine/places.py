"""Where things lie on the host. One list, so that units, packaging and code agree."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Places:
    """All paths below `root`."""

    root: Path = Path("/")

    @property
    def state(self) -> Path:
        """Journals, plans, staged files (0700)."""
        return self.root / "var/lib/kupgrade"

    @property
    def lock_ruleset(self) -> Path:
        """The nftables ruleset that kupgrade-lock.service loads before any NIC comes up."""
        return self.state / "lock.nft"

    @property
    def addresses(self) -> Path:
        """Addresses and routes of the interfaces the workloads use, as JSON."""
        return self.state / "network.json"

    @property
    def noted(self) -> Path:
        """Where package hooks note kernels."""
        return self.state / "pending"

    @property
    def run(self) -> Path:
        """Volatile state (0700)."""
        return self.root / "run/kupgrade"

    @property
    def restorers(self) -> Path:
        """Requests to restorers and their answers."""
        return self.run / "restore"

    @property
    def memory(self) -> Path:
        """Logs of page servers, and the images that criu sees then."""
        return self.run / "memory"

    @property
    def rollback_request(self) -> Path:
        """The operator's wish to roll back, for the worker at work."""
        return self.run / "rollback-requested"
