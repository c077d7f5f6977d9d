"""Texts of systemd and criu: drop-ins, properties, logs."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from kupgrade.host import criu
from kupgrade.host.criu import CheckpointError, Criu, errors_of
from kupgrade.host.systemd import Systemd, dropin_text, parse_show, unit_of
from kupgrade.machine.places import Places
from kupgrade.machine.starter import start_command


def test_the_drop_in_replaces_every_way_to_start_the_program() -> None:
    """Own start, pre-start and condition commands are cleared, Restart= is off, systemd reads the PID file."""
    text = dropin_text("20261121-041503-9f2c1a", start_command(Places(), "demo"), "/run/kupgrade/demo.pid", 60)
    lines = text.splitlines()
    for line in ("ExecStart=", "ExecStartPre=", "ExecStartPost=", "ExecCondition=", "Restart=no", "Type=forking"):
        assert line in lines, line
    assert "PIDFile=/run/kupgrade/demo.pid" in lines and "After=kupgrade-resume.service" in lines
    command = next(line for line in lines if line.startswith("ExecStart=+"))
    assert "$$$$" in command  # systemd's escape of the shell's own PID


def test_a_sandboxed_unit_starts_inside_of_its_sandbox() -> None:
    """As root, with all of its namespaces but that of its users; where few files may be executed, the shell may."""
    command = start_command(Places(), "demo", sandboxed=True)
    lines = dropin_text("x", command, "/run/x.pid", 60, sandboxed=True, executable="/usr/bin/dash").splitlines()
    assert any(line.startswith("ExecStart=!/bin/sh") for line in lines)
    assert lines[-2:] == ["PrivateUsers=no", "ExecPaths=/usr/bin/dash"]
    assert " > " not in command[2].replace(">&2", "")  # nothing can be written there
    plain = dropin_text("x", start_command(Places(), "demo"), "/run/x.pid", 60)
    assert "PrivateUsers" not in plain and "ExecPaths" not in plain


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_the_drop_in_wins_over_that_of_systemctl_edit(tmp_path: Path) -> None:
    """systemd itself says which start command counts: the operator's would start a second copy beside the restore."""
    systemd = Systemd(tmp_path)
    systemd.hold("demo.service", dropin_text("x", ["/nonexistent/restorer"], "/run/x.pid", 60))
    folder = systemd.dropin("demo.service").parent
    (folder / "override.conf").write_text("[Service]\nType=exec\nExecStart=\nExecStart=/nonexistent/own --more\n")
    (folder.parent / "demo.service").write_text("[Service]\nExecStart=/nonexistent/first\n")
    env = {"SYSTEMD_UNIT_PATH": f"{folder.parent}:", "PATH": os.environ["PATH"]}
    argv = ["systemd-analyze", "verify", "--man=no", "demo.service"]
    said = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False).stderr
    assert "/nonexistent/restorer" in said and "/nonexistent/own" not in said and "/nonexistent/first" not in said


def test_a_drop_in_of_an_older_version_is_known(tmp_path: Path) -> None:
    """The package may be upgraded while an upgrade of the kernel is open."""
    systemd = Systemd(tmp_path)
    systemd.hold("demo.service", "[Unit]\n")
    systemd.dropin("demo.service").rename(systemd.dropin("demo.service").with_name("90-kupgrade.conf"))
    assert systemd.held("demo.service") and systemd.release(["demo.service"]) and not systemd.held("demo.service")


def test_units_are_looked_for_as_systemd_does(tmp_path: Path) -> None:
    """A unit counts wherever systemd would read it; one that an operator masked does not."""
    for place, unit in (("usr/lib", "a"), ("usr/lib", "b"), ("run", "c")):
        name = f"{place}/systemd/system/{unit}.service"
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("[Unit]\n")
    mask = tmp_path / "etc/systemd/system/b.service"
    mask.parent.mkdir(parents=True)
    mask.symlink_to("/dev/null")
    assert Systemd(tmp_path).missing(("a.service", "b.service", "c.service", "d.service")) == ("b.service", "d.service")


def test_without_an_agent_the_held_unit_starts_nothing(tmp_path: Path) -> None:
    """The start command fails when no restore is under way, instead of starting a second copy."""
    from kupgrade.host import command

    done = command.run(start_command(Places(tmp_path), "demo"), check=False)
    assert done.status == 1 and "no restore is under way" in done.stderr


def test_releasing_removes_our_drop_in_and_leaves_the_operators(tmp_path: Path) -> None:
    """Only our file goes; a directory with the operator's own drop-ins stays."""
    systemd = Systemd(tmp_path)
    systemd.hold("demo.service", "[Unit]\n")
    own = systemd.dropin("demo.service").with_name("10-own.conf")
    own.write_text("[Service]\n")
    systemd.hold("other.service", "[Unit]\n")
    assert systemd.held("demo.service") and systemd.release(["demo.service", "other.service"])
    assert own.exists() and not systemd.held("demo.service")
    assert not systemd.dropin("other.service").parent.exists()
    assert not systemd.release(["demo.service"])


def test_a_kept_unit_is_needed_by_the_name_that_systemd_lists_it_by(tool: Callable[..., Path]) -> None:
    """An alias in the policy must not have the service itself stopped as one that nobody keeps."""
    tool(
        "systemctl",
        """case "$*" in
list-dependencies*) printf 'mysql.service\\n  system.slice\\n' ;;
show*--property=*Id*) printf 'mariadb.service\\n\\n' ;;
esac""",
    )
    assert Systemd().needed_by(["mysql.service"]) == {"mysql.service", "system.slice", "mariadb.service"}


def test_what_cannot_be_stopped_or_started_again_by_hand_is_let_be(tool: Callable[..., Path]) -> None:
    """One that refuses would fail the step, and one that is gone after its stop the way back."""
    tool(
        "systemctl",
        """case "$*" in
list-units*) printf '%s.service loaded active running X\\n' run-u5 auditd cron once ;;
show*) cat <<E
Id=auditd.service
RefuseManualStop=yes
RefuseManualStart=no
Transient=no

Id=cron.service
RefuseManualStop=no
RefuseManualStart=no
Transient=no

Id=once.service
RefuseManualStart=yes

Id=run-u5.service
Transient=yes
E
esac""".replace("cat <<E", "while read -r line; do echo $line; done <<E"),
    )
    assert Systemd().active_services() == ("cron.service",)
    tool("systemctl")
    assert Systemd().active_services() == ()


def test_unit_properties_are_read_with_their_gaps() -> None:
    """Values may hold '='; missing ones have a plain meaning."""
    values = parse_show("Id=a.service\nActiveState=active\nMainPID=12\nPIDFile=/run/a=b\nnoise\n")
    unit = unit_of("a.service", values)
    assert (unit.active, unit.main_pid, unit.pidfile, unit.loaded) == ("active", 12, "/run/a=b", False)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("(00.012345) Error (criu/files.c:95): Can't lookup fd 5", "Can't lookup fd 5"),
        ("(00.01) 329: Error (criu/sk-inet.c:1): Connected TCP socket", "Connected TCP socket"),
        ("Error (criu/cr-dump.c:1): Dump failed", "Dump failed"),
    ],
)
def test_the_first_error_of_a_criu_log_is_the_cause(line: str, message: str) -> None:
    """Warnings and noise are passed over."""
    log = f"(00.0) Warn  (criu/x.c:1): nothing\n{line}\n(00.1) Error (criu/y.c:2): Dumping FAILED.\n"
    assert errors_of(log)[0] == message


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("echo Looks good.", ""),
        ("echo 'Error (criu/cr-check.c:1): No timens' >&2; exit 1", "No timens"),
        ("echo strange >&2; exit 2", "strange"),
        ("exit 3", "exit status 3"),
    ],
)
def test_criu_is_asked_by_its_command(
    tool: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch, body: str, why: str
) -> None:
    """Only that fills its cache; what it complains of is told in its own words, whatever it exits with."""
    monkeypatch.setattr(criu, "_import", lambda: None)
    tool("criu", f'[ "$*" = check ] || exit 9\n{body}')
    if not why:
        Criu().check()
        return
    with pytest.raises(CheckpointError, match=why):
        Criu().check()
