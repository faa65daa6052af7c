"""Every setting of the attribution against a slow reference that goes position by position, in double precision."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from cocomix.concepts.attribution import NO_LABEL, check_attribution, label_windows
from cocomix.concepts.extract import extract
from cocomix.concepts.own_path import NAME, check_own_path, own_path
from cocomix.concepts.sae import SparseAutoencoder, Threshold, TopK, Weights
from cocomix.concepts.settings import AttributionSettings, ExtractSettings
from cocomix.concepts.teacher import Teacher
from cocomix.config import load_settings
from cocomix.data.dataset import Dataset
from cocomix.errors import UserError
from cocomix.files import write_json
from cocomix.testing.models import TINY_BACKBONES

VOCABULARY, WIDTH, LATENTS, BLOCK = 37, 32, 40, 1
FAMILIES: dict[str, dict[str, Any]] = {
    **{name: TINY_BACKBONES[name] for name in ("gpt2", "gpt_neox", "llama", "mistral", "qwen3", "gemma3_text")},
    "gpt2_scaled": {**TINY_BACKBONES["gpt2"], "scale_attn_by_inverse_layer_idx": True},
    "gemma2": {
        **TINY_BACKBONES["gemma3_text"],
        "model_type": "gemma2",
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
        "sliding_window": 4,
    },
}
"""Grouped keys, windows that slide, capped scores, norms on keys, rotation of a part, scales of their own."""


def _teacher(family: str, **config: Any) -> Teacher:
    torch.manual_seed(0)
    values = {**FAMILIES[family], "vocab_size": VOCABULARY, "initializer_range": 0.3, **config}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**values), dtype=torch.float64)
    return Teacher(model, BLOCK, family)


def _windows(length: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(0, VOCABULARY, (2, length + 1), generator=torch.Generator().manual_seed(1))
    targets = tokens[:, 1:].clone()
    targets[1, 3] = -100
    return tokens[:, :-1], targets


def _loss(teacher: Teacher, inputs: torch.Tensor, targets: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """NLLs [B, T] divided by the number of targets, with ``states`` as the block's output; another way than ours."""

    def hook(module: object, arguments: object, output: Any) -> Any:
        return (states, *output[1:]) if isinstance(output, tuple) else states

    handle = teacher.blocks[BLOCK].register_forward_hook(hook)
    logits = teacher.model(input_ids=inputs).logits
    handle.remove()
    nll = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="none")
    return nll.view(inputs.shape) / (targets != -100).sum()


def _slow_gradient(
    teacher: Teacher, inputs: torch.Tensor, targets: torch.Tensor, states: torch.Tensor, gradient_of: str
) -> torch.Tensor:
    """One leaf at one position, one loss, one backward pass; then the next position."""
    gradient = torch.zeros_like(states)
    for b, t in itertools.product(range(inputs.shape[0]), range(inputs.shape[1])):
        leaf = torch.zeros(states.shape[-1], dtype=torch.float64, requires_grad=True)
        moved = states.clone()
        moved[b, t] = moved[b, t] + leaf
        losses = _loss(teacher, inputs, targets, moved)
        loss = losses[b, t] if gradient_of == "next_token" else losses.sum()
        (gradient[b, t],) = torch.autograd.grad(loss, leaf)
    return gradient


def _close(found: torch.Tensor, due: torch.Tensor, family: str) -> None:
    # Gemma 2's own attention takes its softmax in single precision.
    exact = {"atol": 1e-5, "rtol": 1e-3} if family == "gemma2" else {"atol": 1e-10, "rtol": 1e-7}
    torch.testing.assert_close(found, due, **exact)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_backward_pass_gives_each_tokens_own_gradient(family: str) -> None:
    teacher = _teacher(family)
    inputs, targets = _windows()
    plain = teacher.loss_and_gradient(inputs, targets)
    with own_path(teacher):
        found = teacher.loss_and_gradient(inputs, targets)
    _close(found.loss, plain.loss, family)
    _close(found.activation, plain.activation, family)
    due = _slow_gradient(teacher, inputs, targets, found.activation, "next_token")
    _close(found.gradient, due, family)
    slow = _slow_gradient(teacher, inputs, targets, plain.activation, "sequence")
    _close(plain.gradient, slow, family)
    assert (found.gradient - plain.gradient).abs().max() > 1e-3, "the two gradients must differ for this to show much"
    _close(found.gradient[:, -1], plain.gradient[:, -1], family)  # the last token has no later ones
    assert (found.gradient[1, 3] == 0).all()  # it has no target
    check_own_path(teacher)


@pytest.mark.parametrize(("family", "width", "error"), [("gpt2", 1e-5, 1e-5), ("llama", 1e-2, 3e-2)])
def test_own_gradients_are_finite_differences(family: str, width: float, error: float) -> None:
    """Llama's norms work in single precision, so its steps must be wide."""
    teacher = _teacher(family)
    inputs, targets = _windows()
    with own_path(teacher):
        found = teacher.loss_and_gradient(inputs, targets)
    for b, t, d in ((0, 0, 3), (0, 5, 11), (1, 8, 30)):
        step = torch.zeros_like(found.activation)
        step[b, t, d] = width
        with torch.no_grad():
            up, down = (_loss(teacher, inputs, targets, found.activation + s * step)[b, t] for s in (1, -1))
        assert float(found.gradient[b, t, d]) == pytest.approx(float(up - down) / (2 * width), rel=error, abs=1e-9)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_teachers_own_attention_is_back_afterwards(attention: str) -> None:
    teacher = _teacher("llama")
    teacher.model.set_attn_implementation(attention)
    inputs, _ = _windows()
    before = teacher.model(input_ids=inputs).logits

    def fail() -> None:
        with own_path(teacher):
            assert teacher.model.config._attn_implementation == NAME
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert teacher.model.config._attn_implementation == attention
    assert torch.equal(teacher.model(input_ids=inputs).logits, before)


def test_a_family_whose_attention_cannot_be_exchanged_is_refused() -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model("bloom", vocab_size=VOCABULARY, hidden_size=WIDTH, n_layer=3, n_head=4)
    teacher = Teacher(AutoModelForCausalLM.from_config(config), BLOCK, "bloom")
    sae = _sae("topk")
    with pytest.raises(UserError, match=r"next_token is not possible with teacher=bloom: .*gradient_of=sequence"):
        check_attribution(teacher, sae, AttributionSettings(gradient_of="next_token"))
    check_attribution(teacher, sae, AttributionSettings())
    # attention sinks: the interface is used, but what it is given is more than it can take
    teacher = Teacher(_sinks(), BLOCK, "sinks")
    with pytest.raises(UserError, match="next_token is not possible with teacher=sinks"):
        check_own_path(teacher)


def _sinks() -> Any:
    torch.manual_seed(0)
    values = {**TINY_BACKBONES["llama"], "model_type": "gpt_oss", "num_local_experts": 2, "num_experts_per_tok": 1}
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**values, head_dim=8, vocab_size=VOCABULARY, initializer_range=0.3)
    )
    for name, parameter in model.named_parameters():
        if name.endswith("sinks"):
            parameter.data.fill_(1.0)
    return model


def _sae(kind: str) -> SparseAutoencoder:
    torch.manual_seed(2)
    decoder = F.normalize(torch.randn(LATENTS, WIDTH), dim=-1)
    weights = Weights(decoder.T.contiguous(), 0.1 * torch.randn(LATENTS), decoder, 0.1 * torch.randn(WIDTH))
    return SparseAutoencoder(weights, TopK(7) if kind == "topk" else Threshold(torch.linspace(0.5, 6, LATENTS)))


def _dense(sae: SparseAutoencoder, kind: str, h: torch.Tensor, latents: str) -> torch.Tensor:
    """All C latents, by the formula."""
    pre = (h.double() - sae.b_dec.double()) @ sae.W_enc.double() + sae.b_enc.double()
    if latents == "preact":
        return pre
    if kind == "topk":
        return pre.relu() * (pre >= pre.topk(7).values[..., -1:])
    return pre.relu() * (pre > torch.linspace(0.5, 6, LATENTS))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("kind", ["topk", "threshold"])
@pytest.mark.parametrize("gradient_of", ["sequence", "next_token"])
@pytest.mark.parametrize("at", ["original", "reconstruction"])
def test_labels_by_attribution_equal_the_slow_reference(family: str, kind: str, gradient_of: str, at: str) -> None:
    teacher, sae = _teacher(family), _sae(kind)
    inputs, targets = _windows()
    h = teacher.activations(inputs)
    active = _dense(sae, kind, h, "active")
    states = active @ sae.W_dec.double() + sae.b_dec.double() if at == "reconstruction" else h
    effect = _slow_gradient(teacher, inputs, targets, states, gradient_of) @ sae.W_dec.double().T
    for latents, order in itertools.product(["active", "preact"], ["largest", "smallest", "absolute"]):
        values = _dense(sae, kind, h, latents)
        scores = (effect * values).flatten(0, 1)
        rank = {"largest": scores, "smallest": -scores, "absolute": scores.abs()}[order]
        settings = AttributionSettings(k=6, latents=latents, gradient_of=gradient_of, at=at, order=order)
        found = label_windows(teacher, sae, inputs, targets, settings)
        _equal(found, rank, scores, values.flatten(0, 1))
        if latents == "active" and order != "absolute":
            assert 0 < float((found.ids == NO_LABEL).float().mean()) < 1, "tokens with too few scores are there"


@pytest.mark.parametrize("kind", ["topk", "threshold"])
@pytest.mark.parametrize("latents", ["active", "preact"])
def test_labels_by_activation_are_the_strongest_latents(kind: str, latents: str) -> None:
    teacher, sae = _teacher("llama"), _sae(kind)
    inputs, targets = _windows()
    ran = []
    for number, block in enumerate(teacher.blocks):
        block.register_forward_pre_hook(lambda *_, number=number: ran.append(number))
    settings = AttributionSettings(k=6, select="activation", latents=latents)
    found = label_windows(teacher, sae, inputs, targets, settings)
    assert ran == [0, 1]
    values = _dense(sae, kind, teacher.activations(inputs), latents).flatten(0, 1)
    _equal(found, values, values, values)


def _equal(found: Any, rank: torch.Tensor, scores: torch.Tensor, values: torch.Tensor) -> None:
    best = rank.topk(6)
    has = best.values > 0
    assert torch.equal(found.ids == NO_LABEL, ~has)
    assert torch.equal(found.ids[has], best.indices[has])
    torch.testing.assert_close(found.scores[has].double(), scores.gather(1, best.indices)[has], atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(found.strengths[has].double(), values.gather(1, best.indices)[has], atol=1e-5, rtol=1e-4)
    assert (found.strengths[~has] == 0).all()


def test_more_labels_than_any_token_has_active_latents() -> None:
    sae = _sae("topk")
    sae.activation = Threshold(1e9)
    inputs, targets = _windows()
    teacher = _teacher("gpt2")
    check_attribution(teacher, sae, AttributionSettings(k=LATENTS))
    for select in ("attribution", "activation"):
        found = label_windows(teacher, sae, inputs, targets, AttributionSettings(k=LATENTS, select=select))
        assert found.ids.shape == (18, LATENTS)
        assert (found.ids == NO_LABEL).all()
    with pytest.raises(UserError, match=f"attribution.k={LATENTS + 1} is more than the {LATENTS} latents"):
        check_attribution(teacher, sae, AttributionSettings(k=LATENTS + 1))


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"select": "activation"}, r"select \(attribution, now activation\)"),
        ({"gradient_of": "next_token"}, r"gradient_of \(sequence, now next_token\)"),
        ({"at": "reconstruction"}, r"at \(original, now reconstruction\)"),
        ({"latents": "preact"}, r"latents \(active, now preact\)"),
    ],
)
def test_labels_of_other_settings_are_not_gone_on_with(
    dataset: Dataset, sae_path: Path, labelled: Path, own_data: Path, change: dict[str, str], difference: str
) -> None:
    settings = {"sae": str(sae_path), "train_windows": 8}
    shared = ExtractSettings(data=str(dataset.folder), sae=str(sae_path), name="shared", attribution=change)
    with pytest.raises(UserError, match=f"another attribution.{difference}: give another name"):
        extract(shared)
    new = ExtractSettings(data=str(own_data), name="new", attribution=change, **settings)
    made = extract(new)
    assert made["attribution"] == AttributionSettings(**change).model_dump(mode="json")
    (own_data / "labels" / "new" / "labels.json").unlink()
    state = {"identity": {**made, "teacher": made["teacher"]}, "layout": [8, 4096], "windows": {}, "files": {}}
    state |= {"seconds": 0.0}
    write_json(own_data / "labels" / "new" / "extraction.json", state)
    with pytest.raises(UserError, match=r"another attribution\.\w+ \(\w+, now \w+\): give another name"):
        extract(ExtractSettings(data=str(own_data), name="new", **settings))
    assert extract(new)["files"] == made["files"]


def test_labels_from_before_a_setting_was_there_have_its_default(own_data: Path, sae_path: Path) -> None:
    settings = ExtractSettings(data=str(own_data), sae=str(sae_path), train_windows=8)
    made = extract(settings)
    made["attribution"].pop("select")
    write_json(own_data / "labels" / "concepts" / "labels.json", made)
    assert extract(settings) == made
    other = settings.model_copy(update={"attribution": AttributionSettings(select="activation")})
    with pytest.raises(UserError, match=r"another attribution.select \(attribution, now activation\)"):
        extract(other)


@pytest.mark.parametrize("word", ["gradient_of=next_token", "at=reconstruction", "order=smallest"])
def test_a_setting_without_effect_is_told(word: str) -> None:
    with pytest.raises(UserError, match=f"{word} has no effect with select=activation: leave one of the two out"):
        load_settings(AttributionSettings, ["select=activation", word])
