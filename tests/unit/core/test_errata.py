"""Known problems: which apply, which may, and what the policy ignores."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kupgrade.core.errata import errata_refusals, errata_warnings, findings
from kupgrade.core.explain_more import more_json, more_text
from kupgrade.errata.load import load
from kupgrade.errors import BadInputError
from kupgrade.model.erratum import Erratum, Match, PlatformFacts, Severity, VersionRange, version_of
from kupgrade.model.policy import ErrataOptions, OnUnknown
from tests.fakes import facts as fake
from tests.fakes.hooks import HOOKS

SOURCE = ("https://example.org/issues/1",)
PLATFORM = PlatformFacts(
    modules=("i915", "nvme"), pci=("8086:4e61", "1af4:1042"), hypervisor="kvm", cpu_vendor="GenuineIntel",
    sysctls={"kernel.io_uring_disabled": "0", "kernel.unread": None},
)  # fmt: skip

URING = fake.seen(fake.process(descriptors=(fake.descriptor("anon_inode", "io_uring"),)))


def erratum(severity: Severity = Severity.REFUSE, **match: Any) -> Erratum:
    for key in ("criu", "running", "target", "either"):
        if key in match:
            match[key] = VersionRange.parse(match[key])
    return Erratum("some-thing", severity, Match(**match), "it breaks", "mend it", SOURCE)


def applies(match: dict[str, Any], **changes: Any) -> bool | None:
    """True, False, or None: it may."""
    target = fake.target(config={"CONFIG_X": "m"})
    facts = fake.facts(**{"errata": (erratum(**match),), "platform": PLATFORM, **changes})
    found = findings(facts, fake.policy(), target, "kexec")
    return False if not found else None if found[0].unknown else True


def test_a_modules_name_may_be_written_with_dashes() -> None:
    """modinfo and file names have dashes where the kernel tells underscores."""
    platform = PlatformFacts(modules=("kvm_intel",), pci=(), hypervisor="none", cpu_vendor=None, sysctls={})
    assert applies({"modules": ("kvm-intel",)}, platform=platform) is True


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        (">=6.16", ["6.16", "6.16.0-rc1", "7.0.1-amd64", "10.1"], ["6.15.99", "5.19"]),
        (">=6.13, <6.16", ["6.13.0", "6.15.12-cloud"], ["6.12.48", "6.16"]),
        ("<4.2.1", ["4.2", "4.1.1", "3.17.1"], ["4.2.1", "4.10"]),
        ("==6.1", ["6.1", "6.1.0-13-amd64"], ["6.1.1"]),
        ("<=6.12, >6.1", ["6.12", "6.2"], ["6.12.1", "6.1"]),
    ],
)
def test_ranges_compare_numbers_not_text(text: str, inside: list[str], outside: list[str]) -> None:
    """Missing numbers count as 0, what follows the numbers does not count."""
    wanted = VersionRange.parse(text)
    assert [version_of(each) in wanted for each in inside] == [True] * len(inside)
    assert [version_of(each) in wanted for each in outside] == [False] * len(outside)


@pytest.mark.parametrize("text", ["", "6.1", ">=", ">=six", ">=6.1 <7", "!=6.1", ">=6.1.2.3.4"])
def test_what_is_no_range_is_refused(text: str) -> None:
    """With an example of one."""
    with pytest.raises(BadInputError, match="range of versions"):
        VersionRange.parse(text)


@pytest.mark.parametrize(
    ("match", "met"),
    [
        ({"criu": ">=4.2"}, True),
        ({"criu": "<4.2"}, False),
        ({"running": ">=6.12, <6.13"}, True),
        ({"running": ">=7"}, False),
        ({"target": ">=7.1"}, True),
        ({"target": "<7.1"}, False),
        ({"either": ">=7.1"}, True),
        ({"either": "<6.13"}, True),
        ({"either": ">=8"}, False),
        ({"engine": "kexec"}, True),
        ({"engine": "spawn"}, False),
        ({"architecture": ("aarch64", "x86_64")}, True),
        ({"architecture": ("aarch64",)}, False),
        ({"modules": ("xe", "i915")}, True),
        ({"modules": ("mlx5_core",)}, False),
        ({"pci": ("8086:4e*",)}, True),
        ({"pci": ("15b3:1013",)}, False),
        ({"hypervisor": ("kvm",)}, True),
        ({"hypervisor": ("vmware",)}, False),
        ({"cpu_vendor": ("GenuineIntel",)}, True),
        ({"cpu_vendor": ("AuthenticAMD",)}, False),
        ({"cmdline": ("panic=3",)}, True),
        ({"cmdline": ("panic=4", "quiet")}, True),
        ({"cmdline": ("panic=4",)}, False),
        ({"sysctl": {"kernel.io_uring_disabled": "0"}}, True),
        ({"sysctl": {"kernel.io_uring_disabled": "2"}}, False),
        ({"sysctl": {"kernel.unread": "0"}}, None),
        ({"config": {"CONFIG_X": "m"}}, True),
        ({"config": {"CONFIG_Y": "n"}}, True),
        ({"config": {"CONFIG_X": "y"}}, False),
        ({"modules": ("i915",), "engine": "spawn"}, False),
        ({"sysctl": {"kernel.unread": "0"}, "engine": "spawn"}, False),
    ],
)
def test_each_condition_is_met_or_not_or_unknown(match: dict[str, Any], met: bool | None) -> None:
    """All of them have to hold; one that does not hold settles it whatever else is unknown."""
    assert applies(match) is met


@pytest.mark.parametrize(
    ("match", "changes"),
    [
        ({"criu": "<4"}, {"criu_version": None}),
        ({"modules": ("i915",)}, {"platform": None}),
        ({"pci": ("8086:*",)}, {"platform": PlatformFacts()}),
        ({"hypervisor": ("kvm",)}, {"platform": PlatformFacts()}),
        ({"running": ">=6"}, {"release": "custom"}),
        ({"descriptors": ("io_uring",)}, {"workloads": (fake.seen(workload=None),), "unknown": {"workload demo": "?"}}),
    ],
)
def test_unknown_is_not_no(match: dict[str, Any], changes: dict[str, Any]) -> None:
    """What could not be determined leads to a warning that names it, never to silence and never to a refusal."""
    assert applies(match, **changes) is None
    facts = fake.facts(**{"errata": (erratum(**match),), "platform": PLATFORM, **changes})
    assert errata_refusals(facts, fake.policy(), fake.target(), "kexec") == ()
    (told,) = errata_warnings(facts, fake.policy(), fake.target(), "kexec")
    assert told.startswith("it is unknown whether the known problem some-thing applies (")


def test_a_policy_may_refuse_what_is_unknown() -> None:
    """Where a known problem would forbid the upgrade; one that only warns does not."""
    strict = fake.policy(on_unknown=OnUnknown.REFUSE)
    facts = fake.facts(errata=(erratum(modules=("i915",)),), platform=None)
    (refusal,) = errata_refusals(facts, strict, fake.target(), "kexec")
    assert refusal.fact.startswith("it is unknown whether this applies (modules): it breaks")
    facts = fake.facts(errata=(erratum(Severity.WARN, modules=("i915",)),), platform=None)
    assert errata_refusals(facts, strict, fake.target(), "kexec") == ()


def test_a_configuration_that_nobody_knows_is_unknown() -> None:
    """The new kernel's, without IKCONFIG and without a file beside it."""
    facts = fake.facts(errata=(erratum(config={"CONFIG_X": "n"}),))
    (found,) = findings(facts, fake.policy(), fake.target(), "kexec")
    assert found.unknown == ("CONFIG_X of the new kernel",)


def test_only_what_kept_workloads_hold_counts() -> None:
    """By the kind of an anonymous inode or a socket's protocol, in any spelling."""
    for descriptor in (fake.descriptor("anon_inode", "io_uring"), fake.descriptor("socket", "", protocol="MPTCPv6")):
        workload = fake.seen(fake.process(descriptors=(descriptor,)))
        match = {"descriptors": ("IO_URING", "mptcpv6")}
        assert applies(match, workloads=(workload,)) is True
    assert applies({"descriptors": ("io_uring",)}) is False


def test_without_a_target_only_what_asks_for_one_is_left_out() -> None:
    """The preflight of a host; `either` then goes by the running kernel."""
    entries = [erratum(target=">=1"), erratum(config={"CONFIG_X": "n"}), erratum(either=">=7.1"), erratum(either=">=6")]
    found = [findings(fake.facts(errata=(each,)), fake.policy(), None, "kexec") for each in entries]
    assert [len(each) for each in found] == [0, 0, 0, 1]


def test_what_is_certain_refuses_with_remedy_and_source() -> None:
    """A warning only warns; what the policy ignores is a warning that says so."""
    facts = fake.facts(errata=(erratum(engine="kexec"),))
    (refusal,) = errata_refusals(facts, fake.policy(), fake.target(), "kexec")
    assert refusal.fact == f"it breaks ({SOURCE[0]})"
    assert "mend it" in refusal.remedy
    assert errata_warnings(facts, fake.policy(), fake.target(), "kexec") == ()
    ignoring = fake.policy(errata=ErrataOptions(("some-thing",)))
    assert errata_refusals(facts, ignoring, fake.target(), "kexec") == ()
    (told,) = errata_warnings(facts, ignoring, fake.target(), "kexec")
    assert "some-thing, ignored by the policy" in told
    facts = fake.facts(errata=(erratum(Severity.WARN, engine="kexec"),))
    assert errata_refusals(facts, fake.policy(), fake.target(), "kexec") == ()
    assert errata_warnings(facts, fake.policy(), fake.target(), "kexec")[0].endswith("mend it")


def test_the_preflight_tells_them_with_the_engine_and_the_hooks() -> None:
    """And its JSON twin holds the same."""
    facts = fake.facts(errata=(erratum(engine="kexec"),), hooks=HOOKS[:2])
    known = {name: findings(facts, fake.policy(), fake.target(), name) for name in ("kexec", "spawn")}
    text = "\n".join(more_text(facts, fake.policy(), known))
    assert "refused (engine kexec): known problem some-thing" in text
    assert "gate: /etc/kupgrade/hooks/gate.d/10, at most 10 s, undone by /u" in text
    value = more_json(facts, fake.policy(), known)
    assert (value["errata"]["kexec"][0]["id"], value["errata"]["spawn"]) == ("some-thing", [])
    assert value["hooks"][0]["timeout"] == 10.0


@pytest.mark.parametrize(
    ("ids", "changes", "target"),
    [
        ({"criu-before-4.2.1", "criu-sockets-6.16", "criu-udplite-7.1"}, {"criu_version": (4, 1, 1)}, "7.3.4"),
        ({"criu-before-4.2.1", "criu-udplite-7.1"}, {"criu_version": (4, 2)}, "7.3.4"),
        ({"criu-before-4.2.1"}, {"criu_version": (4, 2)}, "6.12.9"),
        (set(), {"criu_version": (4, 2, 1)}, "7.3.4"),
        ({"io-uring"}, {"workloads": (URING,)}, "7.3.4"),
    ],
)  # fmt: skip
def test_the_shipped_ones_refuse_where_they_should(ids: set[str], changes: dict[str, Any], target: str) -> None:
    """By the same matcher, on a healthy virtual host otherwise."""
    facts = fake.facts(errata=load(), platform=PLATFORM, **changes)
    refused = errata_refusals(facts, fake.policy(), fake.target(release=f"{target}-amd64"), "kexec")
    assert {each.rule.rpartition("(")[2].rstrip(")") for each in refused} == ids


def test_the_shipped_ones_warn_where_they_should() -> None:
    """Hardware that is known to be bad at kexec, for that engine only."""
    facts = fake.facts(errata=load(), platform=PLATFORM)
    assert "known problem kexec-i915" in " ".join(errata_warnings(facts, fake.policy(), fake.target(), "kexec"))
    assert errata_warnings(facts, fake.policy(), fake.target(), "spawn") == ()


@pytest.mark.parametrize(("hypervisor", "refused"), [("microsoft", True), ("kvm", False), (None, False)])
def test_a_second_kernel_is_refused_where_the_machine_has_one_hypercall_page(
    hypervisor: str | None, refused: bool
) -> None:
    """By kexec there is one kernel at a time; a hypervisor that is not known is a warning, and no refusal."""
    facts = fake.facts(errata=load(), platform=replace(PLATFORM, hypervisor=hypervisor))
    found = {name: errata_refusals(facts, fake.policy(), fake.target(), name) for name in ("spawn", "kexec")}
    assert ["spawn-hyperv" in each.rule for each in found["spawn"]] == [True] * refused
    assert not any("spawn-hyperv" in each.rule for each in found["kexec"])
    warned = " ".join(errata_warnings(facts, fake.policy(), fake.target(), "spawn"))
    assert ("spawn-hyperv" in warned) is (hypervisor is None)
