"""What is shown is text, whoever wrote it."""

from __future__ import annotations

import html
from html.parser import HTMLParser

import pytest

from cocomix.studio import markup, markup_card, markup_results
from cocomix.studio.reading import Doing, Mixed, Reading, Token
from cocomix.studio.streaming import Texts

HOSTILE = "<img src=x onerror=alert(1)>\"'&{{this}}${1+1}`\\`"


class Seen(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data) -> None:
        self.text += data


def hostile_card() -> dict:
    token, context = {"token": HOSTILE, "id": 1, "score": 1.0, "change": 1.0, "count": 1}, {
        "before": HOSTILE, "token": HOSTILE, "after": HOSTILE, "strength": 1.0,
    }  # fmt: skip
    other = {"id": 2, "name": HOSTILE, "cosine": 0.5, "lift": 2.0, "count": 3}
    histogram = {"edges": [0.0, 1.0], "counts": [2]}
    student = {
        "frequency": 0.1, "norm": 1.0, "recall": 0.5, "recall_by_chance": 0.1, "precision": None,
        "precision_by_chance": 0.1, "effect": 0.1, "promoted": [token], "suppressed": None, "ignored": True,
        "strengths": histogram,
    }  # fmt: skip
    return {
        "id": 1, "name": HOSTILE, "automatic_name": HOSTILE, "author": HOSTILE, "count": 1, "frequency": 0.1,
        "mean_strength": 1.0, "usual": HOSTILE, "apart": "", "student": student, "promoted": [token],
        "suppressed": [token], "labelled": [token], "contexts": [context], "random_contexts": [context],
        "nearest": [other], "together": [other], "strengths": histogram,
    }  # fmt: skip


READING = Reading((Token(HOSTILE, None, (Mixed(1, 2.0, 0.5),)), Token("\n", 1.5, (Mixed(1, -2.0, 0.5),))), {1: HOSTILE})


@pytest.mark.parametrize(
    "page",
    [
        markup.alert(HOSTILE),
        markup.text(READING, None),
        markup.token_panel(READING, 0, Doing(HOSTILE, -1.0, 0.5, (0.5,), None, HOSTILE)),
        markup.text(READING, 1),
        markup.token_panel(READING, 0),
        markup_card.found([{"id": 1, "name": HOSTILE}]),
        markup_card.card(hostile_card()),
        markup_card.card({**hostile_card(), "student": None, "apart": HOSTILE}),
        markup_results.texts(HOSTILE, Texts(HOSTILE, HOSTILE), [HOSTILE], "done"),
        markup_results.doses([(-1.0, 0.0), (1.0, 2.0)], HOSTILE, (-1.0, 1.0)),
    ],
)
def test_markup_and_templates_in_what_is_shown_stay_text(page: str) -> None:
    seen = Seen()
    seen.feed(page)
    assert "img" not in seen.tags
    assert not [name for name in seen.attributes if name.startswith("on")]
    assert HOSTILE in seen.text or HOSTILE in html.unescape(page)
    assert not set("{}$`\\") & set(page)  # gradio fills templates with them


def test_a_token_without_the_concept_is_not_coloured() -> None:
    assert "--v:0.000" in markup.text(READING._replace(tokens=(Token("a", 1.0, ()),)), 1)
    assert "negative" in markup.text(READING, 1)


def test_an_empty_bin_of_a_histogram_has_no_bar() -> None:
    page = markup_card.card({**hostile_card(), "strengths": {"edges": [0.0, 1.0, 2.0, 3.0], "counts": [1, 0, 100]}})
    assert [f"height:{height}%" in page for height in (0, 2, 100)] == [True] * 3


def test_a_text_tells_its_mean_surprise() -> None:
    assert "0 to 1.50 nats, 1.50 on average" in markup.text(READING, None)
