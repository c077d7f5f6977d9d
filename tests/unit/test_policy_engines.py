"""Tables of a policy beside its workloads: the spawn engine, hooks, errata, metrics, descriptor stores."""

from __future__ import annotations

from pathlib import Path

import pytest

from kupgrade.errors import BadInputError
from kupgrade.model.descriptors import PreservePolicy, StoreLosses
from kupgrade.model.policy import Concern, SpawnOptions
from kupgrade.policy import load, merge, parse
from tests.unit.policies import of, refusal


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
