"""One process, two ranks (DDP, FSDP2), micro-batches: the same losses; also stopped and resumed, on other ranks too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cocomix.config import load_settings
from cocomix.data.order import window_ids
from cocomix.testing.ranks import on_ranks, values
from cocomix.train.checkpoint import Checkpoints, checkpoint_folders, read_tensors
from cocomix.train.metrics import read_lines
from cocomix.train.run import Run
from cocomix.train.settings import TrainSettings
from cocomix.train.verb import train

BACKBONE = "model.backbone={model_type: gpt2, n_embd: 32, n_layer: 4, n_head: 4}"
COMMON = ["data.path=data", "batch_windows=8", "checkpoint.number=1", "evaluations=2", "eval_documents=3", BACKBONE]
METHODS = {
    "ntp": ["tiny/ntp"],
    "cocomix": ["tiny/cocomix", "model.concept_k=8", "data.labels=concepts"],
    "memory": ["tiny/cocomix_memory", "model.concept_k=8", "data.labels=concepts"],
    "concept-loss-alone": ["tiny/cocomix_add", "model.mixing=none", "model.concept_k=8", "data.labels=concepts"],
}
LLAMA = ["model.backbone={model_type: llama, hidden_size: 32, num_hidden_layers: 4, num_attention_heads: 4, "
         "intermediate_size: 64, tie_word_embeddings: false}", "model.mixer=concept", "model.mixing=memory",
         "model.insert_at=2", "model.concept_k=8", "data.labels=concepts", "losses.concept=0.1"]  # fmt: skip
CLOCK = ("seconds", "tokens_per_second", "mfu", "waited", "label_seconds")


class Killed(Exception):
    pass


def go(words: list[str], dies_at: int | None = None) -> str | None:
    """A training on this rank; with ``dies_at`` it ends behind that step's checkpoint."""
    if dies_at is not None:
        real = Checkpoints.finish

        def finish_and_die(self):
            folder = real(self)
            if folder is not None and folder.name == f"step-{dies_at:08d}":
                raise Killed
            return folder

        Checkpoints.finish = finish_and_die
    try:
        train(load_settings(TrainSettings, words))
    except Killed:
        return "killed"
    finally:
        if dies_at is not None:
            Checkpoints.finish = real
    return None


def losses(run: str) -> list[list[float]]:
    return [[*line["losses"].values(), line["grad_norm"]] for line in read_lines(Path(run) / "metrics.jsonl")]


def without_clock(run: str) -> list[dict]:
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in read_lines(Path(run) / "metrics.jsonl")]


def assert_close(run: str, other: str, within: float = 1e-5) -> None:
    a, b = losses(run), losses(other)
    assert len(a) == len(b) > 0
    for step, (x, y) in enumerate(zip(a, b, strict=True), 1):
        assert x[:-1] == pytest.approx(y[:-1], abs=within), f"step {step}"
        assert x[-1] == pytest.approx(y[-1], rel=1e-3), f"gradient norm of step {step}"
    evals = [[line["loss"] for line in read_lines(Path(r) / "evals.jsonl")] for r in (run, other)]
    assert evals[0] == pytest.approx(evals[1], abs=within)


def assert_same(run: str, other: str) -> None:
    """Bit for bit: metrics, weights, optimizer state."""
    assert without_clock(run) == without_clock(other)
    a, b = (read_tensors(checkpoint_folders(Path(r))[-1]) for r in (run, other))
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("method", METHODS)
def test_ranks_and_micro_batches_do_not_change_the_losses(place: Path, method: str):
    words = [*METHODS[method], *COMMON, f"steps={50 if method == 'cocomix' else 8}"]
    go([*words, "run=one"])
    go([*words, "run=micro", "micro_batches=2"])
    values(on_ranks(2, go, [*words, "run=ddp"]))
    values(on_ranks(2, go, [*words, "run=fsdp", "dist.strategy=fsdp"]))
    for other in ("micro", "ddp", "fsdp"):
        assert_close("one", other)
    if method != "ntp":  # the masks are uneven: a mean of the ranks' means would differ
        run = Run(load_settings(TrainSettings, [*words, "run=one"]))
        first = window_ids(run.dataset.split("train").count(run.window), run.settings.seed, 0, 8)
        labels = run.sources.labels.read("train", first)
        counts = [int((half != -1).sum()) for half in (labels[:4], labels[4:])]
        assert counts[0] != counts[1]


@pytest.mark.parametrize(
    "extra",
    [
        ["dist.strategy=fsdp", "dist.replicas=2", "micro_batches=2"],
        ["dist.strategy=fsdp", "dist.reshard=false", "activation_checkpointing=blocks", "micro_batches=2"],
        ["dist.strategy=fsdp", "dist.offload=true"],
        ["dist.strategy=ddp", "micro_batches=2", "activation_checkpointing=blocks"],
        ["dist.strategy=fsdp", "untied"],
        ["dist.strategy=ddp", "untied"],
    ],
    ids=["hybrid", "no-reshard", "offload", "ddp-checkpointing", "untied-fsdp", "untied-ddp"],
)
def test_every_way_to_spread_gives_the_same_losses(place: Path, extra: list[str]):
    words = [*METHODS["memory"], *COMMON] if "untied" not in extra else [*LLAMA, *COMMON[:-1], "losses.ntp=1"]
    words.append("steps=6")
    go([*words, "run=one"])
    values(on_ranks(2, go, [*words, "run=two", *(word for word in extra if word != "untied")]))
    assert_close("one", "two")


def test_a_loss_that_reads_no_logits_trains_over_ranks_too(place: Path):
    words = [*METHODS["memory"], *COMMON, "steps=3", "losses.ntp=0", "micro_batches=2"]
    go([*words, "run=one"])
    values(on_ranks(2, go, [*words, "run=ddp"]))
    assert_close("one", "ddp")
    assert all([*line["losses"]] == ["concept"] for line in read_lines(Path("ddp") / "metrics.jsonl"))


def tied(words: list[str]) -> list[bool]:
    from cocomix.dist.world import joined
    from cocomix.train.loop import fit

    with joined() as world:
        run = Run(load_settings(TrainSettings, words), world)
        run.resume()
        seen = [run.model.lm_head.weight is run.model.backbone.wte.weight]
        fit(run)
        return [*seen, run.model.lm_head.weight is run.model.backbone.wte.weight]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_tied_embeddings_stay_tied(place: Path, strategy: str):
    words = [*METHODS["cocomix"], *COMMON, "steps=3", "run=tied", f"dist.strategy={strategy}"]
    assert values(on_ranks(2, tied, words)) == [[True, True]] * 2
    names = read_tensors(checkpoint_folders(Path("tied"))[-1])
    assert "model.backbone.wte.weight" in names
    assert not any("lm_head" in name or "_orig_mod" in name or "module." in name for name in names)


ONLINE = ["tiny/cocomix", "model.concept_k=8", "data.online.sae=sae"]


def test_online_labels_train_like_cached_ones_on_any_number_of_ranks(place: Path):
    go([*METHODS["cocomix"], *COMMON, "steps=10", "run=cached"])
    go([*ONLINE, *COMMON, "steps=10", "run=online"])
    values(on_ranks(2, go, [*ONLINE, *COMMON, "steps=10", "run=two"]))
    assert_close("cached", "online")
    assert_close("cached", "two")
    lines = [read_lines(Path(run) / "metrics.jsonl")[-1] for run in ("cached", "online")]
    assert lines[0]["flops"] == lines[1]["flops"]  # less than one pass: no window is labelled twice
    assert lines[0]["label_seconds"] == 0 < lines[1]["label_seconds"]
    described = json.loads(Path("online/run.json").read_text())["labels"]
    assert described["seconds_per_token"] == pytest.approx(lines[1]["label_seconds"] / lines[1]["tokens"])


def test_with_online_labels_a_stopped_run_equals_the_straight_one(place: Path):
    words = [*ONLINE, *COMMON, *EPOCHS]
    go([*words, "run=straight"])
    go([*words, "run=broken"], 4)
    go([*words, "run=broken"])
    assert_same("broken", "straight")
    values(on_ranks(2, go, [*words, "run=two"]))
    values(on_ranks(2, go, [*words, "run=two-broken"], 4))
    values(on_ranks(2, go, [*words, "run=two-broken"]))
    assert_same("two-broken", "two")


# 449 windows: with 96 a step, step 5 begins the second epoch.
EPOCHS = ["batch_windows=96", "steps=6", "checkpoint.number=6", "model.backbone.resid_pdrop=0.1"]


@pytest.mark.parametrize(("strategy", "background"), [("ddp", "false"), ("fsdp", "true")])
def test_two_ranks_stopped_and_resumed_equal_the_straight_run(place: Path, strategy: str, background: str):
    words = [*METHODS["cocomix"], *COMMON, *EPOCHS, f"dist.strategy={strategy}", f"checkpoint.background={background}"]
    values(on_ranks(2, go, [*words, "run=straight"]))
    assert values(on_ranks(2, go, [*words, "run=broken"], 4)) == ["killed"] * 2
    values(on_ranks(2, go, [*words, "run=broken"]))
    assert_same("broken", "straight")


@pytest.mark.parametrize(
    ("before", "after"), [("1", "ddp"), ("1", "fsdp"), ("ddp", "1"), ("fsdp", "1"), ("fsdp", "ddp")]
)
def test_a_run_goes_on_with_another_number_of_ranks(place: Path, before: str, after: str):
    words = [*METHODS["cocomix"], *COMMON, *EPOCHS, "model.backbone.resid_pdrop=0"]

    def part(kind: str, *arguments) -> None:
        if kind == "1":
            go(*arguments)
        else:
            values(on_ranks(2, go, [*arguments[0], f"dist.strategy={kind}"], *arguments[1:]))

    part("1", [*words, "run=straight"])
    part(before, [*words, "run=broken"], 4)
    part(after, [*words, "run=broken"])
    assert_close("straight", "broken")
    from safetensors.torch import load_file

    exported = [load_file(Path(run) / "export" / "model.safetensors") for run in ("straight", "broken")]
    for name in exported[0]:
        torch.testing.assert_close(exported[0][name], exported[1][name], atol=1e-4, rtol=0)
