"""A host as its operator has it: Debian with one kernel, without kupgrade, a newer kernel and kupgrade in its archive.

The virtual host has no way out: what is to be installed lies in /debs, an archive for its apt.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kupgrade.host.command import run
from kupgrade.rehearsal import bootdisk, rootfs, tree, virtual_host
from kupgrade.rehearsal.cache import Cache
from kupgrade.rehearsal.suites import Archive, mirror
from kupgrade.rehearsal.toolbox import toolbox
from kupgrade.rehearsal.virtual_host import VirtualHost
from tests.packaging import roots
from tests.vm.hosts import NEWER, Guest, say, skipped_without, started

KERNEL = "linux-image-cloud-amd64"  # what is installed, by the name that Debian's users have
SOURCES = "deb [trusted=yes] file:/debs ./\n"
LINE = "console=ttyS0 quiet memmap=512M!1G panic=5 net.ifnames=0"
GRUB = f"""GRUB_DEFAULT=saved
GRUB_TIMEOUT=0
GRUB_DISABLE_OS_PROBER=true
GRUB_CMDLINE_LINUX="{LINE}"
"""


@contextmanager
def fresh(services: Sequence[str] = ()) -> Iterator[Guest]:
    """Booted; the packages `services` are installed."""
    with skipped_without():
        root = Cache.default().root
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="fresh-", dir=root) as directory:
            host = _host(Path(directory), services)
            with started(host) as guest:
                yield guest


def _host(place: Path, services: Sequence[str]) -> VirtualHost:
    archive = Archive(Cache.default(), mirror())
    tools = toolbox(archive, say)
    base = rootfs.base(archive, say, services)
    old, new = (archive.kernel(suite) for suite in NEWER)
    layer = rootfs.kernel_layer(archive, base, old, say)
    root = place / "root"
    rootfs.assemble([base, layer], root)
    tree.put(root, tree.lab())
    _settle(root, old.release)
    _archive(archive, base, place, root / "debs")
    image = place / "disk.img"
    virtual_host.write_disk(tools, root, image)
    shutil.rmtree(root)
    return VirtualHost(image, {old.release: layer}, old.release, (new.release,), tools, "grub", LINE)


def _settle(root: Path, release: str) -> None:
    """As Debian's installer leaves a host whose boot loader is GRUB; its menu is made by the host itself later."""
    shutil.copytree(root / "usr/lib/grub/i386-pc", root / "boot/grub/i386-pc")
    rootfs.write(root, "etc/default/grub", GRUB)
    rootfs.write(root, "boot/grub/grub.cfg", bootdisk.menu([release], virtual_host.command_line()))
    rootfs.write(root, "boot/grub/grubenv", bootdisk.environment_block(release))
    for path in ("etc/apt/sources.list", "etc/apt/sources.list.d/0000sources.list", "etc/apt/preferences"):
        (root / path).unlink(missing_ok=True)
    rootfs.write(root, "etc/apt/sources.list", SOURCES)


def _archive(archive: Archive, base: Path, place: Path, debs: Path) -> None:
    """What `apt install` of the newer kernel takes on this host, and kupgrade's packages."""
    suite = archive.suite(NEWER[1])
    suite.update()
    (place / "archives/partial").mkdir(parents=True)
    options = ["-o", f"Dir::State::status={base}/var/lib/dpkg/status", "-o", f"Dir::Cache::archives={place}/archives"]
    words = ["install", "--download-only", "--no-install-recommends", "-qqy", KERNEL]
    run(["apt-get", *suite.options(), *options, *words], timeout=1800)
    builder = roots.built(place / "builder")
    for deb in (place / "archives").glob("*.deb"):
        shutil.move(deb, builder.file("debs") / deb.name)
    builder.run("sh", "-c", "cd /debs && dpkg-scanpackages -m . > Packages 2> /tmp/scanned || cat /tmp/scanned >&2")
    shutil.copytree(builder.file("debs"), debs)
