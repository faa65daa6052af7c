from __future__ import annotations

from pathlib import Path

import pytest

from cocomix.config import load_settings, recipes_folder
from cocomix.errors import UserError
from cocomix.model.config import CoCoMixConfig
from cocomix.sweep.settings import SweepSettings
from cocomix.train.run import Run
from cocomix.train.settings import TrainSettings


@pytest.mark.parametrize(
    "recipe", sorted(p.relative_to(recipes_folder()).as_posix() for p in recipes_folder().rglob("*.yaml"))
)
def test_every_recipe_is_valid(recipe):
    words = [recipe, "data.path=d", "data.labels=l", "run=r"]
    if recipe.startswith("ablations/"):
        words.insert(0, "tiny/cocomix")
    if "kd" in recipe:
        words.append("data.probabilities=p")
    if "hidden" in recipe:
        words.append("data.teacher.name=t")
    settings = load_settings(TrainSettings, words)
    assert settings.tokens
    assert (
        settings.method == Path(recipe).stem.replace("slot_", "cocomix_")
        or recipe.startswith("smollm2")
        or "base" in recipe
    )


@pytest.mark.parametrize("below", ["tiny/cocomix", "smollm2/cocomix", "tiny/cocomix_memory"])
def test_concept_loss_alone_lies_over_every_recipe_of_concepts(below):
    model = load_settings(
        TrainSettings, [below, "ablations/concept_alone", "data.path=d", "data.labels=l", "run=r"]
    ).model
    CoCoMixConfig(mixer=model.mixer, mixing=model.mixing, insert_at=1, slot_base=model.slot_base).check()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tiny/nto"], r"no recipe 'tiny/nto' \(did you mean 'tiny/ntp'\?\)"),
        (["tiny/ntp", "optimiser.lr=1"], r"unknown setting 'optimiser' \(did you mean 'optimizer'\?\)"),
        (["tiny/ntp", "model.mixr=none"], r"unknown setting 'model.mixr' \(did you mean 'mixer'\?\)"),
        (["tiny/ntp", "lr=1e-3"], r"unknown setting 'lr' \(did you mean 'optimizer.lr'\?\)"),
        (["tiny/ntp", "kind=muon"], r"unknown setting 'kind' \(did you mean 'optimizer.kind' or 'schedule.kind'\?\)"),
        (["tiny/ntp", "data=data/mine"], "^data=data/mine: write data.path=data/mine$"),
        (["tiny/ntp", "data.online=sae"], "data.online=sae: write data.online.sae=sae"),
        (["tiny/ntp", "optimizer=muon"], "optimizer=muon: write optimizer.KEY=VALUE, one of kind, lr, muon_lr"),
        (["tiny/ntp", "tokens=1X"], "setting 'tokens'='1X': input should be a valid integer"),
        (["tiny/ntp", "tokens=0.0005k"], "setting 'tokens'='0.0005k': input should be a valid integer"),
        (["tiny/ntp", "tokens=0k"], "setting 'tokens'=.*: input should be greater than or equal to 1"),
        (["tiny/ntp", "optimizer.lr=-1"], "setting 'optimizer.lr'=-1: input should be greater than 0"),
        (["tiny/ntp", "optimizer.betas=[0.9, 1]"], "setting 'optimizer.betas.*'=1.*: input should be less than 1"),
        (["tiny/ntp", "losses.ntp=0"], "at least one loss of a weight above 0 is wanted, e.g. losses.ntp=1"),
        (["tiny/ntp", "losses.ntp=.nan"], "losses.ntp=nan must be a finite number, 0 or more"),
        (["tiny/ntp", "losses.z=-1"], "losses.z=-1.0 must be a finite number, 0 or more"),
        (["tiny/ntp", "losses.concept=1"], "losses.concept needs model.mixer=concept"),
        (["tiny/cocomix"], "losses.concept needs data.labels=NAME"),
        (["tiny/ntp", "batch_windows=6", "micro_batches=4"], "must be a multiple of micro_batches=4"),
        (["tiny/ntp", "tokens=null"], "give the budget as tokens=…, steps=…, flops=… or seconds=…"),
    ],
)
def test_a_wrong_setting_is_named_with_the_mend(words, message):
    with pytest.raises(UserError, match=message):
        load_settings(TrainSettings, ["data.path=d", "run=r", *words])


def test_a_recipe_s_backbone_can_be_taken_back_for_a_pretrained_one():
    words = ["tiny/ntp", "data.path=d", "run=r", "model.from_backbone=gpt2"]
    with pytest.raises(UserError, match=r"leave model\.backbone out, where a recipe sets it add model\.backbone=null"):
        load_settings(TrainSettings, words)
    model = load_settings(TrainSettings, [*words, "model.backbone=null"]).model
    assert (model.from_backbone, model.backbone) == ("gpt2", {"model_type": "gpt2"})


def test_a_misspelt_key_of_a_sweep_s_row_is_told_with_those_that_are_known():
    rows = {"a": {"recipe": "tiny/ntp", "labls": "b"}}
    with pytest.raises(UserError, match=r"'runs.a.labls' \(did you mean 'labels'\?\); known here: recipe, set, labels"):
        load_settings(SweepSettings, [], folder="f", data="d", runs=rows)


def test_a_path_is_taken_as_its_text():
    given = load_settings(TrainSettings, ["tiny/ntp"], run=Path("runs", "a"), data={"path": Path("data")})
    assert (given.run, given.data.path) == ("runs/a", "data")


def test_missing_settings_are_told_all_at_once():
    with pytest.raises(UserError, match=r"'run' is missing: add run=…; setting 'data.path' is missing: add data.path="):
        load_settings(TrainSettings, ["tiny/ntp"])


@pytest.mark.parametrize(
    ("text", "tokens"), [("1e6", 10**6), ("1M", 10**6), ("2.5k", 2500), ("1B", 10**9), ("1_000", 1000), ("5", 5)]
)
def test_a_budget_may_be_written_short(text, tokens):
    assert load_settings(TrainSettings, ["tiny/ntp", "data.path=d", "run=r", f"tokens={text}"]).tokens == tokens


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["losses.ntpp=1"], r"losses.ntpp is unknown \(did you mean 'ntp'\?\)"),
        (["model.mixer=concept", "model.num_concepts=8", "model.insert_at=6"], "insert_at=6 lies outside the network"),
        (["model.mixer=concept"], "model.num_concepts is needed where no labels are given"),
        (["model.backbone.n_head=5"], "model: .*embed_dim.*must be divisible by num_heads"),
        (["model.backbone.n_layer=two"], "model.backbone makes no gpt2 network .*'n_layer' expected int, got str"),
        (["model.backbone.n_embd=32.5"], "model.backbone makes no gpt2 network .*'n_embd'.*mend what is wrong of"),
        (["model.backbone.vocab_size=100k"], "makes no gpt2 network .*'vocab_size' expected int.*vocab_size=100k"),
        (["model.backbone.activation_function=foo"], r"\(KeyError: 'foo'\): mend .*activation_function=foo"),
        (["model.backbone.n_head=0"], r"\(ZeroDivisionError: .*\): mend .*n_head=0"),
        (
            [
                "model.backbone=null",
                "model.backbone={model_type: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 4}",
                "model.mixer=pause",
                "model.slot_base=position",
            ],
            "model: slot_base=position needs learned absolute positions",
        ),
        (["model.backbone.n_layers=5"], "model.backbone.n_layers is no setting of gpt2 in transformers"),
        (["model.backbone.model_type=bert"], "backbone model_type='bert' has no adapter; known: gemma3_text, gpt2"),
        (["model.backbone.vocab_size=7"], "model.backbone.vocab_size=7 is smaller than the dataset's"),
        (["device=gpu"], r"device=gpu is not usable here \(Expected one of cpu, .*\): give device=cpu"),
    ],
)
def test_a_model_that_cannot_be_built_is_one_sentence(dataset, tmp_path, words, message):
    with pytest.raises(UserError, match=message):
        Run(load_settings(TrainSettings, ["tiny/ntp", f"data.path={dataset.folder}", f"run={tmp_path}/r", *words]))
