"""Edits of sliders, and back."""

from __future__ import annotations

import math

import pytest

from cocomix.errors import UserError
from cocomix.studio.sliders import ROWS, Row, chunks, room_for, rows_of, written


def test_sliders_are_written_as_the_command_line_has_them() -> None:
    rows = [Row("12", "set", 2), Row("#7 a name", "add", -1.5), Row("3", "scale", 5), Row("4", "ablate", 9), Row()]
    assert written(rows, "5=clamp:0:4\n\n 6=off ", "u") == [
        "12=set:2u", "7=-1.5u", "3=x5", "4=off", "5=clamp:0:4", "6=off",
    ]  # fmt: skip
    assert written(rows[:2], "", "") == ["12=set:2", "7=-1.5"]


def test_what_was_written_comes_back_and_what_no_slider_says_is_kept() -> None:
    texts = ["12=set:2u", "7=-1.5u", "8=set:2", "9=set:200u", "1=x3 @2:4", "no edit", "3=x5", "4=off", "6=off"]
    rows, more = rows_of(texts, "u")
    assert [row.concept for row in rows] == ["12", "7", "", ""]
    assert written(rows, more, "u") == texts
    assert [row.concept for row in rows_of([*texts[:2], *texts[6:]], "u")[0]] == ["12", "7", "3", "4"]
    assert written(*rows_of(["12=clamp:0:4", "12=+3u"], "u"), "u") == ["12=clamp:0:4", "12=+3u"]
    assert rows_of([], "u") == ([Row()] * ROWS, "")


@pytest.mark.parametrize(("kind", "value"), [("boost", 1.0), (["set"], 1.0), ("set", None), ("set", "much")])
def test_a_slider_that_says_nonsense_is_refused(kind: object, value: object) -> None:
    with pytest.raises(UserError, match="edit of concept 1"):
        written([Row("1", kind, value)], "", "u")  # type: ignore[arg-type]


def test_not_a_number_is_written_and_refused_by_who_reads_it() -> None:
    assert written([Row("1", "set", math.nan)], "", "u") == ["1=set:nanu"]


def test_a_concept_goes_to_its_own_row_then_to_a_free_one_then_nowhere() -> None:
    assert room_for("12", ["", "7", "#12 a name", ""]) == 2
    assert room_for("12", ["7", None, "", "3"]) == 1
    assert room_for("12", ["1", "2", "3", "4"]) is None


def test_fields_in_a_row_become_rows() -> None:
    assert chunks(["1", "set", 2.0, "2", "add", 3.0]) == [Row("1", "set", 2.0), Row("2", "add", 3.0)]
