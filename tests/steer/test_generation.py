"""Texts of a batch are those of each prompt alone; samples are samples; bad input is one sentence."""

from __future__ import annotations

import io
import json

import pytest
import torch

from cocomix.model.load import load_concept_model
from cocomix.steer.generation import Draw, continuations, continue_all, generate, generate_many
from cocomix.steer.notation import parse_edit
from cocomix.steer.requests import Request
from cocomix.steer.settings import GenerateSettings

PROMPTS = [
    ("The old harbour", ["3=set:30"]),
    ("", []),
    ("A judge", ["4=x-9 @prompt:", "5=off"]),
    ("In", ["2=set:20 until:e"]),
]
WAYS = [{"temperature": 0}, {"samples": 3}, {"samples": 2, "top_k": None, "top_p": 0.8, "temperature": 1.5},
        {"beams": 3, "samples": 2}]  # fmt: skip


def settings_of(model="", **how) -> GenerateSettings:
    return GenerateSettings(**{"model": str(model), "max_new_tokens": 8, **how})


def requests(*beams: str) -> list[Request]:
    return [Request(p, tuple(parse_edit(e) for e in edits if not (beams and "until" in e))) for p, edits in PROMPTS]


@pytest.mark.parametrize("how", WAYS, ids=str)
def test_a_batch_gives_each_prompt_what_it_gets_alone(how, steered_run):
    model, tokenizer = load_concept_model(str(steered_run))
    asked = requests(*["beams"] * ("beams" in how))
    settings = settings_of(**how)
    together = continue_all(model, tokenizer, asked, settings)
    alone = [continuations(model, tokenizer, r.prompt, settings, r.edits) for r in asked]
    assert together == alone
    assert [len(texts) for texts in together] == [how.get("samples", 1)] * 4


@pytest.mark.parametrize("how", WAYS, ids=str)
def test_a_zero_edit_gives_the_text_of_none_and_another_edit_does_not(how, steered_run):
    settings = settings_of(steered_run, seed=5, **how)
    zero = generate(settings, "The old", [parse_edit(t) for t in ("3=x1", "4=+0", "5=set:9 @31:", "6=clamp:-99:99")])
    assert zero["steered"] == zero["unsteered"]
    edited = generate(settings, "The old", [parse_edit("3=set:50"), parse_edit("4=set:-50")])
    assert edited["unsteered"] == zero["unsteered"]
    assert edited["steered"] != edited["unsteered"]


def test_seeds_and_samples_differ_and_come_again(steered_run):
    first = generate(settings_of(steered_run, samples=4, seed=1), "The")["unsteered"]
    assert first == generate(settings_of(steered_run, samples=4, seed=1), "The")["unsteered"]
    assert first[:2] == generate(settings_of(steered_run, samples=2, seed=1), "The")["unsteered"]
    assert len(set(first)) == 4
    assert first != generate(settings_of(steered_run, samples=4, seed=2**63 - 1), "The")["unsteered"]


def test_draws_have_the_probabilities_of_the_scores():
    wanted = torch.tensor([0.5, 0.3, 0.2, 0.0])
    draw = Draw(seed=0, samples=4000)
    drawn = draw(torch.zeros(4000, 1, dtype=torch.long), wanted.log().expand(4000, -1)).argmax(-1)
    share = drawn.bincount(minlength=4) / 4000
    torch.testing.assert_close(share, wanted, atol=0.03, rtol=0)
    assert share[3] == 0


def test_an_edit_until_a_stop_leaves_what_comes_behind_it_to_the_model(steered_run):
    """With the stop in the first token, only that token is steered; the rest is the plain text behind it."""
    model, tokenizer = load_concept_model(str(steered_run))
    greedy = settings_of(temperature=0)
    always = continuations(model, tokenizer, "The old", greedy, [parse_edit("3=set:50 @prompt:")])[0]
    plain = continuations(model, tokenizer, "The old", greedy)[0]
    first = tokenizer.decode(tokenizer(plain, add_special_tokens=False).input_ids[:1])
    ended = continuations(model, tokenizer, "The old", greedy, [parse_edit(f"3=set:50 @prompt: until:{first}")])[0]
    assert ended == plain  # the first token is of the prompt's last position, which is not edited
    assert always != plain


def test_usual_units_are_measured_on_the_run_and_mean_what_they_say(steered_run):
    from cocomix.steer.usual import load_usual

    usual = load_usual(str(steered_run))
    concept = int(usual.nan_to_num(-1).argmax())
    settings = settings_of(steered_run)
    by_unit = generate(settings, "The", [parse_edit(f"{concept}=set:3u")])
    by_hand = generate(settings, "The", [parse_edit(f"{concept}=set:{3 * float(usual[concept])!r}")])
    assert by_unit["steered"] == by_hand["steered"]
    assert by_unit["edits"] == [f"{concept}=set:3u"]


def test_many_prompts_come_in_their_order(steered_run):
    settings = settings_of(steered_run, batch=3, temperature=0)
    found = list(generate_many(settings, requests()))
    assert [f["prompt"] for f in found] == [p for p, _ in PROMPTS]
    assert [f["edits"] for f in found] == [edits for _, edits in PROMPTS]
    assert found == [generate(settings, r.prompt, r.edits) for r in requests()]


def test_the_command_line_answers_a_file_of_prompts_line_by_line(steered_run, tmp_path, cli, monkeypatch):
    file = tmp_path / "prompts.jsonl"
    file.write_text(
        '{"prompt": "The"}\n\n{"prompt": "A judge", "edits": ["3=off", "4=+2u @1:"]}\n{"prompt":"x","edits":[]}'
    )
    words = [f"model={steered_run}", "max_new_tokens=3", "--steer", "5=set:9", "--json"]
    code, out, err = cli("generate", f"prompts={file}", *words)
    assert code == 0, err
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["edits"] for line in lines] == [["5=set:9"], ["3=off", "4=+2u @1:"], []]
    assert lines[2]["steered"] is None
    monkeypatch.setattr("sys.stdin", io.StringIO(file.read_text()))
    assert cli("generate", words[0], "prompts=-", *words[1:])[1] == out
    single = json.loads(cli("generate", "The", *words)[1])
    assert single == lines[0]


def test_on_a_terminal_the_same_words_come_as_they_are_made(steered_run, cli, monkeypatch):
    import sys

    words = ["generate", "The old", f"model={steered_run}", "max_new_tokens=8", "--steer", "3=set:50"]
    quiet = cli(*words)[1]
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda self: self is sys.stdout, raising=False)
    code, live, err = cli(*words)
    assert code == 0, err
    assert live == quiet + "\n"  # an empty line behind each text: it was told live


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ("", "holds no prompt"),
        ("The\n", "line 1: no valid JSON"),
        ('{"prompt": "a"}\n{"prompt": 3}', "line 2: no object with a prompt"),
        ("[" * 100_000, "line 1: no valid JSON"),
        ('{"prompt": "a", "edit": []}', "line 1: unknown key 'edit' (did you mean 'edits'?)"),
        ('{"prompt": "a", "edits": "3=off"}', "line 1: edits is no list of texts"),
        ('{"prompt": "a", "edits": ["3=xnan"]}', "line 1: '3=xnan': 'nan' is no finite number"),
        ('{"prompt": "a", "edits": ["64=off"]}', "concept 64 is outside the dictionary: ids go from 0 to 63"),
        ('{"prompt": "\\ud800"}', "the prompt is no Unicode text: letter 0 is half of one"),
        (json.dumps({"prompt": "word " * 200_000}), "the prompt has 1,000,000 letters, more than the model's 32"),
        ('{"prompt": "' + "a b " * 20 + '"}', "exceed the model's 32 positions: shorten one of them"),
        ('{"prompt": "a"}\n\n{"prompt": "' + "a b " * 20 + '"}', "line 3: the prompt's"),
        ('{"prompt": "a"}\n{"prompt": "a", "edits": ["64=off"]}', "line 2: concept 64 is outside"),
    ],
    ids=lambda text: text[:30],
)  # fmt: skip
def test_bad_prompts_are_one_sentence(lines, sentence, steered_run, tmp_path, cli):
    file = tmp_path / "prompts.jsonl"
    file.write_text(lines)
    code, out, err = cli("generate", f"prompts={file}", f"model={steered_run}", "max_new_tokens=3", "batch=1")
    last = err.splitlines()[-1]
    assert (code, out) == (2, "")
    assert last.startswith("error: ")
    assert sentence in last
    assert "Traceback" not in err


def test_standard_input_that_is_no_text_is_one_sentence(steered_run, cli, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"prompt": "\xff"}'), encoding="utf-8"))
    code, out, err = cli("generate", "prompts=-", f"model={steered_run}")
    assert (code, out) == (2, "")
    assert "prompts=- is not UTF-8: byte 12 is wrong" in err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "give a prompt, or prompts=FILE, and not both"),
        (["The", "prompts=x.jsonl"], "give a prompt, or prompts=FILE, and not both"),
        (["prompts=nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["The", "beams=2", "temperature=1"], "beams=2 do not sample, temperature=1 does"),
        (["The", "samples=3", "temperature=0"], "samples=3 of temperature=0 would all be the same text"),
        (["The", "beams=2", "samples=3"], "samples=3 is more than beams=2"),
        (["The", "beams=2", "max_new_tokens=3", "--steer", "3=off until:a"], "beams=2 cannot follow: give beams=1"),
        (["The", "max_new_tokens=3", "--steer", "9" * 18 + "=off"], "is outside the dictionary"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_one_sentence(words, sentence, steered_run, cli):
    model = [f"model={steered_run}"]
    code, out, err = cli("generate", *words[:1], *(model if words else []), *words[1:], *([] if words else model))
    assert (code, out) == (2, "")
    assert sentence in err.splitlines()[-1]


def test_a_model_without_concepts_is_told(steered_run, cli):
    words = ["generate", "The", f"model={steered_run.parent / 'teacher'}", "max_new_tokens=3", "--steer", "3=off"]
    code, _, err = cli(*words)
    assert code == 2
    assert "predicts no concepts: leave the edits out" in err
