from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cocomix.data.factbook import plain, write_factbook


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    path = tmp_path_factory.mktemp("factbook") / "factbook.jsonl"
    assert write_factbook(path) == 256
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def by_title(rows: list[dict[str, str]]) -> dict[str, str]:
    return {row["text"].split("\n")[0]: row["text"] for row in rows}


def test_every_country_has_a_name_and_a_document_of_its_own(rows: list[dict[str, str]]) -> None:
    titles = by_title(rows)
    assert len(titles) == len({row["source"] for row in rows}) == 256
    assert {"France", "United Arab Emirates", "Democratic Republic of the Congo", "World"} <= titles.keys()
    assert min(len(row["text"]) for row in rows) > 1000


def test_lines_are_plain_text_under_headings(rows: list[dict[str, str]]) -> None:
    france = by_title(rows)["France"]
    assert france.startswith("France\n\nIntroduction\n\nBackground: ")
    assert "\n\nGovernment\n\nCountry name:\nconventional long form: French Republic\n" in france
    assert re.search(r"\nCapital:\nname: Paris\n", france)
    for row in rows:
        assert not re.search(r"</?[a-zA-Z][^>]*>|&[a-zA-Z]+;|[\xa0\u200b]|  |\n\n\n| \n", row["text"]), row["source"]
        assert ": \n" not in row["text"]


def test_no_words_are_lost(rows: list[dict[str, str]]) -> None:
    """Nearly all the text of the package (7.8 MB of JSON with markup and keys) is in the documents."""
    assert sum(len(row["text"]) for row in rows) > 6_500_000


def test_writing_again_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_factbook(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("<p>one&nbsp;two</p> <p>three<br><br>four</p>", "one two\nthree\nfour"),
        ("<strong>note:</strong> less than &lt;1% and <5%", "note: less than <1% and <5%"),
        ("a <em class='x'>b</em>&eacute;<!-- c -->", "a bé"),
        ("", ""),
    ],
)
def test_markup_becomes_plain_text(text: str, wanted: str) -> None:
    assert plain(text) == wanted
