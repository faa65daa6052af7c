"""Edits are read as written, written as read, and anything else is refused in one sentence."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cocomix.errors import UserError
from cocomix.steer.notation import LARGEST, Edit, parse_edit


@pytest.mark.parametrize(
    ("text", "edit"),
    [
        ("12=x5", Edit(12, "scale", 5.0)),
        ("12=×0.5", Edit(12, "scale", 0.5)),
        ("12=x-3", Edit(12, "scale", -3.0)),
        ("0=set:-4", Edit(0, "set", -4.0)),
        ("0=set:2u", Edit(0, "set", 2.0, unit="usual")),
        ("7=+3", Edit(7, "add", 3.0)),
        ("7=-2.5e1", Edit(7, "add", -25.0)),
        ("7=-1.5u", Edit(7, "add", -1.5, unit="usual")),
        (" 7 = off ", Edit(7, "ablate")),
        ("7=clamp:0:4", Edit(7, "clamp", low=0.0, high=4.0)),
        ("7=clamp::4u", Edit(7, "clamp", high=4.0, unit="usual")),
        ("7=clamp:-1:", Edit(7, "clamp", low=-1.0)),
        ("7=x2@3:8", Edit(7, "scale", 2.0, start=3, end=8)),
        ("7=x2 @3", Edit(7, "scale", 2.0, start=3, end=4)),
        ("7=x2 @:8", Edit(7, "scale", 2.0, end=8)),
        ("7=off @prompt:", Edit(7, "ablate", start="prompt")),
        ("7=off @:prompt", Edit(7, "ablate", end="prompt")),
        ("7=off until:The end.\n ", Edit(7, "ablate", until="The end.\n ")),
        ("7=set:2u @2: until:a @3:4", Edit(7, "set", 2.0, unit="usual", start=2, until="a @3:4")),
    ],
)
def test_edits_are_read_as_written(text, edit):
    assert parse_edit(text) == edit


numbers = st.floats(-LARGEST, LARGEST)
places = st.integers(0, 999)
spans = st.one_of(
    st.just((0, None)),
    st.tuples(places, st.just(None)),
    st.tuples(places, places).map(lambda pair: (min(pair), max(pair) + 1)),
    st.sampled_from([("prompt", None), (0, "prompt"), (3, "prompt"), ("prompt", 900)]),
)
strengths = st.one_of(
    st.fixed_dictionaries({"kind": st.just("scale"), "value": numbers}),
    st.fixed_dictionaries(
        {"kind": st.sampled_from(["set", "add"]), "value": numbers, "unit": st.sampled_from(["raw", "usual"])}
    ),
    st.tuples(st.none() | numbers, st.none() | numbers).map(
        lambda pair: {
            "kind": "clamp",
            "low": pair[0] if None in pair else min(pair),
            "high": pair[1] if None in pair else max(pair),
        }
    ),
    st.just({"kind": "ablate"}),
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.integers(0, 10**17), strengths, spans, st.none() | st.text(min_size=1))
def test_every_edit_is_read_back_as_it_was_written(concept, strength, span, until):
    edit = Edit(concept, start=span[0], end=span[1], until=until, **strength)
    assert parse_edit(str(edit)) == edit


@pytest.mark.parametrize(
    "text",
    ["", "12", "x5", "12=5", "12=xnan", "12=xinf", "12=set:", "a=x5", "-1=x5", "12=+", "1=x5 x6", "1=x5u", "1=x1e7",
     "1=set:1e300", "1=clamp:4", "1=clamp:nan:2", "1=x5@", "1=x5 @-3:4", "1=x5 @4:4", "1=x5 @5:4", "1=x5 @end:",
     "1=x5 @9999999999:", "1=off until:", "1=x5until:a", "9" * 5000 + "=x5", "1=x" + "9" * 1_000_000,
     "1=off" + " " * 1_000_000 + "!"],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_what_is_no_edit_is_refused_with_the_forms(text):
    with pytest.raises(UserError, match="write ID=x5") as refused:
        parse_edit(text)
    assert len(str(refused.value)) < 700


def test_bounds_in_the_wrong_order_are_told():
    with pytest.raises(UserError, match="the lower bound is above the upper one: swap them"):
        parse_edit("1=clamp:4:0")


@pytest.mark.parametrize(
    ("text", "usual", "raw"),
    [
        ("1=set:2u", 3.0, "1=set:6"),
        ("1=-0.5u @2:", 3.0, "1=-1.5 @2:"),
        ("1=clamp:1:2u", 3.0, "1=clamp:3:6"),
        ("1=clamp:1:2u", -3.0, "1=clamp:-6:-3"),
        ("1=clamp::2u", -3.0, "1=clamp:-6:"),
        ("1=x5", float("nan"), "1=x5"),
    ],
)
def test_units_of_the_usual_strength_become_raw(text, usual, raw):
    assert parse_edit(text).in_raw_units(usual) == parse_edit(raw)


def test_a_concept_without_a_usual_strength_has_no_unit():
    with pytest.raises(UserError, match="concept 1 is never mixed on held-out text"):
        parse_edit("1=set:2u").in_raw_units(float("nan"))
