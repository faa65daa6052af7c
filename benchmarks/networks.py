"""Networks of given sizes with random weights, and one training step of each, for the benchmarks of speed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from cocomix.data.batches import Batch
from cocomix.dist.parallel import Spread
from cocomix.losses.terms import loss_terms
from cocomix.model.config import CoCoMixConfig
from cocomix.model.modeling import CoCoMixForCausalLM
from cocomix.train.build import build_optimizers
from cocomix.train.settings import OptimizerSettings
from cocomix.train.step import train_step
from common import synchronised

LABELS = 4
"""Concept labels a token (the paper's K_attr)."""


class Sizes(NamedTuple):
    """A GPT-2-like backbone and a mixer in it; the defaults are the paper's smallest setting, 69M."""

    width: int = 512
    depth: int = 8
    heads: int = 8
    vocabulary: int = 50257
    context: int = 1024
    insert_at: int = 3
    concepts: int = 32768
    kept: int = 32

    def backbone(self) -> dict[str, Any]:
        """Settings of transformers' GPT2Config, without dropout as pretraining is."""
        return {
            "n_embd": self.width,
            "n_layer": self.depth,
            "n_head": self.heads,
            "n_positions": self.context,
            "vocab_size": self.vocabulary,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        }


TINY = Sizes(width=32, depth=4, heads=4, vocabulary=384, context=128, insert_at=2, concepts=64, kept=8)

METHODS: dict[str, dict[str, str]] = {
    "ntp": {"mixer": "none"},
    "insert": {"mixer": "concept", "mixing": "insert"},
    "add": {"mixer": "concept", "mixing": "add"},
    "memory": {"mixer": "concept", "mixing": "memory"},
}
"""Next-token prediction with the backbone alone, and CoCoMix with each mixing of the same backbone."""


def autocast(device: str, bf16: bool) -> torch.autocast:
    """What a training run computes in."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16)


def compile_blocks(model: CoCoMixForCausalLM) -> None:
    """As a training run's ``compile=blocks``."""
    for block in model.blocks:
        block.compile()


def network(sizes: Sizes, method: str) -> CoCoMixForCausalLM:
    """A network with random weights, in training mode."""
    torch.manual_seed(0)
    config = CoCoMixConfig(
        text_config={"model_type": "gpt2", **sizes.backbone()},
        insert_at=sizes.insert_at,
        num_concepts=sizes.concepts,
        concept_k=sizes.kept,
        **METHODS[method],
    )
    return CoCoMixForCausalLM(config).train()


def random_batch(sizes: Sizes, method: str, windows: int, tokens: int) -> Batch:
    """Windows of random tokens; concept labels where the method has concepts."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, sizes.vocabulary, (windows, tokens + 1), generator=generator)
    columns = {}
    if METHODS[method]["mixer"] == "concept":
        shape = (windows, tokens, LABELS)
        columns["concept_ids"] = torch.randint(0, sizes.concepts, shape, generator=generator)
    return Batch(np.arange(windows), ids[:, :-1], ids[:, 1:], columns)


def stepper(
    model: CoCoMixForCausalLM,
    sizes: Sizes,
    method: str,
    windows: int,
    tokens: int,
    device: str = "cpu",
    bf16: bool = False,
    compiled: bool = False,
) -> Callable[[], float]:
    """A training step of cocomix on one batch, again at each call; returns its seconds."""
    batch = random_batch(sizes, method, windows, tokens).to(torch.device(device))
    model.to(device)
    if compiled:
        compile_blocks(model)
    weights = {"ntp": 1.0, "concept": 0.1} if batch.columns else {"ntp": 1.0}
    optimizers = build_optimizers(model, OptimizerSettings())
    spread, terms = Spread(model, model, 1), loss_terms(weights)

    def step() -> float:
        start = synchronised(device)
        train_step(spread, terms, [batch], optimizers, 1.0, autocast(device, bf16))
        return synchronised(device) - start

    return step
