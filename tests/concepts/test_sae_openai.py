from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cocomix.concepts.load_sae import load_sae, sae_fingerprint
from cocomix.errors import UserError
from cocomix.files import sha256_file

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """OpenAI's TopK layout in a folder, made by their conventions."""
    shutil.copy(DATA / "openai_sae_v5_topk.pt", tmp_path / "layer_5.pt")
    return tmp_path


def change(folder: Path, **tensors: torch.Tensor | None) -> None:
    """Replaces tensors of the file, or takes them out; ``__`` stands for the dot."""
    path = folder / "layer_5.pt"
    state = torch.load(path, weights_only=True)
    for name, value in tensors.items():
        state.pop(name.replace("__", "."))
        if value is not None:
            state[name.replace("__", ".")] = value
    torch.save(state, path)


def test_latents_and_reconstruction_equal_those_of_the_format(folder: Path) -> None:
    expected = load_file(DATA / "openai_sae_v5_topk_expected.safetensors")
    sae = load_sae(folder)
    values, indices = sae.encode(expected["x"])
    dense = torch.zeros_like(expected["latents"]).scatter_(1, indices, values)
    torch.testing.assert_close(dense, expected["latents"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sae.reconstruct(expected["x"]), expected["reconstruction"], atol=1e-5, rtol=1e-5)
    assert ((values > 0).sum(-1) == sae.k).all()
    assert (sae.k, sae.latents, sae.width) == (6, 40, 24)


def test_its_fingerprint_is_the_files_hash(folder: Path) -> None:
    assert sae_fingerprint(folder) == load_sae(folder).fingerprint == sha256_file(folder / "layer_5.pt")


def test_relu_releases_are_refused_rather_than_read_wrong(tmp_path: Path) -> None:
    shutil.copy(DATA / "openai_sae_v1_relu.pt", tmp_path)
    with pytest.raises(UserError, match="activation='ReLU' is not supported, only TopK"):
        load_sae(tmp_path)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"latent_bias": None}, "lacks latent_bias"),
        ({"decoder__weight": torch.zeros(40, 24)}, r"decoder.weight is \[40, 24\] where \[24, 40\] is due"),
        ({"pre_bias": torch.zeros(23)}, r"pre_bias is \[23\] where \[24\] is due"),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder: Path, tensors: dict[str, torch.Tensor | None], message: str) -> None:
    change(folder, **tensors)
    with pytest.raises(UserError, match=message):
        load_sae(folder)


def test_a_truncated_file_is_named(folder: Path) -> None:
    os.truncate(folder / "layer_5.pt", 4000)
    with pytest.raises(UserError, match="layer_5.pt is truncated or no PyTorch file"):
        load_sae(folder)


class Code:
    def __reduce__(self):
        return (os.getcwd, ())


def test_a_pickle_with_code_is_refused_unread(folder: Path) -> None:
    torch.save({"encoder.weight": Code()}, folder / "layer_5.pt")
    with pytest.raises(UserError, match="holds more than tensors, so it could run code"):
        load_sae(folder)
