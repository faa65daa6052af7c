"""A sparse autoencoder for inference.

Shapes: N tokens, D the teacher's hidden size, C latents, K active latents a token.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

Normalise = Literal["none", "layer_norm"]

PRE_ACTIVATIONS_AT_ONCE = 1 << 24
"""Pre-activations held at a time (64 MB in float32): tokens are encoded in chunks."""

EPSILON = 1e-5


@runtime_checkable
class Activation(Protocol):
    """Which latents are active: pre-activations [N, C] → values and indices [N, width]."""

    width: int
    """Active latents a token, at most."""

    def __call__(self, pre: Float[Tensor, "N C"]) -> tuple[Float[Tensor, "N K"], Int[Tensor, "N K"]]: ...


class TopK:
    """The ``width`` largest pre-activations, then ReLU: values may be zero."""

    def __init__(self, width: int) -> None:
        self.width = width

    def __call__(self, pre: Float[Tensor, "N C"]) -> tuple[Float[Tensor, "N K"], Int[Tensor, "N K"]]:
        values, indices = pre.topk(self.width, dim=-1)
        return values.relu(), indices


class Weights(NamedTuple):
    """An autoencoder's tensors, float32."""

    W_enc: Float[Tensor, "D C"]
    b_enc: Float[Tensor, " C"]
    W_dec: Float[Tensor, "C D"]
    b_dec: Float[Tensor, " D"]


class SparseAutoencoder(nn.Module):
    """Frozen: x → (x′ − b_dec)·W_enc + b_enc → activation → ·W_dec + b_dec.

    With ``normalise="layer_norm"``, x′ = (x − μ)/(σ + 1e-5) with the token's own mean and unbiased deviation
    (OpenAI's way), and decoding multiplies by σ and adds μ. Otherwise x′ = x.
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor

    def __init__(
        self,
        weights: Weights,
        activation: Activation,
        normalise: Normalise = "none",
        subtract_b_dec: bool = True,
        fingerprint: str = "",
    ) -> None:
        super().__init__()
        for name, tensor in weights._asdict().items():
            self.register_buffer(name, tensor)
        self.activation = activation
        self.normalise = normalise
        self.subtract_b_dec = subtract_b_dec
        self.fingerprint = fingerprint
        """SHA-256 of the weights' file."""

    @property
    def latents(self) -> int:
        """Size C of the dictionary."""
        return self.W_enc.shape[1]

    @property
    def width(self) -> int:
        """Size D of the activations."""
        return self.W_enc.shape[0]

    @property
    def k(self) -> int:
        """Active latents a token, at most."""
        return self.activation.width

    def normalised(
        self, x: Float[Tensor, "N D"]
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N 1"], Float[Tensor, "N 1"]]:
        """x′ in float32, and the mean and deviation that decoding takes back."""
        x = x.float()
        if self.normalise == "none":
            return x, x.new_zeros(len(x), 1), x.new_ones(len(x), 1)
        mean, deviation = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        return (x - mean) / (deviation + EPSILON), mean, deviation

    def pre_activations(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N C"]:
        """Every latent before the activation; all N × C at once, so give chunks (:meth:`chunks`)."""
        x, _, _ = self.normalised(x)
        return torch.addmm(self.b_enc, x - self.b_dec if self.subtract_b_dec else x, self.W_enc)

    def chunks(self, tokens: int) -> Iterator[slice]:
        """Slices of ``tokens`` whose pre-activations take bounded memory."""
        size = max(1, PRE_ACTIVATIONS_AT_ONCE // self.latents)
        return (slice(first, first + size) for first in range(0, tokens, size))

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "N D"]) -> tuple[Float[Tensor, "N K"], Int[Tensor, "N K"]]:
        """Values (≥ 0, zero where a latent is not active) and indices of the active latents, strongest first."""
        parts = [self.activation(self.pre_activations(x[chunk])) for chunk in self.chunks(len(x))]
        if not parts:
            empty = x.new_empty(0, self.k, dtype=torch.float32)
            return empty, empty.long()
        return torch.cat([values for values, _ in parts]), torch.cat([indices for _, indices in parts])

    @torch.no_grad()
    def decode(
        self,
        values: Float[Tensor, "N K"],
        indices: Int[Tensor, "N K"],
        of: Float[Tensor, "N D"] | None = None,
    ) -> Float[Tensor, "N D"]:
        """The reconstruction, float32. ``of``: the activations that were encoded, whose mean and deviation a
        layer-normed reconstruction takes back; raises :class:`ValueError` when it is needed and not given."""
        out = F.embedding_bag(indices, self.W_dec, per_sample_weights=values, mode="sum") + self.b_dec
        if self.normalise == "none":
            return out
        if of is None:
            raise ValueError("a layer-normed autoencoder decodes relative to its input: give of=activations")
        _, mean, deviation = self.normalised(of)
        return out * deviation + mean

    def reconstruct(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """decode(encode(x)), float32."""
        values, indices = self.encode(x)
        return self.decode(values, indices, x)
