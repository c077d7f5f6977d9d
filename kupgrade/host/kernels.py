"""The kernels installed below a root: images, initrds, configurations, modules.

Layouts: /boot/vmlinuz-RELEASE (Debian), /usr/lib/modules/RELEASE/vmlinuz (Fedora, Debian since Linux 7),
/boot/TOKEN/RELEASE/linux (Boot Loader Specification).
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kupgrade.errors import BadInputError
from kupgrade.host.image import parse_config
from kupgrade.model.kernel import KernelRelease

MODULES = ("usr/lib/modules", "lib/modules")
IMAGES = (
    "boot/vmlinuz-{release}",
    "usr/lib/modules/{release}/vmlinuz",
    "lib/modules/{release}/vmlinuz",
    "usr/lib/modules/{release}/vmlinuz.unsigned",
    "boot/*/{release}/linux",
    "efi/*/{release}/linux",
)
INITRDS = (
    "boot/initrd.img-{release}",
    "boot/initramfs-{release}.img",
    "boot/initrd-{release}",
    "usr/lib/modules/{release}/initramfs.img",
    "usr/lib/modules/{release}/initrd",
    "boot/*/{release}/initrd",
    "efi/*/{release}/initrd",
)
CONFIGS = ("boot/config-{release}", "usr/lib/modules/{release}/config", "lib/modules/{release}/config")

# What make install, dpkg, rpm and editors leave beside a file; dpkg's ~ before a revision is within the name.
_LEFT_BESIDE = re.compile(r".*(?:\.(?:old|bak|orig|dpkg-[a-z]+|rpmsave|rpmnew|rpmorig)|~)")
_MODULE_SUFFIXES = (".ko", ".ko.xz", ".ko.zst", ".ko.gz")


@dataclass(frozen=True, slots=True)
class Installed:
    """The files of one installed kernel; `initrd` None: there is none in a known place."""

    release: KernelRelease
    kernel: Path
    initrd: Path | None


class Presence(enum.Enum):
    """Whether a kernel has a driver or feature."""

    BUILTIN = "builtin"
    MODULE = "module"  # its file exists
    MISSING = "missing"
    UNKNOWN = "unknown"  # no modules directory or no index in it


@dataclass(frozen=True, slots=True)
class Need:
    """A configuration option that criu or this tool builds on. `module`: where it may be one."""

    option: str
    purpose: str
    module: str = ""
    required: bool = True


NEEDS = (
    Need("CONFIG_CHECKPOINT_RESTORE", "criu"),
    Need("CONFIG_NAMESPACES", "criu"),
    Need("CONFIG_PID_NS", "criu"),
    Need("CONFIG_NET_NS", "criu"),
    Need("CONFIG_FHANDLE", "criu: inotify and fanotify watches"),
    Need("CONFIG_EVENTFD", "criu"),
    Need("CONFIG_EPOLL", "criu"),
    Need("CONFIG_UNIX_DIAG", "criu: unix sockets", "unix_diag"),
    Need("CONFIG_INET_DIAG", "criu: IP sockets", "inet_diag"),
    Need("CONFIG_INET_TCP_DIAG", "criu: TCP connections", "tcp_diag"),
    Need("CONFIG_INET_UDP_DIAG", "criu: UDP sockets", "udp_diag"),
    Need("CONFIG_PACKET_DIAG", "criu: packet sockets", "af_packet_diag"),
    Need("CONFIG_NETLINK_DIAG", "criu: netlink sockets", "netlink_diag"),
    Need("CONFIG_NF_TABLES", "the network lock", "nf_tables"),
    Need("CONFIG_NF_TABLES_INET", "the network lock"),
    Need("CONFIG_CGROUPS", "freezing workloads"),
    Need("CONFIG_MAGIC_SYSRQ", "the dead-man of the new kernel"),
    Need("CONFIG_KEXEC_FILE", "the way back by kexec", required=False),
    Need("CONFIG_MEM_SOFT_DIRTY", "pre-dump, a shorter blackout", required=False),
    Need("CONFIG_USERFAULTFD", "restoring memory on demand", required=False),
    Need("CONFIG_TIME_NS", "a monotonic clock that goes on", required=False),
    Need("CONFIG_INET_RAW_DIAG", "criu: raw sockets", "raw_diag", required=False),
    Need("CONFIG_TUN", "criu: TUN devices", "tun", required=False),
)


def _first(root: Path, patterns: Iterable[str], release: KernelRelease) -> Path | None:
    for pattern in patterns:
        found = sorted(path for path in root.glob(pattern.format(release=release)) if path.is_file())
        if found:
            return found[0]
    return None


def locate(release: KernelRelease, root: Path = Path("/")) -> Installed:
    """The files of an installed release. Raises BadInputError when it has no kernel image."""
    kernel = _first(root, IMAGES, release)
    if kernel is None:
        places = ", ".join(str(root / pattern.format(release=release)) for pattern in IMAGES[:2])
        raise BadInputError(f"Kernel {release} is not installed", f"there is no {places}", "Install it first")
    return Installed(release, kernel, _first(root, INITRDS, release))


def installed(root: Path = Path("/")) -> tuple[Installed, ...]:
    """Every installed kernel, oldest release first. Files whose names are no release are left out."""
    names: set[str] = set()
    for pattern in IMAGES:
        prefix, _, suffix = pattern.partition("{release}")
        for path in root.glob(prefix + "*" + suffix):
            if not path.is_file():
                continue  # a link that a removed package left leads nowhere
            part = path.parent.name if suffix else path.name
            names.add(part if suffix else part.removeprefix(prefix.rpartition("/")[2]))
    releases = []
    for name in names:
        if _LEFT_BESIDE.fullmatch(name):
            continue
        try:
            releases.append(KernelRelease(name))
        except BadInputError:
            continue  # vmlinuz-0-rescue and the like pass; a stray file with blanks does not
    return tuple(locate(release, root) for release in sorted(releases))


def config_beside(release: KernelRelease, root: Path = Path("/")) -> Mapping[str, str] | None:
    """The configuration the distribution installed for a release; None when there is none."""
    path = _first(root, CONFIGS, release)
    if path is None:
        return None
    try:
        return parse_config(path.read_text(errors="replace"))
    except OSError:
        return None


def modules_directory(release: KernelRelease, root: Path = Path("/")) -> Path | None:
    """Where the release's modules are; None when they are not installed."""
    return next((root / top / release.text for top in MODULES if (root / top / release.text).is_dir()), None)


def _stem(path: str) -> str:
    """A module's name out of its path, with _ as the kernel writes it."""
    return path.rpartition("/")[2].partition(".ko")[0].replace("-", "_")


def _index(folder: Path, *names: str) -> list[str] | None:
    """Paths in the first index that exists; modules.dep has dependencies after a colon."""
    for name in names:
        try:
            lines = (folder / name).read_text(errors="replace").splitlines()
        except OSError:
            continue
        return [line.partition(":")[0].strip() for line in lines if line.strip()]
    return None


def modules_present(release: KernelRelease, names: Iterable[str], root: Path = Path("/")) -> dict[str, Presence]:
    """Each module's presence: by modules.builtin, and modules.dep or (before depmod ran) modules.order."""
    wanted = {name: name.replace("-", "_") for name in names}
    folder = modules_directory(release, root)
    if folder is None:
        return dict.fromkeys(wanted, Presence.UNKNOWN)
    builtin = {_stem(path) for path in _index(folder, "modules.builtin") or ()}
    paths = _index(folder, "modules.dep", "modules.order")
    files = {_stem(path): path for path in paths or ()}
    found = {}
    for name, stem in wanted.items():
        if stem in builtin:
            found[name] = Presence.BUILTIN
        elif paths is None:
            found[name] = Presence.UNKNOWN
        elif stem in files and _module_file(folder, files[stem]):
            found[name] = Presence.MODULE
        else:
            found[name] = Presence.MISSING
    return found


def _module_file(folder: Path, path: str) -> bool:
    """Whether the indexed module exists; modules.order names it before it was compressed."""
    bare = path[: path.index(".ko")] if ".ko" in path else path
    return any((folder / (bare + suffix)).is_file() for suffix in _MODULE_SUFFIXES)


def config_needs(
    config: Mapping[str, str], has_module: Callable[[str], bool], needs: Iterable[Need] = NEEDS
) -> tuple[Need, ...]:
    """The needs a configuration does not meet. `=m` counts when `has_module(name)`: its file is there."""
    missing = []
    for need in needs:
        match config.get(need.option, "n"):
            case "y":
                continue
            case "m" if need.module and has_module(need.module):
                continue
        missing.append(need)
    return tuple(missing)
