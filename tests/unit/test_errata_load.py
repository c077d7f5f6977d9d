"""Errata files: what is shipped, what a host adds, and exact errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from kupgrade.errata.load import OWN, load
from kupgrade.errors import BadInputError
from kupgrade.model.erratum import PlatformFacts, Severity
from kupgrade.probe_platform import observe_platform

GOOD = """\
[[erratum]]
id = "own-one"
severity = "warn"
consequence = "it breaks"
remedy = "mend it"
sources = ["https://example.org/issues/1"]
[erratum.match]
running = ">=6.1"
sysctl = { "kernel.some" = "1" }
"""


def put(root: Path, text: str, layer: str = "etc", name: str = "10-own.toml") -> Path:
    path = root / layer / "kupgrade/errata.d" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_what_is_shipped_is_whole(tmp_path: Path) -> None:
    """A dozen and more, each with its own name, a public source, a remedy and a condition."""
    found = load(tmp_path)
    assert len(found) >= 12
    assert len({each.id for each in found}) == len(found)
    assert all(source.startswith("https://") for each in found for source in each.sources)
    assert {each.severity for each in found} == set(Severity)
    assert {Path(each.place).parent for each in found} == {OWN}


def test_a_host_adds_and_replaces(tmp_path: Path) -> None:
    """By the rules of the policy's drop-ins; a later entry of the same id replaces an earlier one."""
    put(tmp_path, GOOD, "usr/lib")
    put(tmp_path, GOOD.replace("it breaks", "it breaks here"), "etc", "20-more.toml")
    put(tmp_path, GOOD.replace("own-one", "io-uring"), "etc", "30-again.toml")
    found = {each.id: each for each in load(tmp_path)}
    assert found["own-one"].consequence == "it breaks here"
    assert found["io-uring"].severity is Severity.WARN


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ('severity = "warn"', 'severity = "fatal"', 3, "severity is not usable"),
        ('severity = "warn"\n', "", 1, "severity is not usable: it is missing"),
        ('remedy = "mend it"', "remedy = 3", 5, "remedy is not usable"),
        ('remedy = "mend it"', 'remedies = "mend it"', 5, "remedies is not usable: no such key"),
        ('id = "own-one"', 'id = "Own One"', 2, "id is not usable"),
        ("https://example.org/issues/1", "see the wiki", 6, "sources is not usable"),
        ('">=6.1"', '"6.1"', 8, "match.running is not usable"),
        ('">=6.1"', "6.1", 8, "match.running is not usable"),
        ('running = ">=6.1"', 'runing = ">=6.1"', 8, "match.runing is not usable: no such key"),
        ('running = ">=6.1"', 'pci = ["8086"]', 8, "match.pci is not usable"),
        ('running = ">=6.1"', "modules = []", 8, "match.modules is not usable"),
        ('running = ">=6.1"', 'engine = "both"', 8, "match.engine is not usable"),
        ('{ "kernel.some" = "1" }', '{ "kernel.some" = 1 }', 9, "match.sysctl is not usable"),
        ('running = ">=6.1"\nsysctl = { "kernel.some" = "1" }\n', "", 7, "match is not usable: it matches everything"),
        ("[[erratum]]", "[erratum]", 0, "erratum is not usable"),
        ("[[erratum]]", "[[errata]]", 0, "errata is not usable"),
        ('id = "own-one"', "id = ", 0, "not valid TOML"),
    ],
)  # fmt: skip
def test_every_mistake_is_told_with_file_line_key_and_remedy(
    tmp_path: Path, old: str, new: str, line: int, words: str
) -> None:
    """Nothing is taken from a file that is wrong anywhere."""
    assert old in GOOD
    path = put(tmp_path, GOOD.replace(old, new))
    with pytest.raises(BadInputError) as caught:
        load(tmp_path)
    text = str(caught.value)
    assert words in text
    assert str(path) in text
    assert caught.value.remedy
    if line:
        assert f"{path}, line {line}:" in text


def test_the_same_id_twice_in_a_file_is_a_mistake(tmp_path: Path) -> None:
    """In the second entry, with its line."""
    put(tmp_path, GOOD + GOOD)
    with pytest.raises(BadInputError, match=r"line 11: id is not usable"):
        load(tmp_path)


def test_files_that_others_can_write_are_refused(tmp_path: Path) -> None:
    """As the policy's: an erratum can stop every upgrade, or hide a reason to."""
    put(tmp_path, GOOD).chmod(0o666)
    with pytest.raises(BadInputError, match="written by others"):
        load(tmp_path)


def test_the_platform_is_read_and_unknown_is_none(tmp_path: Path) -> None:
    """Modules, CPU vendor, single sysctls, of a fake root; what is not there is None."""
    put(tmp_path, GOOD)
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    (tmp_path / "proc/modules").write_text("i915 123 0 - Live 0x0\nnvme_core 1 1 nvme, Live 0x0\n")
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nvendor_id\t: GenuineIntel\n")
    found = observe_platform(load(tmp_path), tmp_path)
    assert (found.cpu_vendor, dict(found.sysctls)) == ("GenuineIntel", {"kernel.some": None})
    assert found.modules is not None
    assert {"i915", "nvme_core"} <= set(found.modules)
    (tmp_path / "proc/sys/kernel/some").write_text("1\n")
    assert observe_platform(load(tmp_path), tmp_path).sysctls == {"kernel.some": "1"}
    (tmp_path / "proc/modules").unlink()
    assert observe_platform((), tmp_path).modules is None
    (tmp_path / "proc/version").write_text("Linux version 6.1 without modules\n")
    assert observe_platform((), tmp_path).modules is not None
    assert PlatformFacts().pci is None
