#!/bin/bash
# The naive way, run inside a virtual host by tests/bench/naive.py: dump to disk while the peer waits, kexec straight
# away, restore from a unit of the new boot. No pre-dump, no early agent, no retransmit kick.
set -e
[ -e /usr/lib/kupgrade-lab ] || { echo "this is no virtual host of the rehearsal: refusing" >&2; exit 1; }
new=$1
images=/var/lib/naive
mkdir -p $images
pid=$(systemctl show demo.service -p MainPID --value)
stream=$(readlink "/proc/$pid/fd/1" | tr -dc 0-9)

cat > /var/lib/naive.nft <<'RULES'
table inet naive {
  chain in { type filter hook input priority -300; tcp dport 7070 drop; }
}
RULES
cat > /etc/systemd/system/naive-lock.service <<'UNIT'
[Unit]
DefaultDependencies=no
Before=network-pre.target
Wants=network-pre.target
RequiresMountsFor=/var/lib
[Service]
Type=oneshot
ExecStart=/usr/sbin/nft -f /var/lib/naive.nft
[Install]
WantedBy=sysinit.target
UNIT
cat > /etc/systemd/system/naive-restore.service <<UNIT
[Unit]
After=network.target
[Service]
Type=forking
PIDFile=/run/naive.pid
ExecStart=/bin/bash -c 'exec 7>&1; exec criu restore -d -D $images --tcp-established --network-lock skip --ext-unix-sk --pidfile /run/naive.pid --inherit-fd "fd[7]:socket:[$stream]" -o /var/lib/naive/restore.log'
ExecStartPost=/usr/sbin/nft delete table inet naive
[Install]
WantedBy=multi-user.target
UNIT
systemctl daemon-reload
systemctl --quiet disable demo.service
systemctl --quiet enable naive-lock.service naive-restore.service
# The PIDs must be free in the new kernel for a restore to be possible at all; that much help is given.
python3 - "$new" <<'PYTHON'
import sys
from pathlib import Path

from kupgrade.host import early_init, initramfs
from kupgrade.kernel import kexec
from kupgrade.kernel.libc import Libc

new = sys.argv[1]
out = Path("/var/lib/naive.initrd")
initramfs.append_cpio(Path(f"/boot/initrd.img-{new}"), early_init.early_entries(5000, 0), out)
line = Path("/proc/cmdline").read_text().strip() + " rdinit=/kupgrade-init"
kexec.load(Libc(), Path(f"/boot/vmlinuz-{new}"), out, line)
PYTHON
nft -f /var/lib/naive.nft
sleep 0.05
criu dump -t "$pid" -D $images --tcp-established --network-lock skip --ext-unix-sk="$stream" -o dump.log
sync
mount -o remount,ro / || true
python3 -c 'from kupgrade.kernel import kexec; from kupgrade.kernel.libc import Libc; kexec.execute(Libc())'
