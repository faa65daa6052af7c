from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cocomix.concepts import sae as sae_module
from cocomix.concepts.load_sae import load_sae
from cocomix.concepts.sae_saelens import SAELENS_WEIGHTS
from cocomix.errors import UserError
from cocomix.testing.teachers import write_sae

D, C, K = 12, 40, 5


def _tensors(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    return torch.randn(D, C), torch.randn(C) / 4, torch.randn(C, D), torch.randn(D)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"normalize_activations": "layer_norm"},
        {"apply_b_dec_to_input": False},
        {"rescale_acts_by_decoder_norm": True},
    ],
    ids=["plain", "layer_norm", "b_dec_not_subtracted", "rescaled"],
)
def test_encoding_and_decoding_equal_saelens_on_the_same_folder(tmp_path: Path, config: dict[str, object]) -> None:
    from sae_lens import SAE

    write_sae(tmp_path, *_tensors(), k=K, **config)
    theirs, ours = SAE.load_from_disk(tmp_path), load_sae(tmp_path)
    x = 3 * torch.randn(50, D) + 1
    with torch.no_grad():
        latents = theirs.encode(x)
        reconstruction = theirs.decode(latents)
    values, indices = ours.encode(x)
    torch.testing.assert_close(torch.zeros(50, C).scatter(1, indices, values), latents, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.decode(values, indices, x), reconstruction, atol=1e-5, rtol=1e-5)


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


def test_chunks_do_not_change_the_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sae = load_sae(write_sae(tmp_path, *_tensors(), k=K))
    x = torch.randn(33, D)
    values, indices = sae.encode(x)
    monkeypatch.setattr(sae_module, "PRE_ACTIVATIONS_AT_ONCE", 7 * C)
    chunked_values, chunked_indices = sae.encode(x)
    assert torch.equal(indices, chunked_indices)
    torch.testing.assert_close(values, chunked_values)


def test_a_layer_normed_decoder_wants_the_activations(tmp_path: Path) -> None:
    sae = load_sae(write_sae(tmp_path, *_tensors(), k=K, normalize_activations="layer_norm"))
    with pytest.raises(ValueError, match="of=activations"):
        sae.decode(*sae.encode(torch.randn(2, D)))


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"k": C + 1}, f"k={C + 1} is more than its d_sae={C}"),
        ({"k": 0}, "k=0 should be a positive whole number"),
        ({"architecture": "standard"}, "architecture='standard' is not supported, only topk"),
        ({"architecture": "gated"}, "only topk"),
        ({"normalize_activations": "expected_average_only_in"}, "fold it into the weights"),
        ({"reshape_activations": "hook_z"}, "reads attention heads"),
        ({"d_sae": C + 1}, "d_in or d_sae in cfg.json is wrong"),
    ],
)
def test_an_unsupported_configuration_is_told(tmp_path: Path, config: dict[str, object], sentence: str) -> None:
    write_sae(tmp_path, *_tensors(), **{"k": K, **config})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=sentence) as error:
        load_sae(tmp_path)
    assert "cfg.json" in str(error.value) or "sae_weights" in str(error.value)


def test_wrong_weights_are_told(tmp_path: Path) -> None:
    write_sae(tmp_path, *_tensors(), k=K)
    path = tmp_path / SAELENS_WEIGHTS
    good = load_file(path)
    for change, sentence in (
        ({"W_dec": None}, "lacks W_dec"),
        ({"threshold": torch.zeros(C)}, "also holds threshold"),
        ({"W_dec": good["W_dec"].T.contiguous()}, "it is transposed"),
        ({"b_enc": torch.full((C,), float("nan"))}, "b_enc holds values that are not finite"),
    ):
        save_file({k: v for k, v in {**good, **change}.items() if v is not None}, path)
        with pytest.raises(UserError, match=sentence):
            load_sae(tmp_path)
    save_file(good, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="is damaged or no safetensors file"):
        load_sae(tmp_path)


def test_a_foreign_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no folder"):
        load_sae(tmp_path / "nowhere")
    (tmp_path / "cfg.json").write_text(json.dumps({}))
    with pytest.raises(UserError, match="no sparse autoencoder in a known format"):
        load_sae(tmp_path)
