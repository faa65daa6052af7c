from __future__ import annotations

from pathlib import Path

import pytest

from cocomix.config import load_settings, recipes_folder
from cocomix.errors import UserError
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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tiny/nto"], r"no recipe 'tiny/nto' \(did you mean 'tiny/ntp'\?\)"),
        (["tiny/ntp", "optimiser.lr=1"], r"unknown setting 'optimiser' \(did you mean 'optimizer'\?\)"),
        (["tiny/ntp", "model.mixr=none"], r"unknown setting 'model.mixr' \(did you mean 'mixer'\?\)"),
        (["tiny/ntp", "optimizer.lr=-1"], "setting 'optimizer.lr'=-1: input should be greater than 0"),
        (["tiny/ntp", "losses.concept=1"], "losses.concept needs model.mixer=concept"),
        (["tiny/cocomix"], "losses.concept needs data.labels=NAME"),
        (["tiny/ntp", "batch_windows=6", "micro_batches=4"], "must be a multiple of micro_batches=4"),
        (["tiny/ntp", "tokens=null"], "give the budget as tokens=…, steps=…, flops=… or seconds=…"),
    ],
)
def test_a_wrong_setting_is_named_with_the_mend(words, message):
    with pytest.raises(UserError, match=message):
        load_settings(TrainSettings, [*words, "data.path=d", "run=r"])


def test_a_recipe_s_backbone_can_be_taken_back_for_a_pretrained_one():
    words = ["tiny/ntp", "data.path=d", "run=r", "model.from_backbone=gpt2"]
    with pytest.raises(UserError, match=r"leave model\.backbone out, where a recipe sets it add model\.backbone=null"):
        load_settings(TrainSettings, words)
    model = load_settings(TrainSettings, [*words, "model.backbone=null"]).model
    assert (model.from_backbone, model.backbone) == ("gpt2", {"model_type": "gpt2"})


def test_missing_settings_are_told_all_at_once():
    with pytest.raises(UserError, match=r"'run' is missing.*'data' is missing"):
        load_settings(TrainSettings, ["tiny/ntp"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["losses.ntpp=1"], r"losses.ntpp is unknown \(did you mean 'ntp'\?\)"),
        (["model.mixer=concept", "model.num_concepts=8", "model.insert_at=6"], "insert_at=6 lies outside the network"),
        (["model.mixer=concept"], "model.num_concepts is needed where no labels are given"),
        (["model.backbone.n_head=5"], "model: .*embed_dim.*must be divisible by num_heads"),
        (["model.backbone.n_layers=5"], "model.backbone.n_layers is no setting of gpt2 in transformers"),
        (["model.backbone.model_type=bert"], "backbone model_type='bert' has no adapter; known: gemma3_text, gpt2"),
        (["model.backbone.vocab_size=7"], "model.backbone.vocab_size=7 is smaller than the dataset's"),
        (["device=gpu"], r"device=gpu is not usable here \(Expected one of cpu, .*\): give device=cpu"),
    ],
)
def test_a_model_that_cannot_be_built_is_one_sentence(dataset, tmp_path, words, message):
    with pytest.raises(UserError, match=message):
        Run(load_settings(TrainSettings, ["tiny/ntp", f"data.path={dataset.folder}", f"run={tmp_path}/r", *words]))
