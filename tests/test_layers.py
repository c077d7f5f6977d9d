"""Imports go down only: read with ast, checked against one table."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "kupgrade"

# Package or module of kupgrade -> what of kupgrade it may import besides itself.
L0 = {"errors", "model"}
L1 = L0 | {"core"}
MECHANISM = L0 | {"kernel", "host"}
ALLOWED: dict[str, set[str]] = {
    "__init__": set(),
    "errors": set(),
    "model": {"errors"},
    "core": L0,
    "kernel": L0,
    "host": L0,
    "steps": MECHANISM,
    "journal": L0 | {"host"},
    "policy_schema": L0,
    "policy": L0 | {"host", "journal", "policy_schema"},
    "probe_workload": MECHANISM,
    "probe": MECHANISM | {"probe_workload"},
    "engines": L1 | {"steps"},
    "executor": L1 | {"journal", "steps"},
    "planning": L1 | MECHANISM | {"engines"},
    "planfile": L1 | MECHANISM | {"journal", "statedir", "steps"},
    "statedir": L1 | {"journal"},
    "worker": L1 | MECHANISM | {"journal"},
    "log": L1,
    "machine": L1 | MECHANISM | {"journal", "executor", "steps"},
    "resume": L1 | {"machine", "statedir", "journal", "log"},
    "cli": L1
    | {"executor", "engines", "probe", "policy", "policy_schema", "journal", "planning", "planfile", "statedir"}
    | {"worker", "machine", "resume", "rehearsal", "log", "steps", "__init__"},
    # The lab is a program of its own: it writes initrds and starts tools, but never touches this machine's kernel.
    "rehearsal": L1 | {"host", "journal", "__init__"},
}


def unit_of(path: Path) -> str:
    """The package or top-level module a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Units of kupgrade that a file imports, late imports included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "kupgrade":
                names = [f"kupgrade.{alias.name}" for alias in node.names]
        for name in names:
            if name.split(".")[0] == "kupgrade":
                parts = name.split(".")
                found.add(parts[1] if len(parts) > 1 else "__init__")
    return {"__init__" if n == "__version__" else n for n in found}


FILES = sorted(PACKAGE.rglob("*.py"))


def test_every_unit_has_a_layer() -> None:
    """A new package or module must be given its place."""
    assert {unit_of(path) for path in FILES} <= set(ALLOWED)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_what_lies_below(path: Path) -> None:
    """Up and sideways imports are refused."""
    unit = unit_of(path)
    assert imports(path) - ALLOWED[unit] - {unit} == set()


def test_mechanism_never_meets_mechanism() -> None:
    """kernel and host know nothing of each other, and the table says so."""
    assert "host" not in ALLOWED["kernel"] and "kernel" not in ALLOWED["host"] and "kernel" not in ALLOWED["core"]


@pytest.mark.parametrize("path", [p for p in FILES if "guest" in p.parts], ids=lambda path: path.name)
def test_scripts_of_the_virtual_host_stand_alone(path: Path) -> None:
    """What runs inside the guest imports nothing of this package."""
    assert imports(path) == set()


def test_an_upward_import_would_be_seen(tmp_path: Path) -> None:
    """The reader of imports sees every form of them."""
    for text in ("import kupgrade.cli", "from kupgrade.cli import main", "from kupgrade import cli"):
        file = tmp_path / "x.py"
        file.write_text(f"def late() -> None:\n    {text}\n")
        assert imports(file) == {"cli"}
