"""KHO (kexec handover) and live update as facts: of the running kernel, and of one that is only a file."""

from __future__ import annotations

from dataclasses import dataclass

from kupgrade.model.machine import MemoryRange


@dataclass(frozen=True, slots=True)
class KhoWords:
    """What the running kernel's command line says, the last of each word; None: the word is not there."""

    kho: str | None = None
    liveupdate: str | None = None
    kho_scratch: str | None = None
    crashkernel: str | None = None


@dataclass(frozen=True, slots=True)
class KhoFacts:
    """KHO in the running kernel. None is unknown, never no; `unknown` then says why, as pairs of field and reason.

    `device_there`: /dev/liveupdate can be seen. `enabled`: KHO is on. `liveupdate`: the kernel has the device.
    `scratch`: areas of memory for the next kernel's boot, in which nothing can be preserved; `scratch_bytes` is their
    sum. `crash_bytes`: reserved for a crash kernel. `kho_abi`, `luo_abi`: the ABI of what this kernel hands over,
    e.g. kho-v4 and luo-v5. `incoming`: names of what the previous kernel handed over, () if this one was not started
    so. `previous_release`, `kexec_count`: who handed it over, and how many kexecs there were since the last cold boot.
    """

    device_there: bool
    enabled: bool | None
    liveupdate: bool | None
    words: KhoWords
    scratch: tuple[MemoryRange, ...] | None = None
    crash_bytes: int | None = None
    kho_abi: str | None = None
    luo_abi: str | None = None
    incoming: tuple[str, ...] | None = None
    previous_release: str | None = None
    kexec_count: int | None = None
    unknown: tuple[tuple[str, str], ...] = ()

    @property
    def scratch_bytes(self) -> int | None:
        """Bytes of all scratch areas."""
        return None if self.scratch is None else sum(each.size for each in self.scratch)

    def why(self, name: str) -> str:
        """Why a field is unknown; "" if it is not."""
        return dict(self.unknown).get(name, "")


@dataclass(frozen=True, slots=True)
class KhoAbi:
    """By which names a kernel knows what is handed over to it; None: it can take nothing of that kind.

    With `known` False nothing is said at all, and `unread` tells why. A kernel refuses what has another name.
    """

    kho: str | None
    luo: str | None
    memfd: str | None
    known: bool
    unread: str = ""


def differs(before: KhoAbi, after: KhoAbi) -> tuple[str, ...]:
    """Why the kernel `after` cannot take over what `before` hands over; (): by their names it can.

    A kernel with live update that knows KHO's format but not live update's panics as it boots (luo_restore_fail()),
    even if no session was handed over: it is enough that live update is on in the old kernel, and KHO in the new one.
    """
    unread = [(which, abi.unread) for which, abi in (("old", before), ("new", after)) if not abi.known]
    if unread:
        return tuple(f"what the {which} kernel understands is not known: {why}" for which, why in unread)
    found = []
    for what, old, new in (
        ("kexec handover", before.kho, after.kho),
        ("live update", before.luo, after.luo),
        ("memory files", before.memfd, after.memfd),
    ):
        if old is None or new is None:
            without = [which for which, abi in (("old", old), ("new", new)) if abi is None]
            found += [f"the {which} kernel has no {what}" for which in without]
        elif old != new:
            found.append(f"{what}: the old kernel writes {old}, the new one reads {new}")
    return tuple(found)
