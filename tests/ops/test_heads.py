"""Heads in chunks against the plain product, softmax and top-k: outputs and gradients."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from cocomix.model.mixers import NO_LABEL, ConceptMixer, concept_nll
from cocomix.ops import heads
from cocomix.ops.heads import concept_head, linear_nll, tokens_at_once

PRECISIONS = {torch.float64: 1e-10, torch.float32: 1e-5}
fuzz = settings(max_examples=40, deadline=None, derandomize=True)


def close(a, b, dtype, scale: float = 1.0) -> None:
    torch.testing.assert_close(a, b, atol=PRECISIONS[dtype] * scale, rtol=PRECISIONS[dtype])


def draw_labels(tokens: int, entries: int, number: int, seed: int, none: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, entries, (tokens, number), generator=generator)
    return labels.masked_fill(torch.rand(tokens, number, generator=generator) < 0.3, none)


shapes = {
    "tokens": st.integers(1, 13),
    "width": st.integers(1, 9),
    "entries": st.integers(2, 17),
    "chunk": st.integers(1, 60),
    "seed": st.integers(0, 10**6),
    "dtype": st.sampled_from(list(PRECISIONS)),
}


@fuzz
@given(**shapes, bias=st.booleans(), frozen=st.booleans())
def test_the_fused_cross_entropy_equals_the_plain_one(tokens, width, entries, chunk, seed, dtype, bias, frozen):
    torch.manual_seed(seed)
    x = torch.randn(tokens, width, dtype=dtype, requires_grad=True)
    weight = torch.randn(entries, width, dtype=dtype, requires_grad=not frozen)
    shift = torch.randn(entries, dtype=dtype, requires_grad=True) if bias else None
    labels = draw_labels(tokens, entries, 1, seed, -100)
    wanted = F.cross_entropy(F.linear(x, weight, shift), labels[:, 0], ignore_index=-100, reduction="sum")
    with patch.dict(heads.LOGITS_AT_ONCE, cpu=chunk):
        found = linear_nll(x, weight, labels, shift)
    close(found, wanted.detach(), dtype, tokens)
    inputs = [t for t in (x, weight, shift) if t is not None and t.requires_grad]
    for a, b in zip(torch.autograd.grad(3 * found, inputs), torch.autograd.grad(3 * wanted, inputs), strict=True):
        close(a, b, dtype, tokens)


@fuzz
@given(**shapes, number=st.integers(0, 4), k=st.integers(1, 17))
def test_the_fused_concept_head_equals_the_plain_one(tokens, width, entries, chunk, seed, dtype, number, k):
    k = min(k, entries)
    torch.manual_seed(seed)
    mixer = ConceptMixer(width, entries, k).to(dtype)
    for parameter in mixer.parameters():
        nn.init.normal_(parameter)
    # Distinct labels, as attribution gives them, some without a meaning
    labels = torch.stack([torch.randperm(max(entries, 4))[:number] for _ in range(tokens)]) % entries
    labels = labels.masked_fill(torch.rand(tokens, number) < 0.3, NO_LABEL).view(tokens, number)
    x = torch.randn(tokens, width, dtype=dtype, requires_grad=True)
    logits = mixer.predict(x)
    kept = logits.topk(k, dim=-1, sorted=False)
    mixed = F.embedding_bag(kept.indices, mixer.compress.weight, per_sample_weights=kept.values, mode="sum")
    wanted = concept_nll(logits[None], labels[None])
    with patch.dict(heads.LOGITS_AT_ONCE, cpu=chunk):
        found = concept_head(x, mixer.predict.weight, mixer.predict.bias, labels, mixer.compress.weight, k)
    close(found.nll, wanted.detach(), dtype, 10 * tokens)
    close(found.mixed, mixed.detach(), dtype, 10)
    weights = torch.randn_like(mixed)
    inputs = [x, mixer.predict.weight, mixer.predict.bias, mixer.compress.weight]
    plain = torch.autograd.grad(0.5 * wanted + (mixed * weights).sum(), inputs)
    fused = torch.autograd.grad(0.5 * found.nll + (found.mixed * weights).sum(), inputs)
    for a, b in zip(fused, plain, strict=True):
        close(a, b, dtype, 10 * tokens)


@pytest.mark.parametrize("size", [50.0, 59.0, 61.0, 500.0])
def test_a_target_that_the_model_rules_out_has_a_finite_loss(size: float) -> None:
    weight, hidden = torch.tensor([[1.0], [0.0]]), torch.tensor([[size]], requires_grad=True)
    loss = linear_nll(hidden, weight, torch.tensor([[1]]))
    loss.backward()
    assert float(loss) == pytest.approx(size)
    assert float(hidden.grad) == pytest.approx(1)


def test_half_precision_stays_what_it_was() -> None:
    torch.manual_seed(0)
    head = nn.Linear(16, 50, dtype=torch.bfloat16).requires_grad_(False)
    hidden, targets = torch.randn(10, 16, dtype=torch.bfloat16).requires_grad_(), torch.arange(10)
    due = F.cross_entropy(head(hidden).float(), targets)
    (gradient,) = torch.autograd.grad(due, hidden)
    again = hidden.detach().requires_grad_()
    loss = linear_nll(again, head.weight, targets[:, None], head.bias) / 10
    loss.backward()
    found = again.grad
    torch.testing.assert_close(loss.detach(), due.detach(), atol=1e-2, rtol=1e-2)
    assert (loss.dtype, found.dtype) == (torch.float32, torch.bfloat16)
    assert float((found - gradient).norm() / gradient.norm()) < 0.02


@fuzz
@given(tokens=st.integers(1, 5000), entries=st.integers(1, 500_000))
def test_chunks_are_of_one_size_and_within_their_memory(tokens, entries):
    size = tokens_at_once(tokens, entries)
    assert 1 <= size <= tokens
    assert size == tokens or size < heads.ALIGNED or size % heads.ALIGNED == 0
    assert size * entries <= 2 * heads.LOGITS_AT_ONCE["cpu"] + entries


def test_without_a_graph_no_gradient_is_made():
    """Evaluation pays for one product, not for three."""
    from torch.utils.flop_counter import FlopCounterMode

    x, weight, labels = torch.randn(8, 4), nn.Parameter(torch.randn(50, 4)), torch.zeros(8, 1, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        linear_nll(x, weight, labels)
    assert counter.get_total_flops() == 2 * 8 * 4 * 50


def test_a_second_backward_pass_is_refused():
    x = torch.randn(8, 4, requires_grad=True)
    nll = linear_nll(x, torch.randn(50, 4), torch.zeros(8, 1, dtype=torch.long))
    nll.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="a second time"):
        nll.backward()


def test_no_tokens_have_no_loss_and_gradients_of_zero():
    weight = torch.randn(50, 4, requires_grad=True)
    nll = linear_nll(torch.zeros(0, 4), weight, torch.zeros(0, 1, dtype=torch.long))
    nll.backward()
    assert float(nll) == 0
    assert torch.equal(weight.grad, torch.zeros(50, 4))


@pytest.mark.parametrize("level", [-300.0, -70.0, 0.0, 70.0, 300.0])
def test_logits_far_from_zero_lose_nothing(level):
    torch.manual_seed(0)
    x = torch.randn(5, 4, requires_grad=True)
    weight = torch.randn(11, 4, requires_grad=True)
    shift = torch.full((11,), level, requires_grad=True)
    labels = torch.randint(0, 11, (5, 1))
    wanted = F.cross_entropy(F.linear(x, weight, shift), labels[:, 0], reduction="sum")
    found = linear_nll(x, weight, labels, shift)
    scale = 1 + abs(level)  # a logit of 300 has this many times less of float32's digits behind the point
    close(found, wanted.detach(), torch.float32, scale)
    for a, b in zip(torch.autograd.grad(found, (x, weight)), torch.autograd.grad(wanted, (x, weight)), strict=True):
        close(a, b, torch.float32, scale)
