from __future__ import annotations

import contextlib
import json
import math

import pytest
import torch
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed._tools.mem_tracker import MemTracker

from cocomix.concepts.costs import label_flops
from cocomix.concepts.sae import SparseAutoencoder, TopK, Weights
from cocomix.concepts.settings import AttributionSettings
from cocomix.concepts.teacher import load_teacher
from cocomix.config import recipes_folder
from cocomix.data.batches import Batch
from cocomix.dist.parallel import Spread, mesh_of, put_over, shard
from cocomix.dist.world import joined
from cocomix.model.costs import count_flops, count_parameters
from cocomix.model.modeling import CoCoMixForCausalLM
from cocomix.ops.heads import tokens_at_once
from cocomix.testing.ranks import on_ranks, values
from cocomix.testing.teachers import tiny_teacher
from cocomix.train.accelerators import machine_here, machine_of_gpus
from cocomix.train.build import build_optimizers, checkpoint_activations
from cocomix.train.footprint import Footprint, simulated_ranks
from cocomix.train.plan import plan
from cocomix.train.plan_known import look
from cocomix.train.plan_memory import fits, mend, step_memory
from cocomix.train.plan_settings import PlanSettings, recipe_to_plan
from cocomix.train.settings import TrainSettings
from cocomix.train.step import train_step

WINDOW, WINDOWS = 64, 8
SMALL = ["model.backbone={model_type: gpt2, n_embd: 64, n_layer: 3, n_head: 4, vocab_size: 500}", "steps=10",
         f"data.window={WINDOW}", "model.num_concepts=300", "model.concept_k=8"]  # fmt: skip
CONCEPTS = ["model.mixer=concept", "losses={ntp: 1, concept: 0.1}", "model.insert_at=1"]


def small(*words: str) -> TrainSettings:
    return recipe_to_plan([*SMALL, f"batch_windows={WINDOWS}", *words])


def of_recipe(name: str, *words: str) -> TrainSettings:
    return recipe_to_plan([name, *words])


def on_the_meta_device(settings: TrainSettings) -> CoCoMixForCausalLM:
    with torch.device("meta"):
        return CoCoMixForCausalLM(look(settings, PlanSettings()).config)


def predicted(settings: TrainSettings, ranks: int = 1) -> Footprint:
    return step_memory(settings, machine_here(1e12, ranks), look(settings, PlanSettings()))


class Watched(Spread):
    """A model over ranks whose micro-batches PyTorch's tracker watches."""

    tracker: MemTracker

    @contextlib.contextmanager
    def micro_batch(self, last: bool):
        self.tracker.reset_mod_stats()  # or it refuses to see a module twice
        with super().micro_batch(last):
            yield


def measured(settings: TrainSettings, ranks: int = 1) -> int:
    """Bytes at the peak of two real training steps, as PyTorch's own tracker counts them."""
    known = look(settings, PlanSettings())
    torch.manual_seed(0)
    model = CoCoMixForCausalLM(known.config).train()
    if settings.activation_checkpointing == "blocks":
        checkpoint_activations(model)
    with joined() as world:
        mixer = [model.mixer] if model.mixer is not None else []
        bf16 = settings.precision == "bf16"
        spread = put_over(model, list(model.blocks), mixer, settings.dist, world, torch.device("cpu"), bf16)
        assert spread.ranks == ranks
        optimizers = build_optimizers(model, settings.optimizer)
        share = settings.batch_windows // ranks
        ids = torch.randint(0, 500, (share, WINDOW))
        columns = {"concept_ids": torch.randint(0, 300, (share, WINDOW, 4))} if "concept" in settings.losses else {}
        batch = Batch(torch.arange(share).numpy(), ids, ids.clone(), columns)
        parts = batch.split(settings.micro_batches)
        if spread.sharded:
            tracker: MemTracker = FSDPMemTracker(model, optimizers[0])
        else:
            tracker = MemTracker()
            tracker.track_external(model, *optimizers)
        watched = Watched(spread.plain, spread.called, spread.ranks)
        watched.tracker = tracker
        with tracker:
            for _ in range(2):
                autocast = torch.autocast("cpu", torch.bfloat16, enabled=bf16)
                train_step(watched, known.terms, parts, optimizers, 1.0, autocast, world)
        total = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]
        return next(value for kind, value in total.items() if str(kind) == "Total")


@pytest.mark.parametrize(
    "words",
    [
        ["micro_batches=1", "losses={ntp: 1}"],
        ["micro_batches=1", *CONCEPTS, "model.mixing=insert"],
        ["micro_batches=4", *CONCEPTS, "model.mixing=memory"],
        ["micro_batches=1", *CONCEPTS, "model.mixing=add", "activation_checkpointing=blocks"],
        ["micro_batches=2", *CONCEPTS, "model.mixing=insert", "activation_checkpointing=blocks", "precision=bf16"],
        ["micro_batches=2", *CONCEPTS, "model.mixing=none", "precision=bf16"],
        ["micro_batches=1", *CONCEPTS, "optimizer.kind=muon", "losses.z=0.001"],
    ],
    ids=["ntp", "insert", "memory", "add-run-again", "insert-run-again-bf16", "loss-alone-bf16", "muon"],
)
def test_memory_planned_is_what_training_steps_hold(words):
    settings = small(*words)
    found = predicted(settings)
    assert found.peak == pytest.approx(
        measured(settings), rel=4e-3
    )  # (some of a head's labels are kept by the tracker)
    assert found.peak > 5e6  # not a race of crumbs


def test_memory_of_another_family_is_planned_too():
    words = ["backbone={model_type: llama, hidden_size: 64, intermediate_size: 160, num_hidden_layers: 3, "
             "num_attention_heads: 4, vocab_size: 500}", "num_concepts=300", "concept_k=8"]  # fmt: skip
    settings = recipe_to_plan(
        [
            *(f"model.{word}" for word in words),
            "steps=1",
            f"data.window={WINDOW}",
            f"batch_windows={WINDOWS}",
            *CONCEPTS,
        ]
    )
    assert predicted(settings).peak == pytest.approx(measured(settings), rel=1e-3)


@pytest.mark.parametrize(
    "words",
    [
        ["micro_batches=1"],
        ["micro_batches=2"],
        ["micro_batches=2", "dist.strategy=fsdp"],
        ["micro_batches=1", "dist.strategy=fsdp", "dist.reshard=false"],
        ["micro_batches=2", "dist.strategy=fsdp", "model.mixing=memory", "activation_checkpointing=blocks"],
    ],
    ids=["ddp", "ddp-summed", "fsdp-summed", "fsdp-kept-gathered", "fsdp-memory-run-again"],
)
def test_two_real_ranks_hold_what_is_planned_for_them(words):
    settings = small(*CONCEPTS, *words)
    first, second = values(on_ranks(2, measured, settings, 2))
    assert first == second
    assert predicted(settings, 2).peak == pytest.approx(first, rel=4e-3)


def state_by_hand(model: CoCoMixForCausalLM, group: int) -> tuple[int, int, int]:
    """Weights, gradients and AdamW's moments of a rank that holds ⌈rows / group⌉ rows of each parameter, float32."""
    numbers = [math.ceil(p.shape[0] / group) * (p.numel() // p.shape[0]) for p in model.parameters()]
    return 4 * sum(numbers), 4 * sum(numbers), 8 * sum(numbers) + 4 * len(numbers)


@pytest.mark.parametrize("mixer", [["losses={ntp: 1}"], CONCEPTS], ids=["ntp", "cocomix"])
def test_state_of_one_rank_is_twelve_bytes_a_parameter_and_the_gradient_four(mixer):
    settings = small(*mixer)
    found = predicted(settings)
    assert found.state == state_by_hand(on_the_meta_device(settings), 1)
    assert found.checkpoint == found.state.weights + found.state.optimizer


def test_what_gets_no_gradient_has_no_moments():
    settings = small(*CONCEPTS, "model.mixing=none")
    model = on_the_meta_device(settings)
    idle = model.mixer.compress.weight.numel() + model.mixer.compress_bias.numel()
    found = predicted(settings)
    assert found.state.weights - found.state.gradients == 4 * idle
    assert found.state.optimizer == 8 * (count_parameters(model).total - idle) + 4 * (len(list(model.parameters())) - 2)


def sizes_of_64_ranks(replicas: int) -> tuple[Footprint, tuple[int, int, int], int]:
    """What is planned for a rank of 1.38b/cocomix, what it should hold, what FSDP2 on the meta device gives it."""
    settings = of_recipe("1.38b/cocomix", f"dist.replicas={replicas}")
    found = step_memory(settings, machine_of_gpus("h100", 64), look(settings, PlanSettings()))
    model = on_the_meta_device(settings)
    by_hand = state_by_hand(model, 64 // replicas)
    with simulated_ranks(64):
        shard(model, list(model.blocks), [model.mixer], settings.dist, mesh_of(settings.dist, 64, "cpu"), True)
        return found, by_hand, sum(p.to_local().numel() * 4 for p in model.parameters())


def test_of_64_ranks_each_holds_its_share_of_the_largest_model():
    replicas = 8
    ((found, by_hand, sharded),) = values(on_ranks(1, sizes_of_64_ranks, replicas))
    assert found.state == by_hand
    assert found.state.weights == sharded == pytest.approx(4 * 1_447_880_704 * replicas / 64, rel=1e-3)
    # Four micro-batches: the sum of their gradients is whole until the last one.
    assert found.parts["gradients"] == pytest.approx(4 * 1_447_880_704, rel=1e-3)
    assert found.checkpoint == pytest.approx(12 * 1_447_880_704, rel=1e-3)


def test_offloading_moves_the_state_to_the_cpu():
    here = predicted(small(*CONCEPTS, "dist.strategy=fsdp"), 4)
    away = predicted(small(*CONCEPTS, "dist.strategy=fsdp", "dist.offload=true"), 4)
    assert away.host == sum(here.state)
    assert here.peak - away.peak == here.state.weights + here.state.optimizer


def test_running_blocks_again_and_more_micro_batches_take_less_memory():
    plain = predicted(small(*CONCEPTS))
    again = predicted(small(*CONCEPTS, "activation_checkpointing=blocks"))
    parts = predicted(small(*CONCEPTS, "micro_batches=8"))
    assert again.parts["activations"] < 0.2 * plain.parts["activations"]
    assert parts.parts["activations"] == pytest.approx(plain.parts["activations"] / 8, rel=0.05)


def test_logits_are_held_a_chunk_at_a_time_on_a_gpu_a_larger_one():
    settings = small("losses={ntp: 1}", "batch_windows=4096")
    known = look(settings, PlanSettings())
    on_cpu = step_memory(settings, machine_here(1e12, 1), known)
    on_cuda = step_memory(settings, machine_of_gpus("h100", 1), known)
    tokens, vocabulary = 4096 * WINDOW, 500
    assert on_cpu.parts["logits"] == 4 * tokens_at_once(tokens, vocabulary) * vocabulary < 4 * tokens * vocabulary / 2
    assert on_cuda.parts["logits"] == (4 + 2 + 2) * tokens * vocabulary  # autocast's products give and take copies


@pytest.mark.parametrize(
    ("folder", "nominal", "cocomix", "ntp"),
    [
        ("69m", 69e6, 68_303_360, 69_445_584),
        ("386m", 386e6, 388_445_184, 386_274_832),
        ("1.38b", 1.38e9, 1_380_837_376, 1_373_389_328),
    ],
)
def test_recipes_of_the_papers_sizes_have_its_active_parameters(folder, nominal, cocomix, ntp):
    names = {path.stem for path in (recipes_folder() / folder).glob("*.yaml")}
    assert names == {"base", "ntp", "cocomix", "cocomix_add", "cocomix_memory", "pause", "kd", "kd_pause"}
    active = {}
    for name in sorted(names - {"base"}):
        source = ["data.probabilities=none-yet"] if name.startswith("kd") else []
        settings = of_recipe(f"{folder}/{name}", *source)
        assert settings.method == name
        active[name] = count_parameters(on_the_meta_device(settings)).active
    assert (active["cocomix"], active["ntp"]) == (cocomix, ntp)
    assert active["cocomix"] == active["cocomix_add"] == active["cocomix_memory"] > active["pause"]
    assert active["cocomix"] == pytest.approx(nominal, rel=0.02)
    assert active["ntp"] == pytest.approx(active["cocomix"], rel=0.02)
    assert (active["kd"], active["kd_pause"]) == (active["ntp"], active["pause"])


def test_operations_and_time_follow_from_the_modules():
    settings = small(*CONCEPTS, "activation_checkpointing=blocks", "steps=100")
    result = plan(settings, PlanSettings(gpus=4, gpu="a100", utilisation=0.25))
    forward = count_flops(on_the_meta_device(settings), WINDOW)
    flops, time = result["flops_per_token"], result["time"]
    assert flops["training"] == forward.training == 3 * sum(flops[part] for part in ("lower", "upper", "head", "mixer"))
    assert flops["recomputed"] == forward.lower + forward.upper
    assert time["tokens_per_second"] == pytest.approx(4 * 0.25 * 312e12 / (flops["training"] + flops["recomputed"]))
    assert result["tokens"] == 100 * WINDOWS * WINDOW
    assert time["seconds"] == pytest.approx(result["tokens"] / time["tokens_per_second"])
    assert result["disk"]["labels"] == result["tokens"] * 4 * (2 + 2)  # ids and strengths of four labels
    assert (
        result["disk"]["checkpoint"]
        == 2 * result["memory"]["state"]["weights"] / 2 + result["memory"]["state"]["optimizer"]
    )


@pytest.mark.parametrize(("budget", "steps"), [("tokens=5000", 10), ("flops=1e9", None), ("seconds=3600", None)])
def test_any_budget_becomes_steps(budget, steps):
    settings = small("losses={ntp: 1}", budget, "steps=null")
    result = plan(settings, PlanSettings(gpu="h100"))
    step = result["batch"]["tokens"] * result["flops_per_token"]["training"]
    due = {"flops=1e9": math.ceil(1e9 / step), "seconds=3600": int(3600 * 0.4 * 989e12 / step)}.get(budget, steps)
    assert result["steps"] == due


def test_labels_of_a_teacher_that_is_there_cost_what_extraction_counts(dataset, tmp_path):
    folder = tiny_teacher(tmp_path / "teacher", dataset)
    settings = recipe_to_plan([*SMALL, *CONCEPTS, "data.window=32"])
    planned = plan(settings, PlanSettings(teacher=str(folder), block=1))["flops_per_token"]["labels"]
    teacher = load_teacher(str(folder), 1, dataset, 32, torch.device("cpu"), "float32")
    sae = SparseAutoencoder(
        Weights(torch.ones(32, 300), torch.ones(300), torch.ones(300, 32), torch.ones(32)), TopK(32)
    )
    due = label_flops(teacher, sae, AttributionSettings(), 32, 32.0)
    assert planned == {**due._asdict(), "total": due.total}


def test_labels_made_while_training_take_a_teacher_along(dataset, tmp_path):
    folder = tiny_teacher(tmp_path / "teacher", dataset)
    words = [f"data.online.{word}" for word in ("sae=./sae", f"teacher={folder}", "block=1", "attribution.k=2")]
    with_it, without = small(*CONCEPTS, *words), small(*CONCEPTS)
    here = plan(with_it, PlanSettings())
    parameters = sum(
        p.numel() for p in load_teacher(str(folder), 1, dataset, 32, torch.device("cpu"), "float32").model.parameters()
    )
    autoencoder = 2 * 32 * 300 + 300 + 32
    assert here["memory"]["parts"]["teacher"] == 4 * (parameters + autoencoder)
    assert here["disk"]["labels"] == 0
    assert look(with_it, PlanSettings()).labels.k == 2
    assert predicted(without).parts["teacher"] == 0


def test_what_the_data_say_is_not_assumed(dataset):
    known = look(recipe_to_plan(["tiny/cocomix", f"data.path={dataset.folder}"]), PlanSettings())
    assert known.config.text_config.vocab_size == dataset.vocab_size
    assert known.window == dataset.window
    assert known.train_tokens == dataset.split("train").tokens
    assert [text.split()[0] for text in known.assumed] == ["labels", "32,768"]
    unknown = look(recipe_to_plan(["tiny/cocomix"]), PlanSettings())
    assert unknown.config.text_config.vocab_size == 50257
    assert [text.split()[-1] for text in unknown.assumed] == [
        "(model.backbone.vocab_size)", "(data.window)", "--block)", "(model.num_concepts)",
    ]  # fmt: skip


def test_a_pretrained_backbone_needs_its_configuration_alone(dataset, tmp_path):
    folder = tiny_teacher(tmp_path / "model", dataset, "llama")
    (folder / "model.safetensors").unlink()
    settings = recipe_to_plan(["smollm2/cocomix", f"model.from_backbone={folder}", "model.insert_at=1"])
    assert look(settings, PlanSettings()).config.text_config.model_type == "llama"
    config = json.loads((folder / "config.json").read_text())
    # Entries that the family's own configuration does not know, as of older versions
    (folder / "config.json").write_text(json.dumps({**config, "n_ctx": 64, "is_llama_config": True}))
    assert look(settings, PlanSettings()).config.text_config.model_type == "llama"


@pytest.mark.parametrize(
    ("words", "gpus", "memory", "due"),
    [
        ([], 1, 8e6, ["micro_batches=4"]),
        ([], 1, 5e6, ["activation_checkpointing=blocks", "micro_batches=8"]),
        ([], 4, 4e6, ["dist.strategy=fsdp", "micro_batches=2"]),
        ([], 1, 4e6, None),
    ],
    ids=["parts", "run-again", "sharded", "hopeless"],
)
def test_a_step_that_does_not_fit_gets_the_mildest_mend(words, gpus, memory, due):
    settings = small(*CONCEPTS, *words)
    machine = machine_here(1e12, gpus)._replace(memory=memory, reserved=0.0)
    known = look(settings, PlanSettings())
    assert not fits(step_memory(settings, machine, known), machine)
    found = mend(settings, machine, known)
    assert found == due
    if found is not None:
        mended = small(*CONCEPTS, *words, *found)
        assert fits(step_memory(mended, machine, known), machine)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--gpu", "h1000"], "error: --gpu h1000 is unknown (did you mean 'h100'?); known: h100, h200, "),
        (
            ["--gpus", "3"],
            "error: batch_windows=8 must be a multiple of 3 ranks × micro_batches=1: give a multiple of 3",
        ),
        (["--gpus", "0"], "error: setting 'gpus'=0: input should be greater than or equal to 1"),
        (
            ["--gpus", "4", "dist.strategy=fsdp", "dist.replicas=3"],
            "error: dist.replicas=3 does not divide the 4 ranks",
        ),
        (["--gpu", "h100", "precision=fp32"], "error: precision=fp32 with --gpu h100: the peaks known are bfloat16's"),
        (["--teacher", "./nowhere"], "error: --teacher=./nowhere: there is no such folder"),
        (["--block", "12"], "error: block=12 is outside the teacher GPT-2 124M: it has 12 blocks"),
        (["model.insert_at=7"], "error: model: insert_at=7 lies outside the network"),
        (["model.backbone.n_head=5"], "error: model: `embed_dim` must be divisible by num_heads"),
        (["model.backbone.vocab_size=100k"], "error: model.backbone makes no gpt2 network (StrictDataclassField"),
        (["model.backbone.n_positions=many"], "error: model.backbone makes no gpt2 network (StrictDataclassField"),
    ],
)
def test_mistakes_are_told_in_one_sentence(words, sentence, cli):
    code, out, err = cli("plan", *SMALL, *CONCEPTS, "batch_windows=8", *words)
    assert (code, out) == (2, "")
    assert err.startswith(sentence)
    assert err.count("\n") == 1


def test_the_verb_says_whether_a_recipe_fits(cli):
    words = ["plan", *SMALL, *CONCEPTS, "batch_windows=8", "--gpu", "h100"]
    code, out, _ = cli(*words)
    assert code == 0
    assert out.startswith("custom on 1 × NVIDIA H100 SXM (80 GB): fits\n")
    assert "1 rank × 1 micro-batches × 8 windows × 64\n" in out
    code, out, _ = cli(*words, "--json")
    result = json.loads(out)
    assert result["memory"]["fits"] is True
    assert result["memory"]["peak"] == sum(result["memory"]["parts"].values())
    assert result["memory"]["available"] == pytest.approx(80e9 * 0.95 - 1.5e9)
    code, out, _ = cli(*words, "batch_windows=32768", "--gpu", "rtx4090")
    assert code == 0
    assert "(24 GB): does not fit; it does with micro_batches=2\n" in out


def test_training_ranks_are_not_simulated_inside_real_ones():
    settings = small(*CONCEPTS, "dist.strategy=fsdp")
    for outcome in on_ranks(2, plan_inside, settings):
        assert outcome.error == (
            "UserError: --gpus: 'cocomix plan' simulates the ranks itself: run it as one process, without torchrun"
        )


def plan_inside(settings: TrainSettings) -> None:
    with joined():
        predicted(settings, 2)


@pytest.mark.parametrize(
    ("words", "columns", "bytes_a_token"),
    [
        (["losses={ntp: 1, distill: 0.1}"], {"teacher_probs": 32, "teacher_tokens": 32}, 32 * 4),
        (["losses={ntp: 1, distill: 0.1}", "data.teacher.name=TEACHER"], {"teacher_probs": 500}, 0),
        (["losses={ntp: 1, state_l2: 0.1}", "data.teacher.name=TEACHER", "model.mixer=hidden", "model.insert_at=1",
          "model.state_width=16"], {"teacher_state": 48}, 0),
    ],
)  # fmt: skip
def test_what_is_asked_of_a_teacher_is_planned(tmp_path, words, columns, bytes_a_token):
    teacher = tmp_path / "teacher"
    from transformers import GPT2Config

    GPT2Config(vocab_size=500, n_embd=48, n_layer=3, n_head=4, n_positions=64).save_pretrained(teacher)
    settings = small(*(word.replace("TEACHER", str(teacher)) for word in words), "steps=10")
    planned = PlanSettings(teacher=str(teacher))
    known = look(settings, planned)
    assert known.widths == columns
    result = plan(settings, planned)
    assert result["disk"]["labels"] == 10 * WINDOWS * WINDOW * bytes_a_token
    assert result["flops_per_token"]["labels"]["total"] > 0
    memory = step_memory(settings, machine_here(1e12, 1), known)
    assert (memory.parts["teacher"] > 0) == any("TEACHER" in word for word in words)
    assert memory.peak > step_memory(small("steps=10"), machine_here(1e12, 1), look(small("steps=10"), planned)).peak
