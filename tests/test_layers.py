"""Imports go down only: which part of kupgrade may know which, read from the sources.

Each part below names what it may import, besides itself and the words and errors that everybody knows. A new module or
package has to be entered here; that is the point at which to ask where it belongs.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "kupgrade"

WORDS = {"errors", "model"}
MECHANISM = {"kernel", "host"}

# Part -> the parts it may import; from the bottom to the top, so every part names only such as stand before it.
PARTS: dict[str, set[str]] = {
    # L0: words
    "errors": set(),
    "model": {"errors"},
    # L1: decisions without input and output; mechanisms that do not know each other
    "core": WORDS,
    "kernel": WORDS,
    "host": WORDS,
    # L2: atoms, which name ports and no mechanism; files of our own; facts
    "steps": WORDS,
    "journal": WORDS | {"host"},
    "private": WORDS | {"journal"},
    "forgotten": WORDS | {"journal"},
    "statedir": WORDS | {"core", "journal", "private", "forgotten"},
    "requests": WORDS | {"journal", "private"},
    "planfile": WORDS | {"journal", "steps"},
    "policy_checks": WORDS,
    "policy_windows": WORDS | {"core", "policy_checks"},
    "policy_schema": WORDS | {"policy_checks", "policy_windows"},
    "policy": WORDS | {"policy_checks", "policy_schema"},
    "errata": WORDS | {"policy"},
    "probe_platform": WORDS | MECHANISM,
    "probe_sandbox": WORDS | MECHANISM,
    "probe_workload": WORDS | MECHANISM | {"probe_sandbox"},
    "probe_descriptors": WORDS | MECHANISM,
    "probe_storage": WORDS | MECHANISM,
    "probe_spawn": WORDS | MECHANISM | {"probe_storage"},
    "probe": WORDS | MECHANISM | {"probe_descriptors", "probe_workload", "probe_spawn", "probe_platform", "errata"},
    # L3: engines order steps, the executor carries them out, the machine is what it carries them out on
    "engines": WORDS | {"core", "steps"},
    "executor": WORDS | {"core", "journal", "steps"},
    "machine": WORDS | MECHANISM | {"core", "journal", "steps", "executor", "policy"},
    "planning": WORDS | MECHANISM | {"core", "engines", "policy", "probe", "statedir"},
    "instance_plan": WORDS | MECHANISM | {"core", "engines", "planning"},
    # L4: faces
    "log": WORDS | {"core"},
    "metrics": WORDS | {"core", "host", "policy", "statedir"},
    "telling": WORDS | {"core", "host"},
    "worker": WORDS | MECHANISM | {"journal"},
    "resume": WORDS | {"journal", "statedir", "machine", "log", "metrics", "telling"},
    "boot_agent": {"machine", "resume"},
    "keeper": WORDS | {"host", "journal", "statedir", "machine", "resume"},
    "standby": WORDS | MECHANISM | {"journal", "statedir", "machine", "metrics", "telling"},
    "live_images": WORDS | MECHANISM | {"statedir", "steps", "machine"},
    "rehearsal": WORDS | MECHANISM | {"core", "journal"},
    "bundle": WORDS | {"core", "host", "journal", "statedir", "policy"},
    "cli": WORDS
    | {"core", "journal", "statedir", "planfile", "policy", "probe", "planning", "machine", "worker", "resume"}
    | {"log", "rehearsal", "engines", "executor", "steps", "instance_plan", "keeper", "metrics", "bundle", "requests"},
}
THIRD_PARTY: dict[str, set[str]] = {
    "kernel": {"tenacity"},
    "host": {"tenacity", "elftools", "pycriu"},
    "cli": {"click", "structlog"},
    "log": {"structlog"},
}
GUEST = "rehearsal/guest"


def part_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, late imports too, with the line."""
    tree = ast.parse(path.read_text(), str(path))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)  # "import kupgrade" alone names no part
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import hides where it leads"
            for alias in node.names:
                yield (f"{node.module}.{alias.name}" if node.module == "kupgrade" else str(node.module)), node.lineno


def sources() -> list[Path]:
    """All of the package, but the scripts that run alone in a virtual host."""
    found = sorted(PACKAGE.rglob("*.py"))
    return [p for p in found if GUEST not in p.as_posix() and p != PACKAGE / "__init__.py"]


def test_every_part_has_its_place() -> None:
    """A module or package that the table does not know fails here."""
    unknown = sorted({part_of(path) for path in sources()} - set(PARTS))
    assert not unknown, f"not in the table of layers: {unknown}"


def test_the_table_itself_goes_down_only() -> None:
    """Every part names only parts that stand above it in the table, so there can be no circle."""
    order = list(PARTS)
    wrong = [(part, used) for part, uses in PARTS.items() for used in uses if order.index(used) >= order.index(part)]
    assert not wrong


@pytest.mark.parametrize("part", PARTS)
def test_imports_go_down_only(part: str) -> None:
    """No part imports one that it may not know."""
    wrong = []
    for path in sources():
        if part_of(path) != part:
            continue
        for name, line in imports(path):
            top, _, rest = name.partition(".")
            target = rest.split(".")[0]
            if top == "kupgrade" and target != part and target not in PARTS[part] | {"", "__version__"}:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("part", PARTS)
def test_only_some_parts_need_other_packages(part: str) -> None:
    """Third-party packages stay at the edge: decisions, journal, executor and agent need the standard library only."""
    wrong = []
    for path in sources():
        if part_of(path) != part:
            continue
        for name, line in imports(path):
            top = name.split(".")[0]
            if top not in sys.stdlib_module_names | {"kupgrade", "__future__"} | THIRD_PARTY.get(part, set()):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_faces_never_speak_to_a_mechanism() -> None:
    """What an operator sees is made of facts and decisions, not of system calls."""
    for part in ("cli", "resume", "log", "executor", "engines", "core", "steps"):
        assert not PARTS[part] & MECHANISM
    assert not (PARTS["kernel"] & {"host"} or PARTS["host"] & {"kernel"})


def test_guest_scripts_stand_alone() -> None:
    """What runs in a virtual host imports the standard library only."""
    for path in sorted((PACKAGE / GUEST).glob("*.py")):
        for name, line in imports(path):
            assert name.split(".")[0] in sys.stdlib_module_names, f"{path}:{line} imports {name}"
