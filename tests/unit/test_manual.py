"""The manual pages say what the program does; the completions offer its verbs."""

from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import kupgrade
from kupgrade.cli.main import VERBS, cli
from kupgrade.errors import ExitCode

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "packaging/man"
COMPLETION = ROOT / "packaging/completion"


def generator() -> ModuleType:
    specification = importlib.util.spec_from_file_location("generate", PAGES / "generate.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_pages_are_made_of_what_is_there_now() -> None:
    """A changed verb, option, exit code or key fails here until packaging/man/generate.py was run."""
    for name, text in generator().pages().items():
        assert (PAGES / name).read_text() == text, f"{name} is stale: python3 packaging/man/generate.py"


def test_every_verb_has_its_paragraph() -> None:
    """What the program lists, the page describes, with the verbs below instance and policy."""
    found = {path.removeprefix("kupgrade ") for path, _ in generator().commands(cli, "kupgrade")}
    assert set(VERBS) == {each.split()[0] for each in found}
    assert {"instance start", "instance stop", "policy check"} <= found


def test_every_exit_code_is_told() -> None:
    """The codes of the page are those that the program ends with."""
    lines = generator().exit_codes().splitlines()
    assert {int(line.split()[1]) for line in lines if line.startswith(".B ")} == set(ExitCode)


def test_every_key_is_told() -> None:
    """A key that the schema takes and the page lacks, or the other way round, fails here."""
    schema = set()
    for name in (each.name for each in pkgutil.iter_modules(kupgrade.__path__) if each.name.startswith("policy_")):
        tables = vars(importlib.import_module(f"kupgrade.{name}")).items()
        schema |= {frozenset(value) for key, value in tables if key.isupper() and isinstance(value, dict)}
    assert frozenset(("allow", "block")) in schema
    told: dict[str, set[str]] = {}
    for table, key, _, _ in generator().rows():
        told.setdefault(table, set()).add(key)
    told["[[workload]]"] |= {"pidfile", "cgroup"}  # told with "unit": one of the three
    assert {frozenset(keys) for keys in told.values()} == schema


@pytest.mark.parametrize("name", ["kupgrade.8", "kupgrade-policy.5"])
def test_no_page_has_an_unknown_request(name: str) -> None:
    """Every line that begins with a dot is a macro of man(7), so that no text is swallowed."""
    known = {'.\\"', ".TH", ".SH", ".SS", ".TP", ".PP", ".B", ".BR", ".I", ".RI", ".br", ".nf", ".fi"}
    used = {line.split()[0] for line in (PAGES / name).read_text().splitlines() if line.startswith((".", "'"))}
    assert used <= known


def answers(shell: str, words: str, at: str, program: Path) -> list[str]:
    environment = {"COMP_WORDS": words, "COMP_CWORD": at, "_KUPGRADE_COMPLETE": f"{shell}_complete"}
    done = subprocess.run([program], env=os.environ | environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """The command as it is installed."""
    script = tmp_path / "kupgrade"
    path = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"
    script.write_text(f"#!{sys.executable}\n{path}from kupgrade.cli.main import main\nmain()\n")
    script.chmod(0o755)
    return script


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_is_offered_every_verb(shell: str, program: Path) -> None:
    """The program answers in the protocol by which the shell's script asks, with every verb."""
    script = {"bash": "kupgrade.bash", "zsh": "_kupgrade", "fish": "kupgrade.fish"}[shell]
    assert f"_KUPGRADE_COMPLETE={shell}_complete" in (COMPLETION / script).read_text()
    lines = answers(shell, "kupgrade ", "" if shell == "fish" else "1", program)
    words = lines[1::3] if shell == "zsh" else [line.split(",")[1].split("\t")[0] for line in lines]
    assert words == list(VERBS)


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["kupgrade", "pre"], ["preflight"]),
        (["kupgrade", "instance", "sto"], ["stop"]),
        (["kupgrade", "status", "--w"], ["--watch"]),
    ],
)
def test_bash_completes(words: list[str], expected: list[str], program: Path) -> None:
    """The script itself, in bash: a verb, a verb below it, an option."""
    quoted = " ".join(f"'{word}'" for word in words)
    script = f"""
    source {COMPLETION / "kupgrade.bash"}
    complete -p kupgrade | grep -q _kupgrade_completion || exit 9
    COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}
    _kupgrade_completion {program}
    printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "--norc", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, expected), done.stderr
