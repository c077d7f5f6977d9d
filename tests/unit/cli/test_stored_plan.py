"""Stored plans: stale, damaged, hostile, rejected; what apply carries out and what it does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kupgrade import planfile
from kupgrade.journal import Journal
from kupgrade.model.plan import Phase, Plan, Side
from kupgrade.model.record import RecordKind
from kupgrade.steps.base import spec
from kupgrade.steps.crossing import ArmWatchdog

from .conftest import ROLLED_BACK, facts


@pytest.fixture
def stored(host: Any, plan_with: Callable[..., Plan]) -> Path:
    """A plan file with one real step."""
    host.plan = plan_with(phases=(Phase("arm", Side.OLD, (spec(ArmWatchdog(30)),)),))
    path = host.root / "plan.json"
    planfile.write(path, host.plan)
    return path


def test_a_stored_plan_is_applied(host: Any, stored: Path) -> None:
    """The stored plan runs, and no other is made."""
    host.events = ((RecordKind.COMMITTED, None, {}), (RecordKind.FINISHED, None, {"outcome": "committed"}))
    assert host.call("apply", str(stored)).exit_code == 0
    assert host.calls == ["start-worker"]
    assert host.call("apply", str(stored)).exit_code == 3, "a plan is applied once"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"boot_id": "33333333-3333-4333-8333-333333333333"}, "another boot"),
        ({"release": "6.12.1"}, "another kernel"),
        ({"digest": "e" * 64, "values": {"release": "6.12.48", "criu": "4.2"}}, "criu: was '4.1', is '4.2'"),
    ],
)
def test_a_stale_plan_is_refused(host: Any, stored: Path, changed: dict[str, Any], words: str) -> None:
    """The fact that changed since the plan was made is named."""
    host.change(probe=lambda root, policy: facts(**changed))
    result = host.call("apply", str(stored))
    assert result.exit_code == 3 and words in result.stderr
    assert "start-worker" not in host.calls and not host.composed.state.path.exists()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        '{"format": "kupgrade.plan/99"}',
        '{"format": "kupgrade.plan/1"}',
        "[" * 100_000,
        "\x00\xff",
    ],
)
def test_a_damaged_plan_is_refused(host: Any, content: str) -> None:
    """Whatever is no plan is refused, never a traceback."""
    path = host.root / "plan.json"
    path.write_text(content)
    path.chmod(0o600)
    result = host.call("apply", str(path))
    assert result.exit_code == 3 and "plan.json" in result.stderr and "fault" not in result.stderr


@pytest.mark.parametrize("change", ["truncate", "kind", "extra", "type", "scope", "irreversible", "nan", "huge"])
def test_a_changed_plan_is_refused(host: Any, stored: Path, change: str) -> None:
    """A truncated plan, an unknown step, an unknown or mistyped key are refused."""
    value = json.loads(stored.read_text())
    text = ""
    if change == "truncate":
        text = stored.read_text()[:-50]
    elif change == "kind":
        value["phases"][0]["steps"][0]["kind"] = "frob"
    elif change == "extra":
        value["frob"] = 1
    elif change == "scope":
        value["phases"][0]["steps"][0]["scope"] = "peer"  # after a reboot its undo would be judged by this
    elif change == "irreversible":
        value["phases"][0]["steps"][0]["irreversible"] ^= True
    elif change == "nan":
        value["deadline"] = float("nan")  # it would never be over
    elif change == "huge":
        value["created"] = 10**400
    else:
        value["deadline"] = "long"
    stored.write_text(text or json.dumps(value))
    result = host.call("apply", str(stored))
    assert result.exit_code == 3 and "start-worker" not in host.calls and "fault" not in result.stderr


@pytest.mark.parametrize("mode", [0o622, 0o666])
def test_a_plan_others_could_write_is_refused(host: Any, stored: Path, mode: int) -> None:
    """Root carries out only what root wrote."""
    stored.chmod(mode)
    result = host.call("apply", str(stored))
    assert result.exit_code == 3 and "written by others" in result.stderr


def test_a_missing_plan_is_refused(host: Any) -> None:
    """A file that is not there, or a directory, is refused."""
    assert host.call("apply", str(host.root / "none.json")).exit_code == 3
    assert host.call("apply", str(host.root)).exit_code == 2


def test_a_stored_plan_takes_no_choices(host: Any, stored: Path) -> None:
    """--kernel with a stored plan is a usage error."""
    assert host.call("apply", str(stored), "--kernel", "6.13").exit_code == 2
    assert host.call("apply", str(stored), "--store", "disk").exit_code == 2


def rejected(host: Any, plan: Plan) -> None:
    journal: Journal = host.composed.state.begin(plan)
    from .conftest import write

    write(journal, ((RecordKind.STARTED, 4, {}), *ROLLED_BACK[1:]))
    journal.close()
    host.composed.state.finish(plan.upgrade)


def test_a_rejected_release_needs_insistence(host: Any, stored: Path, plan_with: Callable[..., Plan]) -> None:
    """A stored plan to a release that came back before is refused, unless --retry-failed; then it is forgotten."""
    rejected(host, plan_with("20261120-041503-9f2c1a"))
    result = host.call("apply", str(stored))
    assert result.exit_code == 3 and "--retry-failed" in result.stderr and "dump failed" in result.stderr
    host.events = ((RecordKind.COMMITTED, None, {}), (RecordKind.FINISHED, None, {"outcome": "committed"}))
    assert host.call("apply", str(stored), "--retry-failed").exit_code == 0
    assert host.composed.state.rejected_releases() == {}


def test_a_plan_that_the_policy_now_blocks_is_refused(host: Any, stored: Path) -> None:
    """A stored plan is no licence against a policy that has become stricter."""
    directory = host.root / "etc/kupgrade/policy.d"
    directory.mkdir(parents=True, mode=0o755)
    (directory / "10-a.toml").write_text("[kernels]\nblock = ['6.12.*']\n")
    (directory / "10-a.toml").chmod(0o644)
    result = host.call("apply", str(stored))
    assert result.exit_code == 3 and "not allowed" in result.stderr


def test_a_limit_lowered_since_the_plan_counts(host: Any, stored: Path) -> None:
    """The policy of now decides, not that of the day when the plan was made."""
    directory = host.root / "etc/kupgrade/policy.d"
    directory.mkdir(parents=True, mode=0o755)
    (directory / "10-a.toml").write_text("[[workload]]\nname='demo'\nunit='demo.service'\nmax_blackout='1s'\n")
    (directory / "10-a.toml").chmod(0o644)
    result = host.call("apply", str(stored))
    assert result.exit_code == 6 and "OVER the limit of 1 s" in result.stderr
