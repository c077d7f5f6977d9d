from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kupgrade.errors import BadInputError
from kupgrade.model.kernel import CommandLine, KernelRelease
from kupgrade.model.network import Endpoint

SORTED = [
    "5.10.0-9-amd64",
    "5.10.0-28-amd64",
    "6.1.0-rc7",
    "6.1.0",
    "6.1.0-9-amd64",
    "6.12.9+deb13-amd64",
    "6.12.48+deb13-amd64",
    "6.12.107+deb13-amd64",
    "7.3~rc7-amd64",
    "7.3.4+deb13-amd64",
]


def test_releases_sort_as_people_expect():
    """Numbers as numbers, candidates before their final."""
    assert [r.text for r in sorted(map(KernelRelease, reversed(SORTED)))] == SORTED


RELEASES = st.from_regex(r"[0-9a-z][0-9a-z.+~_-]{0,12}", fullmatch=True).map(KernelRelease)


@given(RELEASES, RELEASES, RELEASES)
def test_the_order_of_releases_is_total(a, b, c):
    """Exactly one of <, =, >; and transitive."""
    assert (a < b) + (a == b) + (a > b) == 1
    if a < b < c:
        assert a < c


@pytest.mark.parametrize("text", ["", "../etc", "a/b", "6.1 ", "6.1\n", "x" * 64, ".", "-6.1"])
def test_what_is_no_release_is_refused(text):
    """A release names files and directories: no path may hide in it."""
    with pytest.raises(BadInputError):
        KernelRelease(text)


def test_quotes_keep_blanks_together():
    """As next_arg() in lib/cmdline.c."""
    line = CommandLine.parse('a="b c"  "d=e f" g=h"i j"k\tquiet')
    assert line.words == ('a="b c"', '"d=e f"', 'g=h"i j"k', "quiet")
    assert list(line) == [("a", "b c"), ("d", "e f"), ("g", 'h"i j"k'), ("quiet", None)]


def test_the_last_value_counts_and_dashes_are_underscores():
    """The kernel's own rule for parameter names."""
    line = CommandLine.parse("init_on-alloc=0 x init-on_alloc=1 console=tty0 console=ttyS0")
    assert line.get("init_on_alloc") == "1"
    assert line.values("console") == ("tty0", "ttyS0")
    assert (line.get("x"), line.has("x"), line.has("y")) == (None, True, False)


def test_words_for_init_are_no_parameters():
    """After -- everything belongs to init, and stays behind what is added."""
    line = CommandLine.parse("root=/dev/vda -- single root=x")
    assert line.values("root") == ("/dev/vda",)
    assert str(line.without("root")) == "-- single root=x"
    assert str(line.appended("quiet")) == "root=/dev/vda quiet -- single root=x"


def test_with_replaces_in_place_and_once():
    """The order of the others is kept."""
    line = CommandLine.parse("a=1 b=2 a=3 c")
    assert str(line.with_("a", "9")) == "a=9 b=2 c"
    assert str(line.with_("d", "x y")) == 'a=1 b=2 a=3 c d="x y"'
    assert str(line.with_("c")) == "a=1 b=2 a=3 c"


def test_module_parameters():
    """MODULE.NAME=VALUE, with - and _ equal in the module's name."""
    line = CommandLine.parse("nvme_core.x=1 nvme-core.y nvme.z=2 nvme-core.x=3")
    assert line.module_parameters("nvme-core") == {"x": "3", "y": None}


TEXT = st.text(st.sampled_from('ab=-_."0 \t\n'), max_size=40)


@given(TEXT)
def test_command_line_round_trip(text):
    """What is printed parses to the same words."""
    line = CommandLine.parse(text)
    assert CommandLine.parse(str(line)) == line


@given(TEXT, st.from_regex(r"[a-z_]{1,8}", fullmatch=True), st.text(st.sampled_from("ab /=,.\t"), max_size=9))
def test_a_parameter_set_is_found_again(text, name, value):
    """Through text and back, whatever else stands there."""
    line = CommandLine.parse(text).with_(name, value)
    again = CommandLine.parse(str(line))
    assert again.values(name) == (value,)
    assert not again.without(name).has(name)


@pytest.mark.parametrize(("name", "value"), [("", None), ("a b", None), ("a=b", "c"), ("a", 'x"y'), ("a", "x\0")])
def test_what_cannot_stand_on_a_command_line_is_refused(name, value):
    """There is no escape for a quote."""
    with pytest.raises(BadInputError):
        CommandLine().with_(name, value)


def test_nul_is_refused():
    """The kernel would read up to it and drop the rest."""
    with pytest.raises(BadInputError):
        CommandLine.parse("a\0b")


@pytest.mark.parametrize(
    ("given_", "text"),
    [
        (("10.0.0.1", 80), "10.0.0.1:80"),
        (("::ffff:10.0.0.1", 80), "10.0.0.1:80"),
        (("2001:DB8:0::1", 80), "[2001:db8::1]:80"),
    ],
)
def test_endpoints_are_canonical(given_, text):
    """Two ways to write an address are one endpoint."""
    assert str(Endpoint(*given_)) == text


@pytest.mark.parametrize("wrong", [("localhost", 1), ("1.2.3.4", 65536), ("1.2.3.4", -1)])
def test_what_is_no_endpoint_is_refused(wrong):
    """Names are not resolved here."""
    with pytest.raises(BadInputError):
        Endpoint(*wrong)
