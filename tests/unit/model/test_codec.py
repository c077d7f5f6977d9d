"""Words to JSON and back: nothing is lost, nothing foreign is let in."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from kupgrade.errors import BadInputError
from kupgrade.model import codec
from kupgrade.model.codec import decode, encode
from kupgrade.model.ids import UpgradeId
from kupgrade.model.plan import BlackoutTerm, Budget, Loss, Phase, Plan, Scope, Side, StepSpec
from kupgrade.model.record import Record, RecordKind
from kupgrade.model.workload import FileState, Probe, ProbeKind, Store, StoreKind, Workload
from kupgrade.steps import base, registry
from tests.fakes.drive import plan

text = st.text(max_size=20)
number = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | number | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
probes = st.builds(
    Probe, st.sampled_from(ProbeKind), st.integers(0, 65535), text, st.lists(text, max_size=3).map(tuple), number
)
workloads = st.builds(
    Workload, text, text, text, st.integers(), st.lists(st.integers(), max_size=4).map(tuple), probe=probes,
    max_blackout=st.none() | number,
)  # fmt: skip
specs = st.builds(
    StepSpec, text, st.dictionaries(text, json_values, max_size=3), st.sampled_from(Scope), text, text, st.booleans()
)
phases = st.builds(Phase, text, st.sampled_from(Side), st.lists(specs, max_size=3).map(tuple), st.booleans())
budgets = st.builds(
    Budget, text, st.lists(st.builds(BlackoutTerm, text, number, text), max_size=2).map(tuple), st.none() | number
)
plans = st.builds(
    Plan,
    upgrade=st.just(UpgradeId("20261121-041503-9f2c1a")), created=number, engine=text, store=text, boot_id=text,
    old_release=text, new_release=text, facts_digest=text, facts=st.dictionaries(text, text, max_size=3),
    phases=st.lists(phases, max_size=2).map(tuple), budgets=st.lists(budgets, max_size=2).map(tuple),
    losses=st.lists(st.builds(Loss, text, text), max_size=2).map(tuple), warnings=st.lists(text, max_size=2).map(tuple),
)  # fmt: skip
records = st.builds(
    Record, st.integers(0), st.sampled_from(RecordKind), text, st.integers(0), number, number,
    st.none() | st.integers(), st.dictionaries(text, json_values, max_size=3),
)  # fmt: skip


@pytest.mark.parametrize(
    ("cls", "values"),
    [
        (Workload, workloads),
        (Plan, plans),
        (Record, records),
        (Store, st.builds(Store, st.sampled_from(StoreKind), text)),
        (FileState, st.builds(FileState, text, *[st.integers()] * 4, st.booleans())),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_was_stored_is_read_back(cls: type, values: st.SearchStrategy[Any]) -> None:
    """Through JSON text and back every word equals itself."""

    @given(values)
    def round_trip(value: Any) -> None:
        assert decode(cls, json.loads(json.dumps(encode(value)))) == value

    round_trip()


def test_the_plan_of_the_engine_survives_its_journal() -> None:
    """The real plan, with every real step, is the same after storing, and so is its digest."""
    registry.load_all()
    stored = decode(Plan, json.loads(json.dumps(encode(plan()))))
    assert stored == plan()
    assert stored.digest == plan().digest
    for spec in stored.steps:
        assert base.spec(base.load(spec)) == spec


@dataclass(frozen=True)
class Sample:
    count: int
    ratio: float
    flag: bool
    names: tuple[str, ...]
    pair: tuple[int, str]
    table: Mapping[str, int]
    maybe: int | None
    either: int | str
    scope: Scope
    later: str = "default"


GOOD: dict[str, Any] = {
    "count": 1, "ratio": 0.5, "flag": True, "names": ["a"], "pair": [1, "x"], "table": {"k": 1}, "maybe": None,
    "either": "x", "scope": "boot",
}  # fmt: skip


def test_defaults_are_filled_in() -> None:
    """A field with a default may be missing: an older release did not know it."""
    assert decode(Sample, GOOD) == Sample(1, 0.5, True, ("a",), (1, "x"), {"k": 1}, None, "x", Scope.BOOT)
    assert decode(Sample, {**GOOD, "ratio": 2}).ratio == 2.0


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"count": "1"}, "$.count"),
        ({"count": True}, "$.count"),
        ({"count": 1.0}, "$.count"),
        ({"ratio": "x"}, "$.ratio"),
        ({"ratio": True}, "$.ratio"),
        ({"ratio": float("nan")}, "$.ratio"),
        ({"ratio": float("-inf")}, "$.ratio"),
        ({"ratio": 10**400}, "$.ratio"),
        ({"flag": 1}, "$.flag"),
        ({"names": "a"}, "$.names"),
        ({"names": ["a", 1]}, "$.names[1]"),
        ({"pair": [1]}, "$.pair"),
        ({"pair": ["x", 1]}, "$.pair[0]"),
        ({"table": []}, "$.table"),
        ({"table": {"k": "v"}}, "$.table.k"),
        ({"maybe": "x"}, "$.maybe"),
        ({"either": None}, "$.either"),
        ({"scope": "moon"}, "$.scope"),
        ({"more": 1}, "$.more"),
    ],
)
def test_a_wrong_value_is_refused_with_its_place(change: dict[str, Any], place: str) -> None:
    """Strict: no value is bent into another type, and the message names where it stands."""
    with pytest.raises(BadInputError) as caught:
        decode(Sample, {**GOOD, **change})
    assert caught.value.what.endswith(f"at {place}")


def test_a_missing_field_is_named() -> None:
    """What has no default must be there."""
    with pytest.raises(BadInputError, match="count is missing"):
        decode(Sample, {k: v for k, v in GOOD.items() if k != "count"})


@pytest.mark.parametrize("value", [[], "x", 1, None])
def test_only_an_object_is_a_dataclass(value: object) -> None:
    """Anything else in its place is refused."""
    with pytest.raises(BadInputError, match="an object"):
        decode(Sample, value)


@given(json_values)
def test_foreign_data_never_raises_anything_else(value: object) -> None:
    """Whatever a file holds, the answer is a word or a refusal."""
    for cls in (Sample, Record, Plan):
        try:
            decode(cls, value)
        except BadInputError:
            continue


def test_what_has_no_json_form_is_a_bug() -> None:
    """Only data can be stored."""
    for value in (object(), {1, 2}, Sample, b"x"):
        with pytest.raises(TypeError):
            encode(value)


def test_enums_that_are_strings_or_numbers_keep_their_value() -> None:
    """An enum's value is stored, whatever it derives from."""
    assert encode(Scope.BOOT) == "boot"
    assert encode(dataclasses.replace(Probe(), kind=ProbeKind.TCP))["kind"] == "tcp"


def test_what_was_learned_needs_no_more_looking_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """After `learn` a plan, a record and every step are decoded without asking for one more type hint."""
    registry.load_all()
    base.learn_all()
    codec.learn(Plan)
    codec.learn(Record)
    before = codec._hints.cache_info().misses
    made = decode(Plan, json.loads(json.dumps(codec.encode(plan()))))
    for stored in made.steps:
        base.load(stored)
    assert codec._hints.cache_info().misses == before
