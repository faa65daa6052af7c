"""Our network against tensors of the reference implementation (facebookresearch/RAM, projects/cocomix)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from cocomix.data.batches import Batch
from cocomix.dist.parallel import Spread
from cocomix.losses.terms import loss_terms
from cocomix.model.config import CoCoMixConfig
from cocomix.model.modeling import IGNORED, CoCoMixForCausalLM
from cocomix.model.reference import our_tensor
from cocomix.train.build import build_optimizers
from cocomix.train.settings import OptimizerSettings
from cocomix.train.step import train_step

DATA = Path(__file__).parents[1] / "data"


def reference(file: str, weights: str) -> tuple[CoCoMixForCausalLM, dict[str, Tensor]]:
    with safe_open(DATA / file, "pt") as opened:
        meta = opened.metadata()
    tensors = load_file(DATA / file)
    model = CoCoMixForCausalLM(
        CoCoMixConfig(
            text_config={"model_type": "gpt2", "bos_token_id": 0, "eos_token_id": 0, **json.loads(meta["config"])},
            insert_at=int(meta["insert_layer_idx"]),
            num_concepts=int(meta["concept_dim"]),
            concept_k=int(meta["concept_num"]),
        )
    )
    state = dict(
        our_tensor(name.removeprefix(weights), value) for name, value in tensors.items() if name.startswith(weights)
    )
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert missing == ["lm_head.weight"]
    assert not unexpected
    return model, tensors


def shifted(ids: Tensor) -> Tensor:
    return F.pad(ids[:, 1:], (0, 1), value=IGNORED)


def test_logits_losses_and_gradients_equal_the_reference():
    model, tensors = reference("cocomix_gpt2_step.safetensors", "weights.")
    ids, labels = tensors["input_ids"], tensors["concept_labels"]
    plain = model.eval()(ids)
    torch.testing.assert_close(plain.logits, tensors["logits"], atol=1e-5, rtol=0)
    torch.testing.assert_close(plain.concept_logits, tensors["concept_logits"], atol=1e-5, rtol=0)
    output = model.train()(ids, targets=shifted(ids), concept_ids=labels)
    ntp = output.nll / (shifted(ids) != IGNORED).sum()
    concept = output.concept_nll / labels.numel()
    assert ntp.item() == pytest.approx(tensors["loss_ntp"].item(), abs=1e-6)
    assert concept.item() == pytest.approx(tensors["loss_concept"].item(), abs=1e-6)
    (ntp + 0.1 * concept).backward()
    parameters = dict(model.named_parameters())
    compared = 0
    for name, value in tensors.items():
        if name.startswith("grads."):
            mine, wanted = our_tensor(name.removeprefix("grads."), value)
            error = (parameters[mine].grad - wanted).norm() / wanted.norm()
            assert error < 1e-4, f"{mine}: {error}"
            compared += 1
    assert compared == len(parameters)


def test_twenty_steps_of_the_loop_equal_the_reference_trace():
    model, tensors = reference("cocomix_gpt2_trace.safetensors", "init.")
    optimizers = build_optimizers(model, OptimizerSettings(lr=3e-3, decay="all"))
    terms = loss_terms({"ntp": 1.0, "concept": 0.1})
    for step in range(20):
        ids = tensors["input_ids"][step]
        batch = Batch(np.arange(4), ids, shifted(ids), {"concept_ids": tensors["concept_labels"][step]})
        result = train_step(Spread(model, model, 1), terms, [batch], optimizers, clip=1.0)
        assert result.losses["ntp"] == pytest.approx(tensors["loss_ntp"][step].item(), abs=1e-4)
        assert result.losses["concept"] == pytest.approx(tensors["loss_concept"][step].item(), abs=1e-4)
        assert result.grad_norm == pytest.approx(tensors["grad_norm"][step].item(), rel=1e-3)
    parameters = dict(model.named_parameters())
    for name, value in tensors.items():
        if name.startswith("final."):
            mine, wanted = our_tensor(name.removeprefix("final."), value)
            torch.testing.assert_close(parameters[mine].detach(), wanted, atol=2e-4, rtol=0)
