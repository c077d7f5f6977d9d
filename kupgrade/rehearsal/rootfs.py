"""The virtual host's root file system in layers: a Debian base, and one layer a kernel release, each cached."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from kupgrade.errors import BadInputError
from kupgrade.host.command import run
from kupgrade.rehearsal import kho_kernel
from kupgrade.rehearsal.cache import key
from kupgrade.rehearsal.packages import KernelPackages
from kupgrade.rehearsal.suites import KEYRING, Archive
from kupgrade.rehearsal.toolbox import Progress, mmdebstrap

SUITE = "trixie"
CRIU_SUITE = "sid"  # 4.1 of trixie cannot dump TCP sockets on 6.18 and later
CRIU_PACKAGES = ("criu", "python3-pycriu", "libcompel1", "libnet9", "libnl-3-200")
PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "udev", "kmod", "iproute2", "nftables", "procps", "e2fsprogs", "dmsetup"),
    *("initramfs-tools", "zstd", "lz4", "python3", "python3-click", "python3-structlog", "python3-tenacity"),
    *("python3-pyelftools", "python3-msgspec", "python3-protobuf", "kexec-tools"),
    *("grub-pc-bin", "grub-common", "grub2-common"),
)
# Debian's default is MODULES=most. Under TCG a small explicit list saves seconds at each boot of either kernel.
INITRD_MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "ext4", "nd_e820", "nd_pmem", "i6300esb")
MASKED = (
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer"),
    *("e2scrub_reap.service", "getty@tty1.service", "serial-getty@ttyS0.service", "console-getty.service"),
    *("grub-common.service", "grub-initrd-fallback.service"),
    *("systemd-pcrphase.service", "systemd-pcrmachine.service", "systemd-pcrfs-root.service"),
    *("systemd-tpm2-setup.service", "systemd-tpm2-setup-early.service", "ldconfig.service"),
    *("systemd-hwdb-update.service", "systemd-journal-catalog-update.service", "systemd-update-done.service"),
    *("systemd-firstboot.service", "systemd-networkd-wait-online.service", "systemd-timesyncd.service"),
    *("kexec-load.service", "kexec.service", "systemd-random-seed.service", "systemd-boot-random-seed.service"),
    *("modprobe@drm.service", "systemd-binfmt.service", "systemd-battery-check.service", "systemd-rfkill.socket"),
)
FILES = {
    "etc/hostname": "virtual-host\n",
    "etc/hosts": "127.0.0.1 localhost\n127.0.1.1 virtual-host\n",
    "etc/machine-id": "6b7570677261646572656865617273ff\n",
    "etc/fstab": "",
    "etc/initramfs-tools/conf.d/lab": "MODULES=list\nRESUME=none\nCOMPRESS=zstd\nFSTYPE=ext4\n",
    "etc/initramfs-tools/modules": "".join(f"{name}\n" for name in INITRD_MODULES),
    "etc/modules-load.d/lab.conf": "i6300esb\n",
    "etc/modprobe.d/lab.conf": "options watchdog stop_on_reboot=0\n",
    "etc/systemd/system.conf.d/lab.conf": "[Manager]\nDefaultTimeoutStartSec=60s\nDefaultTimeoutStopSec=20s\n",
    "etc/systemd/journald.conf.d/lab.conf": "[Journal]\nStorage=persistent\nSystemMaxUse=64M\nForwardToConsole=no\n",
}


def write(root: Path, name: str, text: str, mode: int = 0o644) -> None:
    """Write a file below `root`, replacing (never following or editing) what is there: roots share inodes."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(text)
    path.chmod(mode)


def base(archive: Archive, progress: Progress, services: Sequence[str] = ()) -> Path:
    """The root directory with Debian's userspace, built once for its list of packages (about 30 s).

    `services`: packages that this host has besides, as their suite configures them.
    """
    newest = [package for package in archive.suite(CRIU_SUITE).packages("criu") if package.name == "criu"]

    def build(place: Path) -> None:
        progress("building the virtual host's Debian base")
        preferences = place / "preferences"
        preferences.write_text(
            f"Package: *\nPin: release n={SUITE}\nPin-Priority: 990\n\n"
            f"Package: {' '.join(CRIU_PACKAGES)}\nPin: release n={CRIU_SUITE}\nPin-Priority: 995\n"
        )
        root = place / "root"
        lines = [f"deb [signed-by={KEYRING}] {archive.mirror} {name} main" for name in (SUITE, CRIU_SUITE)]
        options = [
            *("--variant=minbase", "--include=" + ",".join((*PACKAGES, *CRIU_PACKAGES, *services))),
            f"--setup-hook=copy-in {preferences} /etc/apt",
            *("--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*"),
            *("--dpkgopt=path-exclude=/usr/share/locale/*",),
        ]
        run([*mmdebstrap(archive), *options, SUITE, str(root), *lines], timeout=1800)
        _settle(root)

    content = key(PACKAGES, CRIU_PACKAGES, newest, FILES, MASKED, LAYOUT, *((tuple(services),) if services else ()))
    return archive.cache.entry("base", content, build) / "root"


LAYOUT = 1  # raise it when _settle() changes


def _settle(root: Path) -> None:
    """What makes the base this virtual host: names, users, quiet boot, network."""
    for name, text in FILES.items():
        write(root, name, text)
    for unit in MASKED:
        link = root / "etc/systemd/system" / unit
        link.unlink(missing_ok=True)
        link.symlink_to("/dev/null")
    run(["chroot", str(root), "useradd", "--system", "--home-dir", "/var/lib/demo", "demo"])
    run(["chroot", str(root), "systemctl", "enable", "systemd-networkd.service"])
    run(["chroot", str(root), "systemctl", "set-default", "multi-user.target"])
    (root / "var/log/journal").mkdir(exist_ok=True)
    shutil.rmtree(root / "var/lib/apt/lists", ignore_errors=True)


def kernel_layer(archive: Archive, base_root: Path, kernel: KernelPackages, progress: Progress) -> Path:
    """A directory with boot/{vmlinuz,config,System.map,initrd.img}-RELEASE and usr/lib/modules/RELEASE."""

    built = kho_kernel.layer(archive, kernel, progress) if kho_kernel.is_source(kernel) else None

    def build(place: Path) -> None:
        if built is not None:
            shutil.copytree(built, place / "layer")
        else:
            progress(f"fetching and unpacking kernel {kernel.release}")
            unpack(archive.fetch(kernel, place / "debs"), kernel.release, place)
        progress(f"making the initrd of {kernel.release}")
        _initrd(base_root, kernel.release, place)

    digests = [package.digest for package in kernel.packages]
    name = key(base_root.parent.name, kernel.release, built.parent.name if built else digests, LAYOUT)
    return archive.cache.entry("kernel", name, build) / "layer"


def unpack(debs: Sequence[Path], release: str, place: Path) -> None:
    """Unpack a kernel's packages into PLACE/layer, files under the names a Debian host gives them."""
    raw, layer = place / "raw", place / "layer"
    for deb in debs:
        run(["dpkg-deb", "-x", str(deb), str(raw)], timeout=300)
    modules = raw / "usr/lib/modules" / release
    if not modules.is_dir():
        modules = raw / "lib/modules" / release
    names = {"vmlinuz": ("vmlinuz", "vmlinuz.unsigned"), "config": ("config",), "System.map": ("System.map",)}
    (layer / "boot").mkdir(parents=True)
    for target, sources in names.items():
        choices = [raw / "boot" / f"{target}-{release}", *(modules / source for source in sources)]
        found = next((path for path in choices if path.is_file()), None)
        if found is not None:
            shutil.copyfile(found, layer / "boot" / f"{target}-{release}")
        elif target == "vmlinuz":
            raise BadInputError(f"no kernel image of {release}", "the packages given hold none")
    (layer / "usr/lib/modules").mkdir(parents=True)
    modules.rename(layer / "usr/lib/modules" / release)
    shutil.rmtree(raw)
    shutil.rmtree(place / "debs", ignore_errors=True)


def _initrd(base_root: Path, release: str, place: Path) -> None:
    """Make the initrd with the base's own initramfs-tools, in a throw-away root."""
    layer, root = place / "layer", place / "root"
    assemble([base_root, layer], root)
    run(["chroot", str(root), "depmod", release], timeout=300)
    run(["chroot", str(root), "mkinitramfs", "-o", f"/boot/initrd.img-{release}", release], timeout=600)
    shutil.copyfile(root / f"boot/initrd.img-{release}", layer / f"boot/initrd.img-{release}")
    shutil.rmtree(layer / "usr/lib/modules" / release)
    (root / "usr/lib/modules" / release).rename(layer / "usr/lib/modules" / release)
    shutil.rmtree(root)


def assemble(layers: Sequence[Path], root: Path) -> None:
    """Put layers one over another into `root` with hard links: fast, and never to be edited in place."""
    root.mkdir(parents=True, exist_ok=True)
    for layer in layers:
        run(["cp", "-al", "--remove-destination", f"{layer}/.", str(root)], timeout=300)


def add_module(root: Path, release: str, module: Path) -> None:
    """Install a module that was built for `release`, as DKMS would; depmod replaces its files, never edits them."""
    folder = root / "usr/lib/modules" / release / "extra"
    folder.mkdir(exist_ok=True)
    shutil.copy(module, folder / module.name)
    run(["chroot", str(root), "depmod", release], timeout=300)
