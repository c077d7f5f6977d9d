"""What is told of a rehearsal."""

from __future__ import annotations

from kupgrade.rehearsal import report
from kupgrade.rehearsal.judge import judge
from kupgrade.rehearsal.scenario import Result
from tests.unit.rehearsal.evidence import beside, evidence


def test_several_upgrades_are_reported_one_after_the_other() -> None:
    """Each with its own verdict; the object as a whole is the last one's."""
    first, last = beside(), {**beside(), "old_release": "7.3", "new_release": "7.4"}
    told = report.text(Result({**last, "generations": [first, last]}, (), ()))
    assert [line for line in told.splitlines() if line.startswith("committed")] == [
        "committed: 6.12 -> 7.3, running 7.3",
        "committed: 7.3 -> 7.4, running 7.3",
    ]
    assert "CPUs 0-3 -> 0-3, memory 3906 -> 3613 MiB" in told


def test_the_report_is_self_contained_and_shows_the_silence() -> None:
    """No outside resource; the plot marks the span without answers; text and HTML carry the verdict."""
    item = evidence()
    result = Result(judge(item), tuple(item.client.latencies()), item.journal)
    page = report.html(result)
    assert "http" not in page.replace("http-equiv", "") and "<svg" in page and "9.0" in page and "committed" in page
    assert report.text(result).startswith("committed: 6.12 -> 7.3")


def test_thinning_keeps_the_slowest_request_of_each_bucket() -> None:
    """However many requests, the one that waited longest is drawn."""
    many = [(i * 0.001, 0.001) for i in range(50000)]
    many[31234] = (31.234, 7.0)
    svg = report.plot(many, [])
    assert svg.count(",") < 5000 and "7" in svg
