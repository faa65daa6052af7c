"""Attention without what nobody sees, and networks in training, against their plain definitions."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from cocomix.model import attention, masks
from cocomix.model.attention import CAUSAL, MEMORY
from cocomix.testing.models import TINY_BACKBONES, tiny_model

PRECISIONS = {torch.float64: 1e-10, torch.float32: 1e-5}
fuzz = settings(max_examples=40, deadline=None, derandomize=True)


def close(a, b, dtype, scale: float = 1.0) -> None:
    torch.testing.assert_close(a, b, atol=PRECISIONS[dtype] * scale, rtol=PRECISIONS[dtype])


@pytest.mark.parametrize("mixing", ["insert", "memory", "add"])
@pytest.mark.parametrize("labels", [True, False])
def test_a_mixer_in_training_equals_the_plain_one(mixing, labels):
    """In a network: forward and all gradients in double precision; evaluation mode takes the plain path."""
    torch.manual_seed(0)
    ids = torch.randint(0, 100, (2, 12))
    concepts = torch.randint(-1, 40, (2, 12, 3)) if labels else None
    results = []
    for training in (True, False):
        model = tiny_model(mixer="concept", mixing=mixing).double()
        model.train(training)
        output = model(input_ids=ids, targets=ids, concept_ids=concepts)
        assert (output.concept_logits is None) == training
        total = output.nll + (output.concept_nll if labels else 0)
        total.backward()
        results.append((total.detach(), {name: p.grad for name, p in model.named_parameters()}))
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-9, rtol=1e-10)
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(gradient, results[1][1][name], atol=1e-8, rtol=1e-8, msg=name)


def test_an_edit_of_the_concepts_is_not_passed_over_in_training():
    model = tiny_model(mixer="concept", mixing="insert").train()
    ids = torch.randint(0, 100, (1, 8))
    plain = model(input_ids=ids, targets=ids).nll
    handle = model.mixer.edit_point.register_forward_hook(lambda module, args, z: z * 0)
    edited = model(input_ids=ids, targets=ids)
    handle.remove()
    assert edited.concept_logits is not None
    assert not torch.allclose(edited.nll, plain)


@fuzz
@given(
    mask=st.sampled_from([CAUSAL, MEMORY]),
    batch=st.integers(1, 3),
    heads_=st.integers(1, 3),
    tokens=st.integers(1, 40),
    rows=st.integers(1, 50),
    size=st.sampled_from([4, 8, 16]),
    scale=st.sampled_from([None, 0.3]),
    seed=st.integers(0, 10**6),
    dtype=st.sampled_from(list(PRECISIONS)),
)
def test_attention_a_few_rows_at_a_time_equals_the_masked_one(
    mask, batch, heads_, tokens, rows, size, scale, seed, dtype
):
    torch.manual_seed(seed)
    keys = 2 * tokens if mask is MEMORY else tokens
    query = torch.randn(batch, heads_, tokens, size, dtype=dtype, requires_grad=True)
    key, value = (torch.randn(batch, heads_, keys, size, dtype=dtype, requires_grad=True) for _ in range(2))
    wanted = type(mask).written_out(query, key, value, scale=scale)
    pull = torch.randn_like(wanted)
    inputs = (query, key, value)
    with patch.object(attention, "ROWS", rows):
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
        gradients = torch.autograd.grad(found, inputs, pull)
    close(found, wanted, dtype)
    for a, b in zip(gradients, torch.autograd.grad(wanted, inputs, pull), strict=True):
        close(a, b, dtype, 10)


def test_masks_that_attend_know_dropout_and_shared_keys():
    query, key, value = (torch.randn(2, heads_, 6, 8) for heads_ in (4, 2, 2))
    wide = [x.repeat_interleave(2, dim=1) for x in (key, value)]
    wanted = F.scaled_dot_product_attention(query, *wide, is_causal=True)
    close(F.scaled_dot_product_attention(query, key, value, attn_mask=CAUSAL, enable_gqa=True), wanted, torch.float32)
    torch.manual_seed(0)
    dropped = F.scaled_dot_product_attention(query, *wide, attn_mask=CAUSAL[:, :, :, :6], dropout_p=0.5)
    torch.manual_seed(0)
    assert torch.equal(dropped, F.scaled_dot_product_attention(query, *wide, dropout_p=0.5, is_causal=True))


@pytest.mark.parametrize("family", sorted(TINY_BACKBONES))
@pytest.mark.parametrize(("mixing", "base"), [("insert", "none"), ("insert", "copy"), ("memory", "none")])
def test_the_upper_half_without_what_nobody_reads_equals_the_whole_one(family, mixing, base, monkeypatch):
    """The definition, by eager attention with written-out masks and every position through the last block."""
    ids = torch.randint(0, 100, (2, 13), generator=torch.Generator().manual_seed(1))
    words = {"mixer": "concept", "mixing": mixing, "slot_base": base}
    monkeypatch.setattr(attention, "ROWS", 5)
    monkeypatch.setattr(masks, "ROWS", 5)
    fast = tiny_model(family, **words).double()
    plain = tiny_model(family, attention="eager", **words).double()
    if mixing == "insert":
        plain._last_slots = lambda place, states, positions, padding, cache, past: plain._run(
            range(place, place + 1), states, plain._stream(states, positions, padding, past, each=2), cache
        )[:, 1::2]
    totals = []
    for model in (fast, plain):
        output = model(input_ids=ids, targets=ids)
        output.nll.backward()
        totals.append(output.nll.detach())
    # Norms and rotations of the others are in single precision, whatever the network's.
    within = 1e-9 if family == "gpt2" else 1e-5
    torch.testing.assert_close(totals[0], totals[1], atol=within, rtol=within)
    gradients = dict(plain.named_parameters())
    for name, parameter in fast.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, atol=10 * within, rtol=10 * within, msg=name)
