"""Fast paths against their plain definitions: outputs and gradients, fuzzed over shapes, masks, k, chunk sizes."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from cocomix.model import heads
from cocomix.model.attention import MEMORY, masked_attention, merged_attention
from cocomix.model.fused import fuse_activations
from cocomix.model.heads import concept_head, linear_nll
from cocomix.model.mixers import NO_LABEL, ConceptMixer, concept_nll
from cocomix.testing.models import TINY_BACKBONES, tiny_model

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
    batch=st.integers(1, 3),
    heads_=st.integers(1, 3),
    tokens=st.integers(1, 40),
    size=st.sampled_from([4, 8, 16]),
    scale=st.sampled_from([None, 0.3]),
    seed=st.integers(0, 10**6),
    dtype=st.sampled_from(list(PRECISIONS)),
)
def test_two_merged_causal_attentions_equal_the_masked_one(batch, heads_, tokens, size, scale, seed, dtype):
    torch.manual_seed(seed)
    query = torch.randn(batch, heads_, tokens, size, dtype=dtype, requires_grad=True)
    key, value = (torch.randn(batch, heads_, 2 * tokens, size, dtype=dtype, requires_grad=True) for _ in range(2))
    wanted = masked_attention(query, key, value, scale=scale)
    found = merged_attention(query, key[:, :, 0::2], value[:, :, 0::2], key[:, :, 1::2], value[:, :, 1::2], scale)
    close(found, wanted, dtype)
    pull = torch.randn_like(wanted)
    inputs = (query, key, value)
    for a, b in zip(torch.autograd.grad(found, inputs, pull), torch.autograd.grad(wanted, inputs, pull), strict=True):
        close(a, b, dtype, 10)
    asked = F.scaled_dot_product_attention(query, key, value, attn_mask=MEMORY, scale=scale)
    assert torch.equal(asked, found)


@pytest.mark.parametrize("family", sorted(TINY_BACKBONES))
@pytest.mark.parametrize("mixing", ["insert", "memory"])
@pytest.mark.parametrize("base", ["none", "copy"])
def test_the_upper_half_without_what_nobody_reads_equals_the_whole_one(family, mixing, base):
    """The definition, by eager attention with written-out masks and every position through the last block."""
    if mixing == "memory" and base == "copy":
        pytest.skip("memory has no slots")
    ids = torch.randint(0, 100, (2, 13), generator=torch.Generator().manual_seed(1))
    words = {"mixer": "concept", "mixing": mixing, "slot_base": base}
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


def test_gpt2s_activation_is_pytorchs_own():
    from transformers.activations import NewGELUActivation

    x = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    holder = nn.Sequential(NewGELUActivation())
    wanted = holder(x)
    fuse_activations(holder)
    assert type(holder[0]) is nn.GELU
    torch.testing.assert_close(holder(x), wanted, atol=1e-12, rtol=0)
    assert type(tiny_model("gpt2", mixer="none").blocks[0].mlp.act) is nn.GELU
