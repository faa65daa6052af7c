"""A missing or truncated file is named before it is used, with what to do; doing that mends it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

RUN = ["train", "tiny/cocomix", "model.backbone={model_type: gpt2, n_embd: 32, n_layer: 4, n_head: 4}",
       "model.concept_k=8", "data.path=data", "data.labels=concepts", "steps=4", "batch_windows=4",
       "checkpoint.number=2", "evaluations=1", "eval_documents=2"]  # fmt: skip
EXTRACT = ["concepts", "extract", "data=data", "sae=sae"]

damages = pytest.mark.parametrize("how", ["missing", "truncated"])


def damage(path: Path, how: str) -> Path:
    """Does it, and returns a whole copy to mend with."""
    whole = Path(shutil.copy(path, path.with_name(path.name + ".whole")))
    if how == "missing":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size // 2)
    return whole


@damages
def test_token_shard(how, place, refused, works):
    shard = Path("data/train-00001.bin")
    whole = damage(shard, how)
    sentence = "is missing" if how == "missing" else "it is truncated or foreign"
    for words in ([*RUN, "run=new"], ["eval", "run"], [*EXTRACT, "name=new"], ["concepts", "atlas", "data=data"]):
        told = refused(*words)
        assert "data/train-00001.bin" in told
        assert sentence in told
    assert not Path("new").exists()
    assert not Path("data/labels/new").exists()
    whole.rename(shard)
    works(*RUN, "run=new")
    works(*EXTRACT, "name=new")


@damages
def test_label_shard(how, place, refused, works):
    shard = Path("data/labels/concepts/train-00001.concept_ids.bin")
    whole = damage(shard, how)
    for words in ([*RUN, "run=new"], ["concepts", "atlas", "data=data"]):
        assert "train-00001.concept_ids.bin" in refused(*words)
    assert not Path("new").exists()
    whole.rename(shard)
    works(*RUN, "run=new")


@damages
@pytest.mark.parametrize("file", ["shard-00001-model-00001-of-00001.safetensors", "counters.json"])
def test_checkpoint(file, how, place, refused, works):
    before, last = Path("run/checkpoints/step-00000002"), Path("run/checkpoints/step-00000004")
    damage(last / file, how)
    for words in (["export", "run", "new"], [*RUN, "run=run", "steps=6"]):
        told = works(*words)
        assert f"{last}/{file} is {how}" in told
        assert "the checkpoint step-00000002 before it is taken" in told
    assert "resuming at step 2 of 6" in told
    assert Path(f"{last}.damaged/complete.json").is_file()
    before, last = Path("run/checkpoints/step-00000003"), Path("run/checkpoints/step-00000006")
    for folder in (before, last):
        damage(folder / file, how)
    told = refused(*RUN, "run=run", "steps=8")
    assert f"{last}/{file} is {how}" in told
    assert "no other checkpoint of run is whole" in told
    assert (before / "complete.json").is_file()


def test_checkpoint_without_its_marker_does_not_count(place, works):
    Path("run/checkpoints/step-00000004/complete.json").unlink()
    assert "resuming at step 2 of 6" in works(*RUN, "run=run", "steps=6")


@damages
@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_exported_model(file, how, place, refused, works):
    damage(Path("run/export") / file, how)
    for words in (["eval", "run"], ["generate", "The", "model=run"], ["inspect", "The", "model=run"]):
        assert refused(*words).startswith("model=run")
    works("export", "run")
    works("eval", "run")


@damages
def test_weights_of_teacher_and_autoencoder(how, place, refused, works):
    whole = damage(Path("teacher/model.safetensors"), how)
    assert "teacher=teacher" in refused(*EXTRACT, "name=new")
    whole.rename("teacher/model.safetensors")
    whole = damage(Path("sae/sae_weights.safetensors"), how)
    assert "sae_weights.safetensors" in refused(*EXTRACT, "name=new")
    assert not Path("data/labels/new").exists()
    whole.rename("sae/sae_weights.safetensors")
    works(*EXTRACT, "name=new")


@damages
def test_atlas(how, place, refused, works):
    damage(Path("data/labels/concepts/atlas.sqlite"), how)
    assert "'cocomix concepts atlas data/labels/concepts'" in refused("concepts", "show", "3", "data=data")
    works("concepts", "atlas", "data/labels/concepts")
    works("concepts", "show", "3", "data=data")


@damages
@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("data/dataset.json", [*RUN, "run=new"]),
        ("data/labels/concepts/labels.json", [*RUN, "run=new"]),
        ("run/run.json", [*RUN, "run=run", "steps=6"]),
        ("run/run.json", ["compare", "run"]),
        ("run/recipe.yaml", ["eval", "run"]),
        ("run/recipe.yaml", ["export", "run"]),
        ("sae/cfg.json", [*EXTRACT, "name=new"]),
    ],
)
def test_manifest(file, words, how, place, refused, works):
    whole = damage(Path(file), how)
    told = refused(*words)
    assert Path(file).name in told or how == "missing"
    assert Path(file).parts[0] in told
    assert not Path("new").exists()
    whole.rename(file)
    works(*words)


def test_unfinished_extraction_is_no_label_set(place, refused, works):
    labels = Path("data/labels/concepts")
    (labels / "labels.json").rename(labels / "extraction.json")
    assert "is not finished: run the same 'cocomix concepts extract' again" in refused(*RUN, "run=new")
    assert not Path("new").exists()


def test_changed_shard_is_found_by_verify(place, cli, works):
    works("data", "verify", "data")
    shard = Path("data/train-00001.bin")
    content = bytearray(shard.read_bytes())
    content[10] ^= 1
    shard.write_bytes(content)
    code, out, err = cli("data", "verify", "data")
    assert code == 2
    assert "train-00001.bin" in out
    assert "Traceback" not in err
