"""The command line of the new kernel: the host's own, and behind it what the policy appends."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from kupgrade.core.live_update import handover_refusals
from kupgrade.engines.base import Order
from kupgrade.engines.kexec import back_cmdline, crossing_cmdline
from kupgrade.model.ids import UpgradeId
from kupgrade.model.kernel import CommandLine
from kupgrade.model.kho import KhoFacts, KhoWords
from kupgrade.model.policy import EngineOptions, KexecOptions
from kupgrade.model.workload import Store, StoreKind
from tests.fakes import facts as fake

ID = UpgradeId("20261121-041503-9f2c1a")
DISK = Store(StoreKind.DISK, f"/var/lib/kupgrade/images/{ID}")


def crossing(cmdline: str, append: str, **changes: Any) -> str:
    policy = fake.policy(engine=EngineOptions(kexec=KexecOptions(cmdline_append=append)))
    facts = dataclasses.replace(fake.facts(cmdline=cmdline), **changes)
    workloads = (fake.workload(),)
    staging = f"/var/lib/kupgrade/staged/{ID}"
    return crossing_cmdline(Order(ID, facts, policy, fake.target(), DISK, workloads, (), 40000, staging))


@pytest.mark.parametrize("host", ["root=/dev/vda ro", "root=/dev/vda ro -- single"])
@pytest.mark.parametrize("append", ["mitigations=off", 'quiet dyndbg="file a.c +p; file b.c +p"', "quiet -- verbose"])
def test_what_the_policy_appends_reaches_the_kernel(host: str, append: str) -> None:
    """Words for init, on either side, neither swallow it nor are they lost."""
    line = CommandLine.parse(crossing(host, append))
    wanted = CommandLine.parse(append)
    for name, value in wanted:
        assert line.has(name) and line.get(name) == value, (name, str(line))
    to_init = line.words[line.words.index("--") + 1 :] if "--" in line.words else ()
    assert to_init == (("single",) if "--" in host else ()) + (("verbose",) if "--" in append else ())
    assert line.get("rdinit") and line.get("kupgrade.ticket")


@pytest.mark.parametrize("append", ["mitigations=off quiet", "console=ttyS0 console=tty0"])
def test_a_host_that_came_by_a_crossing_is_not_told_again(append: str) -> None:
    """Else the line grows with every upgrade, until the kernel does not take it."""
    first = crossing("root=/dev/vda ro console=ttyS1", append)
    assert sorted(crossing(first, append).split()) == sorted(first.split())
    changed = CommandLine.parse(crossing(first, "console=tty1"))
    assert changed.get("console") == "tty1"


def test_a_word_that_something_else_overrides_is_appended_again() -> None:
    """The last one counts."""
    line = CommandLine.parse(crossing("root=/dev/vda mitigations=off mitigations=auto", "mitigations=off"))
    assert line.get("mitigations") == "off"


@pytest.mark.parametrize("host", ["kho=on liveupdate=on", "kho=on liveupdate=on -- single"])
@pytest.mark.parametrize("word", ["off", "0", "disable", "Disabled"])
def test_what_turns_the_handover_off_is_found_wherever_it_will_stand(host: str, word: str) -> None:
    """As the new kernel reads it: images that it does not take over are lost, and the workloads with them."""
    policy = fake.policy(engine=EngineOptions(kexec=KexecOptions(cmdline_append=f"kho={word}")))
    facts = fake.facts(kho=KhoFacts(True, True, True, KhoWords("on", "on")), cmdline=host)
    assert [each.fact for each in handover_refusals(facts, policy)] == [f"its command line will say kho={word}"]


@pytest.mark.parametrize("lines", [crossing_cmdline, back_cmdline])
def test_a_kernel_that_came_by_a_crossing_passes_none_of_its_words_on(lines: Callable[[Order], str]) -> None:
    """Its agent's script is gone by then, its ticket is spent, and its panic= was never the host's."""
    first = Order(ID, fake.facts(), fake.policy(), fake.target(), DISK, (fake.workload(),), (), 1500, "/staged")
    host = "root=/dev/vda ro quiet panic=7"
    wanted = lines(replace(first, facts=fake.facts(cmdline=host, panic_timeout=7)))
    earlier = replace(first, upgrade=UpgradeId("20251231-000000-ffffff"), staging="/var/lib/kupgrade/staged/old")
    for before in (crossing_cmdline, back_cmdline):
        came = before(replace(earlier, facts=fake.facts(cmdline=host, panic_timeout=7)))
        found = lines(replace(first, facts=fake.facts(cmdline=f"BOOT_IMAGE=/vmlinuz {came}", panic_timeout=7)))
        assert sorted(found.split()) == sorted(wanted.split())
    own = "root=/dev/vda init=/opt/my-init systemd.unit=rescue.target"
    kept = lines(replace(first, facts=fake.facts(cmdline=own)))
    assert "init=/opt/my-init" in kept and "systemd.unit=rescue.target" in kept
