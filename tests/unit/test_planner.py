"""The planner's rules and the kexec engine's order, as tables over facts."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

import pytest

from kupgrade.core import checks, planner, predict
from kupgrade.core.allocate import WINDOW, pid_floor
from kupgrade.core.obstacles import obstacles
from kupgrade.engines.base import Order
from kupgrade.engines.kexec import KexecEngine, back_cmdline, crossing_cmdline
from kupgrade.host.early_init import early_init
from kupgrade.model.codec import decode, encode
from kupgrade.model.ids import UpgradeId
from kupgrade.model.kernel import CommandLine, KernelRelease
from kupgrade.model.plan import Plan, Side
from kupgrade.model.policy import EngineOptions, KernelRules, MemoryMode, OnUnknown, WorkloadPolicy
from kupgrade.model.workload import Fate, Probe, ProbeKind, StoreKind
from kupgrade.steps.base import load
from tests.fakes import facts as pf

ID = UpgradeId("20261121-041503-9f2c1a")


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"root_user": False}, "root is needed"),
        ({"systemd": False}, "systemd is PID 1"),
        ({"missing_units": ("kupgrade-lock.service",)}, "kupgrade's units are installed"),
        ({"criu_version": None}, "criu is installed"),
        ({"criu_check": "no timens"}, "criu works on this kernel"),
        ({"nft": False}, "nftables is installed"),
        ({"kexec_disabled": True}, "kexec is allowed"),
        ({"kexec_loaded": None}, "this kernel has kexec"),
        ({"kexec_loaded": True}, "no kexec image is loaded"),
        ({"boot_once": "Memtest86+"}, "a reset boots the default"),
        ({"lockdown": "confidentiality"}, "kernel lockdown permits kexec"),
    ],
)
def test_each_missing_ability_of_the_host_is_one_refusal(change: dict[str, object], rule: str) -> None:
    """A host that lacks one thing is refused for exactly that, with a remedy."""
    found = checks.host_refusals(pf.facts(**change), pf.policy())
    assert [r.rule for r in found] == [rule]
    assert found[0].fact and found[0].remedy


def test_a_healthy_host_is_not_refused() -> None:
    """Nothing is refused where nothing is wrong."""
    assert checks.host_refusals(pf.facts(), pf.policy()) == ()
    assert planner.refusals(pf.facts(), pf.policy(), pf.target(), {}, retry_failed=False) == ()


def test_unknown_facts_are_refused_only_where_the_policy_says_so() -> None:
    """UNKNOWN is not "no": it is a warning, or a refusal by policy."""
    unknown = pf.facts(unknown={"lockdown": "not mounted"})
    assert checks.host_refusals(unknown, pf.policy()) == ()
    assert any("lockdown" in w for w in checks.warnings(unknown, pf.target()))
    strict = checks.host_refusals(unknown, pf.policy(on_unknown=OnUnknown.REFUSE))
    assert [r.rule for r in strict] == ["lockdown is known"]


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"architecture": "aarch64"}, "same architecture"),
        ({"release": pf.OLD, "releases": (KernelRelease(pf.OLD),)}, "another release"),
        ({"releases": (KernelRelease("6.1.0-1"),)}, "the initrd belongs to the kernel"),
        ({"has_init": False}, "the initrd can start"),
        ({"has_shell": False}, "the initrd has a shell"),
        ({"missing_options": ("CONFIG_UNIX_DIAG",)}, "the kernel is configured for criu"),
        ({"missing_modules": ("virtio_net",)}, "modules for this host"),
    ],
)
def test_each_defect_of_the_target_is_one_refusal(change: dict[str, object], rule: str) -> None:
    """A target with one defect is refused for exactly that."""
    found = checks.target_refusals(pf.facts(), pf.policy(), pf.target(**change))
    assert [r.rule for r in found] == [rule]


def test_lockdown_wants_a_signature() -> None:
    """Under integrity lockdown an unsigned image is refused, a signed one is not."""
    locked = pf.facts(lockdown="integrity")
    assert checks.target_refusals(locked, pf.policy(), pf.target()) == ()
    assert checks.target_refusals(locked, pf.policy(), pf.target(signed=False))


def test_a_blocked_release_and_one_that_was_rolled_back_are_refused() -> None:
    """The policy's block list and the memory of bad releases both say no; --retry-failed lifts only the second."""
    blocked = pf.policy(kernels=KernelRules(block=("7.3.*",)))
    found = checks.target_refusals(pf.facts(), blocked, pf.target())
    assert [r.rule for r in found] == ["the policy allows this kernel"]
    rejected = {pf.NEW: "panicked"}
    assert planner.refusals(pf.facts(), pf.policy(), pf.target(), rejected, retry_failed=False)
    assert not planner.refusals(pf.facts(), pf.policy(), pf.target(), rejected, retry_failed=True)


@pytest.mark.parametrize(
    ("process", "words"),
    [
        ({"traced_by": 77}, "traced by process 77"),
        ({"below_root": False, "root": False}, "not a descendant"),
        ({"session_leader": False}, "session leader"),
        ({"tty": True}, "controlling terminal"),
        ({"hugetlb": True}, "hugetlb"),
        ({"device_mappings": ("/dev/dri/card0",)}, "/dev/dri/card0"),
        ({"namespaces": ("pid",)}, "pid namespace"),
        ({"descriptors": (pf.descriptor("anon_inode", "io_uring"),)}, "io_uring"),
        ({"descriptors": (pf.descriptor("anon_inode", "perf_event"),)}, "perf_event"),
        ({"descriptors": (pf.descriptor("socket", "socket", protocol="VSOCK"),)}, "VSOCK"),
        ({"descriptors": (pf.descriptor("socket", "socket", protocol="UDP-Lite"),)}, "UDP-Lite"),
        ({"descriptors": (pf.descriptor("socket", "socket", protocol="UNIX-STREAM", peer="outside"),)}, "outside"),
        ({"descriptors": (pf.descriptor("device", "/dev/kvm"),)}, "/dev/kvm"),
        ({"descriptors": (pf.descriptor("file", "/tmp/x", volatile=True),)}, "/tmp/x"),
        ({"descriptors": (pf.descriptor("unknown", "what"),)}, "unknown"),
    ],
)
def test_what_criu_cannot_dump_is_named_with_its_process(process: dict[str, object], words: str) -> None:
    """Each obstacle is fatal, names the process and says why."""
    found = obstacles(pf.seen(pf.process(**process)))
    assert [o.fatal for o in found] == [True]
    assert words in found[0].what
    refusals = checks.workload_refusals(pf.facts(workloads=(pf.seen(pf.process(**process)),)), pf.policy())
    assert "process 500 (demo)" in refusals[0].fact


@pytest.mark.parametrize(
    "fd",
    [
        pf.descriptor("anon_inode", "eventpoll"),
        pf.descriptor("socket", "socket", protocol="TCP"),
        pf.descriptor("socket", "socket", protocol="UNIX-STREAM", peer="journal"),
        pf.descriptor("socket", "socket", protocol="UNIX-STREAM", peer="tree"),
        pf.descriptor("device", "/dev/null"),
        pf.descriptor("file", "/var/log/x"),
        pf.descriptor("memfd", "buffer"),
    ],
)
def test_ordinary_descriptors_are_no_obstacle(fd: object) -> None:
    """What criu keeps is not complained about."""
    assert obstacles(pf.seen(pf.process(descriptors=(fd,)))) == ()


def test_a_jumping_clock_and_a_lost_local_connection_are_losses_not_refusals() -> None:
    """What is lost but not fatal stands in the plan and forbids nothing."""
    entry = pf.seen(own_clock=False, local_peers=("127.0.0.1 port 5432",))
    found = checks.losses(pf.facts(workloads=(entry,)), pf.policy(), ("cron.service",))
    text = " ".join(loss.why for loss in found)
    assert "CLOCK_MONOTONIC" in text and "5432" in text and "stopped cleanly" in text
    assert checks.workload_refusals(pf.facts(workloads=(entry,)), pf.policy()) == ()


def test_services_that_are_kept_needed_or_protected_are_not_stopped() -> None:
    """Only what nobody needs is stopped beforehand."""
    assert planner.to_stop(pf.facts(), pf.policy()) == ("cron.service",)
    assert planner.to_stop(pf.facts(), pf.policy(stop_services=False)) == ()


def test_the_first_store_with_room_is_taken_and_others_are_told() -> None:
    """A store passed over leaves a note; without any store every reason is given."""
    preferred = (StoreKind.PMEM, StoreKind.DISK)
    assert planner.choose_store(pf.facts(), pf.policy(), preferred)[0] is StoreKind.PMEM
    small = dataclasses.replace(pf.facts().stores, pmem_size=1 << 20)
    kind, refused, notes = planner.choose_store(pf.facts(stores=small), pf.policy(), preferred)
    assert kind is StoreKind.DISK and not refused and "pmem passed over" in notes[0]
    none = dataclasses.replace(small, disk_free=1 << 20)
    kind, refused, _ = planner.choose_store(pf.facts(stores=none), pf.policy(), preferred)
    assert kind is None and len(refused) == 2


@pytest.mark.parametrize(
    "pids", [(), (300,), (500, 4_000_000), (4_194_000,), (4_165_000,), (1000, 4_182_000), tuple(range(30000, 32000))]
)
def test_the_pid_window_holds_no_workload_pid(pids: tuple[int, ...]) -> None:
    """Whatever the PIDs, the window in which a boot starts its processes is free of them."""
    floor = pid_floor(pids, 32768)
    assert floor >= 1000 and floor + WINDOW < 1 << 22
    assert not any(floor <= pid < floor + WINDOW for pid in pids)
    assert early_init(floor, 0), "the new kernel's first process takes it as it is"


def test_no_gap_for_pids_is_refused() -> None:
    """When PIDs are spread so that no window is free, the plan is refused instead of gambling."""
    pids = range(1000, 4_194_303, WINDOW - 1)
    with pytest.raises(ValueError, match="no gap"):
        pid_floor(list(pids), 4194304)


def order(**changes: Any) -> Order:
    policy = changes.pop("policy", pf.policy())
    facts = changes.pop("facts", pf.facts())
    store = planner.store_for(ID, policy, StoreKind.DISK)
    return Order(ID, facts, policy, pf.target(), store, planner.kept(facts, policy), ("cron.service",), 1500, "/staged")


def test_the_order_of_the_kexec_engine_is_safe() -> None:
    """The lock comes before the freeze, the dump after it, thaw and unlock after everything that may fail."""
    phases = KexecEngine().phases(order())
    kinds = [s.kind for phase in phases for s in phase.steps]
    for first, second in [
        ("prepare-store", "pre-dump"),
        ("load-kernel", "freeze"),
        ("gate", "hold-units"),
        ("hold-units", "lock-network"),
        ("lock-network", "freeze"),
        ("freeze", "dump"),
        ("dump", "cross"),
        ("cross", "restore"),
        ("restore", "disarm"),
        ("disarm", "thaw"),
        ("thaw", "unlock-network"),
        ("unlock-network", "wipe-images"),
    ]:
        assert kinds.index(first) < kinds.index(second), (first, second)
    assert [p.side for p in phases] == [Side.OLD, Side.OLD, Side.NEW, Side.NEW]
    assert [p.blackout for p in phases] == [False, True, True, False]


def test_a_probe_is_a_step_only_where_one_is_named() -> None:
    """Without a probe no workload runs before the commit."""
    assert "probe" not in [s.kind for p in KexecEngine().phases(order()) for s in p.steps]
    probed = pf.workload(probe=Probe(ProbeKind.TCP, port=7070))
    entry = pf.seen(workload=probed)
    kinds = [s.kind for p in KexecEngine().phases(order(facts=pf.facts(workloads=(entry,)))) for s in p.steps]
    assert kinds.index("restore") < kinds.index("probe") < kinds.index("disarm")


def test_only_workloads_that_systemd_starts_are_held() -> None:
    """A tree by PID file or cgroup has no unit to hold; where there is none at all the step is left out."""
    tree = pf.workload(name="tree", unit="", cgroup="/tree.slice", root_pid=700, pids=(700,))
    mixed = replace(order(), workloads=(pf.workload(), tree))
    held = {s.kind: s.params for p in KexecEngine().phases(mixed) for s in p.steps if "workloads" in s.params}
    for kind in ("hold-units", "release-units"):
        assert [w["name"] for w in held[kind]["workloads"]] == ["demo"], kind
    for kind in ("freeze", "dump", "restore", "thaw"):
        assert len(held[kind]["workloads"]) == 2, kind
    bare = KexecEngine().phases(replace(order(), workloads=(tree,)))
    assert not {"hold-units", "release-units"} & {s.kind for p in bare for s in p.steps}


def test_command_lines_carry_the_ticket_forward_and_not_back() -> None:
    """The new kernel gets ticket, early init and panic=; the way back is the host's own line without a ticket."""
    line = CommandLine.parse(crossing_cmdline(order()))
    assert line.get("kupgrade.ticket") == f"{ID}:1"
    assert line.get("rdinit") == "/kupgrade-init" and line.get("panic") == "5" and line.get("root") == "/dev/vda"
    assert line.get("systemd.unit") == "kupgrade-crossing.target"
    back = CommandLine.parse(back_cmdline(order()))
    assert back.get("kupgrade.ticket") is None and back.get("panic") == "3" and back.get("rdinit") == "/kupgrade-init"


def test_an_init_of_the_host_or_other_mounts_keep_the_agent_an_ordinary_service() -> None:
    """The agent beside systemd is used only where nothing else must come first."""
    for facts in (pf.facts(early_agent=False), pf.facts(cmdline="root=/dev/vda init=/sbin/other")):
        assert CommandLine.parse(crossing_cmdline(order(facts=facts))).get("systemd.unit") is None


def plan() -> Plan:
    wanted = order()
    phases = KexecEngine().phases(wanted)
    return planner.assemble(ID, 1.0, wanted.facts, wanted.policy, pf.target(), "kexec", wanted.store, phases, ())


def test_a_plan_survives_storage_and_every_step_loads() -> None:
    """encode and decode give an equal plan with the same digest, and each step becomes code again."""
    made = plan()
    again = decode(Plan, encode(made))
    assert again == made and again.digest == made.digest
    assert [load(s).kind for s in again.steps] == [s.kind for s in made.steps]


def test_the_prediction_grows_with_memory_and_slowness() -> None:
    """More memory or a slower host predicts a longer blackout, and each term names its basis."""
    small = predict.budget(pf.facts(), pf.seen(), 60.0)
    large = predict.budget(pf.facts(), pf.seen(anonymous_bytes=8 << 30), 60.0)
    slow = predict.budget(pf.facts(checksum_rate=1e8), pf.seen(), 60.0)
    assert small.predicted < large.predicted and small.predicted < slow.predicted
    assert all(term.basis for term in small.terms)


def test_images_on_a_slow_disk_take_as_long_as_the_disk() -> None:
    """What is read at 100 MB/s is not there at the speed of memory; a fast disk, or memory, changes nothing."""
    seen = pf.seen(anonymous_bytes=8 << 30)
    slow, fast = (
        pf.facts(stores=dataclasses.replace(pf.facts().stores, disk_rate=rate), workloads=(seen,))
        for rate in (1e8, 3e9)
    )
    memory = predict.budget(slow, seen, 60.0, store=StoreKind.PMEM).predicted
    assert predict.budget(fast, seen, 60.0, store=StoreKind.DISK).predicted == memory
    found = predict.budget(slow, seen, 60.0, store=StoreKind.DISK)
    assert found.predicted > memory + (8 << 30) / 1e8 * 0.8
    assert any("100 MB/s" in term.basis for term in found.terms)
    made = planner.assemble(ID, 0.0, slow, pf.policy(), pf.target(), "kexec", order().store, (), ())
    assert made.budgets[0].predicted == found.predicted


def test_memory_in_place_is_predicted_where_it_is_sure() -> None:
    """It is not read back in the blackout then, but shared memory is; a target nobody could ask may have to copy."""
    seen = pf.seen(anonymous_bytes=8 << 30, shared_bytes=1 << 30)
    facts, policy = pf.facts(workloads=(seen,)), pf.policy(engine=EngineOptions(memory=MemoryMode.IN_PLACE))
    copied, shared = predict.budget(facts, seen, 60.0).predicted, pf.seen(anonymous_bytes=0, shared_bytes=1 << 30)
    told = {}
    for has in (True, False, None):
        target = replace(pf.target(), userfaultfd=has)
        made = planner.assemble(ID, 1.0, facts, policy, target, "kexec", order().store, (), ())
        told[has] = made.budgets[0].predicted
    assert told[False] == told[None] == copied
    assert predict.budget(facts, shared, 60.0).predicted < told[True] < copied / 2
    stored = [predict.images_on(facts, StoreKind.PMEM, placed=placed) or 0.0 for placed in (True, False)]
    assert 0 < stored[0] < stored[1] / 2


def test_the_gate_knows_what_the_limit_leaves_for_the_dump() -> None:
    """A limited workload's allowance is its limit without the predicted rest; one without a limit has none."""
    limited = pf.workload(max_blackout=60.0)
    facts = pf.facts(workloads=(pf.seen(workload=limited),))
    (allowance,) = predict.allowances(facts, [limited], 60.0)
    terms = predict.budget(facts, facts.workloads[0], 60.0).terms
    assert allowance.seconds == pytest.approx(60.0 - sum(t.seconds for t in terms[1:]), abs=0.01)
    assert predict.allowances(pf.facts(), [pf.workload()], 60.0) == ()
    gate = next(s for p in KexecEngine().phases(order(facts=facts)) for s in p.steps if s.kind == "gate")
    assert [a["workload"] for a in gate.params["allowances"]] == ["demo"]
    slow = pf.facts(stores=replace(facts.stores, disk_rate=1e6), workloads=facts.workloads)
    gate = next(s for p in KexecEngine().phases(order(facts=slow)) for s in p.steps if s.kind == "gate")
    whole = predict.budget(slow, slow.workloads[0], 60.0, store=StoreKind.DISK)
    assert len(whole.terms) > len(terms)
    assert gate.params["allowances"][0]["seconds"] == pytest.approx(
        60.0 - sum(t.seconds for t in whole.terms[1:]), abs=0.01
    )


def test_a_workload_with_fate_refuse_forbids_the_upgrade_while_it_runs() -> None:
    """fate = refuse is a no as long as the workload is there."""
    entry = WorkloadPolicy("demo", unit="demo.service", fate=Fate.REFUSE)
    other = WorkloadPolicy("web", unit="web.service")
    web = pf.seen(name="web", unit="web.service", workload=pf.workload(name="web", unit="web.service"))
    wanted = pf.policy(workloads=(entry, other))
    assert [r.rule for r in checks.workload_refusals(pf.facts(workloads=(pf.seen(), web)), wanted)] == [
        "demo does not run"
    ]
    gone = dataclasses.replace(pf.seen(), workload=None, absent="stopped")
    assert checks.workload_refusals(pf.facts(workloads=(gone, web)), wanted) == ()
