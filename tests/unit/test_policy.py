"""The policy: its keys, their values and defaults, and every way in which one can be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from kupgrade.errors import BadInputError
from kupgrade.model.policy import NetworkMode, OnUnknown, Policy, seconds
from kupgrade.model.schedule import Automation, Day, Mode, Window
from kupgrade.model.workload import Fate, ProbeKind, StoreKind
from kupgrade.policy import merge, parse
from tests.unit.policies import of, refusal

SHIPPED = Path(__file__).parents[2] / "policies"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30s", 30),
        ("500ms", 0.5),
        ("1min", 60),
        ("1h30m", 5400),
        ("1min 30s", 90),
        ("20", 20),
        ("2 hours", 7200),
        ("1.5s", 1.5),
        ("7us", 7e-6),
    ],
)
def test_time_spans(text: str, expected: float) -> None:
    """Systemd's words for time spans are understood."""
    assert seconds(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", " ", "s", "-1s", "1 fortnight", "1s!", "infinity", "1e3s", "9" * 400 + "s"])
def test_no_time_spans(text: str) -> None:
    """Anything else is refused."""
    with pytest.raises(BadInputError):
        seconds(text)


def test_default_toml_spells_out_the_defaults() -> None:
    """The shipped default.toml changes nothing, so that it can be read as documentation."""
    assert of((SHIPPED / "default.toml").read_text()) == Policy()


def test_shipped_lines_are_commented() -> None:
    """Each key in a shipped policy says what it does."""
    for path in SHIPPED.glob("*.toml"):
        for line in path.read_text().splitlines():
            assert not line.strip() or "#" in line or line.startswith("[") or line == "]", (path.name, line)


def test_cautious_refuses_on_unknown() -> None:
    """The cautious policy takes an unknown fact for a no."""
    assert of((SHIPPED / "cautious.toml").read_text()).on_unknown is OnUnknown.REFUSE


def test_every_key_is_read() -> None:
    """All keys reach the policy, converted."""
    policy = of(
        """
        max_blackout = "30s"
        stop_services = false
        [engine.kexec]
        stores = ["disk"]
        network = "wait"
        [kernels]
        block = ["*-rc*"]
        [[workload]]
        name = "demo"
        unit = "demo.service"
        max_blackout = "5s"
        [workload.probe]
        kind = "http"
        port = 8080
        path = "/health"
        timeout = 3
        [[workload]]
        name = "batch"
        cgroup = "/batch"
        fate = "restart"
        [[workload]]
        name = "agent"
        unit = "agent.service"
        fate = "stop"
        stop_timeout = "2min"
        """
    )
    demo, batch, agent = policy.workloads
    assert (agent.fate, agent.stop_timeout, demo.stop_timeout) == (Fate.STOP, 120, 90)
    assert policy.engine.kexec.stores == (StoreKind.DISK,) and policy.engine.kexec.network is NetworkMode.WAIT
    assert (demo.probe.kind, demo.probe.port, demo.probe.path, demo.probe.timeout) == (
        ProbeKind.HTTP,
        8080,
        "/health",
        3,
    )
    assert (policy.limit(demo), policy.limit(batch), batch.fate) == (5, 30, Fate.RESTART)
    assert policy.kernels.permits("6.12.1") and not policy.kernels.permits("6.13-rc1")
    assert policy.keeps_service("ssh.service") and not policy.keeps_service("demo.service")


def test_automation_and_windows_are_read() -> None:
    """Modes, windows and the soak time reach the policy."""
    policy = of(
        """
        soak = "10min"
        respect_inhibitors = false
        [automation]
        mode = "apply"
        with_users = true
        [[window]]
        days = ["sat", "sun"]
        start = "02:30"
        length = "2h"
        time_zone = "Europe/Berlin"
        [[window]]
        start = "23:00"
        length = "15min"
        """
    )
    assert (policy.soak, policy.respect_inhibitors) == (600.0, False)
    assert policy.automation == Automation(Mode.APPLY, with_users=True)
    assert policy.windows == (
        Window(150, 7200.0, (Day.SAT, Day.SUN), "Europe/Berlin"),
        Window(1380, 900.0),
    )
    assert [str(each) for each in policy.windows] == [
        "sat,sun 02:30 Europe/Berlin for 120 min",
        "daily 23:00 UTC for 15 min",
    ]


@pytest.mark.parametrize("high", ["[[window]]\nstart='04:00'\nlength='1h'\n", "window = []\n"])
def test_windows_of_a_later_file_replace_the_others(high: str) -> None:
    """Two files never add up to more windows than their last author meant."""
    low = parse(Path("a"), b"[[window]]\nstart='02:00'\nlength='2h'\n[[window]]\nstart='12:00'\nlength='2h'\n")
    assert [w.start for w in merge((low, parse(Path("b"), high.encode()))).windows] == ([240] if "04" in high else [])
    assert [w.start for w in merge((low, parse(Path("c"), b"deadline = 9\n"))).windows] == [120, 720]


def test_another_way_to_find_a_workload_replaces_the_first() -> None:
    """A later file may find a workload by cgroup that an earlier one found by unit."""
    low = parse(Path("a"), b"[[workload]]\nname='d'\nunit='d.service'\n")
    high = parse(Path("b"), b"[[workload]]\nname='d'\ncgroup='/d'\n")
    (workload,) = merge((low, high)).workloads
    assert (workload.unit, workload.cgroup) == ("", "/d")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dead_line = 3", ["line 1", "dead_line", "no such key", "deadline"]),
        ("\n\ndeadline = 'soon'", ["line 3", "deadline", "time span"]),
        ("deadline = 0", ["positive"]),
        ("deadline = true", ["time span"]),
        ("deadline = inf", ["positive"]),
        ("panic_timeout = 0", ["1 to 600"]),
        ("on_unknown = 'ask'", ['"warn"', '"refuse"']),
        ("stop_services = 'no'", ["true or false"]),
        ("keep_services = 'x'", ["list"]),
        ("engine = 3", ["[engine]"]),
        ("[engine]\norder = []", ["line 2", "engine.order"]),
        ("[engine.kexec]\nstores = ['tape']", ["engine.kexec.stores", '"disk"']),
        ("[engine.kexec]\ndisk_path = 'images'", ["absolute"]),
        ('[engine.kexec]\ncmdline_append = "a\\nb"', ["one line"]),
        ("[engine.xen]\na = 1", ["engine.xen", "no such key"]),
        ("workload = 3", ["[[workload]]"]),
        ("[[workload]]\nunit = 'a.service'", ["number 1", "no name"]),
        ("[[workload]]\nname = 'a b'\nunit = 'a.service'", ["line 2", "a b"]),
        ("[[workload]]\nname = 'a'", ["unit, pidfile, cgroup", "none"]),
        ("[[workload]]\nname = 'a'\nunit = 'a.service'\ncgroup = '/a'", ["unit and cgroup"]),
        ("[[workload]]\nname = 'a'\nunit = '../a'", ["line 3", "workload.a.unit"]),
        ("[[workload]]\nname='a'\nunit='a.service'\n[[workload]]\nname='a'\nunit='b.service'", ["twice"]),
        ("[[workload]]\nname='a'\nunit='a.service'\n[workload.probe]\nkind='tcp'", ["workload.a.probe.port"]),
        ("[[workload]]\nname='a'\nunit='a.service'\n[workload.probe]\nport=70000", ["line 5", "65535"]),
        (
            "[[workload]]\nname='a'\nunit='a.service'\n[workload.probe]\nkind='command'\ncommand=['true']",
            ["line 6"],
        ),
        ("[[workload]]\nname='a'\nunit='a.service'\nprobe = 'tcp'", ["[workload.probe]"]),
        ("[[workload]]\nname='a'\ncgroup='/a'\nfate='stop'", ["workload.a.fate", "only a unit"]),
        ("[[workload]]\nname='a'\nunit='a.service'\nfate='halt'", ['"keep", "restart", "stop", "refuse"']),
        ("[[workload]]\nname='a'\nunit='a.service'\nstop_timeout=0", ["workload.a.stop_timeout", "positive"]),
        ("soak = -1", ["line 1", "soak", "positive"]),
        ("soak = true", ["soak", "time span"]),
        ("respect_inhibitors = 'no'", ["respect_inhibitors", "true or false"]),
        ("automation = 'apply'", ["automation", "[automation]"]),
        ("[automation]\nmode = 'now'", ["line 2", "automation.mode", '"notify"', '"apply"']),
        ("[automation]\nwith_users = 1", ["line 2", "automation.with_users", "true or false"]),
        ("[automation]\nmodes = 1", ["automation.modes", "no such key", "mode, with_users"]),
        ("window = 3", ["line 1", "window", "[[window]]"]),
        ("[window]\nstart = '02:00'", ["window", "[[window]]"]),
        ("window = [{start = '2:00', length = '1h'}]", ["line 1", "window.1.start", '"02:30"']),
        ("[[window]]\nlength = '2h'", ["line 1", "window.1.start", "needs it"]),
        ("[[window]]\nstart = '02:00'", ["window.1.length", "needs it"]),
        ("[[window]]\nstart = '24:00'\nlength = '2h'", ["line 2", "window.1.start", '"02:30"']),
        ("[[window]]\nstart = 02:00:00\nlength = '2h'", ["line 2", "window.1.start"]),
        ("[[window]]\nstart = '02:00'\nlength = '5min'", ["line 3", "window.1.length", "15 minutes"]),
        ("[[window]]\nstart = '02:00'\nlength = '8d'", ["line 3", "window.1.length", "7 days"]),
        ("[[window]]\nstart = '02:00'\nlength = '2h'\ndays = ['Sunday']", ["line 4", "window.1.days", '"sun"']),
        ("[[window]]\nstart = '02:00'\nlength = '2h'\ndays = []", ["line 4", "window.1.days", "1 or more"]),
        ("[[window]]\nstart = '02:00'\nlength = '2h'\nzone = 'UTC'", ["line 4", "window.1.zone", "time_zone"]),
        (
            "[[window]]\nstart='02:00'\nlength='2h'\n[[window]]\nstart='02:00'\nlength='2h'\ntime_zone='Europe/Bonn'",
            ["line 7", "window.2.time_zone", "IANA", "tzdata"],
        ),
        ("[[window]]\nstart='02:00'\nlength='2h'\ntime_zone='../../etc/passwd'", ["line 4", "window.1.time_zone"]),
        ("[[window]]\nstart='02:00'\nlength='2h'\ntime_zone=''", ["line 4", "window.1.time_zone"]),
        ("[[window]]\nstart='02:00'\nlength='2h'\ntime_zone=1", ["line 4", "window.1.time_zone"]),
        ("deadline = \n", ["not valid TOML", "line 1"]),
        ("deadline = 1\ndeadline = 2", ["not valid TOML"]),
    ],
)
def test_bad_keys_are_refused(text: str, words: list[str]) -> None:
    """A wrong key or value is refused with file, line, key and a remedy."""
    message = refusal(text)
    for word in ["x.toml", *words]:
        assert word in message
