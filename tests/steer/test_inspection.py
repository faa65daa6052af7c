"""What concepts do for the next token is what ablating each, one at a time, measures; and all of it can be seen."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from cocomix.errors import UserError
from cocomix.model.load import load_concept_model
from cocomix.steer import contributions as measuring
from cocomix.steer.contributions import contributions
from cocomix.steer.edits import Edit, steering
from cocomix.steer.inspection import predict, predicted_concepts
from cocomix.testing.models import tiny_model

TEXT = "The old harbour sails at dusk."
FORMS = [("gpt2", {"mixing": "insert"}), ("llama", {"mixing": "memory"}), ("mistral", {"mixing": "insert"}),
         ("gpt2", {"mixing": "insert", "slot_every": 3}), ("gpt2", {"mixing": "add", "concept_k": 25})]  # fmt: skip


def log_probabilities(model, ids, edits=()):
    with torch.no_grad(), steering(model, edits):
        return model(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]


@pytest.mark.parametrize(("family", "form"), FORMS)
@pytest.mark.parametrize("rows", [34, 4])
def test_contributions_are_what_ablating_one_at_a_time_measures(family, form, rows, monkeypatch):
    monkeypatch.setattr(measuring, "ROWS", rows)  # 4: three concepts take two passes
    model = tiny_model(family, **form)
    ids = torch.randint(1, 101, (12,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        mixed = model(ids[None]).concept_logits[0].topk(model.config.concept_k).indices
    found = contributions(model, ids, mixed[:, :3], mixed)
    plain = log_probabilities(model, ids)
    torch.testing.assert_close(found.log_probability, plain, atol=1e-5, rtol=1e-5)
    for place in range(11):
        variants = [*([int(c)] for c in mixed[place, :3]), mixed[place].tolist()]
        measured = [*found.concepts[place].tolist(), float(found.together[place])]
        for off, contribution in zip(variants, measured, strict=True):
            edits = [Edit(concept, "ablate", start=place, end=place + 1) for concept in off]
            without = log_probabilities(model, ids, edits)[place]
            assert float(plain[place] - without) == pytest.approx(contribution, abs=2e-5)
    assert found.concepts.abs().max() > 0.01
    later = contributions(model, ids, mixed[:, :3], mixed, first=7)
    for rest, all in zip(later, found, strict=True):
        torch.testing.assert_close(rest, all[7:], atol=2e-5, rtol=1e-5)


def test_contributions_of_a_batch_of_one_are_those_of_the_text_and_several_texts_are_refused():
    model = tiny_model()
    ids = torch.arange(1, 9)
    with torch.no_grad():
        output = model(ids[None])
    mixed = output.concept_logits.topk(model.config.concept_k).indices
    due = contributions(model, ids, mixed[0], mixed[0])
    assert due.concepts.shape == (7, model.config.concept_k)
    for given in ((ids[None], mixed, mixed), (ids[None],), (ids, mixed[0])):
        for found, wanted in zip(contributions(model, *given), due, strict=True):
            assert torch.equal(found, wanted)
    with pytest.raises(ValueError, match=r"ids of one text are wanted, 1 dimensions; these are \[2, 8\]"):
        contributions(model, ids.expand(2, -1))


def test_what_is_mixed_in_comes_with_the_output_except_in_training():
    model = tiny_model()
    made = []
    model.mixer.register_forward_hook(lambda mixer, given, mixed: made.append(mixed.vector))
    with torch.no_grad():
        assert torch.equal(model(torch.arange(1, 9)[None]).concept_vector, made[0])
        assert model.train()(torch.arange(1, 9)[None]).concept_vector is None
        for name in ("output_hidden_states", "output_attentions"):
            with pytest.raises(ValueError, match=f"{name}=True is not supported"):
                model(torch.arange(1, 9)[None], **{name: True})


def test_settings_of_the_command_line_alone_are_refused_by_the_functions(steered_run):
    from cocomix.evaluate.settings import EvalSettings
    from cocomix.evaluate.verb import evaluate
    from cocomix.steer.generation import generate
    from cocomix.steer.inspection import inspect
    from cocomix.steer.settings import GenerateSettings, InspectSettings

    with pytest.raises(UserError, match="picture=p.png is the command line's"):
        inspect(InspectSettings(model=steered_run, picture="p.png"), TEXT)
    with pytest.raises(UserError, match="prompts=p.jsonl beside a prompt"):
        generate(GenerateSettings(model=steered_run, prompts="p.jsonl"), TEXT)
    with pytest.raises(UserError, match="tasks= asks for benchmarks"):
        evaluate(EvalSettings(model=steered_run, tasks=["piqa"]))


def test_switching_off_a_concept_that_helps_lowers_the_next_token_as_told(steered_run, cli):
    """From the command line's numbers to a steered model: the last token with a next one."""
    code, out, err = cli("inspect", TEXT, f"model={steered_run}", "contributions=true", "--json")
    assert code == 0, err
    tokens = json.loads(out)["tokens"]
    place = len(tokens) - 2
    concept = max(tokens[place]["concepts"], key=lambda c: abs(c["contribution"]))
    model, tokenizer = load_concept_model(str(steered_run))
    ids = predict(model, tokenizer, TEXT, 1).ids
    off = log_probabilities(model, ids, [Edit(concept["id"], "ablate", start=place)])[place]
    told = tokens[place]["log_probability"] - concept["contribution"]
    assert float(off) == pytest.approx(told, abs=1e-4)
    assert abs(concept["contribution"]) > 1e-3
    assert tokens[-1]["contribution"] is None
    assert all(c["contribution"] is None for c in tokens[-1]["concepts"])


def test_teacher_column_is_what_the_autoencoder_finds_in_the_teacher(steered_run, cli):
    from cocomix.concepts.load_sae import load_sae
    from cocomix.concepts.teacher import load_teacher
    from cocomix.data.dataset import Dataset

    code, out, err = cli("inspect", TEXT, f"model={steered_run}", "top=8", "teacher=true", "device=cpu", "--json")
    assert code == 0, err
    tokens = json.loads(out)["tokens"]
    dataset, cpu = Dataset.open(steered_run.parent / "data"), torch.device("cpu")
    teacher = load_teacher(str(steered_run.parent / "teacher"), 1, dataset, 32, cpu, "float32")
    sae = load_sae(str(steered_run.parent / "sae"), cpu)
    model, tokenizer = load_concept_model(str(steered_run))
    ids = predict(model, tokenizer, TEXT, 1).ids
    values, indices = sae.encode(teacher.activations(ids[None])[0])
    found = 0
    for place, token in enumerate(tokens):
        active = dict(zip(indices[place].tolist(), values[place].tolist(), strict=True))
        for concept in token["concepts"]:
            assert concept["teacher"] == pytest.approx(max(0.0, active.get(concept["id"], 0.0)))
            found += concept["teacher"] > 0
    assert 0 < found < 8 * len(tokens)


def test_predicted_concepts_are_the_strongest_and_the_pieces_make_the_text(steered_run):
    model, tokenizer = load_concept_model(str(steered_run))
    tokens = predicted_concepts(model, tokenizer, TEXT, 3, None)
    assert "".join(token["token"] for token in tokens) == TEXT
    with torch.no_grad():
        z = model(predict(model, tokenizer, TEXT, 1).ids[None]).concept_logits[0]
    for place, token in enumerate(tokens):
        best = z[place].topk(3)
        assert [c["id"] for c in token["concepts"]] == best.indices.tolist()
        for concept, strength in zip(token["concepts"], best.values.tolist(), strict=True):
            assert concept["strength"] == pytest.approx(strength)
            assert concept["probability"] == pytest.approx(float(z[place].softmax(-1)[concept["id"]]), rel=1e-4)


def test_picture_and_table_show_every_token(steered_run, tmp_path, cli):
    picture = tmp_path / "text.png"
    text = "The $old$ {harbour}\nsails <b>at</b> dusk"
    words = [f"model={steered_run}", "contributions=true", "teacher=true", f"picture={picture}"]
    code, out, err = cli("inspect", text, *words)
    assert code == 0, err
    assert f"picture: {picture}" in err
    assert picture.read_bytes().startswith(b"\x89PNG")
    model, tokenizer = load_concept_model(str(steered_run))
    for token in predicted_concepts(model, tokenizer, text, 1, None):
        assert repr(token["token"]) in out
    assert "*: active in the teacher" in out


def test_a_picture_of_a_long_text_says_what_it_leaves_out():
    from cocomix.report.inspection import MOST, inspection_plot

    tokens = [{"token": f" {n}", "concepts": [{"id": 1, "name": "a\nb", "strength": -1.0}]} for n in range(MOST + 7)]
    plot = inspection_plot(tokens)
    assert "7 more tokens are not drawn" in plot.caption
    assert f">{MOST - 1}<" in plot.svg
    assert f">{MOST}<" not in plot.svg


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["", "model=RUN"], "the text is empty"),
        (["a b " * 20, "model=RUN"], "the model reads 32: shorten it"),
        (["word " * 200_000, "model=RUN"], "the text has 1,000,000 letters, more than the model's 32 positions"),
        (["The", "model=RUN", "picture=a.jpg"], "picture=a.jpg is no PNG file: give a name that ends in .png"),
        (["The", "model=EXPORT", "teacher=true"], "is no run with concept labels"),
        (["The", "model=RUN", "top=0"], "setting 'top'=0"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_looked_into_is_one_sentence(words, sentence, steered_run, tmp_path, cli):
    shutil.copytree(steered_run / "export", tmp_path / "export")
    names = {"model=RUN": f"model={steered_run}", "model=EXPORT": f"model={tmp_path / 'export'}"}
    code, out, err = cli("inspect", *(names.get(word, word) for word in words))
    assert (code, out) == (2, "")
    assert sentence in err.splitlines()[-1]


def test_usual_strengths_are_made_once_and_again_for_other_weights(steered_run, tmp_path):
    from safetensors.torch import load_file, save_file

    from cocomix.steer.usual import FILE, load_usual

    run = Path(shutil.copytree(steered_run, tmp_path / "run"))
    (run / FILE).unlink(missing_ok=True)
    first = load_usual(str(run))
    written = (run / FILE).stat().st_mtime_ns
    assert torch.equal(load_usual(str(run / "export")).nan_to_num(), first.nan_to_num())
    assert (run / FILE).stat().st_mtime_ns == written
    weights = load_file(run / "export" / "model.safetensors")
    weights["mixer.predict.bias"] += 1.0
    save_file(weights, run / "export" / "model.safetensors", metadata={"format": "pt"})
    torch.testing.assert_close(load_usual(str(run)), first + 1.0, atol=1e-4, rtol=1e-4, equal_nan=True)
    (run / FILE).write_bytes(b"damaged")
    torch.testing.assert_close(load_usual(str(run)), first + 1.0, atol=1e-4, rtol=1e-4, equal_nan=True)


@pytest.mark.parametrize("text", ["São Tomé", "naïve 日本 🦊"])
def test_a_character_of_several_tokens_stands_at_the_first_of_them_alone(text, steered_run):
    model, tokenizer = load_concept_model(str(steered_run))
    tokens = predicted_concepts(model, tokenizer, text, 1, None)
    assert len(tokens) == len(tokenizer(text, add_special_tokens=False)["input_ids"])
    assert "".join(token["token"] for token in tokens) == text
    assert "" in [token["token"] for token in tokens]


def test_a_picture_has_a_sign_for_a_token_without_characters_of_its_own():
    from cocomix.report.inspection import inspection_plot

    tokens = [{"token": piece, "concepts": [{"id": 1, "name": "a", "strength": 1.0}]} for piece in ("ã", "", "o")]
    assert inspection_plot(tokens).svg.count(">·<") == 1
