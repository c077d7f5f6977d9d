"""Words for kernels: release, image, initrd, command line and boot entry."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import total_ordering

from kupgrade.errors import BadInputError

# UTS_RELEASE is at most 64 bytes with its NUL (include/uapi/linux/utsname.h); it also names directories.
_RELEASE = re.compile(r"[0-9A-Za-z][0-9A-Za-z._+~-]{0,62}")
_CANDIDATE = re.compile(r"-(rc[0-9])")
_RUNS = re.compile(r"([^0-9]*)([0-9]*)")
_WORD = re.compile(r"[A-Za-z]{2,}")
_OF_THE_VERSION = frozenset({"rc", "deb", "bpo", "fc", "el", "git", "mga", "lp"})  # no flavour: which build it is


@total_ordering
@dataclass(frozen=True, slots=True)
class KernelRelease:
    """What `uname -r` prints. Sorts as dpkg does (numbers as numbers, ~ first), and -rcN before its final."""

    text: str

    def __post_init__(self) -> None:
        if not _RELEASE.fullmatch(self.text):
            raise BadInputError(f"{self.text!r:.80} is not a kernel release", "expected what uname -r prints")

    def __str__(self) -> str:
        return self.text

    def __lt__(self, other: KernelRelease) -> bool:
        return self._key() < other._key()

    @property
    def flavour(self) -> tuple[str, ...]:
        """What distinguishes kernels of one version: cloud, rt, debug, generic, the architecture."""
        return tuple(word for word in map(str.lower, _WORD.findall(self.text)) if word not in _OF_THE_VERSION)

    def _key(self) -> tuple[object, ...]:
        """dpkg's verrevcmp as a tuple: runs of non-digits and numbers in turn, each run with an end mark."""
        parts: list[object] = []
        for letters, digits in _RUNS.findall(_CANDIDATE.sub(r"~\1", self.text)):
            if letters or digits:
                parts += [(*map(_weight, letters), 0), int(digits or 0)]
        return (*parts, (0,), self.text)


def _weight(char: str) -> int:
    """~ sorts before the end of the text, letters before other characters."""
    if char == "~":
        return -1
    return ord(char) if char.isalpha() else ord(char) + 256


class Compression(enum.Enum):
    """How a kernel's payload or an initrd's archive is packed."""

    NONE = "none"
    GZIP = "gzip"
    BZIP2 = "bzip2"
    LZMA = "lzma"
    XZ = "xz"
    LZO = "lzo"
    LZ4 = "lz4"
    ZSTD = "zstd"


@dataclass(frozen=True, slots=True)
class KernelImage:
    """A kernel image as read from its file, without booting it.

    `version`: the whole string of the setup header (release, builder, date). `cmdline_limit`: bytes, without
    the NUL. `init_size`: bytes of contiguous memory it needs to start. `signed`: an Authenticode signature is
    attached (not: is valid). What only the payload tells (`banner`, `build_id` in hex, `config`,
    `handover_abi`) is empty or None when `unread` says why it could not be unpacked; `config` is None too
    without CONFIG_IKCONFIG.
    """

    path: str
    release: KernelRelease
    version: str
    architecture: str  # as uname -m prints it
    size: int  # bytes
    sha256: str
    compression: Compression
    protocol: int  # boot protocol, e.g. 0x20f for 2.15
    relocatable: bool
    xloadflags: int
    init_size: int
    cmdline_limit: int
    signed: bool
    banner: str = ""
    build_id: str = ""
    config: Mapping[str, str] | None = None
    handover_abi: tuple[str, ...] = ()  # ABI strings of KHO and LUO in the payload, e.g. kho-v4, luo-v5
    unread: str = ""


@dataclass(frozen=True, slots=True)
class Initrd:
    """An initrd as read from its file.

    `releases`: those it has modules for, in order of appearance (none: nothing in it is a module).
    `unread`: why a compressed part could not be unpacked; then the other facts hold for the rest only.
    """

    path: str
    size: int  # bytes
    sha256: str
    compressions: tuple[Compression, ...]  # one for each archive
    releases: tuple[KernelRelease, ...]
    has_init: bool
    has_shell: bool
    unread: str = ""


def _same(name: str, other: str) -> bool:
    """The kernel takes - and _ in parameter names as equal (kernel/params.c, parameq)."""
    return name.replace("-", "_") == other.replace("-", "_")


@dataclass(frozen=True, slots=True)
class CommandLine:
    """A kernel command line as the words the kernel sees, in their order.

    Blanks inside double quotes do not part words (lib/cmdline.c, next_arg). Words after `--` belong to init.
    """

    words: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> CommandLine:
        """Split `text`; an open quote is closed at the end, as the kernel reads it. Refuses NUL bytes."""
        if "\0" in text:
            raise BadInputError("The kernel command line holds a NUL byte", "the kernel stops reading there")
        words: list[str] = []
        word, quoted = "", False
        for char in text:
            if char in " \t\n\v\f\r" and not quoted:
                if word:
                    words.append(word)
                word = ""
                continue
            quoted ^= char == '"'
            word += char
        if word:
            words.append(word + '"' if quoted else word)
        return cls(tuple(words))

    def __str__(self) -> str:
        return " ".join(self.words)

    @property
    def _parameters(self) -> tuple[str, ...]:
        return self.words[: self.words.index("--")] if "--" in self.words else self.words

    def __iter__(self) -> Iterator[tuple[str, str | None]]:
        """The kernel's parameters as (name, value); the value is None without `=`, and has no quotes."""
        for raw in self._parameters:
            word = raw[1:].removesuffix('"') if raw.startswith('"') else raw
            name, equals, value = word.partition("=")
            if value.startswith('"'):
                value = value[1:].removesuffix('"')
            yield name, value if equals else None

    def values(self, name: str) -> tuple[str | None, ...]:
        """Every value given for `name`, in order."""
        return tuple(value for other, value in self if _same(name, other))

    def has(self, name: str) -> bool:
        """Whether the parameter is given at all."""
        return bool(self.values(name))

    def get(self, name: str) -> str | None:
        """The last value of `name`; None when it is absent or a bare word (see `has`)."""
        found = self.values(name)
        return found[-1] if found else None

    def without(self, *names: str) -> CommandLine:
        """The command line without any of these parameters; words for init stay."""
        pairs = zip(self._parameters, self, strict=True)
        kept = tuple(word for word, (name, _) in pairs if not any(_same(name, other) for other in names))
        return CommandLine(kept + self.words[len(self._parameters) :])

    def appended(self, name: str, value: str | None = None) -> CommandLine:
        """One more parameter after the others but before `--`; for those given often, as console=."""
        at = len(self._parameters)
        return CommandLine((*self.words[:at], _word(name, value), *self.words[at:]))

    def with_(self, name: str, value: str | None = None) -> CommandLine:
        """The parameter set exactly once: where it stood first, or at the end."""
        names = [other for other, _ in self]
        at = next((i for i, other in enumerate(names) if _same(name, other)), None)
        if at is None:
            return self.appended(name, value)
        rest = CommandLine(self.words[at:]).without(name)
        return CommandLine((*self.words[:at], _word(name, value), *rest.words))

    def module_parameters(self, module: str) -> dict[str, str | None]:
        """Parameters given as MODULE.NAME=VALUE; the last value of each counts."""
        found: dict[str, str | None] = {}
        for name, value in self:
            owner, dot, parameter = name.partition(".")
            if dot and _same(owner, module):
                found[parameter] = value
        return found


def _word(name: str, value: str | None) -> str:
    if not name or re.search(r'[\s"=\0]', name):
        raise BadInputError(f"{name!r:.60} cannot be the name of a kernel parameter")
    if value is None:
        return name
    if '"' in value or "\0" in value or "\n" in value:
        raise BadInputError(f"The value of {name}= cannot stand on a command line", "it holds a quote or NUL")
    return f'{name}="{value}"' if re.search(r"\s", value) else f"{name}={value}"


@dataclass(frozen=True, slots=True)
class BootEntry:
    """One entry of the boot loader's menu; paths and options as they stand in its configuration.

    `id` selects it as default; `release` is None when no kernel release can be told from it.
    """

    id: str
    title: str
    release: KernelRelease | None = None
    kernel: str = ""
    initrds: tuple[str, ...] = ()
    options: str = ""
