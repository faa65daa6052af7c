"""Which checkpoints are kept, from which a run goes on, and when it refuses."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cocomix.config import load_settings
from cocomix.errors import UserError
from cocomix.files import read_json, write_json
from cocomix.stopping import Stopped
from cocomix.train.checkpoint import checkpoint_folders, read_tensors
from cocomix.train.metrics import read_lines
from cocomix.train.run import Run, open_run
from cocomix.train.settings import TrainSettings
from cocomix.train.verb import export_run, train

BACKBONE = "model.backbone={model_type: gpt2, n_embd: 16, n_layer: 2, n_head: 2}"


def settings(dataset, run: Path, *words: str) -> TrainSettings:
    return load_settings(
        TrainSettings,
        [f"data.path={dataset.folder}", f"run={run}", BACKBONE, "steps=12", "batch_windows=4", "checkpoint.number=12",
         "evaluations=1", "eval_documents=1", "schedule.kind=constant", *words],
    )  # fmt: skip


def steps(run: Path) -> list[int]:
    return [int(folder.name.removeprefix("step-")) for folder in checkpoint_folders(run)]


def test_the_last_few_and_every_so_manieth_are_kept(dataset, tmp_path):
    train(settings(dataset, tmp_path / "run", "checkpoint.keep=2", "checkpoint.keep_every=5"))
    assert steps(tmp_path / "run") == [5, 10, 11, 12]


def test_a_checkpoint_is_due_when_the_last_was_long_ago(dataset, tmp_path):
    words = ["checkpoint.number=1", "checkpoint.seconds=0.000001", "checkpoint.keep=100"]
    train(settings(dataset, tmp_path / "run", *words))
    assert steps(tmp_path / "run") == list(range(1, 13))


def test_checkpoints_in_the_background_are_the_same(dataset, tmp_path):
    for run, word in (("front", "false"), ("back", "true")):
        train(settings(dataset, tmp_path / run, f"checkpoint.background={word}", "checkpoint.keep=100"))
    assert steps(tmp_path / "front") == steps(tmp_path / "back") == list(range(1, 13))
    for a, b in zip(checkpoint_folders(tmp_path / "front"), checkpoint_folders(tmp_path / "back"), strict=True):
        front, back = read_tensors(a), read_tensors(b)
        assert all(torch.equal(front[name], back[name]) for name in front)
        counters = [read_json(folder / "counters.json", "counters") for folder in (a, b)]
        assert counters[0]["average"] == counters[1]["average"]
        assert counters[0]["step"] == counters[1]["step"] == int(a.name[-8:])


def test_counters_live_in_the_checkpoint(dataset, tmp_path):
    train(settings(dataset, tmp_path / "run"))
    kept = read_json(checkpoint_folders(tmp_path / "run")[-1] / "counters.json", "counters")
    line = read_lines(tmp_path / "run" / "metrics.jsonl")[-1]
    for name in ("step", "samples", "tokens", "seconds", "flops", "average"):
        assert kept[name] == line[name]
    assert kept["waited"]["checkpoints"] > 0


def test_what_a_killed_process_left_half_written_is_removed(dataset, tmp_path):
    train(settings(dataset, tmp_path / "run", "checkpoint.number=1"))
    left = tmp_path / "run" / "checkpoints" / "step-00000007.partial"
    left.mkdir()
    (left / "shard").write_bytes(b"half")
    train(settings(dataset, tmp_path / "run", "checkpoint.number=1"))
    assert not left.exists()
    assert steps(tmp_path / "run") == [12]


@pytest.mark.parametrize(("resume", "how"), [("auto", "the same command"), ("4", "the same command with resume=auto")])
def test_a_stopped_run_tells_the_command_that_goes_on(dataset, tmp_path, monkeypatch, resume, how):
    train(settings(dataset, tmp_path / "run", "steps=4", "checkpoint.number=1"))
    asked = nullcontext(SimpleNamespace(requested=True))
    monkeypatch.setattr("cocomix.train.loop.StopRequest", lambda: asked)
    with pytest.raises(Stopped, match=f"is saved at step 5; {how} goes on from there"):
        train(settings(dataset, tmp_path / "run", f"resume={resume}"))


def test_resume_must_and_never_and_a_step(dataset, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(UserError, match=r"holds no checkpoint and resume=must: begin with resume=auto"):
        train(settings(dataset, run, "resume=must"))
    with pytest.raises(UserError, match=r"holds no checkpoint and resume=4"):
        train(settings(dataset, run, "resume=4"))
    train(settings(dataset, run, "resume=never", "checkpoint.keep_every=4"))
    straight = read_lines(run / "metrics.jsonl")
    with pytest.raises(UserError, match=r"holds checkpoints and resume=never"):
        train(settings(dataset, run, "resume=never"))
    with pytest.raises(UserError, match=r"resume=5: .* has no checkpoint of that step, only of 4, 8, 11, 12"):
        train(settings(dataset, run, "resume=5"))
    again = Run(settings(dataset, run, "resume=4"))
    again.resume()
    assert again.counters.step == 4
    assert steps(run) == [4]
    assert {p.name for p in (run / "checkpoints").glob("*.aside")} == {
        f"step-000000{step}.aside" for step in ("08", "11", "12")
    }
    train(settings(dataset, run))
    assert [line["losses"] for line in read_lines(run / "metrics.jsonl")] == [line["losses"] for line in straight]


@pytest.mark.parametrize(
    ("part", "name", "told"),
    [("data", "tokenizer_sha256", r"its data changed since it began, data.tokenizer_sha256 \(x, now"),
     ("data", "fingerprint", r"its data changed since it began, data.fingerprint \(x, now")],
)  # fmt: skip
def test_changed_data_are_refused_and_the_difference_named(dataset, tmp_path, part, name, told):
    run = tmp_path / "run"
    train(settings(dataset, run, "steps=1"))
    described = read_json(run / "run.json", "a run")
    described[part] |= {name: "x", "fingerprint": "x"}
    write_json(run / "run.json", described)
    with pytest.raises(UserError, match=told):
        train(settings(dataset, run))


def test_a_shard_with_a_flipped_bit_is_named_before_training(dataset, tmp_path):
    copy = Path(shutil.copytree(dataset.folder, tmp_path / "data"))
    shard = copy / "train-00001.bin"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    words = ["run", f"data.path={copy}"]
    with pytest.raises(UserError, match=r"train-00001.bin is not what was written, its hash differs: restore it, or"):
        train(settings(dataset, tmp_path / words[0], words[1]))
    assert not (tmp_path / "run" / "checkpoints").exists()
    train(settings(dataset, tmp_path / "run", words[1], "data.verify=false", "steps=1"))


def test_another_models_checkpoint_is_refused_by_name(dataset, tmp_path):
    run = tmp_path / "run"
    train(settings(dataset, run, "steps=1"))
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("n_embd: 16", "n_embd: 32"))
    with pytest.raises(UserError, match=r"holds another model: backbone.h.0.attn.c_attn.bias is of shape \[48\] there"):
        train(settings(dataset, run, "model.backbone.n_embd=32"))


def test_a_finished_run_that_is_opened_stays_finished_and_each_checkpoint_can_be_exported(dataset, tmp_path):
    folder = tmp_path / "run"
    train(settings(dataset, folder, "steps=2", "checkpoint.number=2"))
    before = (folder / "export" / "training.json").read_bytes()
    open_run(str(folder)).resume()
    assert json.loads((folder / "run.json").read_text())["finished"]
    made = export_run(folder, step=1)
    assert made["folder"] == str(folder / "export-1")
    assert made["tokens"] * 2 == json.loads(before)["tokens"]
    assert (folder / "export" / "training.json").read_bytes() == before
    with pytest.raises(UserError, match="step=3: .* has no checkpoint of that step, only of 1, 2"):
        export_run(folder, step=3)
    assert read_lines(str(folder / "metrics.jsonl")) == read_lines(folder / "metrics.jsonl")


def test_a_foreign_folder_is_left_alone(dataset, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1}) + "\n")
    with pytest.raises(UserError, match="holds files of something else"):
        train(settings(dataset, run))
    assert [p.name for p in run.iterdir()] == ["metrics.jsonl"]
