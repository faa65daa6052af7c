"""Every method's losses and gradients against the whole computation written out, in double precision.

The reference below knows nothing of the library: GPT-2's blocks from their weights, masks as full squares, the mixers
and losses from the paper's equations.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cocomix.data.batches import Batch
from cocomix.losses.terms import asked, loss_terms
from cocomix.testing.models import TINY_SIZES, tiny_model

B, T, V, D, HEADS, CUT = 2, 9, 101, 32, 4, TINY_SIZES["insert_at"]
C, L, S = TINY_SIZES["num_concepts"], 3, TINY_SIZES["state_size"]


def block(w: dict[str, Tensor], i: int, stream: Tensor, sees: Tensor, memory: Tensor | None = None) -> Tensor:
    """Block i on [B, S, D]; ``sees`` [S, keys]; ``memory`` [B, M, D]: states whose keys and values lie before the
    stream's own."""
    at = f"backbone.h.{i}."

    def normed(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (D,), w[f"{at}{name}.weight"], w[f"{at}{name}.bias"])

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (HEADS, D // HEADS)).transpose(1, 2)

    qkv = normed(stream, "ln_1") @ w[f"{at}attn.c_attn.weight"] + w[f"{at}attn.c_attn.bias"]
    q, k, v = qkv.split(D, -1)
    if memory is not None:
        lent = normed(memory, "ln_1") @ w[f"{at}attn.c_attn.weight"] + w[f"{at}attn.c_attn.bias"]
        k, v = torch.cat([lent[..., D : 2 * D], k], 1), torch.cat([lent[..., 2 * D :], v], 1)
    scores = heads(q) @ heads(k).transpose(2, 3) / math.sqrt(D // HEADS)
    mixed = scores.masked_fill(~sees, -math.inf).softmax(-1) @ heads(v)
    stream = stream + mixed.transpose(1, 2).flatten(2) @ w[f"{at}attn.c_proj.weight"] + w[f"{at}attn.c_proj.bias"]
    inner = F.gelu(normed(stream, "ln_2") @ w[f"{at}mlp.c_fc.weight"] + w[f"{at}mlp.c_fc.bias"], approximate="tanh")
    return stream + inner @ w[f"{at}mlp.c_proj.weight"] + w[f"{at}mlp.c_proj.bias"]


def written_out(config: Any, w: dict[str, Tensor], batch: Batch, weights: dict[str, float]) -> dict[str, Tensor]:
    """Each loss as a mean over its own count."""
    w = {**w, "lm_head.weight": w["backbone.wte.weight"]}
    causal = torch.ones(T, T).tril().bool()
    hidden = w["backbone.wte.weight"][batch.inputs] + w["backbone.wpe.weight"][:T]
    depth = config.text_config.n_layer
    mixer, cut = config.mixer, CUT if config.mixer != "none" else depth
    for i in range(cut):
        hidden = block(w, i, hidden, causal)
    losses: dict[str, Tensor] = {}
    mean, std = hidden.mean(-1, keepdim=True), hidden.std(-1, keepdim=True)
    normed, vector = (hidden - mean) / (std + 1e-5), torch.zeros_like(hidden)
    if mixer == "pause":
        vector = w["mixer.vector"].expand_as(hidden)
    elif mixer == "concept":
        z = (normed - w["mixer.pre_bias"]) @ w["mixer.predict.weight"].t() + w["mixer.predict.bias"]
        kept = torch.zeros_like(z).scatter(-1, (top := z.topk(config.concept_k)).indices, top.values)
        vector = (kept @ w["mixer.compress.weight"] + w["mixer.compress_bias"] + w["mixer.pre_bias"]) * std + mean
        labels = batch.columns.get("concept_ids")
        if labels is not None:
            nll = -z.log_softmax(-1).gather(-1, labels.clamp(min=0))
            losses["concept"] = nll[labels >= 0].mean()
    elif mixer == "hidden":
        inner = F.gelu(normed @ w["mixer.up.weight"].t() + w["mixer.up.bias"], approximate="tanh")
        guess = inner @ w["mixer.guess.weight"].t() + w["mixer.guess.bias"]
        vector = (guess @ w["mixer.compress.weight"].t() + w["mixer.compress.bias"]) * std + mean
        if "teacher_state" in batch.columns:
            state = batch.columns["teacher_state"]
            state = (state - state.mean(-1, keepdim=True)) / (state.std(-1, keepdim=True) + 1e-5)
            losses["state_l1"] = (guess - state).abs().mean()
            losses["state_l2"] = ((guess - state) ** 2).mean()
            lengths = guess.norm(dim=-1) * state.norm(dim=-1)
            losses["state_cosine"] = (1 - (guess * state).sum(-1) / lengths).mean()
    slots = (torch.arange(T) + 1) % config.slot_every == 0
    there = torch.stack([torch.ones(T, dtype=torch.bool), slots], 1).flatten()  # the others are no keys
    for i in range(cut, depth):
        if i == cut and config.mixing == "insert":
            base = {"none": 0.0, "copy": hidden, "position": w["backbone.wpe.weight"][:T]}[config.slot_base]
            stream = torch.stack([hidden, vector + base], 2).flatten(1, 2)
        elif i == cut:
            stream = hidden if config.mixing == "none" else hidden + vector
        if config.mixing == "insert":
            stream = block(w, i, stream, torch.ones(2 * T, 2 * T).tril().bool() & there)
        elif config.mixing == "memory":
            stream = block(w, i, stream, torch.cat([causal, causal], 1), memory=hidden)
        else:
            stream = block(w, i, stream, causal)
    if cut < depth:
        if config.mixing == "insert":
            stream = torch.where(slots[:, None], stream[:, 1::2], stream[:, 0::2])
        hidden = stream
    hidden = F.layer_norm(hidden, (D,), w["backbone.ln_f.weight"], w["backbone.ln_f.bias"])
    logits = hidden @ w["lm_head.weight"].t()
    log_probs = logits.log_softmax(-1)
    counts = batch.targets >= 0
    losses["z"] = logits.logsumexp(-1).square()[counts].mean()
    losses["ntp"] = -log_probs.gather(-1, batch.targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)[counts].mean()
    if "teacher_probs" in batch.columns:
        p = batch.columns["teacher_probs"]
        q = (
            log_probs
            if "teacher_tokens" not in batch.columns
            else log_probs.gather(-1, batch.columns["teacher_tokens"])
        )
        divergence = (p * (p.log() - q)).sum(-1)
        if "teacher_tokens" in batch.columns:
            rest_p, rest_q = 1 - p.sum(-1), 1 - q.exp().sum(-1)
            divergence = divergence + rest_p * (rest_p.log() - rest_q.log())
        losses["distill"] = divergence[counts].mean()
    return {name: losses[name] for name in weights}


METHODS: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "ntp": ({"mixer": "none"}, {"ntp": 1.0}),
    "kd": ({"mixer": "none"}, {"ntp": 1.0, "distill": 0.1}),
    "pause": ({"mixer": "pause", "slot_base": "position"}, {"ntp": 1.0}),
    "kd_pause": ({"mixer": "pause", "slot_base": "copy"}, {"ntp": 1.0, "distill": 0.1}),
    "cocomix": ({"mixer": "concept"}, {"ntp": 1.0, "concept": 0.1}),
    "cocomix_copy": ({"mixer": "concept", "slot_base": "copy"}, {"ntp": 1.0, "concept": 0.1}),
    "cocomix_add": ({"mixer": "concept", "mixing": "add"}, {"ntp": 1.0, "concept": 0.1}),
    "cocomix_memory": ({"mixer": "concept", "mixing": "memory"}, {"ntp": 1.0, "concept": 0.1}),
    "cocomix_every_4": ({"mixer": "concept", "slot_every": 4}, {"ntp": 1.0, "concept": 0.1}),
    "pause_every_2": ({"mixer": "pause", "slot_every": 2, "slot_base": "position"}, {"ntp": 1.0}),
    "concept_alone": ({"mixer": "concept", "mixing": "none"}, {"ntp": 1.0, "concept": 0.1}),
    "mixing_alone": ({"mixer": "concept", "mixing": "insert"}, {"ntp": 1.0}),
    "concept_head_alone": ({"mixer": "concept", "mixing": "insert"}, {"concept": 1.0}),
    "z": ({"mixer": "none"}, {"ntp": 1.0, "z": 0.01}),
    "z_alone": ({"mixer": "pause"}, {"z": 1.0}),
    "kd_z": ({"mixer": "none"}, {"ntp": 1.0, "distill": 0.1, "z": 0.01}),
    "cocomix_kd": ({"mixer": "concept", "mixing": "add"}, {"ntp": 1.0, "concept": 0.1, "distill": 0.5}),
    **{
        f"hidden_{kind}": ({"mixer": "hidden", "mixing": mixing}, {"ntp": 1.0, f"state_{kind}": 0.1})
        for kind, mixing in (("l1", "insert"), ("l2", "add"), ("cosine", "memory"))
    },
}


def made_batch(weights: dict[str, float], kept: int | None) -> Batch:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, V, (B, T + 1), generator=generator)
    targets = ids[:, 1:].clone()
    targets[0, 3] = -100
    columns = {}
    if "concept" in weights:
        labels = torch.stack([torch.randperm(C, generator=generator)[:L] for _ in range(B * T)]).view(B, T, L)
        labels[:, -1, 1:] = -1
        columns["concept_ids"] = labels
    if "distill" in weights:
        whole = torch.randn(B, T, V, generator=generator, dtype=torch.double).softmax(-1)
        columns["teacher_probs"] = whole
        if kept is not None:
            columns["teacher_probs"], columns["teacher_tokens"] = whole.topk(kept)
    if any(name.startswith("state") for name in weights):
        columns["teacher_state"] = torch.randn(B, T, S, generator=generator, dtype=torch.double) * 3 + 1
    return Batch(np.arange(B), ids[:, :-1], targets, columns)


ASKED = [(method, 7) for method in METHODS] + [(m, None) for m, (_, weights) in METHODS.items() if "distill" in weights]
"""Methods, and how many of the teacher's probabilities they are given; None: all."""


@pytest.mark.parametrize(("method", "kept"), ASKED)
def test_losses_and_gradients_are_those_of_the_equations(method, kept):
    form, weights = METHODS[method]
    model = tiny_model(**form).double().train()
    batch = made_batch(weights, kept)
    terms = loss_terms(weights)
    output = model(input_ids=batch.inputs, **asked(terms, batch))
    found = {term.name: term.total(output, batch) / term.count(batch) for term, _ in terms}
    sum(weight * found[term.name] for term, weight in terms).backward()
    ours = {name: p.grad for name, p in model.named_parameters()}
    leaves = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    due = written_out(model.config, leaves, batch, weights)
    sum(weights[name] * due[name] for name in weights).backward()
    for name in weights:
        assert float(found[name].detach()) == pytest.approx(float(due[name].detach()), rel=1e-10), name
    for name, leaf in leaves.items():
        if leaf.grad is None:
            assert ours[name] is None or not ours[name].any(), name
            continue
        assert torch.allclose(ours[name], leaf.grad, rtol=1e-8, atol=1e-10), name


def test_a_distillation_of_no_weight_has_the_gradient_of_next_token_prediction():
    batch = made_batch({"distill": 1.0}, 7)
    gradients = []
    for columns in ({}, batch.columns):
        model = tiny_model(mixer="none").double().train()
        model(input_ids=batch.inputs, targets=batch.targets, loss_weights=(1.0, 0.0, 0.0), **columns).nll.backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, with_teacher in zip(*gradients, strict=True):
        assert torch.allclose(plain, with_teacher, rtol=1e-12, atol=1e-12)
