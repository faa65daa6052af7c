"""A sparse autoencoder for inference.

Shapes: N tokens, D the teacher's hidden size, C latents, W entries for the active latents of a token.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from cocomix.ops.topk import topk

Normalise = Literal["none", "layer_norm", "constant_norm_rescale", "centre"]

PRE_ACTIVATIONS_AT_ONCE = 1 << 24
"""Pre-activations held at a time (64 MB in float32): tokens are encoded in chunks."""

EPSILON = 1e-5


class TopK(nn.Module):
    """The ``k`` largest pre-activations, then ReLU: values may be zero (Gao et al. 2024, arXiv 2406.04093)."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, pre: Float[Tensor, "N C"]) -> tuple[Float[Tensor, "N W"], Int[Tensor, "N W"]]:
        """Values and indices of W = k latents, strongest first."""
        values, indices = topk(pre, self.k)
        return values.relu(), indices


class Threshold(nn.Module):
    """All pre-activations above zero and strictly above their latent's threshold (JumpReLU, arXiv 2407.14435).

    A threshold of 0 is ReLU; one and the same for all latents is BatchTopK at inference (arXiv 2412.06410).
    """

    threshold: Tensor
    k = None

    def __init__(self, threshold: Float[Tensor, " C"] | float = 0.0) -> None:
        super().__init__()
        self.register_buffer("threshold", torch.as_tensor(threshold, dtype=torch.float32))

    def forward(self, pre: Float[Tensor, "N C"]) -> tuple[Float[Tensor, "N W"], Int[Tensor, "N W"]]:
        """Values and indices, strongest first; W is what the token with the most active latents has, at least 1."""
        active = pre > self.threshold.clamp(min=0)
        counts = active.sum(-1)
        most = max(1, int(counts.max()))
        # Active entries are packed and then sorted: a top-k over all C would cost more than the encoder's product.
        rows, latents = active.nonzero(as_tuple=True)
        places = torch.arange(len(rows), device=pre.device) - (counts.cumsum(0) - counts)[rows]
        values, indices = pre.new_zeros(len(pre), most), latents.new_zeros(len(pre), most)
        values[rows, places], indices[rows, places] = pre[rows, latents], latents
        values, order = values.sort(dim=-1, descending=True)
        return values, indices.gather(-1, order)


class Weights(NamedTuple):
    """An autoencoder's tensors, float32."""

    W_enc: Float[Tensor, "D C"]
    b_enc: Float[Tensor, " C"]
    W_dec: Float[Tensor, "C D"]
    b_dec: Float[Tensor, " D"]


class Text(NamedTuple):
    """What an autoencoder's files say of the model and the text it was trained on; None: nothing."""

    model_name: str | None = None
    prepend_bos: bool | None = None
    """Whether texts began with the tokenizer's beginning-of-text token."""
    context_size: int | None = None


class SparseAutoencoder(nn.Module):
    """Frozen: x → (x′ − b_dec)·W_enc + b_enc → activation → ·W_dec + b_dec.

    x′ by ``normalise``; decoding takes the token's own μ and σ back (·σ + μ):

    - ``none``: x.
    - ``layer_norm``: (x − μ)/(σ + 1e-5), the mean and the unbiased deviation over the hidden size (OpenAI's way).
    - ``constant_norm_rescale``: x·√D/‖x‖ (σ = ‖x‖/√D, μ = 0).
    - ``centre``: x − μ, for autoencoders trained on a model whose writing weights were centred (TransformerLens'
      ``center_writing_weights``): the same model's uncentred stream differs from what they saw by μ alone.
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor

    def __init__(
        self,
        weights: Weights,
        activation: TopK | Threshold,
        normalise: Normalise = "none",
        subtract_b_dec: bool = True,
        fingerprint: str = "",
        block: int | None = None,
        stated_l0: float | None = None,
        text: Text = Text(),  # noqa: B008
    ) -> None:
        super().__init__()
        for name, tensor in weights._asdict().items():
            self.register_buffer(name, tensor)
        self.activation = activation
        self.normalise: Normalise = normalise
        self.subtract_b_dec = subtract_b_dec
        self.fingerprint = fingerprint
        """SHA-256 of the weights' file."""
        self.block = block
        """The block whose output it was trained on, where its files say so."""
        self.stated_l0 = stated_l0
        """Active latents a token on average, where its files say so and a threshold decides."""
        self.text = text

    @property
    def latents(self) -> int:
        """Size C of the dictionary."""
        return self.W_enc.shape[1]

    @property
    def width(self) -> int:
        """Size D of the activations."""
        return self.W_enc.shape[0]

    @property
    def k(self) -> int | None:
        """Active latents a token, at most; None where a threshold decides how many."""
        return self.activation.k

    def normalised(
        self, x: Float[Tensor, "N D"]
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N 1"], Float[Tensor, "N 1"]]:
        """x′ in float32, and the μ and σ that decoding takes back."""
        x = x.float()
        zero, one = x.new_zeros(len(x), 1), x.new_ones(len(x), 1)
        if self.normalise == "none":
            return x, zero, one
        if self.normalise == "constant_norm_rescale":
            scale = x.norm(dim=-1, keepdim=True).clamp(min=1e-12) / x.shape[-1] ** 0.5
            return x / scale, zero, scale
        mean = x.mean(-1, keepdim=True)
        if self.normalise == "centre":
            return x - mean, mean, one
        deviation = x.std(-1, keepdim=True)
        return (x - mean) / (deviation + EPSILON), mean, deviation

    def pre_activations(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N C"]:
        """Every latent before the activation; all N × C at once, so give chunks (:meth:`chunks`)."""
        x, _, _ = self.normalised(x)
        x = x - self.b_dec if self.subtract_b_dec else x
        # Transposed in memory: on a CPU this product is a fifth faster with one token a column.
        return (self.W_enc.T @ x.T).add_(self.b_enc.unsqueeze(1)).T

    def chunks(self, tokens: int) -> Iterator[slice]:
        """Slices of ``tokens`` whose pre-activations take bounded memory."""
        size = max(1, PRE_ACTIVATIONS_AT_ONCE // self.latents)
        return (slice(first, first + size) for first in range(0, tokens, size))

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "*N D"]) -> tuple[Float[Tensor, "*N W"], Int[Tensor, "*N W"]]:
        """Values (≥ 0) and indices of the active latents, strongest first; an entry of value 0 is not active.

        W is k, or where a threshold decides, the most active latents that any of these tokens has (at least 1).
        All latents, as SAELens' ``encode`` returns them: :meth:`dense`.
        """
        if x.dim() != 2:
            values, indices = self.encode(x.reshape(-1, x.shape[-1]))
            shape = (*x.shape[:-1], values.shape[1])
            return values.view(shape), indices.view(shape)
        parts = [self.activation(self.pre_activations(x[chunk])) for chunk in self.chunks(len(x))]
        if not parts:
            empty = x.new_empty(0, self.k or 1, dtype=torch.float32)
            return empty, empty.long()
        most = max(values.shape[1] for values, _ in parts)
        values, indices = (
            torch.cat([F.pad(part, (0, most - part.shape[1])) for part in column])
            for column in zip(*parts, strict=True)
        )
        return values, indices

    def dense(self, x: Float[Tensor, "*N D"]) -> Float[Tensor, "*N C"]:
        """Every latent's value, most of them 0."""
        values, indices = self.encode(x)
        # What fills a token up has index 0 and value 0: it adds nothing.
        return values.new_zeros(*x.shape[:-1], self.latents).scatter_add_(-1, indices, values)

    @torch.no_grad()
    def decode(
        self,
        values: Float[Tensor, "*N W"],
        indices: Int[Tensor, "*N W"],
        of: Float[Tensor, "*N D"] | None = None,
    ) -> Float[Tensor, "*N D"]:
        """The reconstruction, float32. ``of``: the activations that were encoded, whose μ and σ the reconstruction
        takes back; raises :class:`ValueError` when it is needed and not given."""
        if indices.dim() != 2:
            width = indices.shape[-1]
            flat = None if of is None else of.reshape(-1, self.width)
            return self.decode(values.reshape(-1, width), indices.reshape(-1, width), flat).view(
                *indices.shape[:-1], self.width
            )
        out = F.embedding_bag(indices, self.W_dec, per_sample_weights=values, mode="sum") + self.b_dec
        if self.normalise == "none":
            return out
        if of is None:
            raise ValueError("a normalising autoencoder decodes relative to its input: give of=activations")
        _, mean, deviation = self.normalised(of)
        return out * deviation + mean

    def reconstruct(self, x: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
        """decode(encode(x)), float32."""
        values, indices = self.encode(x)
        return self.decode(values, indices, x)

    def forward(self, x: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
        """As :meth:`reconstruct`."""
        return self.reconstruct(x)
