"""The group: help, exit codes, errors as text and JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from kupgrade.cli.main import VERBS
from kupgrade.errors import KupgradeError, NotNowError
from kupgrade.model.plan import Refusal


def raising(error: BaseException) -> Any:
    def probe(root: Any, policy: Any) -> Any:
        raise error

    return probe


def test_help_names_every_verb(host: Any) -> None:
    """--help lists all verbs and the exit codes, and imports none of them."""
    result = host.call("--help")
    assert result.exit_code == 0
    for verb in VERBS:
        assert verb in result.output
    assert "75 not now" in result.output


@pytest.mark.parametrize("words", [[], ["policy"], ["apply"]])
def test_help_imports_no_machinery(words: list[str]) -> None:
    """Help and package hooks stay fast: neither machine nor steps nor msgspec are loaded for them."""
    code = (
        "import sys\nfrom kupgrade.cli.main import cli\n"
        f"try: cli.main({[*words, '--help']!r})\nexcept SystemExit as e: assert e.code == 0, e.code\n"
        "print([m for m in sys.modules if m.startswith(('kupgrade.machine', 'kupgrade.probe', 'structlog', 'pycriu'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


@pytest.mark.parametrize("words", [["frobnicate"], ["apply", "--frob"], ["plan", "--store", "tape"], ["policy", "x"]])
def test_usage_errors_exit_with_2(host: Any, words: list[str]) -> None:
    """A wrong command line is exit code 2, and an object under --json."""
    assert host.call(*words).exit_code == 2
    (error,), code = host.lines(*words)
    assert (code, error["code"], error["format"]) == (2, 2, "kupgrade.error/1")


def test_errors_say_what_why_and_remedy(host: Any) -> None:
    """An error is one sentence with its remedy on stderr, or one object on stdout."""
    host.change(probe=raising(NotNowError("Busy", "somebody works", "Wait")))
    result = host.call("plan")
    assert (result.exit_code, result.stdout) == (75, "")
    assert "error: Busy: somebody works. Wait" in result.stderr
    (error,), code = host.lines("plan")
    assert code == 75
    assert error == {
        "format": "kupgrade.error/1",
        "what": "Busy",
        "why": "somebody works",
        "remedy": "Wait",
        "code": 75,
    }


def test_refusals_are_all_told(host: Any) -> None:
    """Every refusal comes with rule, fact and remedy."""
    host.refusals = (
        Refusal("criu works", "criu is not installed", "Install criu"),
        Refusal("rule 2", "fact 2", "do 2"),
    )
    result = host.call("plan")
    assert result.exit_code == 3
    for word in ("criu is not installed", "Install criu", "fact 2", "rule 2", "do 2"):
        assert word in result.stderr
    (error,), code = host.lines("plan")
    assert code == 3 and [refusal["fact"] for refusal in error["refusals"]] == ["criu is not installed", "fact 2"]


@pytest.mark.parametrize("error", [ValueError("oops"), OSError(5, "Input/output error"), RecursionError("deep")])
def test_faults_show_no_traceback(host: Any, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault is told in one sentence; the traceback comes with KUPGRADE_DEBUG only."""
    host.change(probe=raising(error))
    result = host.call("plan")
    assert result.exit_code == 1 and "Traceback" not in result.output and "KUPGRADE_DEBUG" in result.output
    monkeypatch.setenv("KUPGRADE_DEBUG", "1")
    assert "Traceback" in host.call("plan").output


def test_ctrl_c_exits_with_130(host: Any) -> None:
    """Ctrl-C is 130."""
    host.change(probe=raising(KeyboardInterrupt()))
    assert host.call("plan").exit_code == 130


def test_nothing_to_do_is_no_error(host: Any) -> None:
    """An error with the code of success is told on stdout and exits with 0."""
    from kupgrade.errors import ExitCode

    host.change(probe=raising(KupgradeError("Nothing to do", "6.12.48 is the newest", code=ExitCode.DONE)))
    result = host.call("plan")
    assert (result.exit_code, result.stdout) == (0, "Nothing to do: 6.12.48 is the newest\n")
    lines, code = host.lines("apply")
    assert (code, lines[-1]["outcome"]) == (0, "nothing-to-do")


@pytest.mark.parametrize("verb", ["preflight", "plan", "apply", "status", "rollback", "resume", "history"])
def test_verbs_need_root(host: Any, verb: str) -> None:
    """Who is not root is told so, before anything is looked at."""
    host.change(euid=lambda: 1000, probe=raising(AssertionError("probed")))
    result = host.call(verb)
    assert result.exit_code == 3 and f"kupgrade {verb} needs root" in result.stderr
    lines, code = host.lines(verb)
    assert code == lines[-1].get("exit", lines[-1].get("code")) == 3


@pytest.mark.parametrize("verb", ["preflight", "plan", "apply", "status", "rollback", "resume", "history"])
def test_dry_run_touches_nothing(host: Any, verb: str) -> None:
    """-n leaves the host as it is, for every verb."""
    before = host.snapshot()
    assert host.call(verb, "-n").exit_code == 0
    assert host.snapshot() == before


def test_bad_policy_is_refused_by_every_verb(host: Any) -> None:
    """A malformed or hostile policy stops plan, apply and preflight with the file's name."""
    directory = host.root / "etc/kupgrade/policy.d"
    directory.mkdir(parents=True, mode=0o755)
    (directory / "10-a.toml").write_text("deadline = 'soon'\n")
    (directory / "10-a.toml").chmod(0o644)
    for verb in ("preflight", "plan", "apply"):
        result = host.call(verb)
        assert result.exit_code == 3 and "10-a.toml, line 1" in result.stderr
    (directory / "10-a.toml").write_text("")
    (directory / "10-a.toml").chmod(0o666)
    result = host.call("plan")
    assert result.exit_code == 3 and "could have been written by others" in result.stderr


def test_json_values_are_one_a_line(host: Any) -> None:
    """Every line of every verb under --json is a JSON object with a format."""
    for words in (["preflight"], ["plan"], ["apply"], ["status"], ["history"], ["rollback"], ["policy", "check"]):
        for line in host.call(*words, "--json").stdout.splitlines():
            assert json.loads(line).get("format", "").startswith("kupgrade."), words
