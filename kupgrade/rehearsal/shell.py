"""A virtual host to try things in: kept by a background process, commands sent from any other."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from io import BytesIO
from pathlib import Path

from kupgrade.errors import KupgradeError, UsageError
from kupgrade.rehearsal import kho_kernel, qemu, tree, virtual_host
from kupgrade.rehearsal.link import Link
from kupgrade.rehearsal.network import Network
from kupgrade.rehearsal.options import ENGINES, Options, cpus, kernel_line, machine_memory
from kupgrade.rehearsal.scenario import interruptible

DEFAULT_STATE = Path("/run/kupgrade-lab")


def say(text: str) -> None:
    """One line for the developer, on stderr."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")


def print_line(text: str) -> None:
    """One line of the guest's output, on stdout."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def build(options: argparse.Namespace) -> int:
    """Build everything that a virtual host is made of, and keep it for whoever comes next."""
    with interruptible():
        _build(options)
    return 0


def _build(options: argparse.Namespace) -> tuple[Options, virtual_host.VirtualHost]:
    old, new = kho_kernel.pair(options.old, options.new)
    wanted = Options(engine=options.engine, old=old, new=new[0], further=new[1:])
    line = f"{kernel_line(wanted)} {options.append}".strip()
    return wanted, virtual_host.build(old, new, say, boot=options.boot, line=line, kspawn=wanted.beside)


def up(options: argparse.Namespace) -> int:
    """Build, boot, wait for the agent; a background process keeps the machine."""
    state: Path = options.state
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    refuse_second(state)
    wanted, host = _build(options)
    for name in ("serial.log", "serial2.log", "qemu.log"):
        (state / name).unlink(missing_ok=True)
    say("booting")
    started = time.monotonic()
    machine = host.machine(options.memory or machine_memory(wanted), options.cpus or cpus(wanted))
    sys.stderr.flush()
    options.keeper = os.fork()
    if options.keeper == 0:
        keep(host, machine, state)
    with closing(Link(state / "agent")) as link:
        hello = link.wait_boot(180.0)
        say(f"up: {hello.release}, boot {hello.boot_id}, after {time.monotonic() - started:.1f} s")
    say(f"new kernel installed: {host.new_release}; state and serial.log in {state}")
    return 0


def refuse_second(state: Path) -> None:
    """Raise KupgradeError while a keeper lives; what one that was killed has left is taken away."""
    note = state / "keeper.json"
    if note.exists():
        if Path(f"/proc/{json.loads(note.read_text())['pid']}").exists():
            raise KupgradeError("a virtual host runs there", str(state), "End it with `down` or name another --state")
        note.unlink()


def keep(host: virtual_host.VirtualHost, machine: qemu.Machine, state: Path) -> None:
    """The background process: holds the network and the machine until QEMU ends."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    log = os.open(state / "keeper.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for number, target in ((0, null), (1, log), (2, log)):
        os.dup2(target, number)
    status = 1
    try:
        network = Network.create()
        running = qemu.start(host.tools, machine, state, network.tap())
        signal.signal(signal.SIGTERM, lambda *_: running.process.terminate())
        fact = {
            "pid": os.getpid(),
            "namespace": f"/proc/{os.getpid()}/fd/{network.namespace}",
            "old": host.old_release,
            "new": host.new_release,
        }
        (state / "keeper.json").write_text(json.dumps(fact) + "\n")
        running.process.wait()
        status = 0
    except KupgradeError as error:
        say(str(error))
    finally:
        for name in ("keeper.json", "agent", "fault", "qmp", "qmp2", "serial"):
            (state / name).unlink(missing_ok=True)
        os._exit(status)


def run(options: argparse.Namespace) -> int:
    """Run a command in the virtual host; its output and exit status become ours."""
    words = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not words:
        raise UsageError("no command given")
    words = words if len(words) > 1 else ["/bin/bash", "-c", *words]
    with closing(Link(options.state / "agent")) as link:
        link.wait_boot(options.timeout)
        done = link.run(words, timeout=options.timeout, stream=print_line)
    sys.stderr.write(done.stderr)
    return done.status if done.status >= 0 else 128 - done.status


def push(options: argparse.Namespace) -> int:
    """Install this tree's kupgrade into the running virtual host."""
    with tempfile.TemporaryDirectory() as directory, closing(Link(options.state / "agent")) as link:
        tree.install(Path(directory))
        data = BytesIO()
        with tarfile.open(fileobj=data, mode="w:gz") as archive:
            archive.add(directory, arcname=".", filter=_as_root)
        link.wait_boot(60.0)
        link.write("/run/lab-push.tar.gz", data.getvalue())
        script = (
            "cd /usr/lib/python3/dist-packages && rm -rf kupgrade"
            " && tar -xzf /run/lab-push.tar.gz -C / --keep-directory-symlink --warning=no-timestamp"
            " && python3 -m compileall -q --invalidation-mode unchecked-hash kupgrade; systemctl daemon-reload"
        )
        done = link.run(["/bin/sh", "-c", script], timeout=120.0)
    sys.stderr.write(done.stderr)
    say(f"pushed {len(data.getvalue()) >> 10} KiB")
    return done.status


def _as_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    if member.isdir():
        member.mode = 0o755
    return member


def copy(options: argparse.Namespace) -> int:
    """Copy a file into the virtual host."""
    with closing(Link(options.state / "agent")) as link:
        link.wait_boot(60.0)
        link.write(options.target, options.source.read_bytes(), options.source.stat().st_mode & 0o777)
    return 0


def reset(options: argparse.Namespace) -> int:
    """Reset the machine, as a power cut with its memory kept."""
    with closing(qemu.Qmp(options.state / "qmp2")) as qmp:
        qmp.command("system_reset")
    return 0


def down(options: argparse.Namespace) -> int:
    """End the machine."""
    with closing(qemu.Qmp(options.state / "qmp2")) as qmp:
        qmp.command("quit")
    for _ in range(100):
        if not (options.state / "keeper.json").exists():
            return 0
        time.sleep(0.05)
    return 1


def wait(options: argparse.Namespace) -> int:
    """Wait for the agent (after a crossing or a reset) and say which kernel runs."""
    with closing(Link(options.state / "agent")) as link:
        hello = link.wait_boot(options.timeout)
    sys.stdout.write(f"{hello.release} {hello.boot_id} {hello.uptime:.2f}\n")
    return 0


def once(options: argparse.Namespace) -> int:
    """Boot, run one command, end."""
    with tempfile.TemporaryDirectory(prefix="kupgrade-lab-", dir="/run") as directory, interruptible():
        options.state, options.keeper = Path(directory), 0
        try:
            up(options)
            return run(options)
        finally:
            if options.keeper:  # whether or not the machine came up
                os.kill(options.keeper, signal.SIGTERM)
                os.waitpid(options.keeper, 0)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m kupgrade.rehearsal", description=__doc__)
    verbs = top.add_subparsers(required=True)
    for function, name in (
        *((build, "build"), (up, "up"), (run, "run"), (push, "push"), (copy, "copy")),
        *((reset, "reset"), (down, "down"), (wait, "wait"), (once, "exec")),
    ):
        verb = verbs.add_parser(name, help=(function.__doc__ or "").splitlines()[0])
        verb.set_defaults(function=function)
        verb.add_argument("--state", type=Path, default=DEFAULT_STATE, help="directory of the virtual host")
        verb.add_argument("--timeout", type=float, default=600.0, help="seconds")
        if function in (build, up, once):
            verb.add_argument("--from", dest="old", help=f"suite, release, prefix or path. {kho_kernel.HELP}")
            verb.add_argument("--to", dest="new", nargs="+", default=[], help="as --from")
            verb.add_argument("--engine", choices=ENGINES, default="kexec", help="what the host is made ready for")
            verb.add_argument("--append", default="", help="more for the old kernel's command line")
            verb.add_argument("--boot", choices=virtual_host.BOOTS, default="grub")
            verb.add_argument("--memory", type=int, default=0, help="MiB; 0: what the engine needs")
            verb.add_argument("--cpus", type=int, default=0, help="0: what the engine needs")
        if function in (run, once):
            verb.add_argument("command", nargs=argparse.REMAINDER, help="one word: for bash; several: as they are")
        if function is copy:
            verb.add_argument("source", type=Path)
            verb.add_argument("target")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """The entry point of `python -m kupgrade.rehearsal`."""
    options = parser().parse_args(argv)
    try:
        return int(options.function(options))
    except KupgradeError as error:
        say(str(error))
        return int(error.code)
