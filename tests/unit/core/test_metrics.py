"""Metrics as text: read back by the parsers of both formats."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as textfile

from kupgrade import metrics
from kupgrade.core.chronicle import HistoryEntry
from kupgrade.core.metrics import OUTCOMES, Situation, metrics_text

NOW = Situation("0.1.0", "7.3.4", open=False, hands_off=False)
GOOD = HistoryEntry(
    "20261121-041503-9f2c1a", "committed", "", "6.12.48", "7.3.4", "kexec", "disk", 1_795_000_000.0, 1_795_000_060.5,
    {"web": 17.25, 'odd "name"\\': 3.0},
)  # fmt: skip
BACK = replace(GOOD, upgrade="20261122-041503-9f2c1b", outcome="rolled-back", blackout={})
OPEN = replace(GOOD, upgrade="20261123-041503-9f2c1c", outcome="open", finished=None)


def samples(text: str, parser: Any = open_metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parser(text)
        for sample in family.samples
    }


@pytest.mark.parametrize("history", [(), (GOOD,), (GOOD, BACK), (BACK, OPEN), (replace(GOOD, finished=None),)])
def test_both_formats_read_the_same(history: tuple[HistoryEntry, ...]) -> None:
    """OpenMetrics to the letter, and the text format of node_exporter's collector."""
    text = metrics_text(history, NOW)
    assert samples(text) == samples(text, textfile)
    assert text.endswith("# EOF\n")


def test_the_last_upgrade_is_told_with_its_blackout() -> None:
    """The last that ended, whatever is open now; seconds, and names with any character."""
    found = samples(metrics_text((BACK, GOOD, OPEN), replace(NOW, open=True)))

    def value(name: str, **labels: str) -> float:
        return found[name, frozenset(labels.items())]

    assert value("kupgrade_last_upgrade_blackout_seconds", workload="web") == 17.25
    assert value("kupgrade_last_upgrade_blackout_seconds", workload='odd "name"\\') == 3.0
    assert value("kupgrade_last_upgrade_duration_seconds") == 60.5
    assert value("kupgrade_last_upgrade_committed") == 1.0
    assert value("kupgrade_upgrade_pending") == 1.0
    assert value("kupgrade_upgrades_total", outcome="rolled-back") == 1.0
    assert value("kupgrade_info", version="0.1.0", running_release="7.3.4") == 1.0
    told = next(labels for name, labels in found if name == "kupgrade_last_upgrade_info")
    assert dict(told)["new_release"] == "7.3.4"


def test_every_outcome_is_counted_from_the_start() -> None:
    """A counter that appears only with the first failure could not be alerted on."""
    found = samples(metrics_text((), NOW))
    assert {dict(labels)["outcome"] for name, labels in found if name.endswith("_total")} == set(OUTCOMES)


def test_the_file_is_replaced_whole(tmp_path: Path) -> None:
    """Readable for the exporter, nothing left beside it; a link that somebody put there is replaced, not followed."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    path = tmp_path / "collector/kupgrade.prom"
    path.parent.mkdir()
    path.symlink_to(victim)
    metrics.replace(path, b"new\n")
    assert (path.read_text(), victim.read_text()) == ("new\n", "mine")
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(path.parent.iterdir()) == [path]


def test_where_it_goes_is_policy(tmp_path: Path) -> None:
    """Its default, where a collector is; nothing where there is none, or where the policy names none."""
    assert metrics.write(tmp_path) is None
    default = tmp_path / "var/lib/prometheus/node-exporter"
    default.mkdir(parents=True)
    assert metrics.write(tmp_path) == default / "kupgrade.prom"
    assert ("kupgrade_upgrade_pending", frozenset()) in samples((default / "kupgrade.prom").read_text())
    policy = tmp_path / "etc/kupgrade/policy.d/m.toml"
    policy.parent.mkdir(parents=True)
    policy.write_text('[metrics]\ntextfile = "/srv/k.prom"\n')
    (tmp_path / "srv").mkdir()
    assert metrics.write(tmp_path) == tmp_path / "srv/k.prom"
    policy.write_text('[metrics]\ntextfile = ""\n')
    assert metrics.write(tmp_path) is None


def test_an_upgrade_never_fails_for_its_metrics(tmp_path: Path) -> None:
    """What went wrong comes back as text."""
    policy = tmp_path / "etc/kupgrade/policy.d/m.toml"
    policy.parent.mkdir(parents=True)
    policy.write_text("[metrics]\ntextfile = 3\n")
    assert "textfile" in metrics.write_quietly(tmp_path)
