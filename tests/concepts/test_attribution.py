"""Against the reference implementation's tensors, and against effects measured by finite differences."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import GPT2Config, GPT2LMHeadModel

from cocomix.concepts.attribution import NO_LABEL, active_scores, check_attribution, label_windows
from cocomix.concepts.costs import activation_flops, attention_flops, label_flops, sae_step_flops
from cocomix.concepts.load_sae import load_sae
from cocomix.concepts.sae import SparseAutoencoder, TopK, Weights
from cocomix.concepts.settings import AttributionSettings
from cocomix.concepts.teacher import Teacher, load_teacher
from cocomix.data.dataset import Dataset
from cocomix.errors import UserError

REFERENCE = Path(__file__).parents[1] / "data" / "concept_attribution.safetensors"


@pytest.fixture(scope="module")
def reference() -> tuple[dict[str, torch.Tensor], Teacher, SparseAutoencoder]:
    with safe_open(REFERENCE, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = file.metadata()
    model = GPT2LMHeadModel(GPT2Config(**json.loads(about["teacher_config"])))
    weights = {k.removeprefix("teacher."): v for k, v in tensors.items() if k.startswith("teacher.")}
    model.load_state_dict({**weights, "lm_head.weight": weights["transformer.wte.weight"]})
    sae = SparseAutoencoder(
        Weights(
            tensors["sae.encoder.weight"].T.contiguous(),
            tensors["sae.latent_bias"],
            tensors["sae.decoder.weight"].T.contiguous(),
            tensors["sae.pre_bias"],
        ),
        TopK(int(about["k"])),
        "layer_norm",
    )
    return tensors, Teacher(model, int(about["sae_layer"])), sae


def _with_ends(ids: torch.Tensor) -> torch.Tensor:
    """Targets as the reference has them: the last position has none."""
    return torch.cat([ids[:, 1:], torch.full((len(ids), 1), -100)], dim=1)


def test_latents_equal_the_references(reference: tuple[dict[str, torch.Tensor], Teacher, SparseAutoencoder]) -> None:
    tensors, teacher, sae = reference
    values, indices = sae.encode(teacher.activations(tensors["input_ids"]).flatten(0, 1))
    latents = torch.zeros(24, sae.latents).scatter(1, indices, values).view(2, 12, -1)
    torch.testing.assert_close(latents, tensors["latents"], atol=1e-5, rtol=1e-5)


def test_attribution_equals_the_references_up_to_a_factor_a_position(
    reference: tuple[dict[str, torch.Tensor], Teacher, SparseAutoencoder],
) -> None:
    tensors, teacher, sae = reference
    ids = tensors["input_ids"]
    result = teacher.loss_and_gradient(ids, _with_ends(ids))
    values, indices = sae.encode(result.activation.flatten(0, 1))
    scores = active_scores(sae, values, indices, result.gradient.flatten(0, 1))
    dense = torch.zeros(24, sae.latents).scatter(1, indices, scores).view(2, 12, -1)[:, :-1]
    expected = tensors["attribution"][:, :-1]
    factor = (dense * expected).sum(-1, keepdim=True) / expected.square().sum(-1, keepdim=True)
    assert (factor > 0).all()
    torch.testing.assert_close(dense, factor * expected, atol=1e-7, rtol=1e-3)


def test_labels_equal_the_references_wherever_they_have_a_meaning(
    reference: tuple[dict[str, torch.Tensor], Teacher, SparseAutoencoder],
) -> None:
    tensors, teacher, sae = reference
    ids = tensors["input_ids"]
    labels = label_windows(teacher, sae, ids, _with_ends(ids), AttributionSettings())
    found = labels.ids.view(2, 12, 4)
    best = tensors["attribution"].topk(4).values > 0
    assert best.all(-1).sum() >= 8, "the reference file has positions with four positive scores"
    assert torch.equal(found[best], tensors["top4"][best])
    assert (found[~best] == NO_LABEL).all()
    assert (found[:, -1] == NO_LABEL).all(), "the last position has no target"
    assert (labels.strengths.view(2, 12, 4)[~best] == 0).all()


@pytest.fixture(scope="module")
def tiny(dataset: Dataset, teacher_path: Path, sae_path: Path) -> tuple[Teacher, SparseAutoencoder, torch.Tensor]:
    teacher = load_teacher(str(teacher_path), 1, dataset, dataset.window, torch.device("cpu"), "float32")
    import numpy as np

    tokens = torch.from_numpy(dataset.split("train").read(np.arange(3), dataset.window))
    return teacher, load_sae(sae_path), tokens


def test_scores_are_first_order_effects_on_the_loss(tiny: tuple[Teacher, SparseAutoencoder, torch.Tensor]) -> None:
    teacher, sae, tokens = tiny
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    labels = label_windows(teacher, sae, inputs, targets, AttributionSettings(order="absolute"))
    for position in (0, 17, 50, 95):
        latent, strength = int(labels.ids[position, 0]), float(labels.strengths[position, 0])
        push = torch.zeros(inputs.numel(), sae.width)
        push[position] = 0.05 * strength * sae.W_dec[latent]
        up, down = (
            float(teacher.cross_entropy(inputs, targets, lambda h, s=s, push=push: h + s * push.view(h.shape)))
            for s in (1, -1)
        )
        assert float(labels.scores[position, 0]) == pytest.approx((up - down) / 0.1, rel=0.05, abs=1e-7)


def test_every_position_of_a_window_with_its_target_has_labels(
    tiny: tuple[Teacher, SparseAutoencoder, torch.Tensor],
) -> None:
    teacher, sae, tokens = tiny
    labels = label_windows(teacher, sae, tokens[:, :-1], tokens[:, 1:], AttributionSettings(k=1))
    assert (labels.ids.view(3, -1)[:, -1] != NO_LABEL).all()


@pytest.mark.parametrize("latents", ["active", "preact"])
@pytest.mark.parametrize("at", ["original", "reconstruction"])
@pytest.mark.parametrize("order", ["largest", "smallest", "absolute"])
def test_each_setting_equals_a_dense_computation(
    tiny: tuple[Teacher, SparseAutoencoder, torch.Tensor], latents: str, at: str, order: str
) -> None:
    teacher, sae, tokens = tiny
    settings = AttributionSettings(k=6, latents=latents, at=at, order=order)
    labels = label_windows(teacher, sae, tokens[:, :-1], tokens[:, 1:], settings)

    def rebuild(h: torch.Tensor) -> torch.Tensor:
        return sae.reconstruct(h.flatten(0, 1)).view(h.shape)

    result = teacher.loss_and_gradient(tokens[:, :-1], tokens[:, 1:], rebuild if at == "reconstruction" else None)
    h, g = result.activation.flatten(0, 1), result.gradient.flatten(0, 1)
    c = (h - sae.b_dec) @ sae.W_enc + sae.b_enc
    if latents == "active":
        c = torch.where(c >= c.topk(sae.k).values[:, -1:], c, 0).relu()
    dense = (g @ sae.W_dec.T) * c
    rank = {"largest": dense, "smallest": -dense, "absolute": dense.abs()}[order]
    best = rank.topk(6)
    has = best.values > 0
    assert torch.equal(labels.ids == NO_LABEL, ~has)
    torch.testing.assert_close(
        dense.gather(1, labels.ids.clamp(min=0))[has], dense.gather(1, best.indices)[has], atol=1e-9, rtol=1e-3
    )
    torch.testing.assert_close(labels.strengths[has], c.gather(1, labels.ids.clamp(min=0))[has], atol=1e-5, rtol=1e-4)
    if latents == "active" and order != "absolute":
        assert 0 < float((~has).float().mean()) < 1, "the case with too few scores is there"


def test_more_labels_than_active_latents_are_refused(tiny: tuple[Teacher, SparseAutoencoder, torch.Tensor]) -> None:
    teacher, sae, _ = tiny
    with pytest.raises(UserError, match="attribution.k=13 is more than the 12 latents"):
        check_attribution(teacher, sae, AttributionSettings(k=13))
    check_attribution(teacher, sae, AttributionSettings(k=13, latents="preact"))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"latents": "preact"},
        {"at": "reconstruction"},
        {"gradient_of": "next_token"},
        {"gradient_of": "next_token", "at": "reconstruction", "latents": "preact"},
        {"select": "activation"},
        {"select": "activation", "latents": "preact"},
    ],
    ids=str,
)
def test_counted_operations_equal_measured_ones(
    dataset: Dataset, sae_path: Path, tmp_path: Path, family: str, settings: dict[str, str]
) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    from cocomix.testing.teachers import tiny_teacher

    teacher = load_teacher(
        str(tiny_teacher(tmp_path, dataset, family)), 1, dataset, dataset.window, torch.device("cpu"), "float32"
    )
    teacher.model.set_attn_implementation("eager")  # its products are counted one by one
    sae, attribution = load_sae(sae_path), AttributionSettings(**settings)
    window = dataset.window
    tokens = torch.randint(0, dataset.vocab_size, (2, window + 1))
    with FlopCounterMode(display=False) as counter:
        label_windows(teacher, sae, tokens[:, :-1], tokens[:, 1:], attribution)
    counted = label_flops(teacher, sae, attribution, window, 12.0)
    # The counter sees whole T × T attention, forward in 3 blocks and twice (once) backward in the one above; 2 blocks
    # forward without a gradient. What embedding_bag does (scores of active latents, decoding) it does not see.
    passes = {"sequence": 3 + 2, "next_token": 3 + 1}[attribution.gradient_of]
    if attribution.select == "activation":
        passes = 2
    unmasked = attention_flops(teacher, window) * (2 * window / (window + 1) - 1) * passes
    scores = attribution.select == "attribution" and attribution.latents == "active"
    unseen = 2 * sae.width * 12 * (scores + (attribution.at == "reconstruction"))
    due = (counted.total + unmasked - unseen) * 2 * window
    assert counter.get_total_flops() == pytest.approx(due, rel=1e-4)

    with FlopCounterMode(display=False) as counter:
        teacher.activations(tokens[:, :-1])
    due = activation_flops(teacher, window) + attention_flops(teacher, window) * (2 * window / (window + 1) - 1) * 2
    assert counter.get_total_flops() == pytest.approx(due * 2 * window, rel=1e-4)


def test_counted_operations_of_sae_training_equal_measured_ones() -> None:
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.saes.sae import TrainStepInput
    from torch.utils.flop_counter import FlopCounterMode

    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=16, d_sae=64, k=4))
    with FlopCounterMode(display=False) as counter:
        step = TrainStepInput(torch.randn(32, 16), {}, None, 0, False)
        sae.training_forward_pass(step).loss.backward()
    assert counter.get_total_flops() == pytest.approx(sae_step_flops(16, 64) * 32, rel=0.02)
