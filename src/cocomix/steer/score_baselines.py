"""What the edit of a concept is measured against, at equal dose: the SAE's decoder row in the teacher, and a random
direction in the student.

Shapes: B rows, T new tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cocomix.concepts.sae import SparseAutoencoder
from cocomix.concepts.teacher import Teacher
from cocomix.model.mixers import Mixed
from cocomix.model.modeling import CoCoMixForCausalLM
from cocomix.steer.edits import steering
from cocomix.steer.noise import seeded
from cocomix.steer.notation import Edit


@contextmanager
def decoder_row(
    teacher: Teacher, sae: SparseAutoencoder, latent: int, strengths: Float[Tensor, " B"]
) -> Iterator[None]:
    """Within the context the teacher's stream behind the SAE's block is h + strength·σ·W_dec[latent] in each row.

    σ is the token's deviation by which the autoencoder scales what it decodes; 1 where it does not normalise.
    """
    row, factors = sae.W_dec[latent].float(), strengths.to(sae.W_dec.device).view(-1, 1, 1)

    def add(states: Tensor) -> Tensor:
        scale = sae.normalised(states.flatten(0, 1))[2].view(*states.shape[:2], 1)
        return (states.float() + factors * scale * row).to(states.dtype)

    with teacher.at_block(add):
        yield


@contextmanager
def along(
    model: CoCoMixForCausalLM, requests: Sequence[Sequence[Edit]], direction: Float[Tensor, " D"]
) -> Iterator[None]:
    """Within the context ĉ + ‖Δ‖·direction is mixed, where Δ is what the request's edits would make of ĉ at this token:
    a change of the same size at the same place, another way. ``direction`` has length 1.

    Of R requests in B rows, row r belongs to request r // (B/R), as with :func:`cocomix.steer.edits.steering`.
    """
    mixer: Any = model.mixer
    direction = direction.to(model.device)

    def turn(module: Any, arguments: Any, output: Mixed) -> Mixed:
        with steering(model, requests):
            edited = module.forward(*arguments)  # not called: its hooks would come here again
        size = (edited.vector - output.vector).norm(dim=-1, keepdim=True)
        return output._replace(vector=output.vector + size * direction.to(output.vector.dtype))

    handle = mixer.register_forward_hook(turn)
    try:
        yield
    finally:
        handle.remove()


def random_direction(size: int, seed: int, concept: int) -> Float[Tensor, " D"]:
    """A direction of length 1, equally likely to be any; a concept has its own, the same at every token and dose."""
    drawn = torch.randn(size, generator=seeded(f"direction {seed} {concept}"))
    return drawn / drawn.norm()
