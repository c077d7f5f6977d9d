"""The port `Crossing`: staging, kexec, watchdog, and the ways back."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from kupgrade.errors import KernelError, KupgradeError
from kupgrade.host import command, early_init, initramfs
from kupgrade.journal import sync_directory, write_durably
from kupgrade.kernel import blockfs, kexec, proc, sysctl, watchdog
from kupgrade.kernel.libc import Libc
from kupgrade.machine import faults
from kupgrade.machine.places import Places

_DEADMAN_PATIENCE = 2.0  # seconds for a killed process to be gone


def init_beside(initrd: Path) -> Path:
    """The path of the init script that belongs to a staged initrd."""
    return initrd.with_name(initrd.name.replace("initrd", "init"))


@dataclass
class RealCrossing:
    """kexec on this machine. `libc` is the only way to reboot(2)."""

    places: Places
    libc: Libc
    _watchdog: watchdog.ArmedWatchdog | None = field(default=None)

    def stage(self, initrd: str, out: str, pid_floor: int, deadline: int) -> None:
        """The original archive, padded, then ours; durable."""
        target = Path(out)
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        initramfs.append_cpio(Path(initrd), early_init.early_entries(pid_floor, deadline), target)
        target.chmod(0o600)
        self._stage_init(target)
        self.libc.syncfs(target)
        sync_directory(target.parent)

    def _stage_init(self, target: Path) -> None:
        """The script that PID 1 runs first: it starts the agent beside systemd, which takes seconds to come up.

        The agent's lock file lets kupgrade-resume.service wait for it (and take over, should it die).
        """
        lock = self.places.run / "early.lock"
        agent = f"{faults.passed_on()}{sys.executable} -sP -m kupgrade.boot_agent --early"
        write_durably(
            init_beside(target),
            f"""#!/bin/sh
# kupgrade: starts the agent beside the init system.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
(
	mkdir -p -m 0700 {lock.parent}
	exec 9> {lock}
	flock -x 9
	exec env {agent} < /dev/null > /dev/kmsg 2>&1
) &
exec /sbin/init "$@"
""".encode(),
            0o755,
        )

    def staged(self, out: str) -> bool:
        """Whether the file is there (it is renamed into place when whole)."""
        return Path(out).is_file()

    def unstage(self, out: str) -> None:
        """Remove it and its directory when that is empty."""
        path = Path(out)
        path.unlink(missing_ok=True)
        init_beside(path).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            path.parent.rmdir()

    def load(self, kernel: str, initrd: str, cmdline: str) -> None:
        """kexec_file_load(2)."""
        kexec.load(self.libc, Path(kernel), Path(initrd), faults.altered(self.places, cmdline))

    def loaded(self) -> bool | None:
        """/sys/kernel/kexec_loaded."""
        return kexec.read_state(self.places.root).loaded

    def unload(self) -> None:
        """Forget it."""
        kexec.unload(self.libc)

    def cross(self) -> None:
        """Everything on disk and every writer blocked, then the jump.

        FIFREEZE rather than a read-only remount: a daemon that writes in this last moment waits instead of failing,
        the file systems are clean for the next kernel, and FITHAW takes it back without a trace when the jump fails.
        After the first freeze nothing here may write; the root file system, which holds the journal, is frozen last.
        """
        self.libc.sync()
        frozen: list[Path] = []
        try:
            for mount in blockfs.to_freeze(self.places.root):
                blockfs.freeze(self.libc, Path(mount.mountpoint))
                frozen.append(Path(mount.mountpoint))
            faults.strike(self.places, "cross", "frozen")
            kexec.execute(self.libc)
        except KupgradeError:
            for mountpoint in reversed(frozen):
                with contextlib.suppress(KernelError):
                    blockfs.thaw(self.libc, mountpoint)
            raise

    def thaw_filesystems(self) -> None:
        """FITHAW everything; one that is not frozen is no error."""
        for mount in reversed(blockfs.to_freeze(self.places.root)):
            with contextlib.suppress(KernelError):
                blockfs.thaw(self.libc, Path(mount.mountpoint))

    def jump(self, kernel: str, initrd: str, cmdline: str) -> None:
        """Load and cross at once; when kexec cannot, an ordinary restart into the boot default. Does not return."""
        try:
            self.load(kernel, initrd, cmdline)
            self.cross()
        except KupgradeError:
            self.thaw_filesystems()
            self.libc.sync()
            command.run(["systemctl", "reboot", "--force", "--force"], check=False)
        raise KupgradeError("The machine did not restart", "neither kexec nor an ordinary restart took effect")

    def arm_watchdog(self, seconds: int) -> str:
        """The first device that goes on counting through kexec; without one a timer of this kernel, for its part."""
        stops = watchdog.stop_on_reboot(self.places.root)
        if stops is not False:
            return "none: watchdog.stop_on_reboot is not 0, so a kexec would stop it"
        for device in sorted(watchdog.watchdogs(self.places.root), key=lambda each: each.identity == watchdog.SOFTWARE):
            path = self.places.root / "dev" / device.name
            try:
                self._watchdog = watchdog.arm(self.libc, path, seconds)
            except KernelError:
                continue  # held by another daemon, or not this long a timeout: the next one
            return f"{device.name} ({device.identity})"
        return "none: no device could be armed"

    def disarm_watchdog(self) -> None:
        """Stop the one we hold, or in a new process the one that a kernel before left running."""
        if self._watchdog is not None:
            self._watchdog.disarm()
            self._watchdog = None
            return
        for device in watchdog.watchdogs(self.places.root):
            if device.active:
                with contextlib.suppress(KernelError):
                    watchdog.arm(self.libc, self.places.root / "dev" / device.name, device.timeout or 60).disarm()

    def deadman(self) -> bool:
        """Whether early init's timer runs."""
        return proc.find_deadman(self.places.root) is not None

    def cancel_deadman(self) -> None:
        """End the timer that early init started, and see it end: SIGKILL only asks for it."""
        deadline = time.monotonic() + _DEADMAN_PATIENCE
        while (pid := proc.find_deadman(self.places.root)) is not None and time.monotonic() < deadline:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)

    def panic_timeout(self) -> int:
        """kernel.panic."""
        return sysctl.panic_timeout(self.places.root)

    def set_panic_timeout(self, seconds: int) -> None:
        """kernel.panic."""
        sysctl.set_panic_timeout(seconds, self.places.root)
