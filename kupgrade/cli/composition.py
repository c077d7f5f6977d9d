"""What the verbs call, in one object: the real functions, imported when first used; tests put fakes in their place."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

from kupgrade.errors import RefusedError

if TYPE_CHECKING:
    from kupgrade.core.errata import Finding
    from kupgrade.core.explain import StoreChoice
    from kupgrade.core.permission import Hindrances
    from kupgrade.journal import Journal
    from kupgrade.machine.instances import Line
    from kupgrade.model.facts import Facts
    from kupgrade.model.instance import Ran, Seen, Wish
    from kupgrade.model.plan import Plan, Refusal
    from kupgrade.model.policy import Policy
    from kupgrade.model.record import Now, Record, State
    from kupgrade.rehearsal.this_host import Wish as HereWish
    from kupgrade.requests import Requests
    from kupgrade.statedir import StateDirectory

    Watch = Callable[[Record, State], None]


class MakePlan(Protocol):
    """The planner's signature."""

    def __call__(
        self,
        policy: Policy,
        facts: Facts,
        *,
        kernel: str | None,
        engine: str,
        store: str,
        retry_failed: bool,
        root: Path,
        rejected: Mapping[str, str],
    ) -> Plan:
        """A plan; raises PlanRefused."""
        ...


def _probe(root: Path, policy: Policy) -> Facts:
    from kupgrade.probe import probe

    return probe(root, policy)


def _make_plan(
    policy: Policy,
    facts: Facts,
    *,
    kernel: str | None,
    engine: str,
    store: str,
    retry_failed: bool,
    root: Path,
    rejected: Mapping[str, str],
) -> Plan:
    from kupgrade import planning

    return planning.make_plan(
        policy,
        facts,
        kernel=kernel,
        engine=engine,
        store=store,
        retry_failed=retry_failed,
        root=root,
        rejected=rejected,
    )


def _capabilities(facts: Facts, policy: Policy) -> Mapping[str, Sequence[Refusal]]:
    from kupgrade import planning

    return planning.capabilities(facts, policy)


def _stores(facts: Facts, policy: Policy, kernel: str | None, root: Path) -> StoreChoice:
    from kupgrade import planning

    return planning.stores(facts, policy, kernel, root)


def _errata(facts: Facts, policy: Policy, kernel: str | None, root: Path) -> Mapping[str, Sequence[Finding]]:
    from kupgrade import planning

    return planning.errata(facts, policy, kernel, root)


def _run(journal: Journal, *, root: Path, watch: Watch) -> State:
    from kupgrade.machine.host import run

    return run(journal, root=root, watch=watch)


def _tell_metrics(root: Path) -> str:
    from kupgrade import metrics

    return metrics.write_quietly(root)


def _observe(state: State, root: Path) -> Now:
    from kupgrade.machine.observed import observe_now
    from kupgrade.machine.places import Places

    return observe_now(state, Places(root))


def _resume(arguments: list[str]) -> int:
    from kupgrade import resume

    return resume.main(arguments)


def _start_worker(root: Path) -> bool:
    from kupgrade import worker

    return worker.start(root)


def _holder(path: Path, root: Path) -> int | None:
    from kupgrade import worker

    return worker.at_work(path, root)


def _plan_instance(policy: Policy, facts: Facts, wish: Wish, root: Path) -> Plan:
    from kupgrade.instance_plan import make_instance_plan

    return make_instance_plan(policy, facts, wish, root)


def _start_keeper(name: str, root: Path) -> bool:
    from kupgrade import keeper

    return keeper.start(name, root)


def _keep(name: str, root: Path) -> State | None:
    from kupgrade import keeper

    return keeper.keep(name, root)


def _look(state: State, name: str, root: Path) -> Seen | None:
    from kupgrade.machine import instances

    found = instances.instance_of(state)
    return None if found is None else instances.look(found[0], name, found[1], state.plan.new_release, root)


def _read_log(state: State, root: Path) -> Sequence[Line]:
    from kupgrade.machine import instances

    found = instances.instance_of(state)
    return () if found is None else instances.read_log(found[0], state.plan.new_release, root)


def _run_command(state: State, name: str, text: str, root: Path) -> Ran:
    from kupgrade.machine import instances

    found = instances.instance_of(state)
    if found is None or not found[1]:
        raise RefusedError(
            f"No command can be run in {name}", "no agent is in it", "Start it without --initrd, or look at its log"
        )
    return instances.run_command(found[0], name, text, root)


def _hindrances(root: Path) -> Hindrances:
    from kupgrade.machine import leave

    return leave.hindrances(root)


def _installed(root: Path) -> Mapping[str, bool]:
    from kupgrade import planning

    return planning.installed(root)


def _boot_id(root: Path) -> str:
    from kupgrade import planning

    return planning.this_boot(root)


def _rehearse(plan: Plan) -> tuple[str, str]:
    from kupgrade.rehearsal import unattended

    return unattended.rehearse(plan)


def _rehearse_here(wish: HereWish, progress: Callable[[str], None]) -> Mapping[str, Any]:
    from kupgrade.rehearsal import this_host

    return this_host.rehearse(wish, progress)


def _terminal() -> bool:
    """Whether somebody can be asked; a stream that the caller has closed is None."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))


@dataclass(frozen=True)
class Composition:
    """`root`: of the file system; `watch_seconds`: how often the journal is looked at."""

    root: Path = Path("/")
    euid: Callable[[], int] = os.geteuid
    terminal: Callable[[], bool] = _terminal
    probe: Callable[[Path, Policy], Facts] = _probe
    make_plan: MakePlan = _make_plan
    capabilities: Callable[[Facts, Policy], Mapping[str, Sequence[Refusal]]] = _capabilities
    stores: Callable[[Facts, Policy, str | None, Path], StoreChoice] = _stores
    errata: Callable[[Facts, Policy, str | None, Path], Mapping[str, Sequence[Finding]]] = _errata
    run: Callable[..., State] = _run
    tell_metrics: Callable[[Path], str] = _tell_metrics
    observe: Callable[[State, Path], Now] = _observe
    resume: Callable[[list[str]], int] = _resume
    start_worker: Callable[[Path], bool] = _start_worker
    holder: Callable[[Path, Path], int | None] = _holder
    plan_instance: Callable[[Policy, Facts, Wish, Path], Plan] = _plan_instance
    start_keeper: Callable[[str, Path], bool] = _start_keeper
    keep: Callable[[str, Path], State | None] = _keep
    look: Callable[[State, str, Path], Seen | None] = _look
    run_command: Callable[[State, str, str, Path], Ran] = _run_command
    read_log: Callable[[State, Path], Sequence[Line]] = _read_log
    hindrances: Callable[[Path], Hindrances] = _hindrances
    installed: Callable[[Path], Mapping[str, bool]] = _installed
    boot_id: Callable[[Path], str] = _boot_id
    rehearse: Callable[[Plan], tuple[str, str]] = _rehearse
    rehearse_here: Callable[[HereWish, Callable[[str], None]], Mapping[str, Any]] = _rehearse_here
    running_release: Callable[[], str] = lambda: os.uname().release
    sleep: Callable[[float], None] = time.sleep
    time: Callable[[], float] = time.time
    watch_seconds: float = 0.25
    idle_limit: float = 30.0  # seconds without a worker after which following it makes no sense

    @property
    def state(self) -> StateDirectory:
        """The state directory."""
        from kupgrade.statedir import StateDirectory

        return StateDirectory(self.root)

    @property
    def requests(self) -> Requests:
        """What package hooks left, and the log of the automation."""
        from kupgrade.requests import Requests

        return Requests(self.state.path)

    @property
    def policy(self) -> Policy:
        """The merged policy; raises BadInputError."""
        from kupgrade.policy import load

        return load(self.root)

    def require_root(self, verb: str) -> None:
        """Raise RefusedError unless the caller is root."""
        if self.euid() != 0:
            raise RefusedError(
                f"kupgrade {verb} needs root", f"it runs as user {self.euid()}", "Run it as root, e.g. with sudo"
            )

    def open_state(self) -> State | None:
        """The state of the open upgrade, or None."""
        from kupgrade.core.fold import fold

        records = self.state.read_current()
        return None if records is None else fold(records)

    def worker(self) -> int | None:
        """The PID at work on the open upgrade, or None."""
        upgrade = self.state.current_id()
        return None if upgrade is None else self.holder(self.state.journal_path(upgrade), self.root)


def composition(context: click.Context) -> Composition:
    """The composition of this call."""
    found = context.find_object(Composition)
    return found if found is not None else Composition()
