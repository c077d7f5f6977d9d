"""Descriptors of services in a live update session: an index under token 0 names what stands under the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kupgrade.errors import BadInputError
from kupgrade.host.preserved import framed, unframed
from kupgrade.model.codec import decode

FORMAT = "kupgrade.descriptors/1"


@dataclass(frozen=True, slots=True)
class KeptDescriptor:
    """One descriptor of one unit's store. Two of them may share a token: the same file, stored twice.

    `size`: bytes; `crc`: CRC-32 of what is in it; `seals`: F_GET_SEALS; `writable`: how it was opened.
    """

    unit: str
    name: str
    token: int
    size: int
    crc: int
    seals: int
    writable: bool

    @property
    def label(self) -> str:
        """How people read of it."""
        return f"{self.unit}: {self.name}"


@dataclass(frozen=True, slots=True)
class DescriptorIndex:
    """Everything of one upgrade's descriptors."""

    descriptors: tuple[KeptDescriptor, ...]
    format: str = FORMAT

    @property
    def tokens(self) -> tuple[int, ...]:
        """Of the files, each once."""
        return tuple(dict.fromkeys(each.token for each in self.descriptors))

    @property
    def units(self) -> tuple[str, ...]:
        """Those with a descriptor in here, each once."""
        return tuple(dict.fromkeys(each.unit for each in self.descriptors))

    def of(self, unit: str) -> Sequence[KeptDescriptor]:
        """Those of one unit, in the order of its store."""
        return [each for each in self.descriptors if each.unit == unit]

    def encoded(self) -> bytes:
        """JSON and, in front of it, its CRC-32."""
        return framed(self)


def read_index(data: bytes) -> DescriptorIndex:
    """Parse one; raises BadInputError when it is damaged or of another format."""
    what = "The index of the preserved descriptors is damaged"
    try:
        index = decode(DescriptorIndex, unframed(data), "index")
    except (ValueError, RecursionError) as error:
        raise BadInputError(what, str(error)) from None
    if index.format != FORMAT:
        raise BadInputError("The preserved descriptors are of another format", index.format)
    if any(each.token < 1 for each in index.descriptors):
        raise BadInputError(what, "token 0 is its own")
    return index
