"""In the new kernel: the handed-over devices come up, and the host's root file system becomes this process's root.

Until the commit nothing may be written where the old kernel has mounted: the root file system is a snapshot, its
writes go to this kernel's memory.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from kupgrade.errors import KernelError, KupgradeError
from kupgrade.host import command
from kupgrade.kernel import devmapper, loop, snapshot, superblock
from kupgrade.kernel.libc import Libc, reported
from kupgrade.kernel.mount_maker import FLAGS, MS_BIND, MS_REC
from kupgrade.kernel.redo import Redo
from kupgrade.kernel.snapshot import Target
from kupgrade.machine import going_home
from kupgrade.model.handover import LinkName, TakeOver

SYSROOT = Path("/sysroot")
NAME = "kupgrade-root"
COW = Path("/run/kupgrade/writes")
LOOP = Path("/run/kupgrade/writes.device")  # a link to the loop device
MODULES = ("loop", "dm_snapshot")
DEVICE_PATIENCE = 20.0  # seconds from the ACPI table to disk and network card
POLL = 0.003
# include/uapi/linux/mount.h; what /proc/mounts says besides these is the file system's own
_FLAGS = {**FLAGS, "rw": 0, "sync": 16, "dirsync": 128, "strictatime": 1 << 24, "lazytime": 1 << 25}
_ELSEWHERE = ("logdev=", "rtdev=", "journal_dev=", "journal_path=")  # options of xfs and ext4
SHARED = ("dev", "proc", "sys", "run")


def enter(order: TakeOver, libc: Libc) -> None:
    """Mount it and make it this process's root. Done as well when it is mounted. Raises KupgradeError."""
    if not SYSROOT.is_mount():
        _mount(order, libc)
        for name in SHARED:
            libc.mount(f"/{name}", SYSROOT / name, "none", MS_BIND | MS_REC)
    change_root()


def change_root() -> None:
    """This process's root becomes the mounted root file system."""
    with reported("chroot", SYSROOT):
        os.chroot(SYSROOT)
        os.chdir("/")


def await_links(links: tuple[LinkName, ...], patience: float = DEVICE_PATIENCE) -> None:
    """Wait for the interfaces and give them the names that they had. Raises KupgradeError."""
    deadline = time.monotonic() + patience
    for link in links:
        while (found := _interface(link.mac)) is None:
            if time.monotonic() > deadline:
                raise KupgradeError(f"The network card of {link.name} did not come", f"no interface has {link.mac}")
            time.sleep(POLL)
        if found != link.name:
            command.run(["ip", "link", "set", "dev", found, "name", link.name])


def _interface(mac: str) -> str | None:
    for path in Path("/sys/class/net").iterdir():
        try:
            if path.name != "lo" and (path / "address").read_text().strip() == mac:
                return path.name
        except OSError:
            continue
    return None


def _mount(order: TakeOver, libc: Libc) -> None:
    deadline = time.monotonic() + DEVICE_PATIENCE
    while (origin := superblock.find(order.uuid)) is None:
        if time.monotonic() > deadline:
            raise KupgradeError("The disk of the root file system did not come", f"no device holds {order.uuid}")
        time.sleep(POLL)
    flags, data = mount_options(order.options)
    if superblock.journal_elsewhere(origin) or any(word.startswith(_ELSEWHERE) for word in data.split(",")):
        raise KupgradeError(
            "The log of the root file system lies elsewhere",
            "it would be written before the commit",
            "Use engine kexec",
        )
    with devmapper.open_control() as mapper:
        found = snapshot.status(mapper, NAME)
        if found is None or found.target is Target.NONE:
            node = snapshot.snapshot(mapper, NAME, origin, store(), snapshot.sectors_of(origin))
        else:
            node = snapshot.ensure_node(mapper, NAME)
    libc.mount(str(node), SYSROOT, order.fstype, flags, data)


def mount_options(text: str) -> tuple[int, str]:
    """What mount(8) writes as options, as mount(2) takes them: flags, and the file system's own."""
    flags, data = 0, []
    for word in filter(None, text.split(",")):
        if word in _FLAGS:
            flags |= _FLAGS[word]
        else:
            data.append(word)
    return flags, ",".join(data)


def prepare_store(size: int) -> None:
    """A loop device in memory for what is written, made ahead of time (bytes); only what is written is taken."""
    command.run(["modprobe", "-a", "--", *MODULES])
    if LOOP.is_symlink():
        return
    COW.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(COW, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    os.ftruncate(fd, size)
    os.close(fd)
    LOOP.symlink_to(loop.attach(COW))


def store() -> Path:
    """That loop device. Raises KupgradeError without one."""
    try:
        return LOOP.readlink()
    except OSError as error:
        raise KupgradeError("There is no room for what is written before the commit", str(error)) from error


def origin_of(mapper: devmapper.DeviceMapper, uuid: str) -> Path:
    """The device below the snapshot: another one may hold a copy with the same UUID. Raises KupgradeError."""
    origin = snapshot.origin(mapper, NAME)
    if superblock.uuid_of(origin) != uuid:
        raise KupgradeError("The disk of the root file system is gone", f"{origin} does not hold {uuid}")
    return origin


def prepare(libc: Libc, uuid: str, run: Path) -> Redo | None:
    """Make the merge one moment for whoever cuts the power, where that can be; the file system is frozen then.

    Raises KupgradeError when the snapshot is unusable, by what the freeze wrote at the latest: after it comes the flag,
    and no way back. `run`: as Places.run.
    """
    with devmapper.open_control() as mapper:

        def look() -> snapshot.Status:
            return snapshot.check_sound(snapshot.status(mapper, NAME), NAME)

        if look().target is not Target.SNAPSHOT:
            return None
        made = going_home.prepare(libc, origin_of(mapper, uuid), COW, look, run)
        if made is None:
            look()
        return made


def merge(libc: Libc, uuid: str, patience: float, made: Redo | None = None) -> float:
    """Write to the disk what was written since, then map it plainly; megabytes. Done as well when it is. (seconds)

    `made`: by `prepare`; at the end the file system is not frozen any more.
    Raises KupgradeError when the snapshot is unusable or the merge does not end.
    """
    with devmapper.open_control() as mapper:
        found = snapshot.check_sound(snapshot.status(mapper, NAME), NAME)
        if found.target is Target.LINEAR:
            going_home.thaw(libc)
            return 0.0
        origin = origin_of(mapper, uuid)
        written = max(0, found.used - found.metadata) * devmapper.SECTOR / 1e6
        home = made is not None and going_home.finish(made)
        if not home:
            going_home.thaw(libc)
            _merge(mapper, found, origin, patience)
        snapshot.reload(mapper, NAME, snapshot.table(Target.LINEAR, found.sectors, origin, None), frozen=home)
        going_home.thaw(libc)
    with contextlib.suppress(KernelError):
        loop.detach(store())
    COW.unlink(missing_ok=True)
    return round(written, 3)


def go_on(libc: Libc) -> None:
    """What a process that was killed may have left suspended or frozen is used again. Raises KernelError."""
    with devmapper.open_control() as mapper:
        found = mapper.info(NAME)
        if found is not None and found.suspended:
            mapper.resume(NAME)
    going_home.thaw(libc)


def _merge(mapper: devmapper.DeviceMapper, found: snapshot.Status, origin: Path, patience: float) -> None:
    if found.target is Target.SNAPSHOT:
        snapshot.reload(mapper, NAME, snapshot.table(Target.MERGE, found.sectors, origin, store()))
    deadline = time.monotonic() + patience
    while not snapshot.check_sound(snapshot.status(mapper, NAME), NAME).merged:
        if time.monotonic() > deadline:
            raise KupgradeError("The disk was not written in time", f"the merge takes longer than {patience:g} s")
        time.sleep(POLL)


def merged() -> bool | None:
    """Whether the root file system lies plainly on its disk; None: it is not mapped by us. Raises KernelError."""
    if not devmapper.loaded():
        return None
    with devmapper.open_control() as mapper:
        found = snapshot.status(mapper, NAME)
    return None if found is None or found.target is Target.NONE else found.target is Target.LINEAR
