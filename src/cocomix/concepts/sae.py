"""A sparse autoencoder for inference, and loading one from disk.

Shapes: N tokens, D the teacher's hidden size, C latents, K active latents a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from cocomix.errors import UserError, explained
from cocomix.files import read_json, sha256_file

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


def check_folder(folder: Path | str) -> None:
    """Raises :class:`UserError` when there is no such folder."""
    if not Path(folder).is_dir():
        raise UserError(f"sae={folder} is no folder: train one with 'cocomix sae train', or give its folder")


def load_sae(folder: Path | str, device: torch.device | str = "cpu") -> SparseAutoencoder:
    """The autoencoder in ``folder``, on ``device``.

    Raises :class:`UserError` when the folder is in no known format, or its files do not fit together.
    """
    folder = Path(folder)
    check_folder(folder)
    for recognises, load in LOADERS:
        if recognises(folder):
            return load(folder).to(device)
    raise UserError(
        f"sae={folder} holds no sparse autoencoder in a known format: wanted are SAELens's cfg.json and "
        "sae_weights.safetensors"
    )


def sae_fingerprint(folder: Path | str) -> str:
    """SHA-256 of the weights' file, without loading it."""
    path = Path(folder) / SAELENS_WEIGHTS
    if not path.is_file():
        raise UserError(f"sae={folder} holds no {SAELENS_WEIGHTS}: give the folder of a sparse autoencoder")
    return sha256_file(path)


SAELENS_CONFIG, SAELENS_WEIGHTS = "cfg.json", "sae_weights.safetensors"


def load_saelens(folder: Path) -> SparseAutoencoder:
    """A TopK autoencoder as SAELens 6 saves it for inference; SAELens itself is not imported."""
    path = folder / SAELENS_CONFIG
    config = read_json(path, "an SAE's configuration")
    architecture = config.get("architecture")
    if architecture != "topk":
        raise UserError(
            f"{path}: architecture={architecture!r} is not supported, only topk (as SAELens 6 writes it): "
            "load it with SAELens and train or choose a TopK one"
        )
    normalise = config.get("normalize_activations", "none")
    if normalise not in ("none", "layer_norm"):
        raise UserError(
            f"{path}: normalize_activations={normalise!r} is not supported: fold it into the weights with "
            "SAELens (fold_activation_norm_scaling_factor) and save again"
        )
    if config.get("reshape_activations", "none") != "none":
        raise UserError(
            f"{path}: reshape_activations={config['reshape_activations']!r} reads attention heads: an SAE on a "
            "block's output (residual stream) is wanted"
        )
    width, latents, k = (_whole_number(config, key, path) for key in ("d_in", "d_sae", "k"))
    if k > latents:
        raise UserError(f"{path}: k={k} is more than its d_sae={latents} latents: the file is wrong, save it again")
    weights = _read_weights(folder / SAELENS_WEIGHTS, width, latents)
    if config.get("rescale_acts_by_decoder_norm"):
        # Activations are compared after scaling by their decoder row's norm: the same as unit rows.
        norms = weights.W_dec.norm(dim=-1).clamp(min=1e-8)
        weights = Weights(weights.W_enc * norms, weights.b_enc * norms, weights.W_dec / norms[:, None], weights.b_dec)
    return SparseAutoencoder(
        weights,
        TopK(k),
        normalise,
        subtract_b_dec=config.get("apply_b_dec_to_input", True),
        fingerprint=sha256_file(folder / SAELENS_WEIGHTS),
    )


def _whole_number(config: dict[str, Any], key: str, path: Path) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value < 1:
        raise UserError(f"{path}: {key}={value!r} should be a positive whole number: save the SAE again")
    return value


def _read_weights(path: Path, width: int, latents: int) -> Weights:
    wanted = {"W_enc": (width, latents), "b_enc": (latents,), "W_dec": (latents, width), "b_dec": (width,)}
    try:
        with explained(path), safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path} is damaged or no safetensors file ({error}): copy or train it again") from error
    for word, names in (("lacks", wanted.keys() - tensors), ("also holds", tensors.keys() - wanted)):
        if names:
            raise UserError(
                f"{path} {word} {', '.join(sorted(names))}: the inference form of a TopK SAE has W_enc, b_enc, "
                "W_dec, b_dec and nothing else (SAELens: save_inference_model)"
            )
    for name, shape in wanted.items():
        found = tuple(tensors[name].shape)
        if found != shape:
            hint = "it is transposed" if found == shape[::-1] else "d_in or d_sae in cfg.json is wrong"
            raise UserError(f"{path}: {name} is {list(found)} where {list(shape)} is due: {hint}, save it again")
        if not torch.isfinite(tensors[name]).all():
            raise UserError(f"{path}: {name} holds values that are not finite: train the SAE again")
    return Weights(**{name: tensors[name].float() for name in wanted})


LOADERS: list[tuple[Callable[[Path], bool], Callable[[Path], SparseAutoencoder]]] = [
    (lambda folder: (folder / SAELENS_CONFIG).is_file() and (folder / SAELENS_WEIGHTS).is_file(), load_saelens),
]
"""Formats: whether a folder is of it, and how it is loaded."""
