"""The written report: whole, self-contained, escaped, fair."""

from __future__ import annotations

import html
import itertools
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from cocomix.compare.comparison import compare
from cocomix.compare.runs import load_run
from cocomix.compare.summary import summary
from cocomix.errors import UserError
from cocomix.report.page import render, write_comparison
from cocomix.testing.run_folders import MadeUpRun

VOID = {"meta", "link", "br", "hr", "img", "input", "path", "use", "col"}


class Page(HTMLParser):
    """Tags with their attributes, the text outside of style, and whether all tags are closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.open = [], [], []
        self.feed(text)
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def read(path):
    return Page(path.read_text(encoding="utf-8"))


def test_report_is_the_page_the_summary_and_the_figures(reports, comparison):
    out = reports["comparison"].parent
    assert json.loads((out / "summary.json").read_text()) == summary(comparison)
    names = {path.name for path in (out / "plots").iterdir()}
    curves = {f"loss-{axis}.{kind}" for axis in ("tokens", "flops", "seconds") for kind in ("svg", "png")}
    assert names == curves | {f"cost-{k}.{kind}" for k in ("flops", "seconds") for kind in ("svg", "png")}
    tables = {"table.tex", "table.md", "table.csv"}
    assert {path.name for path in out.iterdir()} == {"index.html", "summary.json", "plots"} | tables


def test_page_needs_nothing_from_outside(reports):
    page = read(reports["quickstart"])
    assert page.all("script") == []
    for _, attrs in page.tags:
        for name in ("src", "href", "xlink:href", "srcset", "data"):
            assert attrs.get(name, "#").startswith(("#", "data:"))
    text = reports["quickstart"].read_text(encoding="utf-8")
    assert "@import" not in text
    assert set(re.findall(r"url\((.)", text)) <= {"#"}


def test_texts_with_markup_are_shown_not_run(reports):
    page = read(reports["quickstart"])
    # title and h1, a card, a concept, a context, a sentence, its token, its concept, a prompt, a sample …
    assert page.text.count("$a_b$ <script>alert('x')</script> & \"q\"") >= 12
    assert page.all("script") == []


def test_page_says_every_verdict_and_number(reports, comparison):
    page = read(reports["comparison"])
    for pair in summary(comparison)["pairs"]:
        assert " ".join(pair["verdict"].split()) in page.text
    assert "30.0 % fewer" in page.text
    assert "never reached" in page.text
    assert "shared by 4 runs" in page.text


def test_page_is_accessible(reports):
    page = read(reports["quickstart"])
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("h1")) == 1
    figures = page.all("svg")
    assert len(figures) == 5
    for svg in figures:
        assert svg["role"] == "img"
        assert "chart of" in svg["aria-label"]
    assert all("scope" in th for th in page.all("th"))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert all(below - above <= 1 for above, below in itertools.pairwise(levels))
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    references = {attrs["xlink:href"] for _, attrs in page.tags if "xlink:href" in attrs}
    assert references <= {f"#{name}" for name in ids}


HEADINGS = {
    "intro": "What was run",
    "sae": "Is the autoencoder healthy?",
    "prediction": "Does it predict its teacher's concepts?",
    "concepts": "Concepts",
    "sentence": "A sentence and its concepts",
    "steering": "Steering",
}


@pytest.mark.parametrize("missing", HEADINGS)
def test_section_that_is_none_is_left_out(comparison, sections, missing):
    page = render(comparison, [], {**sections, missing: None})
    headings = [html.unescape(heading) for heading in re.findall("<h2>(.*?)</h2>", page)]
    assert set(HEADINGS.values()) - set(headings) == {HEADINGS[missing]}


def test_sections_tell_their_numbers(reports):
    text = read(reports["quickstart"]).text
    assert "160.0 of k = 16 look at it" in text
    assert "0.113 good" in text
    assert "41.2 % 8.3 %" in text
    assert "data text to tokens 12 s –" in text
    assert "All 7 min 12 s" in text
    assert "Promotes ␣ river ↵" in text
    assert "×5 rivers" in text


def test_several_steerings_are_shown(comparison, sections):
    one = sections["steering"]
    two = {**one, "concept": {"id": 7, "name": "mountains"}}
    text = Page(render(comparison, [], {"steering": [one, two]})).text
    assert "rivers #137" in text
    assert "mountains #7" in text


def test_report_before_the_first_evaluation_is_a_page(tmp_path):
    fresh = MadeUpRun(tokens=(), losses=(), finished=False).write(tmp_path / "fresh")
    page = read(write_comparison(compare([load_run(fresh)]), tmp_path / "out"))
    assert "has not been evaluated yet" in page.text
    assert page.all("svg") == []


def test_one_seed_runs_and_one_evaluation_make_a_page(tmp_path):
    runs = [load_run(MadeUpRun(method=m, tokens=(1000,), losses=(4.0,)).write(tmp_path / m)) for m in ("ntp", "kd")]
    assert "ends level with" in read(write_comparison(compare(runs), tmp_path / "out")).text


def test_figures_are_whole_drawings_and_the_same_every_time(tmp_path, reports, comparison):
    again = write_comparison(comparison, tmp_path)
    for path in (tmp_path / "plots").iterdir():
        assert path.read_bytes() == (reports["comparison"].parent / "plots" / path.name).read_bytes()
        if path.suffix == ".svg":
            ElementTree.fromstring(path.read_text(encoding="utf-8"))
    assert again.read_bytes() == reports["comparison"].read_bytes()


def test_folder_that_is_a_file_is_named(tmp_path, comparison):
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="out"):
        write_comparison(comparison, tmp_path / "out")
