"""The policy: drop-ins, merging, and every way in which a file can be wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kupgrade.errors import BadInputError
from kupgrade.model.descriptors import PreservePolicy, StoreLosses
from kupgrade.model.policy import Concern, NetworkMode, OnUnknown, Policy, SpawnOptions, seconds
from kupgrade.model.schedule import Automation, Day, Mode, Window
from kupgrade.model.workload import Fate, ProbeKind, StoreKind
from kupgrade.policy import drop_ins, find_line, load, merge, parse

SHIPPED = Path(__file__).parents[2] / "policies"


def put(root: Path, layer: str, name: str, text: str) -> Path:
    directory = root / layer / "kupgrade/policy.d"
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    path.write_text(text)
    for each in (path, *path.parents):
        if each == root:
            break
        each.chmod(0o644 if each == path else 0o755)
    return path


def of(text: str) -> Policy:
    return merge((parse(Path("x.toml"), text.encode()),))


def refusal(text: str) -> str:
    with pytest.raises(BadInputError) as caught:
        of(text)
    assert caught.value.remedy
    return str(caught.value)


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


def test_nothing_is_the_default(tmp_path: Path) -> None:
    """Without drop-ins the built-in defaults hold."""
    assert load(tmp_path) == Policy()


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


def test_the_spawn_engine_has_options() -> None:
    """Sizes take units, spans take spans, warnings are named."""
    policy = of(
        """
        [engine.spawn]
        cores = 2
        memory = "2GiB"
        window = "256 M"
        serial = 2
        predump_rounds = 1
        hello_timeout = "2min"
        restore_deadline = 7
        cmdline_append = "quiet"
        keep = ["0000:00:1c.*"]
        retire = false
        refuse_on = ["panic", "drivers"]
        """
    )
    expected = SpawnOptions(
        cores=2,
        memory=2 << 30,
        window=256 << 20,
        serial=2,
        predump_rounds=1,
        hello_timeout=120.0,
        restore_deadline=7.0,
        cmdline_append="quiet",
        keep=("0000:00:1c.*",),
        retire=False,
        refuse_on=(Concern.PANIC, Concern.DRIVERS),
    )
    assert policy.engine.spawn == expected
    assert expected.keeps("0000:00:1c.4") and not expected.keeps("0000:00:02.0")
    assert of("[engine.spawn]\nmemory = 4096").engine.spawn.memory == 4096


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("cores = -1", "engine.spawn.cores"),
        ("cores = true", "whole number from 0 to 4096"),
        ('memory = "2 lots"', '"512MiB"'),
        ("memory = -1", '"512MiB"'),
        ("window = false", '"512MiB"'),
        ("serial = 9", "0 to 4"),
        ('keep = ["eth0"]', "PCI address"),
        ('keep = "0000:00:02.0"', "Write a list"),
        ('hello_timeout = "0s"', "positive"),
        ('refuse_on = ["panics"]', '"panic"'),
        ("speed = 1", "Known here: cmdline_append, cores"),
    ],
)
def test_wrong_options_of_the_spawn_engine(line: str, told: str) -> None:
    """Each says where it stands and what to write."""
    said = refusal(f"[engine.spawn]\n{line}\n")
    assert told in said and "line 2" in said


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


def test_layers_merge_by_file_name(tmp_path: Path) -> None:
    """Names order the files whatever their layer; tables and workloads of one name merge."""
    put(
        tmp_path,
        "etc",
        "10-a.toml",
        "deadline = 10\npanic_timeout = 1\n[[workload]]\nname='d'\nunit='d.service'\n",
    )
    put(tmp_path, "usr/lib", "20-b.toml", "deadline = 20\n[[workload]]\nname='d'\nmax_blackout=1\n")
    policy = load(tmp_path)
    assert (policy.deadline, policy.panic_timeout) == (20, 1)
    assert [(w.unit, w.max_blackout) for w in policy.workloads] == [("d.service", 1)]


def test_a_higher_layer_masks_the_same_name(tmp_path: Path) -> None:
    """The same name in /etc replaces the file of /usr/lib whole."""
    put(tmp_path, "usr/lib", "10-a.toml", "deadline = 10\npanic_timeout = 1\n")
    put(tmp_path, "etc", "10-a.toml", "deadline = 30\n")
    assert (load(tmp_path).deadline, load(tmp_path).panic_timeout) == (30, 5)


def test_a_link_to_dev_null_masks(tmp_path: Path) -> None:
    """A link to /dev/null removes a file without replacement."""
    put(tmp_path, "usr/lib", "10-a.toml", "deadline = 10\n")
    put(tmp_path, "etc", "10-a.toml", "").unlink()
    (tmp_path / "etc/kupgrade/policy.d/10-a.toml").symlink_to("/dev/null")
    assert load(tmp_path) == Policy() and drop_ins(tmp_path) == ()


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


def test_the_file_at_fault_is_named(tmp_path: Path) -> None:
    """What only the merged policy tells is blamed on the file that set it last."""
    put(tmp_path, "etc", "10-a.toml", "[[workload]]\nname='a'\nunit='a.service'\n")
    put(tmp_path, "etc", "20-b.toml", "[[workload]]\nname='a'\n[workload.probe]\nkind='tcp'\n")
    with pytest.raises(BadInputError, match=r"20-b\.toml"):
        load(tmp_path)


@pytest.mark.parametrize("data", [b"\xff\xfe", b"\0", b"a" * 100, b"[" * 5000, b"a = " + b"[" * 5000])
def test_garbage_is_refused(data: bytes) -> None:
    """Bytes that are no TOML are refused, never a traceback."""
    with pytest.raises(BadInputError):
        merge((parse(Path("x.toml"), data),))


@given(st.text(max_size=60))
def test_any_text_is_a_policy_or_refused(text: str) -> None:
    """No text makes the loader fail in any other way."""
    try:
        of(text)
    except BadInputError:
        pass
    find_line(text, ("deadline",))


@pytest.mark.parametrize("what", ["file", "directory", "parent"])
def test_modes_that_let_others_write_are_refused(tmp_path: Path, what: str) -> None:
    """Whoever could have written the policy decides what the upgrade does: root alone may."""
    path = put(tmp_path, "etc", "10-a.toml", "deadline = 10\n")
    {"file": path, "directory": path.parent, "parent": path.parent.parent}[what].chmod(0o777)
    with pytest.raises(BadInputError, match="chmod go-w"):
        load(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs chown")
@pytest.mark.parametrize("what", ["file", "directory"])
def test_other_owners_are_refused(tmp_path: Path, what: str) -> None:
    """A file or directory of another user is refused."""
    path = put(tmp_path, "etc", "10-a.toml", "deadline = 10\n")
    os.chown(path if what == "file" else path.parent, 1234, 1234)
    with pytest.raises(BadInputError, match="does not belong to root"):
        load(tmp_path)


def test_no_regular_file_is_refused(tmp_path: Path) -> None:
    """A pipe or a directory in place of a file neither blocks nor passes."""
    path = put(tmp_path, "etc", "10-a.toml", "")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(BadInputError, match="not a regular file"):
        load(tmp_path)
    path.unlink()
    path.symlink_to("nowhere.toml")
    with pytest.raises(BadInputError):
        load(tmp_path)


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    """Only *.toml counts: editors' backups and hidden files do not."""
    for name in ("10-a.toml~", ".10-a.toml", "README"):
        put(tmp_path, "etc", name, "nonsense")
    assert load(tmp_path) == Policy()


def test_what_leads_outwards_has_its_tables(tmp_path: Path) -> None:
    """Hooks' timeouts in seconds, known problems to ignore, where metrics go; wrong values are told with their key."""
    path = tmp_path / "etc/kupgrade/policy.d/out.toml"
    path.parent.mkdir(parents=True)
    path.write_text(
        '[hooks]\ntimeout = "1min"\nblackout_timeout = "500ms"\n'
        '[errata]\nignore = ["io-uring"]\n[metrics]\ntextfile = ""\n'
    )
    found = load(tmp_path)
    assert (found.hooks.timeout, found.hooks.blackout_timeout) == (60.0, 0.5)
    assert (found.errata.ignore, found.metrics.textfile) == (("io-uring",), "")
    for text, key in (
        ("[hooks]\ntimeout = 0\n", "hooks.timeout"),
        ('[errata]\nignore = "io-uring"\n', "errata.ignore"),
        ('[metrics]\ntextfile = "relative.prom"\n', "metrics.textfile"),
        ("[hooks]\npatience = 3\n", "hooks.patience"),
    ):
        path.write_text(text)
        with pytest.raises(BadInputError, match=f"line 2: {key} is not usable"):
            load(tmp_path)


def test_what_is_preserved_merges_by_its_unit() -> None:
    """A later file changes the table of the same unit and adds its own."""
    low = parse(Path("10.toml"), b'[[preserve]]\nunit = "a.service"\n[[preserve]]\nunit = "b.service"\n')
    high = parse(Path("20.toml"), b'[[preserve]]\nunit = "a.service"\nlosses = "refuse"\n')
    assert merge((low, high)).preserve == (
        PreservePolicy("a.service", StoreLosses.REFUSE),
        PreservePolicy("b.service", StoreLosses.TELL),
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[[preserve]]\nlosses = 'tell'", "preserve number 1 has no unit"),
        ("[[preserve]]\nunit = 'demo'", "line 2: preserve.demo.unit"),
        ("[[preserve]]\nunit = 'a.service'\nlosses = 'no'", "line 3: preserve.a.service.losses"),
        ("[[preserve]]\nunit = 'a.service'\n[[preserve]]\nunit = 'a.service'", "used twice"),
        ("[preserve]\nunit = 'a.service'", "Write each below its own [[preserve]]"),
        ("[[preserve]]\nunit = 'a.service'\nname = 'x'", "no such key"),
    ],
)
def test_a_wrong_table_of_what_is_preserved_is_named(text: str, told: str) -> None:
    """With line and key."""
    assert told in refusal(text)
