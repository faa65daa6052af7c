"""Runs that start from a pretrained model's weights."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from cocomix.config import load_settings
from cocomix.data.batches import sample_batch
from cocomix.data.dataset import Dataset
from cocomix.data.prepare import prepare
from cocomix.data.settings import PrepareSettings
from cocomix.errors import UserError
from cocomix.testing.models import tiny_model
from cocomix.testing.text import english_like, tiny_dataset
from cocomix.train.export import export_model
from cocomix.train.loop import fit
from cocomix.train.metrics import read_lines
from cocomix.train.run import Run
from cocomix.train.settings import TrainSettings
from cocomix.train.verb import export_run, train

CONCEPTS = ["model.mixer=concept", "model.insert_at=2", "model.num_concepts=40", "model.concept_k=5"]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def backbone(request, dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model with the dataset's tokenizer, in bf16 and with dropout as pretrained ones often are."""
    dropout = {"resid_pdrop": 0.3, "embd_pdrop": 0.3} if request.param == "gpt2" else {"attention_dropout": 0.3}
    text = {"vocab_size": dataset.vocab_size, "initializer_range": 0.1, **dropout}
    model = tiny_model(request.param, mixer="none", backbone=text).to(torch.bfloat16)
    out = tmp_path_factory.mktemp("backbone") / request.param
    return export_model(model, dataset.tokenizer_folder, out, {"run": "backbone", "tokens": 0})


def settings(dataset: Dataset, run: Path, backbone: Path, *words: str) -> TrainSettings:
    return load_settings(
        TrainSettings,
        [f"data.path={dataset.folder}", f"run={run}", f"model.from_backbone={backbone}", "steps=4", "batch_windows=4",
         "checkpoint.number=2", "evaluations=1", "eval_documents=1", "optimizer.lr=1e-3", *words],
    )  # fmt: skip


def loss_of_the_first_batch(dataset: Dataset, backbone: Path) -> float:
    """The backbone's own, by transformers, on what the first step of a run reads."""
    batch = sample_batch(dataset.split("train"), dataset.window, 0, 0, 4, {})
    model = AutoModelForCausalLM.from_pretrained(backbone, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(input_ids=batch.inputs).logits
    return float(F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten()))


def first_loss(run: Path) -> float:
    return read_lines(run / "metrics.jsonl")[0]["losses"]["ntp"]


def test_continued_pretraining_starts_with_the_loss_of_the_backbone(dataset, tmp_path, backbone):
    train(settings(dataset, tmp_path / "run", backbone))
    assert first_loss(tmp_path / "run") == pytest.approx(loss_of_the_first_batch(dataset, backbone), abs=1e-5)
    run = Run(settings(dataset, tmp_path / "fresh", backbone))
    assert {parameter.dtype for parameter in run.model.parameters()} == {torch.float32}


def test_with_the_concepts_added_a_layer_normed_backbone_starts_exactly_there(dataset, tmp_path, backbone):
    """At zero compression ĉ is the state's mean, which a LayerNorm takes off again; an RMSNorm sees it."""
    train(settings(dataset, tmp_path / "run", backbone, *CONCEPTS, "model.mixing=add"))
    exactly = 1e-5 if backbone.name == "gpt2" else 0.03
    assert first_loss(tmp_path / "run") == pytest.approx(loss_of_the_first_batch(dataset, backbone), abs=exactly)


@pytest.mark.parametrize("mixing", [["memory"], ["insert", "model.slot_base=copy"]], ids=lambda words: words[0])
def test_other_mixings_start_near_the_backbones_loss(dataset, tmp_path, backbone, mixing):
    words = [f"model.mixing={mixing[0]}", *mixing[1:]]
    train(settings(dataset, tmp_path / "run", backbone, *CONCEPTS, *words))
    assert first_loss(tmp_path / "run") == pytest.approx(loss_of_the_first_batch(dataset, backbone), abs=0.05)


def test_resuming_and_exporting_need_the_backbone_no_more(dataset, tmp_path, backbone):
    moved, run = tmp_path / "backbone", tmp_path / "run"
    shutil.copytree(backbone, moved)
    words = [*CONCEPTS, "model.mixing=add"]
    train(settings(dataset, run, moved, *words, "steps=2"))
    shutil.rmtree(moved)
    resumed = Run(settings(dataset, run, moved, *words))
    resumed.resume()
    assert resumed.counters.step == 2
    exported = AutoModelForCausalLM.from_pretrained(run / "export")
    for name, tensor in exported.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name
    fit(resumed)
    assert export_run(str(run), str(tmp_path / "out"))["tokens"] == 4 * 4 * dataset.window


def test_the_new_mixer_depends_on_the_seed_alone(dataset, tmp_path, backbone):
    heads = []
    for run, seed in (("a", 1), ("b", 1), ("c", 2)):
        made = Run(settings(dataset, tmp_path / run, backbone, *CONCEPTS, f"seed={seed}"))
        heads.append(made.model.mixer.predict.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_a_mixer_of_the_hidden_kind_has_the_sizes_of_the_recipe(dataset, tmp_path, backbone):
    words = ["model.mixer=hidden", "model.insert_at=2", "model.state_size=24", "model.state_width=16"]
    mixer = Run(settings(dataset, tmp_path / "run", backbone, *words)).model.mixer
    assert (mixer.up.out_features, mixer.guess.out_features) == (16, 24)


def test_a_run_may_start_from_another_run(dataset, tmp_path, backbone):
    train(settings(dataset, tmp_path / "first", backbone))
    train(settings(dataset, tmp_path / "second", tmp_path / "first", *CONCEPTS, "model.mixing=memory"))
    wanted = loss_of_the_first_batch(dataset, tmp_path / "first" / "export")
    assert first_loss(tmp_path / "second") == pytest.approx(wanted, abs=0.05)


def dataset_with_tokenizer_of(model: Path, place: Path) -> Dataset:
    (place / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in english_like(30)))
    words = {"source": str(place / "text.jsonl"), "out": str(place / "own"), "tokenizer": str(model)}
    prepare(PrepareSettings(**words, window=32, val_fraction=0.1))
    return Dataset.open(place / "own")


def test_a_gguf_file_is_a_backbone(dataset, tmp_path):
    pytest.importorskip("gguf")
    from cocomix.testing.gguf import tiny_gguf

    model = tiny_model("llama", mixer="none", backbone={"vocab_size": dataset.vocab_size, "initializer_range": 0.1})
    export_model(model, dataset.tokenizer_folder, tmp_path / "llama", {"run": "llama", "tokens": 0})
    (tmp_path / "gguf").mkdir()
    tiny_gguf(tmp_path / "gguf" / "tiny.gguf", tmp_path / "llama")
    own = dataset_with_tokenizer_of(tmp_path / "gguf", tmp_path)
    train(settings(own, tmp_path / "run", tmp_path / "gguf"))
    wanted = loss_of_the_first_batch(own, tmp_path / "llama")
    assert first_loss(tmp_path / "run") == pytest.approx(wanted, abs=0.02)  # eight bits a weight
    assert first_loss(tmp_path / "run") != pytest.approx(math.log(own.vocab_size), abs=0.02)
    exported = json.loads((tmp_path / "run" / "export" / "config.json").read_text())
    assert "quantization_config" not in exported  # it is trained in fp32, and loads as what it is


def test_a_backbone_of_another_tokenizer_is_refused(backbone, tmp_path):
    other = tiny_dataset(tmp_path / "other", vocab_size=300)
    with pytest.raises(UserError, match=r"another tokenizer than data=.*prepare the text again .* tokenizer="):
        Run(settings(other, tmp_path / "run", backbone))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model.backbone={model_type: gpt2, n_layer: 2}"], "leave model.backbone out"),
        (["data.window=65"], "its 64 positions are fewer than data.window=65"),
        (["model.from_backbone=some/where/else"], "there is no such folder"),
        (
            ["model.from_backbone=nobody/nothing"],
            "model.from_backbone=nobody/nothing: it is no folder here and the hub",
        ),
        ([*CONCEPTS, "model.insert_at=9"], "insert_at=9 lies outside the network"),
    ],
)
def test_what_does_not_fit_is_told_in_a_sentence(words, said, dataset, tmp_path, backbone):
    with pytest.raises(UserError) as error:
        Run(settings(dataset, tmp_path / "run", backbone, *words))
    assert said in str(error.value)


def test_a_folder_that_holds_no_model_is_refused(dataset, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"is no model: it holds no config.json and no \*\.gguf"):
        Run(settings(dataset, tmp_path / "run", tmp_path / "empty"))


def test_a_model_of_more_than_text_is_refused_before_anything_is_kept(dataset, tmp_path):
    AutoConfig.for_model("gemma3").save_pretrained(tmp_path / "gemma3")
    with pytest.raises(UserError, match=r"gemma3 is a gemma3, which reads more than text: give a model of text alone"):
        Run(settings(dataset, tmp_path / "run", tmp_path / "gemma3"))
    assert not (tmp_path / "run" / "backbone.json").exists()


def test_truncated_weights_are_refused(dataset, tmp_path, backbone):
    shutil.copytree(backbone, tmp_path / "broken")
    file = tmp_path / "broken" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be loaded"):
        Run(settings(dataset, tmp_path / "run", tmp_path / "broken"))
