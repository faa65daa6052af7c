"""Optimizers, compilation, further losses, logs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from cocomix.config import load_settings
from cocomix.dist.parallel import Spread
from cocomix.errors import UserError
from cocomix.losses.terms import loss_terms
from cocomix.testing.models import tiny_model
from cocomix.testing.ranks import on_ranks, values
from cocomix.train.build import build_optimizers, set_learning_rate
from cocomix.train.checkpoint import checkpoint_folders, read_tensors
from cocomix.train.metrics import read_lines
from cocomix.train.run import Run
from cocomix.train.settings import OptimizerSettings, TrainSettings
from cocomix.train.step import train_step
from cocomix.train.verb import train

BACKBONE = "model.backbone={model_type: gpt2, n_embd: 16, n_layer: 2, n_head: 2}"


def words(dataset, run: Path, *more: str) -> list[str]:
    return [f"data.path={dataset.folder}", f"run={run}", BACKBONE, "steps=6", "batch_windows=4", "checkpoint.number=6",
            "evaluations=1", "eval_documents=2", *more]  # fmt: skip


def go(words: list[str]) -> None:
    train(load_settings(TrainSettings, words))


def losses(run: Path, name: str = "ntp") -> list[float]:
    return [line["losses"][name] for line in read_lines(run / "metrics.jsonl")]


def test_muon_moves_the_blocks_matrices_and_adamw_the_rest():
    model = tiny_model(mixer="concept", mixing="insert")
    muon, adamw = build_optimizers(model, OptimizerSettings(kind="muon", lr=1e-3, muon_lr=2e-3))
    assert isinstance(muon, torch.optim.Muon)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    of_muon = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    of_adamw = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert of_muon == {name for name, p in model.blocks.named_parameters(prefix="backbone.h") if p.dim() == 2}
    assert of_muon | of_adamw == set(names.values())
    assert not of_muon & of_adamw
    set_learning_rate([muon, adamw], 0.5)
    assert {group["lr"] for group in muon.param_groups} == {1e-3}
    assert {group["lr"] for group in adamw.param_groups} == {5e-4}


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_muon_learns_resumes_and_agrees_over_ranks(dataset, tmp_path, strategy):
    common = ["optimizer.kind=muon", "optimizer.muon_lr=3e-3", "optimizer.lr=3e-3", "schedule.kind=constant"]
    go(words(dataset, tmp_path / "one", *common))
    assert losses(tmp_path / "one")[-1] < losses(tmp_path / "one")[0] - 0.1
    go(words(dataset, tmp_path / "resumed", *common, "steps=3"))
    go(words(dataset, tmp_path / "resumed", *common))
    assert losses(tmp_path / "resumed") == losses(tmp_path / "one")
    kept = read_tensors(checkpoint_folders(tmp_path / "one")[-1])
    assert any(name.startswith("optimizer.momentum_buffer.backbone.h.") for name in kept)
    values(on_ranks(2, go, words(dataset, tmp_path / "two", *common, f"dist.strategy={strategy}")))
    # Its orthogonalisation runs in bfloat16: sums in another order are rounded to another number there.
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=5e-3)


@pytest.mark.parametrize("strategy", ["one", "ddp", "fsdp"])
def test_compiled_blocks_give_the_same_losses_and_plain_names(dataset, tmp_path, strategy):
    # Dynamo's capture without inductor's C++: the same graphs, in seconds.
    more = ["model.mixer=pause", "model.mixing=memory", "model.insert_at=1"]
    go(words(dataset, tmp_path / "plain", *more))
    compiled = words(dataset, tmp_path / "compiled", *more, "compile=blocks")
    if strategy == "one":
        values(on_ranks(1, compile_and_go, compiled))
    else:
        values(on_ranks(2, compile_and_go, [*compiled, f"dist.strategy={strategy}"]))
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), abs=1e-5)
    plain, names = (read_tensors(checkpoint_folders(tmp_path / run)[-1]).keys() for run in ("plain", "compiled"))
    assert plain == names


def compile_and_go(words: list[str]) -> None:
    import torch._dynamo

    real = torch.compile

    def with_eager(*args, **kwargs):
        return real(*args, **{**kwargs, "backend": "eager"})

    compiled = []

    def block_compile(self, *args, **kwargs):
        compiled.append(self)
        self._compiled_call_impl = with_eager(self._call_impl)

    compile_method = torch.nn.Module.compile
    torch.nn.Module.compile = block_compile
    try:
        go(words)
    finally:
        torch.nn.Module.compile = compile_method
        torch._dynamo.reset()
    assert len(compiled) == 2


def test_activation_checkpointing_changes_no_bit(dataset, tmp_path):
    more = ["model.mixer=pause", "model.mixing=insert", "model.insert_at=1", "model.slot_base=copy"]
    go(words(dataset, tmp_path / "plain", *more))
    go(words(dataset, tmp_path / "again", *more, "activation_checkpointing=blocks"))
    assert losses(tmp_path / "again") == losses(tmp_path / "plain")


def test_z_loss_is_the_mean_square_of_the_log_sum_exp(dataset, tmp_path):
    run = Run(load_settings(TrainSettings, words(dataset, tmp_path / "run", "losses={ntp: 1, z: 1e-4}")))
    from cocomix.data.batches import sample_batch

    batch = sample_batch(run.split, run.window, 0, 0, 4, {})
    logits = run.model(batch.inputs).logits.double()
    result = train_step(Spread(run.model, run.model, 1), run.terms, batch.split(2), run.optimizers, 1.0)
    assert result.losses["z"] == pytest.approx(float(logits.logsumexp(-1).square().mean()), abs=1e-4)


def test_z_loss_is_off_by_default_and_pulls_the_logits_down(dataset, tmp_path):
    assert "z" not in load_settings(TrainSettings, words(dataset, tmp_path / "run")).losses
    common = ["steps=30", "optimizer.lr=1e-2"]
    go(words(dataset, tmp_path / "weak", *common, "losses={ntp: 1, z: 1e-9}"))
    go(words(dataset, tmp_path / "strong", *common, "losses={ntp: 1, z: 1}"))
    assert losses(tmp_path / "strong", "z")[-1] < 0.5 * losses(tmp_path / "weak", "z")[-1]


def test_every_loss_names_what_it_asks_the_model_for():
    asked = {term.name: dict(term.arguments) for term, _ in loss_terms({"ntp": 1.0, "concept": 1.0, "z": 1.0})}
    assert asked == {"ntp": {}, "concept": {}, "z": {"z_sum": True, "loss_weights": (1.0, 0.0, 1.0)}}


def test_metrics_go_to_tensorboard_too(dataset, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = tmp_path / "run"
    go(words(dataset, run, "logs=[tensorboard]", "steps=3"))
    go(words(dataset, run, "logs=[tensorboard]"))
    found = events.EventAccumulator(str(run / "tensorboard"))
    found.Reload()
    scalars = found.Scalars("losses/ntp")
    assert [event.step for event in scalars] == [1, 2, 3, 4, 5, 6]
    assert [event.value for event in scalars] == pytest.approx(losses(run), rel=1e-6)
    assert {"mfu", "lr", "waited/data", "flops/student", "eval/loss"} <= set(found.Tags()["scalars"])


def test_metrics_go_to_wandb_too_and_a_resumed_run_is_the_same_one(dataset, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tmp_path / "run"
    go(words(dataset, run, "logs=[wandb]", "steps=3"))
    first = (run / "wandb.json").read_text()
    go(words(dataset, run, "logs=[wandb]"))
    assert (run / "wandb.json").read_text() == first
    assert len(list((run / "wandb").glob("offline-run-*/*.wandb"))) == 2


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_a_missing_package_is_told_with_the_mend(dataset, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard" if package == "tensorboard" else "wandb", None)
    with pytest.raises(
        UserError, match=rf"logs=\[{package}\] needs the package {package} .*pip install -e '\.\[logs\]'"
    ):
        go(words(dataset, tmp_path / "run", f"logs=[{package}]"))
