"""cocomix as one side of a comparison (see ``sides.py``): started by ``vs_reference.py`` and ``memory.py``."""

from __future__ import annotations

import sys
from functools import cached_property
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from cocomix.allocator import keep_freed_memory
from cocomix.concepts.attribution import label_windows
from cocomix.concepts.costs import label_flops
from cocomix.concepts.sae import SparseAutoencoder, TopK, Weights
from cocomix.concepts.settings import AttributionSettings
from cocomix.concepts.teacher import Teacher
from cocomix.data.batches import Batch
from cocomix.dist.parallel import Spread
from cocomix.losses.terms import loss_terms
from cocomix.model.config import CoCoMixConfig
from cocomix.model.costs import count_flops, count_parameters
from cocomix.model.modeling import CoCoMixForCausalLM
from cocomix.train.build import build_optimizers
from cocomix.train.settings import OptimizerSettings
from cocomix.train.step import train_step
from sides import COMMANDS, Sizes, given_sizes, serve, timed

NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


class Ours:
    """Random weights, random tokens; each part is built when it is first asked for."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        torch.set_num_threads(sizes.threads)
        torch.manual_seed(sizes.seed)
        tokens = torch.randint(0, sizes.vocab, (sizes.batch, sizes.window + 1))
        self.inputs, self.targets = tokens[:, :-1], tokens[:, 1:]
        self.ids = torch.randint(0, sizes.concepts, (sizes.batch, sizes.window, sizes.labels))
        """Labels as a cache would give them."""
        self.attribution = AttributionSettings(k=sizes.labels)
        self.terms = loss_terms({"ntp": 1.0, "concept": sizes.concept_weight})

    @cached_property
    def student(self) -> CoCoMixForCausalLM:
        s = self.sizes
        text = {"n_embd": s.width, "n_layer": s.layers, "n_head": s.heads, "n_positions": s.positions}
        backbone = {"model_type": "gpt2", "vocab_size": s.vocab, **text, **NO_DROPOUT}
        config = CoCoMixConfig(backbone, insert_at=s.insert_at, num_concepts=s.concepts, concept_k=s.kept)
        return CoCoMixForCausalLM(config).train()

    @cached_property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        return build_optimizers(self.student, OptimizerSettings(lr=self.sizes.learning_rate))

    @cached_property
    def teacher(self) -> Teacher:
        s = self.sizes
        config = GPT2Config(
            vocab_size=s.vocab,
            n_positions=s.positions,
            n_embd=s.teacher_width,
            n_layer=s.teacher_layers,
            n_head=s.teacher_heads,
        )
        return Teacher(GPT2LMHeadModel(config), s.block, "random")

    @cached_property
    def sae(self) -> SparseAutoencoder:
        width, latents = self.sizes.teacher_width, self.sizes.concepts
        encoder = torch.nn.Linear(width, latents, bias=False).weight.detach()
        decoder = torch.nn.Linear(latents, width, bias=False).weight.detach()
        weights = Weights(encoder.T.contiguous(), torch.zeros(latents), decoder.T.contiguous(), torch.zeros(width))
        return SparseAutoencoder(weights, TopK(self.sizes.kept), "layer_norm")

    def build(self, command: str) -> dict[str, Any]:
        """Builds what ``command`` needs."""
        if "step" in command:
            assert self.student is not None
        if "labels" in command:
            assert self.teacher is not None
            assert self.sae is not None
        return {}

    def labels(self) -> torch.Tensor:
        found = label_windows(self.teacher, self.sae, self.inputs, self.targets, self.attribution)
        return found.ids.view(self.ids.shape)

    def step(self, ids: torch.Tensor) -> dict[str, Any]:
        batch = Batch(torch.arange(len(ids)).numpy(), self.inputs, self.targets, {"concept_ids": ids})
        spread = Spread(self.student, self.student, 1)
        return {"losses": train_step(spread, self.terms, [batch], self.optimizers, clip=1.0).losses}

    def costs(self) -> dict[str, Any]:
        """Floating-point operations of each command, and the student's parameters."""
        s = self.sizes
        step = s.tokens * count_flops(self.student, s.window).training
        labels = s.tokens * label_flops(self.teacher, self.sae, self.attribution, s.window, s.kept).total
        flops = {"step": step, "labels": labels, "step+labels": step + labels}
        return {"flops": flops, "parameters": count_parameters(self.student).total}


def main() -> None:
    """Serves; the sizes are the one argument."""
    keep_freed_memory()  # as cocomix train and concepts extract do
    ours = Ours(given_sizes(sys.argv[1]))

    def labels() -> None:
        ours.labels()

    serve(
        {
            "step": lambda: timed(lambda: ours.step(ours.ids)),
            "labels": lambda: timed(labels),
            "step+labels": lambda: timed(lambda: ours.step(ours.labels())),
            "costs": ours.costs,
            **{f"build {command}": lambda command=command: ours.build(command) for command in COMMANDS},
        }
    )


if __name__ == "__main__":
    main()
