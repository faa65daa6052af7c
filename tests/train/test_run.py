from __future__ import annotations

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from cocomix.config import load_settings
from cocomix.data.batches import sample_batch
from cocomix.dist.parallel import Spread
from cocomix.errors import UserError
from cocomix.losses.terms import loss_terms
from cocomix.stopping import Stopped, StopRequest
from cocomix.testing.models import tiny_model
from cocomix.testing.text import tiny_dataset
from cocomix.train.alone import LOCK, alone_in
from cocomix.train.build import build_optimizers, learning_rate
from cocomix.train.checkpoint import Checkpoints, checkpoint_folders, read_tensors
from cocomix.train.loop import evaluate
from cocomix.train.metrics import read_lines
from cocomix.train.run import Run
from cocomix.train.settings import OptimizerSettings, ScheduleSettings, TrainSettings
from cocomix.train.step import NonFinite, train_step
from cocomix.train.verb import train

BACKBONE = "model.backbone={model_type: gpt2, n_embd: 32, n_layer: 4, n_head: 4}"


def settings(dataset, run: Path, *words: str) -> TrainSettings:
    return load_settings(
        TrainSettings,
        [f"data.path={dataset.folder}", f"run={run}", BACKBONE, "steps=10", "batch_windows=4", "checkpoint.number=1",
         "evaluations=2", "eval_documents=2", "optimizer.lr=3e-3", "schedule.warmup=0.1", *words],
    )  # fmt: skip


def comparable(run: Path) -> list[dict]:
    """Metrics without what a clock measured."""
    clock = ("seconds", "tokens_per_second", "mfu", "waited")
    return [{k: v for k, v in line.items() if k not in clock} for line in read_lines(run / "metrics.jsonl")]


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Weights and optimizer state of the last checkpoint."""
    return read_tensors(checkpoint_folders(run)[-1])


class Interrupted(Exception):
    pass


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """A process that dies right behind the checkpoint of ``step``."""
    real = Checkpoints.finish

    def finish_and_die(self):
        folder = real(self)
        if folder is not None and folder.name == f"step-{step:08d}":
            raise Interrupted
        return folder

    monkeypatch.setattr(Checkpoints, "finish", finish_and_die)


@pytest.mark.parametrize(
    ("dies_at", "batch", "dropout", "precision"),
    [(4, 4, 0.0, "bf16"), (4, 4, 0.1, "fp32"), (7, 28, 0.1, "fp32")],
    ids=["in-bf16", "with-dropout", "behind-the-datas-end"],
)
def test_resumed_run_equals_straight_run(dataset, tmp_path, monkeypatch, dies_at, batch, dropout, precision):
    words = [f"batch_windows={batch}", f"model.backbone.resid_pdrop={dropout}", "checkpoint.number=10", "threads=2"]
    words.append(f"precision={precision}")
    if batch == 28:
        dataset = tiny_dataset(tmp_path / "data", documents=10)
        assert dies_at * batch > dataset.split("train").count(dataset.window) > batch
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    train(settings(dataset, straight, *words))
    with monkeypatch.context() as patch:
        stop_after(patch, dies_at)
        with pytest.raises(Interrupted):
            train(settings(dataset, broken, *words))
    # What a dying process leaves: lines beyond the checkpoint and half a line.
    with (broken / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": dies_at + 1, "losses": {}}) + '\n{"step": 99, "lo')
    train(settings(dataset, broken, *words))
    assert comparable(broken) == comparable(straight)
    assert [line["step"] for line in comparable(straight)] == list(range(1, 11))
    for name, tensor in weights(straight).items():
        assert torch.equal(tensor, weights(broken)[name]), name


def test_micro_batches_do_not_change_what_a_step_does(dataset):
    results = []
    for parts in (1, 4):
        model = tiny_model(mixer="none", backbone={"vocab_size": dataset.vocab_size}).train()
        batch = sample_batch(dataset.split("train"), dataset.window, 0, 0, 8, {})
        optimizers = build_optimizers(model, OptimizerSettings(lr=1e-3))
        result = train_step(Spread(model, model, 1), loss_terms({"ntp": 1.0}), batch.split(parts), optimizers, 1.0)
        results.append((result, [p.detach().clone() for p in model.parameters()]))
    (one, weights_one), (four, weights_four) = results
    assert one.losses["ntp"] == pytest.approx(four.losses["ntp"], abs=1e-6)
    assert one.grad_norm == pytest.approx(four.grad_norm, rel=1e-5)
    for a, b in zip(weights_one, weights_four, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_finished_run_trains_no_more_and_is_exported_as_a_plain_model(dataset, tmp_path):
    first = train(settings(dataset, tmp_path / "run"))
    again = train(settings(dataset, tmp_path / "run"))
    assert first["evaluation"] == again["evaluation"]
    assert first["finished"]
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "export")
    assert type(plain).__name__ == "GPT2LMHeadModel"
    run = Run(settings(dataset, tmp_path / "run"))
    run.resume()
    ids = torch.randint(1, dataset.vocab_size, (2, 16))
    with torch.no_grad():
        torch.testing.assert_close(plain.eval()(ids).logits, run.model.eval()(ids).logits, atol=1e-5, rtol=0)


def test_a_run_is_exported_where_one_says_and_a_setting_is_no_folder(dataset, tmp_path, cli, monkeypatch):
    run = Path(train(settings(dataset, tmp_path / "run", "steps=1"))["folder"])
    monkeypatch.chdir(tmp_path)
    assert cli("export", run, "out=named")[0] == 0
    assert (tmp_path / "named" / "config.json").is_file()
    for word, sentence in (
        ("tokenizer=gpt2", "'tokenizer=gpt2': the export of a run has no settings"),
        (".", "out=. is the working directory, which cannot be replaced: name a folder in it"),
    ):
        code, _, err = cli("export", run, word)
        assert (code, sentence in err) == (2, True), err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["named", "run"]


def test_an_evaluation_has_no_more_windows_at_once_than_a_step(dataset, tmp_path):
    run, rows = Run(settings(dataset, tmp_path / "run", "micro_batches=2")), []
    run.model.register_forward_pre_hook(lambda _, args, given: rows.append(len(given["input_ids"])), with_kwargs=True)
    evaluate(run)
    assert max(rows) == 2


def test_metrics_count_tokens_operations_and_means(dataset, tmp_path):
    train(settings(dataset, tmp_path / "run"))
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    described = json.loads((tmp_path / "run" / "run.json").read_text())
    per_token = described["flops_per_token"]["student"]
    assert [line["tokens"] for line in lines] == [4 * 32 * s for s in range(1, 11)]
    assert lines[-1]["flops"]["student"] == pytest.approx(per_token * 4 * 32 * 10)
    assert lines[0]["losses"]["ntp"] == pytest.approx(math.log(dataset.vocab_size), abs=0.2)
    assert lines[-1]["losses"]["ntp"] < lines[0]["losses"]["ntp"] - 0.3
    evals = read_lines(tmp_path / "run" / "evals.jsonl")
    assert [line["step"] for line in evals] == [5, 10]
    assert evals[1]["documents"] == 2
    assert 0 < evals[1]["bits_per_byte"] < evals[0]["bits_per_byte"]


def test_evaluation_does_not_touch_training(dataset, tmp_path):
    words = ("model.backbone.resid_pdrop=0.1",)
    train(settings(dataset, tmp_path / "few", "evaluations=1", *words))
    train(settings(dataset, tmp_path / "many", "evaluations=10", *words))
    assert comparable(tmp_path / "few") == comparable(tmp_path / "many")


def test_a_stop_signal_saves_and_the_same_command_goes_on(dataset, tmp_path):
    run = tmp_path / "run"
    words = [
        f"data.path={dataset.folder}",
        f"run={run}",
        BACKBONE,
        "steps=100000",
        "batch_windows=4",
        "checkpoint.number=1",
    ]
    command = [sys.executable, "-m", "cocomix", "train", *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        if len(read_lines(run / "metrics.jsonl")) >= 5:
            break
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    with pytest.raises(UserError, match=f"process {process.pid} trains in this folder already: wait for its end"):
        train(load_settings(TrainSettings, words))
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == 75, err
    assert "is saved at step" in err
    saved = int(checkpoint_folders(run)[-1].name.removeprefix("step-"))
    assert saved == read_lines(run / "metrics.jsonl")[-1]["step"] >= 5
    resumed = Run(load_settings(TrainSettings, words))
    resumed.resume()
    assert resumed.counters.step == saved
    assert not (run / LOCK).exists()


def test_a_run_folder_has_one_writer_until_its_process_is_gone(tmp_path):
    folder = tmp_path / "run"
    code = (
        "import pathlib, sys, time\nfrom cocomix.train.alone import alone_in\n"
        "with alone_in(pathlib.Path(sys.argv[1])):\n    time.sleep(99)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, folder])
    while not ((folder / LOCK).is_file() and (folder / LOCK).stat().st_size):
        assert process.poll() is None
        time.sleep(0.05)
    with pytest.raises(UserError, match=f"process {process.pid} trains in this"), alone_in(folder):
        pass
    (folder / LOCK).write_text("7 elsewhere")
    with (
        pytest.raises(UserError, match=r"process 7 on elsewhere .* remove .*lock if that machine is down"),
        alone_in(folder),
    ):
        pass
    process.kill()
    process.wait()
    for _ in range(2):
        with alone_in(folder):
            assert (folder / LOCK).read_text().startswith(f"{os.getpid()} ")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("word", "named"),
    [("optimizer.lr=1e-2", "optimizer.lr"), ("seed=1", "seed"), ("model.backbone.n_embd=48", "model.backbone.n_embd"),
     ("batch_windows=8", "batch_windows")],
)  # fmt: skip
def test_resuming_with_another_setting_names_the_difference(dataset, tmp_path, word, named):
    train(settings(dataset, tmp_path / "run", "steps=2"))
    with pytest.raises(UserError, match=f"another {named} "):
        train(settings(dataset, tmp_path / "run", "steps=4", word))


def test_going_on_in_another_precision_is_refused(dataset, tmp_path, monkeypatch):
    train(settings(dataset, tmp_path / "run", "steps=2"))
    described = tmp_path / "run" / "run.json"
    assert json.loads(described.read_text())["precision"] == "fp32"
    with pytest.raises(
        UserError, match=r"computed in fp32 so far, precision=bf16 means bf16 on cpu: add precision=fp32"
    ):
        train(settings(dataset, tmp_path / "run", "steps=4", "precision=bf16"))
    train(settings(dataset, tmp_path / "run", "steps=3", "precision=fp32"))  # what auto meant
    old = json.loads(described.read_text())
    del old["precision"]
    described.write_text(json.dumps(old))
    with pytest.raises(UserError, match="computed in fp32 so far"):
        train(settings(dataset, tmp_path / "run", "steps=4", "precision=bf16"))
    assert train(settings(dataset, tmp_path / "run", "steps=4"))["finished"]


def test_a_run_that_did_not_record_its_precision_had_that_of_its_device(dataset, tmp_path):
    train(settings(dataset, tmp_path / "run", "steps=2"))
    described, environment = (tmp_path / "run" / name for name in ("run.json", "environment.json"))
    old = json.loads(described.read_text())
    del old["precision"]
    described.write_text(json.dumps(old))
    environment.write_text(json.dumps({**json.loads(environment.read_text()), "device": "NVIDIA H200"}))
    with pytest.raises(UserError, match="computed in bf16 so far, precision=auto means fp32 on cpu"):
        train(settings(dataset, tmp_path / "run", "steps=4"))


def test_a_recipe_of_a_version_without_a_setting_has_its_default(dataset, tmp_path):
    train(settings(dataset, tmp_path / "run", "steps=2"))
    recipe = tmp_path / "run" / "recipe.yaml"
    lines = recipe.read_text().splitlines(keepends=True)
    recipe.write_text("".join(line for line in lines if "slot_every:" not in line))
    assert len(lines) - 1 == len(recipe.read_text().splitlines())
    train(settings(dataset, tmp_path / "run", "steps=2"))
    with pytest.raises(UserError, match=r"another model.slot_every \(1, now 2\)"):
        train(settings(dataset, tmp_path / "run", "steps=2", "model.slot_every=2"))


def damage(path: Path, how: str) -> None:
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        os.truncate(path, path.stat().st_size // 2)
    else:
        content = bytearray(path.read_bytes())
        content[-7] ^= 4
        path.write_bytes(content)


SHARD = "shard-00001-model-00001-of-00001.safetensors"


@pytest.mark.parametrize("how", ["missing", "truncated", "altered"])
@pytest.mark.parametrize("file", [SHARD, "counters.json"])
def test_a_damaged_checkpoint_is_named_set_aside_and_the_one_before_is_taken(dataset, tmp_path, capsys, file, how):
    run, constant = tmp_path / "run", ["schedule.kind=constant"]
    train(settings(dataset, run, "checkpoint.number=2", *constant))
    before, last = checkpoint_folders(run)
    damage(last / file, how)
    train(settings(dataset, run, "checkpoint.number=2", "steps=12", *constant))
    told = capsys.readouterr().err
    assert f"checkpoint file {last / file} " in told
    assert f"the checkpoint {before.name} before it is taken" in told
    assert "resuming at step 5 of 12" in told
    assert (last.with_name(last.name + ".damaged") / "complete.json").is_file()
    straight = tmp_path / "straight"
    train(settings(dataset, straight, "steps=12", *constant))
    assert comparable(run)[5:] == comparable(straight)[5:]


def test_when_no_checkpoint_is_whole_nothing_begins_anew(dataset, tmp_path):
    run = tmp_path / "run"
    train(settings(dataset, run))
    (last,) = checkpoint_folders(run)
    damage(last / SHARD, "altered")
    with pytest.raises(UserError, match=rf"{SHARD} was altered.*no other checkpoint of .* is whole: restore it"):
        train(settings(dataset, run, "steps=12"))
    assert checkpoint_folders(run) == [last]


def test_a_half_written_checkpoint_does_not_count(dataset, tmp_path, monkeypatch):
    run = tmp_path / "run"
    train(settings(dataset, run, "steps=2"))
    import cocomix.train.checkpoint as module

    def full_disk(tensors, storage_writer, process_group):
        (Path(storage_writer.path) / SHARD).write_bytes(b"half")
        raise OSError(28, "No space left on device", str(storage_writer.path))

    with monkeypatch.context() as patch:
        patch.setattr(module.dcp, "save", full_disk)
        with pytest.raises(UserError, match="no space left on the disk while writing"):
            train(settings(dataset, run, "steps=4"))
    assert [folder.name for folder in (run / "checkpoints").iterdir()] == ["step-00000002"]
    assert train(settings(dataset, run, "steps=4"))["evaluation"]["step"] == 4


def test_a_loss_that_is_no_number_stops_before_the_weights_change(dataset, tmp_path):
    run = Run(settings(dataset, tmp_path / "run"))
    with torch.no_grad():
        run.model.backbone.wte.weight[5:] = float("nan")
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    batch = sample_batch(run.split, run.window, 0, 0, 2, {})
    with pytest.raises(NonFinite, match="loss ntp is nan") as caught:
        train_step(run.spread, run.terms, [batch], run.optimizers, 1.0)
    assert caught.value.rank == 0
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(tensor.nan_to_num(), before[name].nan_to_num())


def test_learning_rate_warms_up_falls_to_its_end_and_is_never_zero():
    rates = [learning_rate(s, 300, 1.0, ScheduleSettings(warmup=0.1)) for s in range(300)]
    assert rates[0] == pytest.approx(1 / 30)
    assert max(rates) == rates[29] == 1.0
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)
    assert all(a > b for a, b in itertools.pairwise(rates[30:]))
    assert learning_rate(299, 300, 1.0, ScheduleSettings(kind="constant")) == 1.0


def test_text_shorter_than_a_window_is_refused(dataset, tmp_path):
    with pytest.raises(UserError, match="fewer than a window of 50000"):
        Run(settings(dataset, tmp_path / "run", "data.window=50000"))


def test_a_terminal_that_is_gone_asks_to_stop_however_often_it_says_so_and_never_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with StopRequest() as stop:
            for _ in range(2):
                signal.raise_signal(signal.SIGHUP)
            assert stop.requested
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)


def test_stopped_is_not_a_user_error():
    assert not issubclass(Stopped, UserError)
