from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cocomix.concepts import sae as sae_module
from cocomix.concepts.load_sae import load_sae
from cocomix.concepts.sae import SparseAutoencoder, Threshold, TopK, Weights
from cocomix.testing.teachers import write_sae

D, C, K = 12, 40, 5


def _tensors(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    return torch.randn(D, C), torch.randn(C) / 4, torch.randn(C, D), torch.randn(D)


def _sae(activation: TopK | Threshold, **settings: object) -> SparseAutoencoder:
    return SparseAutoencoder(Weights(*_tensors()), activation, **settings)  # type: ignore[arg-type]


def test_layer_norm_is_openais_with_unbiased_deviation(tmp_path: Path) -> None:
    W_enc, b_enc, W_dec, b_dec = _tensors()
    sae = load_sae(write_sae(tmp_path, W_enc, b_enc, W_dec, b_dec, k=K, normalize_activations="layer_norm"))
    x = 5 * torch.randn(3, D) + 2
    for row, got in zip(x, sae.reconstruct(x), strict=True):
        mean = sum(row.tolist()) / D
        deviation = (sum((v - mean) ** 2 for v in row.tolist()) / (D - 1)) ** 0.5
        pre = ((row - mean) / (deviation + 1e-5) - b_dec) @ W_enc + b_enc
        out = b_dec.clone()
        for latent in sorted(range(C), key=lambda i: -float(pre[i]))[:K]:
            out += max(float(pre[latent]), 0.0) * W_dec[latent]
        torch.testing.assert_close(got, out * deviation + mean, atol=1e-4, rtol=1e-4)


def test_at_most_k_latents_are_active_and_none_is_negative(tmp_path: Path) -> None:
    W_enc, _, W_dec, b_dec = _tensors()
    sae = load_sae(write_sae(tmp_path, W_enc, torch.full((C,), -20.0), W_dec, b_dec, k=K))
    values, indices = sae.encode(torch.randn(20, D))
    assert values.shape == indices.shape == (20, K)
    assert values.min() == 0


def test_a_threshold_keeps_exactly_what_lies_strictly_above_it() -> None:
    thresholds = torch.linspace(-1, 4, C)
    sae, x = _sae(Threshold(thresholds)), torch.randn(30, D)
    pre = sae.pre_activations(x)
    due = [[c for c in range(C) if pre[n, c] > max(0.0, float(thresholds[c]))] for n in range(30)]
    values, indices = sae.encode(x)
    assert values.shape[1] == max(len(active) for active in due)
    for n in range(30):
        active = indices[n][values[n] > 0].tolist()
        assert sorted(active) == due[n]
        assert torch.equal(values[n][: len(active)], pre[n, active])
        assert (values[n][len(active) :] == 0).all()
    assert sae.k is None
    assert _sae(Threshold(-1e6)).encode(x)[0].min() >= 0, "a threshold below zero is ReLU"
    equal = pre[0].clone()
    assert _sae(Threshold(equal)).activation(pre[:1])[0].max() == 0, "at the threshold is not above it"


def test_nothing_active_leaves_the_bias() -> None:
    sae = _sae(Threshold(1e6))
    values, indices = sae.encode(torch.randn(4, D))
    assert values.shape == indices.shape == (4, 1)
    torch.testing.assert_close(sae.reconstruct(torch.randn(4, D)), sae.b_dec.expand(4, D))


@pytest.mark.parametrize("activation", [TopK(K), Threshold(0.5)], ids=["topk", "threshold"])
def test_chunks_do_not_change_the_encoding(activation: TopK | Threshold, monkeypatch: pytest.MonkeyPatch) -> None:
    sae = _sae(activation)
    x = torch.randn(33, D)
    x[20:] *= 3  # other chunks have more active latents
    values, indices = sae.encode(x)
    monkeypatch.setattr(sae_module, "PRE_ACTIVATIONS_AT_ONCE", 7 * C)
    chunked_values, chunked_indices = sae.encode(x)
    torch.testing.assert_close(values, chunked_values)
    assert torch.equal(indices[values > 0], chunked_indices[chunked_values > 0])
    torch.testing.assert_close(
        sae.decode(values, indices), sae.decode(chunked_values, chunked_indices), atol=1e-4, rtol=1e-5
    )


@pytest.mark.parametrize("activation", [TopK(K), Threshold(0.5)], ids=["topk", "threshold"])
def test_no_tokens_give_nothing(activation: TopK | Threshold) -> None:
    values, indices = _sae(activation).encode(torch.zeros(0, D))
    assert len(values) == len(indices) == 0
    assert _sae(activation).reconstruct(torch.zeros(0, D)).shape == (0, D)


@pytest.mark.parametrize("activation", [TopK(K), Threshold(0.5)])
def test_texts_in_a_batch_are_encoded_as_their_tokens_are(activation: TopK | Threshold) -> None:
    sae, x = _sae(activation, normalise="layer_norm"), torch.randn(2, 3, D)
    flat = x.flatten(0, 1)
    for found, due in zip(sae.encode(x), sae.encode(flat), strict=True):
        assert torch.equal(found.flatten(0, 1), due)
    assert torch.equal(sae(x).flatten(0, 1), sae.reconstruct(flat))
    torch.testing.assert_close(sae(x[0, 0]), sae(flat)[0])
    values, indices = sae.encode(flat)
    due = torch.zeros(6, C)
    for row in range(6):
        for value, latent in zip(values[row].tolist(), indices[row].tolist(), strict=True):
            due[row, latent] += value
    assert torch.equal(sae.dense(x).flatten(0, 1), due)


def test_constant_norm_and_centring_take_back_what_they_took() -> None:
    x = 4 * torch.randn(9, D) + 2
    plain = _sae(TopK(K))
    scale = D**0.5 / x.norm(dim=-1, keepdim=True)
    rescaled = _sae(TopK(K), normalise="constant_norm_rescale").reconstruct(x)
    torch.testing.assert_close(rescaled, plain.reconstruct(x * scale) / scale, atol=1e-4, rtol=1e-4)
    mean = x.mean(-1, keepdim=True)
    centred = _sae(TopK(K), normalise="centre").reconstruct(x)
    torch.testing.assert_close(centred, plain.reconstruct(x - mean) + mean, atol=1e-4, rtol=1e-4)
    assert torch.isfinite(_sae(TopK(K), normalise="constant_norm_rescale").reconstruct(torch.zeros(1, D))).all()


@pytest.mark.parametrize("normalise", ["layer_norm", "constant_norm_rescale", "centre"])
def test_a_normalising_decoder_wants_the_activations(normalise: str) -> None:
    sae = _sae(TopK(K), normalise=normalise)
    with pytest.raises(ValueError, match="of=activations"):
        sae.decode(*sae.encode(torch.randn(2, D)))


def test_the_threshold_moves_with_the_module() -> None:
    assert _sae(Threshold(torch.zeros(C))).to("meta").activation.threshold.is_meta
