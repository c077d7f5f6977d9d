"""The scripts that run in the new kernel before the initrd's own init (rdinit=/kupgrade-init).

They keep early processes off the PIDs that workloads need, and start the dead-man that restarts a machine
whose boot hangs. Any POSIX sh runs them: busybox or klibc's dash (initramfs-tools), bash or dash (dracut).
"""

from __future__ import annotations

import stat

from kupgrade.errors import BadInputError
from kupgrade.host.initramfs import CpioEntry

INIT = "/kupgrade-init"
DEADMAN = "/kupgrade-deadman"

PID_ROOM = 32768  # PIDs above the floor for everything that the new kernel itself starts
PID_LIMIT = 4194304  # PID_MAX_LIMIT of 64-bit kernels (include/linux/threads.h)

SYNC_TIME = 5  # seconds between emergency sync and reset: sysrq s and u only queue their work

_DEADMAN = f"""#!/bin/sh
# kupgrade: resets the machine unless it is killed (SIGKILL) within $1 seconds.
# Descriptor 3 is /proc/sysrq-trigger, opened by {INIT}: after switch_root this process sees no /proc,
# and no sleep(1) either, so both sleeps start now.
# systemd sends SIGTERM and SIGHUP to everything in the initrd before it switches root.
trap '' HUP INT QUIT TERM PIPE
sleep $(($1 + {SYNC_TIME})) &
late=$!
# A sleep that cannot start, or that somebody killed, is no reason to reset.
sleep "$1" || exit 1
echo s >&3
echo u >&3
wait "$late"
echo b >&3
"""

_PIDS = """
if [ -w /proc/sys/kernel/ns_last_pid ]; then
	# cat, because the shell's read takes one byte at a time and sysctl files give only the first.
	max=$(cat /proc/sys/kernel/pid_max) || max=
	if [ -z "$max" ]; then
		echo {limit} > /proc/sys/kernel/pid_max
	elif [ "$max" -lt {wanted} ]; then
		echo {wanted} > /proc/sys/kernel/pid_max
	fi
	echo {floor} > /proc/sys/kernel/ns_last_pid
fi
"""

_START_DEADMAN = """
# The descriptor is opened here, not in the background, so that it is before /proc goes.
if [ -w /proc/sysrq-trigger ]; then
	{{ /bin/sh {deadman} {deadline} & }} 3> /proc/sysrq-trigger
fi
"""

_INIT = """#!/bin/sh
# kupgrade: runs before the initrd's own /init, as PID 1.
# Nothing here may end this shell: a failure means only that a protection is missing.
PATH=/usr/sbin:/usr/bin:/sbin:/bin
mounted=
if [ ! -e /proc/self/stat ]; then
	[ -d /proc ] || mkdir /proc
	mount -t proc proc /proc && mounted=1
fi
{pids}{deadman}
# Lazily, for the dead-man's descriptor; the initrd's init expects to mount it itself.
[ -z "$mounted" ] || umount -l /proc
exec /init "$@"
"""


def early_init(pid_floor: int, deadline: int) -> str:
    """The script for INIT.

    `pid_floor`: the new kernel's processes get PIDs above it (0: PIDs are left alone). `deadline`: seconds
    until the dead-man resets the machine (0: none is started). Raises BadInputError when the PIDs do not fit.
    """
    if not 0 <= pid_floor <= PID_LIMIT - PID_ROOM:
        raise BadInputError(
            f"PIDs of the new kernel cannot start above {pid_floor}",
            f"the kernel has PIDs up to {PID_LIMIT}",
            "Restart the workload that has the largest PIDs",
        )
    if deadline < 0:
        raise BadInputError(f"{deadline} seconds is no deadline")
    pids = _PIDS.format(limit=PID_LIMIT, wanted=pid_floor + PID_ROOM, floor=pid_floor) if pid_floor else ""
    start = _START_DEADMAN.format(deadman=DEADMAN, deadline=deadline) if deadline else ""
    return _INIT.format(pids=pids, deadman=start)


def early_entries(pid_floor: int, deadline: int) -> tuple[CpioEntry, ...]:
    """What `initramfs.append_cpio` must add to the initrd so that rdinit=INIT works.

    /dev/null is among it: dash refuses to start a background process without, and the initrd's own init has
    not mounted devtmpfs yet.
    """
    script = stat.S_IFREG | 0o755
    return (
        CpioEntry("dev", stat.S_IFDIR | 0o755),
        CpioEntry("dev/null", stat.S_IFCHR | 0o666, device=(1, 3)),
        CpioEntry(INIT.lstrip("/"), script, early_init(pid_floor, deadline).encode()),
        CpioEntry(DEADMAN.lstrip("/"), script, _DEADMAN.encode()),
    )
