"""What a rehearsal does and asks inside the virtual host, over the agent's link."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kupgrade.errors import ExitCode, KupgradeError
from kupgrade.host.initramfs import CpioEntry, write_cpio
from kupgrade.rehearsal.faults import INITRD_SCRIPTS, Fault
from kupgrade.rehearsal.judge import WorkloadSeen
from kupgrade.rehearsal.link import Link

if TYPE_CHECKING:
    from kupgrade.rehearsal.options import Options, Trial

POLICY = """# written by the rehearsal
deadline = "120s"
keep_services = ["systemd-*", "dbus*", "kupgrade-*", "getty@*", "serial-getty@*"]

[[workload]]
name = "demo"
unit = "demo.service"
fate = "keep"

[workload.probe]
kind = "tcp"
port = 7070
"""
# ttyS1 is the second serial port, which QEMU writes to a file of its own.
POLICY_SPAWN = """
[engine]
order = ["spawn"]

[engine.spawn]
serial = 2
"""
_SHOW = "MainPID,ActiveState,NRestarts,ControlGroup"
_LEFTOVERS = r"""
test -e /etc/systemd/system/demo.service.d/zzzz-kupgrade.conf && echo "drop-in of demo.service"
test "$(cat /sys/kernel/kexec_loaded)" = 0 || echo "a loaded kexec image"
nft list table inet kupgrade_lock >/dev/null 2>&1 && echo "the network lock"
test -e /var/lib/kupgrade/lock.nft && echo lock.nft
ls /var/lib/kupgrade/staged/* >/dev/null 2>&1 && echo "staged files"
find /var/lib/kupgrade/images /run/kupgrade/*/ -name "*.img" 2>/dev/null | grep -q . && echo "checkpoint images"
test -e /run/kupgrade/image-holder.json && echo "the image holder"
test -e /run/kupgrade/descriptor-holder.json && echo "the holder of stored descriptors"
grep -q -e /run/kupgrade/pmem -e /run/kupgrade/luo /proc/mounts && echo "the mounted image store"
pgrep -f '[k]upgrade-deadman' >/dev/null && echo "the dead-man timer"
test -e /var/lib/kupgrade/current && echo "an open upgrade"
ls /var/lib/kupgrade/fault.json /run/kupgrade-fault.json 2>/dev/null | grep -q . && echo "a fault that never struck"
env=/boot/grub/grubenv
saved="^saved_entry=\(.*>\)\?gnulinux-$(uname -r)-"
test -e $env && ! grep -q "$saved" $env && echo "another kernel as the boot default"
true
"""


def shell(link: Link, script: str, timeout: float = 120.0) -> str:
    """Output of a shell script; raises KupgradeError when it fails."""
    done = link.run(["/bin/sh", "-c", script], timeout=timeout)
    if done.status != 0:
        raise KupgradeError("a command in the virtual host failed", (done.stderr or done.stdout).strip()[-500:])
    return done.stdout


def memory_patience(options: Options) -> float:
    """Seconds for the workload to write, or to look at, all of its memory, if all of it is emulated."""
    return 180.0 + 0.2 * options.memory


def prepare(link: Link, options: Options) -> None:
    """Policy and workload."""
    policy = POLICY + (POLICY_SPAWN if options.beside else "")
    link.write("/etc/kupgrade/policy.d/50-rehearsal.toml", policy.encode())
    memory = f'[engine]\nmemory = "{options.memory_mode}"\n'
    link.write("/etc/kupgrade/policy.d/51-memory.toml", memory.encode())
    link.write("/etc/default/demo", f'DEMO_OPTIONS="--memory {options.memory} --dirty {options.dirty}"\n'.encode())
    shell(link, "systemctl enable --quiet demo.service; systemctl restart demo.service")
    patience = memory_patience(options)
    wait = f"for i in $(seq {round(5 * patience)}); do ss -ltnH 'sport = :7070' | grep -q . && exit; sleep 0.2; done"
    shell(link, f"{wait}; echo nobody listens on port 7070; exit 1", 1.25 * patience)
    running = shell(link, "tr '\\0' ' ' < /proc/$(systemctl show -P MainPID demo.service)/cmdline")
    if f"--memory {options.memory} --dirty {options.dirty}" not in running:
        raise KupgradeError("the workload is another one than was asked for", running.strip())


def prepare_trial(link: Link, trial: Trial, release: str) -> None:
    """The operator who will take it back, and the fault to come."""
    if trial.rollback:
        roll_back_after(link, trial.rollback)
    if trial.fault is not None:
        _arm(link, trial.fault, release)


_PACKAGE = "/usr/lib/python3/dist-packages/kupgrade"
# The standby agent's kernel gets a hook on its console; its initramfs is made of this package.
_HOOK = f"""
cp /usr/lib/kupgrade-lab/standby_fault.py {_PACKAGE}/standby/fault_hook.py
grep -q fault_hook {_PACKAGE}/standby/__main__.py ||
	sed -i 's/^sys\\.exit/import kupgrade.standby.fault_hook\\n\\n&/' {_PACKAGE}/standby/__main__.py
rm -rf {_PACKAGE}/standby/__pycache__
"""


def _arm(link: Link, fault: Fault, release: str) -> None:
    for unit in ("kupgrade-apply.service", "kupgrade-resume.service"):
        link.write(f"/etc/systemd/system/{unit}.d/rehearsal.conf", b"[Service]\nEnvironment=KUPGRADE_FAULTS=1\n")
    shell(link, "systemctl daemon-reload; mkdir -p -m 0700 /var/lib/kupgrade")
    if fault.armed:
        link.write(fault.path, json.dumps(fault.armed).encode(), 0o600)
    if fault.relayed:
        shell(link, _HOOK)
    image = f"/boot/initrd.img-{release}"
    match fault.kind:
        case "bad-initrd":
            shell(link, f"truncate -s -100000 {image}")
        case "cpu-refuses-offline" | "memory-refuses-offline":
            _refuse(link, fault.kind.split("-")[0])
        case kind if kind in INITRD_SCRIPTS and not fault.step:
            script = f"#!/bin/sh\n[ -d /proc ] || mkdir /proc\nmount -t proc proc /proc\n{INITRD_SCRIPTS[kind]}\n"
            link.write("/tmp/fault.cpio", write_cpio([CpioEntry("init", 0o100755, script.encode())]))  # noqa: S108
            pad = f"s=$(stat -c %s {image}); truncate -s $(( (s + 3) / 4 * 4 )) {image}"
            shell(link, f"{pad}; cat /tmp/fault.cpio >> {image}")


def _refuse(link: Link, what: str) -> None:
    """A process that keeps the machine from giving CPUs or memory away, until the machine ends."""
    words = "systemd-run --quiet --unit=kupgrade-lab-refuse --property=LimitNOFILE=200000"
    shell(link, f"{words} --property=StandardOutput=file:/run/refuse python3 /usr/lib/kupgrade-lab/refuse.py {what}")
    shell(link, "for i in $(seq 600); do grep -q ready /run/refuse && exit; sleep 0.2; done; exit 1", 150.0)


def roll_back_after(link: Link, step: str) -> None:
    """An operator will ask for the way back as soon as `step` is done."""
    words = "systemd-run --quiet --collect --unit=kupgrade-lab-rollback --nice=-10"
    shell(link, f"{words} python3 /usr/lib/kupgrade-lab/roll_back.py {step}")


def count_resources(link: Link) -> dict[str, Any]:
    """CPUs, memory, devices and address map of the kernel that answers."""
    counted: dict[str, Any] = json.loads(shell(link, "python3 /usr/lib/kupgrade-lab/resources.py"))
    return counted


# Exit codes of `kupgrade apply` by which it says no; with another one it has said nothing at all.
_NO = (ExitCode.REFUSED, ExitCode.OVER_BUDGET, ExitCode.NOT_NOW)


@dataclass(frozen=True, slots=True)
class Answer:
    """What `kupgrade apply` said: why it was refused, or how it broke; both empty when the upgrade began."""

    refused: str = ""
    broke: str = ""


def apply(link: Link, options: Options, release: str, *, again: bool = False) -> Answer:
    """Hand the upgrade to the worker.

    `again`: a fault has made an upgrade to this release fail before, which speaks against it on any other host.
    """
    words = ["kupgrade", "apply", "--yes", "--no-wait", "--kernel", release, "--engine", options.engine]
    words += ["--retry-failed"] if again else []
    if options.store != "auto":
        words += ["--store", options.store]
    done = link.run(words, timeout=180.0)
    if done.status == ExitCode.DONE:
        return Answer()
    reason = (done.stderr or done.stdout).strip()[-1500:]
    if done.status in _NO:
        return Answer(refused=reason or f"exit status {done.status}")
    return Answer(broke=f"exit status {done.status}" + (f": {reason}" if reason else ""))


def standing(link: Link, patience: float = 10.0) -> tuple[str, str]:
    """("open" or "over", kind of the journal's last record), cheaply enough to be asked during an upgrade."""
    script = (
        "test -e /var/lib/kupgrade/current && echo open || echo over;"
        " tail -qn 1 $(ls -d /var/lib/kupgrade/upgrades/*/journal | tail -n 1)"
    )
    done = link.run(["/bin/sh", "-c", script], timeout=patience)
    state, _, line = done.stdout.partition("\n")
    if state not in ("open", "over"):
        raise KupgradeError("the virtual host does not say where it stands", f"exit status {done.status}")
    try:
        return state, str(json.loads(line[9:])["kind"])
    except (ValueError, KeyError):
        return state, ""


def journal(link: Link) -> bytes:
    """The newest upgrade's journal."""
    path = shell(link, "ls -d /var/lib/kupgrade/upgrades/*/journal 2>/dev/null | tail -n 1").strip()
    return link.read(path) if path else b""


# Of an upgrade that is still open: who waits for what. Of criu, what it said last.
_WAITING = r"""
test -e /var/lib/kupgrade/current || exit 0
for one in /proc/[0-9]*; do
  grep -qz . $one/cmdline || continue
  for task in $one/task/*; do
    echo "== ${task##*/} $(tr '\0' ' ' < $one/cmdline | cut -c1-120)"
    grep -E '^(State|PPid|TracerPid):' $task/status | tr '\n' ' ' || :
    echo "in $(cat $task/wchan), call $(cut -d' ' -f1-4 $task/syscall)"
    cat $task/stack || :
  done
done 2>/dev/null
for group in $(find /sys/fs/cgroup -name 'demo*.service'); do
  echo "== $group"; cat $group/cgroup.freeze $group/cgroup.events
done
for log in $(find /run/kupgrade /var/lib/kupgrade -name '*.log'); do
  echo "== $log"; tail -n 30 $log
done
"""


def system_log(link: Link) -> str:
    """The virtual host's journal of all boots, times as seconds since each boot; last, which tasks are blocked, and who
    waits for what where an upgrade is still open."""
    blocked = "echo w > /proc/sysrq-trigger; sleep 1"
    script = "for boot in $(journalctl --list-boots -o json | grep -o '[0-9a-f]\\{32\\}'); do"
    return shell(
        link,
        f'{blocked}; {script} echo "== boot $boot"; journalctl -b $boot -o short-monotonic --no-pager; done;{_WAITING}',
        180.0,
    )


def leftovers(link: Link, *, struck: bool = False) -> tuple[str, ...]:
    """What an ended upgrade must not leave behind.

    `struck`: the fault did, where it could not take its own file away (frozen, or written in a kernel that is gone).
    """
    if struck:
        shell(link, "rm -f /var/lib/kupgrade/fault.json /run/kupgrade-fault.json")
    return tuple(line for line in shell(link, _LEFTOVERS).splitlines() if line)


def look(link: Link, connect: Callable[[], socket.socket], patience: float) -> WorkloadSeen:
    """The workload as systemd, its cgroup, its file and its own memory check tell. `patience`: seconds for that."""
    text = shell(link, f"systemctl show demo.service -p {_SHOW}; echo; cat /var/lib/demo/lines")
    properties, _, lines = text.partition("\n\n")
    values = dict(line.split("=", 1) for line in properties.splitlines() if "=" in line)
    cgroup = values.get("ControlGroup") or "/system.slice/demo.service"
    pids = shell(link, f"cat /sys/fs/cgroup{cgroup}/cgroup.procs 2>/dev/null || true").split()
    return WorkloadSeen(
        pids=tuple(sorted(int(pid) for pid in pids)),
        main_pid=int(values.get("MainPID", "0")),
        active=values.get("ActiveState") == "active",
        restarts=int(values.get("NRestarts", "0")),
        memory=_check(connect, patience),
        lines=tuple(lines.splitlines()),
    )


def _check(connect: Callable[[], socket.socket], patience: float) -> str:
    try:
        with connect() as connection:
            connection.settimeout(patience)
            connection.sendall(b"check\n")
            answer = b""
            while not answer.endswith(b"\n"):
                data = connection.recv(4096)
                if not data:
                    break
                answer += data
        return answer.decode(errors="replace").strip()
    except OSError as error:
        return f"no answer: {error}"
