"""The boot loader: which one, its entries, and which of them a cold start boots."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path

from kupgrade.errors import BadInputError
from kupgrade.host import bls, command, grub
from kupgrade.model.kernel import BootEntry, KernelRelease


class Loader(enum.Enum):
    """Boot loaders told apart."""

    GRUB = "grub"
    SYSTEMD_BOOT = "systemd-boot"
    NONE = "none"  # nothing is installed in /boot: a virtual machine started with its kernel from outside
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Default:
    """The default entry, and the before-image of `set_default`.

    `stored`: what is written down (saved_entry, LoaderEntryDefault), None when nothing is. `entry`: what a cold
    start boots, None when only the boot loader knows. `obstacle`: why it cannot be changed here, "" when it can.
    """

    loader: Loader
    stored: str | None
    entry: BootEntry | None
    obstacle: str = ""


def detect(root: Path = Path("/")) -> Loader:
    """Which boot loader started the machine (LoaderInfo), or else is installed."""
    info = bls.efi_variable("LoaderInfo", root) or ""
    installed = grub.directory(root)
    if info.startswith("systemd-boot"):
        return Loader.SYSTEMD_BOOT
    if installed is not None:
        return Loader.GRUB
    if any((root / partition / "loader").is_dir() for partition in bls.PARTITIONS):
        return Loader.SYSTEMD_BOOT
    boot = root / "boot"
    known = ("vmlinuz*", "initrd*", "initramfs*", "config-*", "System.map*")
    if not boot.is_dir() or all(any(path.match(name) for name in known) for path in boot.iterdir()):
        return Loader.NONE
    return Loader.UNKNOWN


def entries(root: Path = Path("/")) -> tuple[BootEntry, ...]:
    """The menu's entries in order; none when the boot loader is none or unknown."""
    match detect(root):
        case Loader.GRUB:
            menu = grub.read_menu(root)
            return menu.entries if menu else ()
        case Loader.SYSTEMD_BOOT:
            return bls.entries(root)
    return ()


def entry_for(release: KernelRelease, root: Path = Path("/")) -> BootEntry | None:
    """The entry that boots `release`, not for recovery; None when there is none.

    One that names the release in its ID goes first: GRUB's topmost entry means whatever is newest.
    """
    found = [entry for entry in entries(root) if entry.release == release]
    plain = [entry for entry in found if "recovery" not in f"{entry.id} {entry.title}".lower()]
    return next((entry for entry in plain if release.text in entry.id), next(iter(plain), None))


def read_default(root: Path = Path("/")) -> Default:
    """The default entry. Raises BadInputError when GRUB's environment block is damaged."""
    loader = detect(root)
    match loader:
        case Loader.GRUB:
            return _grub_default(root)
        case Loader.SYSTEMD_BOOT:
            stored = bls.efi_variable("LoaderEntryDefault", root)
            wanted = (stored, bls.configured_default(root))
            return Default(loader, stored, bls.select(bls.entries(root), wanted))
        case Loader.NONE:
            return Default(loader, None, None, "there is no boot loader")
    return Default(loader, None, None, "the boot loader is not one of GRUB and systemd-boot")


def chosen_once(root: Path = Path("/")) -> str:
    """What the next cold start boots, and no other after it (grub-reboot, bootctl set-oneshot); empty: the default.

    Raises BadInputError when GRUB's environment block is damaged.
    """
    match detect(root):
        case Loader.GRUB:
            return grub.read_env(root).get("next_entry", "")
        case Loader.SYSTEMD_BOOT:
            return bls.efi_variable("LoaderEntryOneShot", root) or ""
    return ""


def _grub_default(root: Path) -> Default:
    stored = grub.read_env(root).get("saved_entry")
    menu = grub.read_menu(root)
    if menu is None:
        return Default(Loader.GRUB, stored, None, "grub.cfg cannot be read")
    if menu.uses_saved:
        return Default(Loader.GRUB, stored, grub.select(menu, stored or ""))
    entry = grub.select(menu, menu.default)
    return Default(Loader.GRUB, stored, entry, "GRUB takes no default from its environment block")


def set_default(entry: BootEntry, root: Path = Path("/")) -> None:
    """Make `entry` what a cold start boots. Raises BadInputError, or ToolError of bootctl."""
    now = read_default(root)
    if now.obstacle:
        remedy = "Set GRUB_DEFAULT=saved in /etc/default/grub and run update-grub" if now.loader is Loader.GRUB else ""
        raise BadInputError("The default boot entry cannot be set", now.obstacle, remedy)
    _store(now.loader, entry.id, root)


def restore_default(before: Default, root: Path = Path("/")) -> None:
    """Put back what `read_default` found; nothing where nothing could be set."""
    if not before.obstacle:
        _store(before.loader, before.stored, root)


def _store(loader: Loader, value: str | None, root: Path) -> None:
    if loader is Loader.GRUB:
        grub.write_env("saved_entry", value, root)
    else:
        where = [f"--root={root}"] if root != Path("/") else []
        command.run(["bootctl", *where, "set-default", value or ""])
