"""What the pages ask of the model, without a page."""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import math
import re
import shlex
import shutil
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from cocomix.data.dataset import Dataset
from cocomix.errors import UserError
from cocomix.steer import effect
from cocomix.steer.edits import parse_edit
from cocomix.steer.effect import promotion
from cocomix.steer.inspection import inspect
from cocomix.steer.settings import InspectSettings
from cocomix.steer.usual import load_usual
from cocomix.studio import markup, markup_card
from cocomix.studio.app import build
from cocomix.studio.service import DOSE_WINDOWS, DOSES, Sampling, Studio
from cocomix.studio.sessions import Sessions
from cocomix.studio.settings import StudioSettings

TEXT = "The economy of the country depends on oil and gas."
PROMPT = "The country exports"
HOW = Sampling(new_tokens=12, temperature=0.8, seed=3)


def last(stream):
    return list(stream)[-1]


def a_mixed_concept(studio: Studio, at: int = 0) -> int:
    """A concept that has a usual strength, the most frequent first."""
    return studio.read(TEXT).tokens[-1].concepts[at].id


def test_a_reading_has_the_models_surprise_and_its_mixed_concepts(studio) -> None:
    reading = studio.read(TEXT)
    assert "".join(token.piece for token in reading.tokens) == TEXT
    ids = torch.tensor([studio.tokenizer(TEXT)["input_ids"]])
    with torch.no_grad():
        output = studio.model(input_ids=ids)
    surprise = -output.logits[0].log_softmax(-1)[torch.arange(ids.shape[1] - 1), ids[0, 1:]]
    assert reading.tokens[0].surprise is None
    assert [token.surprise for token in reading.tokens[1:]] == pytest.approx(surprise.tolist(), abs=1e-5)
    top = output.concept_logits[0].topk(studio.model.config.concept_k)
    assert [[mixed.id for mixed in token.concepts] for token in reading.tokens] == top.indices.tolist()
    assert set(reading.names) == set(top.indices.flatten().tolist())


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "the text is empty"),
        ("oil " * 100, "64 are the most"),
        ("x" * 1_000_000, "more than the model's 64 positions"),
    ],
)
def test_a_text_that_cannot_be_read_is_refused_in_one_sentence(studio, text: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        studio.read(text)


def test_what_concepts_do_is_measured_at_the_chosen_token_alone(studio) -> None:
    reading = studio.read(TEXT)
    asked = InspectSettings(model=studio.settings.model, top=8, contributions=True, teacher=True)
    told = inspect(asked, TEXT)["tokens"]
    for number in (0, 3, len(told) - 1):
        doing, concepts = studio.measure(TEXT, number), told[number]["concepts"]
        assert [concept["id"] for concept in concepts] == [mixed.id for mixed in reading.tokens[number].concepts]
        assert doing.teacher == pytest.approx([concept["teacher"] for concept in concepts], abs=1e-5)
        if number == len(told) - 1:
            assert doing.next is doing.alone is doing.together is None
            continue
        assert doing.next == reading.tokens[number + 1].piece
        assert doing.log_probability == pytest.approx(-reading.tokens[number + 1].surprise, abs=1e-4)
        assert doing.alone == pytest.approx([concept["contribution"] for concept in concepts], abs=1e-4)
        assert doing.together == pytest.approx(told[number]["contribution"], abs=1e-4)


@pytest.mark.parametrize("number", [-1, 64, 10**12])
def test_a_token_that_the_text_has_not_is_refused(studio, number: int) -> None:
    with pytest.raises(UserError, match="choose a token of the text first"):
        studio.measure(TEXT, number)


def test_without_its_teacher_effects_are_measured_and_the_reason_is_told(own, trained) -> None:
    manifest = own.parent.parent / "data" / "labels" / "concepts" / "labels.json"
    manifest.write_text(manifest.read_text().replace(str(trained / "sae"), str(trained / "nowhere")))
    doing = Studio(StudioSettings(model=str(own))).measure(TEXT, 0)
    assert doing.teacher is None
    assert "nowhere" in doing.missing
    assert len(doing.alone) == 8


def test_a_number_finds_the_concept_and_no_text_the_frequent_ones(studio) -> None:
    assert studio.search(" #7 ")[0]["id"] == 7
    frequent = studio.search("")
    assert [found["count"] for found in frequent] == sorted((found["count"] for found in frequent), reverse=True)
    word = frequent[0]["promoted"][0]["token"].strip()
    assert frequent[0]["id"] in [found["id"] for found in studio.search(word, 64)]


def test_a_number_is_searched_as_text_too(own) -> None:
    here = Studio(StudioSettings(model=str(own)))
    here.rename(5, "number 8675309")
    assert [found["id"] for found in here.search("8675309")] == [5]
    here.rename(5, "age 12")
    assert [found["id"] for found in here.search("12")][:2] == [12, 5]
    assert len(here.search("12", 1)) == 1


@pytest.mark.parametrize("text", ['"', "a* OR b", "NEAR(", "'; DROP TABLE names; --", "\0", "(" * 5000, "é{$}`"])
def test_a_search_takes_any_signs(studio, text: str) -> None:
    assert isinstance(studio.search(text), list)


@pytest.mark.parametrize("text", ["64", "-1", "1e3", "seven", "", "99999999999999999999", "٣", "../7"])
def test_a_concept_that_is_none_is_refused(studio, text: str) -> None:
    with pytest.raises(UserError, match="the model has concepts 0 to 63"):
        studio.concept_id(text)


def test_a_card_has_the_teachers_side_and_the_models(studio, run) -> None:
    concept = a_mixed_concept(studio)
    studio.measure_usual()
    card = studio.card(concept)
    assert card["usual"] == f"{float(load_usual(str(run))[concept]):.2f}"
    assert card["contexts"]
    assert card["promoted"]
    assert card["student"]["count"] > 0


def test_a_card_is_shown_without_what_the_model_makes_of_other_labels(own) -> None:
    in_atlas(own / "atlas.sqlite", "UPDATE about SET value = 'others' WHERE key = 'labels'")
    card = Studio(StudioSettings(model=str(own))).card(7)
    assert card["student"] is None
    assert card["contexts"]
    assert "is of other labels than" in markup_card.card(card)


def test_a_name_is_given_shown_everywhere_and_taken_off_again(studio) -> None:
    concept = a_mixed_concept(studio)
    before = studio.card(concept)["name"]
    studio.rename(concept, " <b>crude</b> oil ", "ada")
    try:
        assert studio.card(concept)["name"] == "<b>crude</b> oil"
        assert studio.card(concept)["author"] == "ada"
        assert studio.read(TEXT).names[concept] == "<b>crude</b> oil"
        assert concept in [found["id"] for found in studio.search("crude")]
    finally:
        studio.rename(concept, "")
    assert studio.card(concept)["name"] == studio.read(TEXT).names[concept] == before


def test_a_card_is_shown_before_its_usual_strength_is_measured(own) -> None:
    (own / "usual.safetensors").unlink(missing_ok=True)
    here = Studio(StudioSettings(model=str(own)))
    concept = a_mixed_concept(here)
    assert here.card(concept)["usual"] is None
    assert "measuring …" in markup_card.card(here.card(concept))
    assert not (own / "usual.safetensors").exists()
    here.measure_usual()
    assert float(here.card(concept)["usual"]) == pytest.approx(float(load_usual(str(own))[concept]), abs=5e-3)


def test_a_list_of_concepts_says_where_it_stops(studio) -> None:
    entries = studio.search("", markup_card.FOUND + 1)
    page = markup_card.found(entries)
    assert (len(entries), page.count("<li>")) == (21, 20)
    assert "The first 20" in page
    assert "The first" not in markup_card.found(entries[:20])


def test_a_studio_opens_where_its_text_has_gone(own) -> None:
    shard = next((own.parents[1] / "data").glob("train-*.bin"))
    shard.rename(shard.with_suffix(".away"))
    here = Studio(StudioSettings(model=str(own)))
    assert here.examples() == []
    assert build(here, Sessions())
    concept = a_mixed_concept(here)
    (own / "usual.safetensors").unlink(missing_ok=True)
    here.measure_usual()
    assert "is missing" in here.card(concept)["usual"]
    for ask in (
        lambda: last(here.dose_response(concept)),
        lambda: last(here.stream(PROMPT, [f"{concept}=set:2u"], HOW)),
    ):
        with pytest.raises(UserError, match="is missing"):
            ask()
    assert last(here.stream(PROMPT, [f"{concept}=set:2"], HOW)).steered


def test_without_held_out_text_that_of_training_is_taken(own) -> None:
    data = own.parents[1] / "data"
    before, described = Dataset.open(data).fingerprint, json.loads((data / "dataset.json").read_text())
    del described["splits"]["val"]
    (data / "dataset.json").write_text(json.dumps(described))
    labels = data / "labels" / "concepts" / "labels.json"
    labels.write_text(labels.read_text().replace(before, Dataset.open(data).fingerprint))
    (own / "usual.safetensors").unlink(missing_ok=True)
    here = Studio(StudioSettings(model=str(own)))
    assert here.examples()
    assert len(last(here.dose_response(a_mixed_concept(here)))) == len(DOSES)


def test_an_atlas_that_is_made_anew_is_seen_without_a_new_start(own) -> None:
    here = Studio(StudioSettings(model=str(own)))
    concept = a_mixed_concept(here)
    before = here.read(TEXT).names[concept]
    path = own.parent.parent / "data" / "labels" / "concepts" / "atlas.sqlite"
    other = path.with_name("other.sqlite")
    shutil.copy(path, other)
    with contextlib.closing(sqlite3.connect(other)) as connection, connection:
        connection.execute("UPDATE concepts SET name = 'made anew' WHERE id = ?", (concept,))
    path.unlink()
    assert here.read(TEXT).names[concept] == f"concept {concept}"
    with pytest.raises(UserError, match="has no atlas"):
        here.card(concept)
    other.replace(path)
    assert here.read(TEXT).names[concept] == here.card(concept)["name"] == "made anew" != before


def test_both_texts_are_those_that_the_command_line_makes(studio, cli) -> None:
    edits = [f"{a_mixed_concept(studio)}=set:10u", "5=+3"]
    steps = list(studio.stream(PROMPT, edits, HOW))
    assert len(steps) >= HOW.new_tokens
    assert all(made.unsteered.startswith(before.unsteered[:-1]) for before, made in itertools.pairwise(steps))
    words = shlex.split(studio.as_command(PROMPT, edits, HOW))
    assert words[:2] == ["cocomix", "generate"]
    code, out, err = cli("generate", "--json", *words[2:])
    assert code == 0, err
    told = json.loads(out)
    assert told["prompt"] == PROMPT
    assert (steps[-1].unsteered, steps[-1].steered) == (told["unsteered"][0], told["steered"][0])
    assert steps[-1].steered != steps[-1].unsteered


@pytest.mark.parametrize("prompt", ["-x 'quoted' \"twice\" $HOME `id`", "prompts=no", "a\nb"])
def test_the_python_runs_as_it_is_written_whatever_the_prompt(studio, prompt: str) -> None:
    found: dict = {}
    exec(studio.as_python(prompt, ["5=+3"], HOW), found)
    made = last(studio.stream(prompt, ["5=+3"], HOW))
    assert (made.unsteered, made.steered) == (found["result"]["unsteered"][0], found["result"]["steered"][0])


@pytest.mark.parametrize("prompt", ["seed=5", "prompt=seed=5", "prompts", "a=b"])
def test_the_command_has_the_prompt_whatever_it_begins_like(studio, cli, prompt: str) -> None:
    words = shlex.split(studio.as_command(prompt, [], Sampling(1)))
    code, out, err = cli("generate", "--json", *words[2:])
    assert code == 0, err
    assert json.loads(out)["prompt"] == prompt


def test_without_edits_one_text_is_made(studio) -> None:
    assert last(studio.stream(PROMPT, [], HOW)).steered is None


@pytest.mark.parametrize(
    ("prompt", "edits", "how", "sentence"),
    [
        (PROMPT, ["5=set:nan"], HOW, "no finite number"),
        (PROMPT, ["5=xinf"], HOW, "no finite number"),
        (PROMPT, ["5=set:1e30"], HOW, "no number from"),
        (PROMPT, ["9999=off"], HOW, "outside the dictionary"),
        (PROMPT, ["five=off"], HOW, "is no edit"),
        (PROMPT, ["5=off"] * 17, HOW, "17 edits are too many"),
        ("x" * 1_000_000, [], HOW, "more than the model's 64 positions"),
        ("oil " * 60, [], HOW, "64 are the most"),
        (PROMPT, [], HOW._replace(new_tokens=63), "more than the model's 64 positions"),
        (PROMPT, [], HOW._replace(new_tokens=10**9), "new tokens: 1000000000 is no number from 1 to 200"),
        (PROMPT, [], HOW._replace(temperature=math.nan), "temperature: nan is no number"),
        (PROMPT, [], HOW._replace(seed=-1), "seed: -1 is no number"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is(studio, prompt, edits, how, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        studio.stream(prompt, edits, how)


def generating() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "generation"]


def test_stop_ends_the_work_itself(studio) -> None:
    passes = []
    handle = studio.model.register_forward_hook(lambda *_: passes.append(1))
    stop = threading.Event()
    try:
        steps = []
        for made in studio.stream(PROMPT, ["5=+3"], HOW._replace(new_tokens=40), stop):
            steps.append(made)
            stop.set()
    finally:
        handle.remove()
    assert generating() == []
    assert len(passes) < 40
    assert len(steps) < 40


def test_whoever_leaves_ends_the_work_and_frees_the_place(studio) -> None:
    for _ in range(2 * studio.settings.generations):
        stream = studio.stream(PROMPT, [], HOW)
        next(stream)
        stream.close()
        assert generating() == []
    assert last(studio.stream(PROMPT, [], HOW)).unsteered


def test_fifty_at_once_with_mixed_edits_each_get_their_own_answer(studio) -> None:
    first, second = a_mixed_concept(studio), a_mixed_concept(studio, 1)
    kinds = [[], [f"{first}=set:10u"], [f"{second}=-8u", "5=x3"], [f"{first}=off", f"{second}=off"], ["5=set:30"]]
    asked = [(PROMPT, kinds[n % 5], HOW._replace(new_tokens=4, seed=n % 10)) for n in range(50)]
    alone = [last(studio.stream(*one)) for one in asked[:10]]
    assert len(set(alone)) == 10
    gc.collect()
    before = sum(isinstance(value, torch.Tensor) for value in gc.get_objects())
    with ThreadPoolExecutor(50) as pool:
        together = list(pool.map(lambda one: last(studio.stream(*one)), asked))
    assert together == alone * 5
    assert generating() == []
    assert studio.model.mixer.edit_point.edit is None
    gc.collect()
    assert sum(isinstance(value, torch.Tensor) for value in gc.get_objects()) <= before + 5


def test_a_dose_is_measured_on_held_out_text_in_usual_strengths(studio, run) -> None:
    concept = a_mixed_concept(studio)
    steps = list(studio.dose_response(concept))
    assert [len(step) for step in steps] == list(range(1, len(DOSES) + 1))
    assert [dose for dose, _ in steps[-1]] == list(DOSES)
    usual = float(load_usual(str(run))[concept])
    tokens = [entry["id"] for entry in studio.card(concept)["promoted"]]
    edit = parse_edit(f"{concept}=set:{8 * usual!r}")
    due = promotion(studio.model, studio._held_out(8), [edit], tokens)
    assert steps[-1][-1].nats == pytest.approx(due, abs=1e-5)
    assert abs(due) > 1e-4


def test_a_measurement_can_be_stopped(studio) -> None:
    stop = threading.Event()
    steps = []
    for step in studio.dose_response(a_mixed_concept(studio), stop):
        steps.append(step)
        stop.set()
    assert len(steps) == 1


def test_doses_read_the_text_without_edits_once_and_few_logits_at_a_time(studio, monkeypatch) -> None:
    concept, seen = a_mixed_concept(studio), []
    whole = [dose.nats for dose in last(studio.dose_response(concept))]
    window = studio._held_out(1).shape[1]
    monkeypatch.setattr(effect, "LOGITS_AT_ONCE", 3 * window * (64 + studio.model.config.text_config.vocab_size))
    handle = studio.model.register_forward_hook(lambda _, given, output: seen.append(output.logits.shape[:2]))
    try:
        split = [dose.nats for dose in last(studio.dose_response(concept))]
    finally:
        handle.remove()
    assert split == pytest.approx(whole, abs=1e-5)
    windows = len(studio._held_out(DOSE_WINDOWS))
    assert sum(rows for rows, _ in seen) == windows * (1 + len(DOSES))
    assert max(rows for rows, _ in seen) == min(3, windows)


def test_usual_strengths_take_no_next_token_logits(studio) -> None:
    seen = []
    handle = studio.model.register_forward_hook(lambda _, given, output: seen.append(output.logits.shape[1]))
    try:
        effect.usual_strengths(studio.model, studio._held_out(2))
    finally:
        handle.remove()
    assert seen == [1]


def test_a_text_is_read_once_and_one_that_is_too_long_not_at_all(run) -> None:
    here, passes = Studio(StudioSettings(model=str(run), prompt_tokens=20)), []
    here.model.register_forward_hook(lambda *_: passes.append(1))
    for _ in range(2):
        with pytest.raises(UserError, match="20 are the most: shorten it"):
            here.read("oil and gas " * 20)
    assert passes == []
    here.read("oil and gas")
    assert len(passes) == 1


def test_who_waits_for_a_place_can_stop_and_too_many_may_not_wait(run) -> None:
    here = Studio(StudioSettings(model=str(run), generations=1, waiting=1))
    concept, first = a_mixed_concept(here), here.stream(PROMPT, [], HOW)
    next(first)  # has the place
    for ask in (lambda stop: here.stream(PROMPT, [], HOW, stop), lambda stop: here.dose_response(concept, stop)):
        stop = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(list, ask(stop))
            while not here._turns._waiting:
                time.sleep(0.001)
            with pytest.raises(UserError, match="1 requests wait already"):
                here.read("another text")
            stop.set()
            assert waiting.result(timeout=5) == []
    first.close()
    assert last(here.stream(PROMPT, [], HOW)).unsteered
    assert here.read("another text").tokens


def test_runs_are_found_beside_the_model_and_compared(studio) -> None:
    assert list(studio.runs()) == ["cocomix", "ntp"]
    comparison = studio.compare(["cocomix", "ntp", "ntp"])
    assert [entry.name for entry in comparison.entries] == ["ntp", "cocomix"]
    assert len(comparison.pairs) == 1


@pytest.mark.parametrize("name", ["../cocomix", "/etc/passwd", "cocomix/../ntp", "", "ntp\0", ".", ["ntp"]])
def test_a_run_is_taken_by_a_name_that_was_found_only(studio, name: str) -> None:
    with pytest.raises(UserError, match="there is no run"):
        studio.compare([name])


def test_a_damaged_run_is_left_out(own) -> None:
    studio = Studio(StudioSettings(model=str(own)))
    other = own.parent / "other"
    other.mkdir()
    (other / "run.json").write_text('{"format": 1')
    assert list(studio.runs()) == ["cocomix"]


def test_a_shorter_limit_than_the_models_holds_for_texts_and_prompts(run) -> None:
    studio = Studio(StudioSettings(model=str(run), prompt_tokens=5, new_tokens=3))
    for ask in (lambda: studio.read(TEXT), lambda: studio.stream(TEXT, [], Sampling(3))):
        with pytest.raises(UserError, match="5 are the most: shorten it"):
            ask()
    with pytest.raises(UserError, match="new tokens: 4 is no number from 1 to 3"):
        studio.stream("The", [], Sampling(4))


def test_without_an_atlas_one_can_read_and_steer_and_is_told_how_to_make_one(own) -> None:
    (own.parents[1] / "data" / "labels" / "concepts" / "atlas.sqlite").unlink()
    (own / "atlas.sqlite").unlink()
    studio = Studio(StudioSettings(model=str(own)))
    reading = studio.read(TEXT)
    assert reading.names[reading.tokens[0].concepts[0].id].startswith("concept ")
    with pytest.raises(UserError, match="make one with 'cocomix concepts atlas'"):
        studio.search("oil")


def test_a_corrupt_atlas_is_one_sentence(own, cli) -> None:
    (own.parents[1] / "data" / "labels" / "concepts" / "atlas.sqlite").write_bytes(b"SQLite format 3\0" + b"x" * 5000)
    code, out, err = cli("studio", own, "port=0")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("error: ")
    assert "atlas.sqlite is damaged" in err
    assert "Traceback" not in err


def test_an_atlas_that_breaks_while_it_is_read_is_one_sentence(own) -> None:
    studio = Studio(StudioSettings(model=str(own)))
    path = own.parents[1] / "data" / "labels" / "concepts" / "atlas.sqlite"
    with path.open("rb+") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))
    with pytest.raises(UserError, match="is damaged"):
        [studio.card(id) for id in range(64)]


def test_an_atlas_of_another_size_is_refused_and_one_of_other_labels_is_told(run, studio, tmp_path, capsys) -> None:
    other = shutil.copy(studio._atlas().path, tmp_path / "other.sqlite")
    asked = InspectSettings(model=str(run), atlas=str(other))
    here = Studio(StudioSettings(model=str(run), atlas=str(other)))
    concept = a_mixed_concept(here)
    assert "names may be wrong" not in capsys.readouterr().err
    in_atlas(other, "UPDATE about SET value = 'others' WHERE key = 'labels'")
    inspect(asked, TEXT)
    assert here.read(TEXT).names[concept] == studio.read(TEXT).names[concept]
    assert capsys.readouterr().err.count("names may be wrong") == 2
    in_atlas(other, "UPDATE about SET value = '32' WHERE key = 'concepts'")
    for ask in (lambda: inspect(asked, TEXT), lambda: here.read(TEXT)):
        with pytest.raises(UserError, match="is of 32 concepts, .* predicts 64: give the atlas of the labels"):
            ask()


def in_atlas(path: str, change: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(change)


def test_a_character_of_several_tokens_is_shown_once_and_the_rest_of_it_can_be_chosen(studio) -> None:
    text = "São Tomé 🦊"
    page = markup.text(studio.read(text), None)
    tokens = re.findall(r"<span class=.token.*?>(.*?)</span>", page, re.DOTALL)
    assert len(tokens) == len(studio.tokenizer(text)["input_ids"])
    assert "".join(tokens).replace('<i aria-hidden="true">·</i>', "") == text
    number = next(at for at, token in enumerate(studio.read(text).tokens) if not token.piece)
    assert f"Token {number}: <code>·</code>" in markup.token_panel(studio.read(text), number)


def test_a_text_longer_than_the_teacher_reads_is_measured_all_the_same(studio, monkeypatch) -> None:
    view, _ = studio._teacher_view()
    whole = studio.measure(TEXT, 2)
    monkeypatch.setattr(view.teacher.config, "n_positions", 3)
    assert studio.measure(TEXT, 2).teacher == pytest.approx(whole.teacher)
    later = studio.measure(TEXT, 3)
    assert later.teacher is None
    assert "the teacher reads 3" in later.missing
    assert later.alone is not None
