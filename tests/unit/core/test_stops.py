"""Units of fate stop: what the planner makes of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kupgrade.core import checks, planner
from kupgrade.core.explain import preflight_json, preflight_text
from kupgrade.core.stops import stop_losses, stop_orders, stop_refusals
from kupgrade.model.descriptors import PreservePolicy
from kupgrade.model.facts import Facts, StopFacts, WorkloadFacts
from kupgrade.model.policy import Policy, WorkloadPolicy
from kupgrade.model.workload import Fate, StopOrder
from tests.fakes import facts as pf

DEMO = WorkloadPolicy("demo", unit="demo.service")
AGENT = WorkloadPolicy("agent", unit="agent.service", fate=Fate.STOP, stop_timeout=5.0)


def policy(*entries: WorkloadPolicy) -> Policy:
    return pf.policy(workloads=(DEMO, *(entries or (AGENT,))))


def facts(stop: StopFacts | None = StopFacts(runs=True), **changes: object) -> Facts:  # noqa: B008 - frozen
    agent = WorkloadFacts("agent", "agent.service", None, stop=stop)
    return pf.facts(workloads=(pf.seen(), agent), active_services=("agent.service", "cron.service"), **changes)


def test_such_a_unit_is_stopped_by_its_own_step_only() -> None:
    """With its own time; the step that stops all other services leaves it alone, whatever else they do."""
    assert stop_orders(policy()) == (StopOrder("agent.service", 5.0),)
    assert planner.to_stop(facts(), policy()) == ("cron.service",)
    assert planner.kept(facts(), policy()) == (pf.workload(),)
    assert stop_refusals(facts(), policy()) == ()


@pytest.mark.parametrize("stop", [StopFacts(runs=False), StopFacts(runs=True)])
def test_what_runs_now_is_told_and_what_does_not_is_no_reason_to_refuse(stop: StopFacts) -> None:
    """It may run when the upgrade comes to it."""
    assert stop_refusals(facts(stop), policy()) == ()
    assert [loss.what for loss in stop_losses(facts(stop), policy())] == (["agent.service"] if stop.runs else [])


@pytest.mark.parametrize(
    ("stop", "words"),
    [
        (StopFacts(runs=False, why_not="systemd does not know it"), "does not know"),
        (StopFacts(runs=True, along=("demo.service", "x.timer")), "demo.service, which is to be kept"),
        (None, "no answer"),
    ],
)
def test_what_cannot_be_stopped_is_refused(stop: StopFacts | None, words: str) -> None:
    """With what stands in the way; among all other reasons why the workloads cannot go on."""
    found = checks.workload_refusals(facts(stop, unknown={"workload agent": "no answer"}), policy())
    assert [each.rule for each in found] == ["agent can be stopped"] and words in found[0].fact


def test_a_policy_that_contradicts_itself_is_refused() -> None:
    """Kept and stopped, or protected and stopped."""
    twice = WorkloadPolicy("agent", unit="demo.service", fate=Fate.STOP)
    protected = WorkloadPolicy("agent", unit="ssh.service", fate=Fate.STOP)
    for entry, words in ((twice, "to be kept, too"), (protected, "keep_services")):
        (refusal,) = stop_refusals(facts(), policy(entry))
        assert words in refusal.fact


@pytest.mark.parametrize(("unit", "along"), [("agent.service", ()), ("client.service", ("client.service",))])
def test_a_unit_whose_descriptors_are_preserved_cannot_be_kept_down(unit: str, along: tuple[str, ...]) -> None:
    """They are put back by a start of it, early in the boot of the new kernel."""
    wanted = replace(policy(), preserve=(PreservePolicy(unit),))
    (refusal,) = stop_refusals(facts(StopFacts(runs=True, along=along)), wanted)
    assert f"the descriptors of {unit} are to be returned" in refusal.fact


def test_whoever_stops_along_is_told() -> None:
    """In the plan, before anybody says yes."""
    along = StopFacts(runs=True, along=("client.service", "agent.timer"))
    told = {loss.what: loss.why for loss in checks.losses(facts(along), policy(), ("cron.service",))}
    assert "started again when the kept ones serve" in told["agent.service"]
    assert "with agent.service" in told["client.service"] and "with agent.service" in told["agent.timer"]
    assert "new boot" in told["cron.service"]


@pytest.mark.parametrize(
    ("stop", "words"),
    [
        (StopFacts(runs=True, along=("agent.timer",)), "agent.service runs; it is stopped before"),
        (StopFacts(runs=False), "does not run now"),
        (StopFacts(runs=False, why_not="it is a transient unit"), "cannot be stopped and started again: it is a tran"),
    ],
)
def test_the_preflight_tells_of_it(stop: StopFacts, words: str) -> None:
    """For people, and as data."""
    seen = facts(stop)
    choice = ("", {}, {"in_place": "x", "policy": "y"})
    assert words in preflight_text(seen, {}, choice)
    assert preflight_json(seen, {}, choice)["workloads"][1]["stop"]["runs"] is stop.runs
