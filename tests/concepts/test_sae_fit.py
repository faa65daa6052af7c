"""An SAE that does not belong to the teacher, or is sick, is told before anything is extracted."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing

from cocomix.cli import main
from cocomix.concepts.extract import extract
from cocomix.concepts.pair import Fit, Names, differences, load_pair, measure_fit, refuse_bad_fit
from cocomix.concepts.sae import SparseAutoencoder, Text, Threshold, TopK, Weights
from cocomix.concepts.sae_saelens import SAELENS_WEIGHTS
from cocomix.concepts.settings import ExtractSettings
from cocomix.data.dataset import Dataset
from cocomix.errors import UserError
from cocomix.testing.teachers import tiny_teacher, write_sae


def _sae(activation: TopK | Threshold, stated_l0: float | None = None) -> SparseAutoencoder:
    weights = Weights(torch.zeros(32, 200), torch.zeros(200), torch.zeros(200, 32), torch.zeros(32))
    return SparseAutoencoder(weights, activation, stated_l0=stated_l0)


@pytest.mark.parametrize(
    ("sae", "l0", "sentence"),
    [
        (_sae(TopK(8)), 3.9, "has k=8, but only 3.9 latents a token fire"),
        (_sae(TopK(8)), 4.1, None),
        (_sae(Threshold(), 10.0), 4.9, "4.9 latents a token fire here, where its files state 10"),
        (_sae(Threshold(), 10.0), 20.1, "20.1 latents a token fire here, where its files state 10"),
        (_sae(Threshold(), 10.0), 19.9, None),
        (_sae(Threshold()), 0.9, r"0.9 latents a token fire here, where 1 … 16 \(half of the hidden size\)"),
        (_sae(Threshold()), 16.1, "16.1 latents a token"),
        (_sae(Threshold()), 15.9, None),
    ],
)
def test_an_l0_that_is_off_is_told(sae: SparseAutoencoder, l0: float, sentence: str | None) -> None:
    if sentence is None:
        refuse_bad_fit(Fit(l0, 0.1, 0.1), sae, "sae", 0.5)
        return
    with pytest.raises(UserError, match=sentence) as error:
        refuse_bad_fit(Fit(l0, 0.1, 0.1), sae, "sae", 0.5)
    assert "force=true" in str(error.value)


@pytest.mark.parametrize("fvu", [0.51, float("nan")])
def test_too_much_unexplained_is_told(fvu: float) -> None:
    with pytest.raises(UserError, match=r"of the variance of this block unexplained \(max_fvu=0.5\)"):
        refuse_bad_fit(Fit(8, 0.1, fvu), _sae(TopK(8)), "sae", 0.5)


def _planes(*directions: int) -> SparseAutoencoder:
    """Explains the given ones of 32 directions and nothing else."""
    atoms = torch.eye(32)[list(directions)]
    return SparseAutoencoder(
        Weights(atoms.T.contiguous(), torch.zeros(len(atoms)), atoms, torch.zeros(32)), TopK(len(atoms))
    )


def test_massive_activations_of_first_tokens_neither_save_an_sae_nor_condemn_it() -> None:
    """In direction 0, as the first token of each window has them; ordinary text lies in the others."""
    x = torch.rand(4, 64, 32, generator=torch.Generator().manual_seed(0))
    x[..., 0], x[:, 0] = 0, 1000 * torch.eye(32)[0]
    blind, good = (measure_fit(sae, x.flatten(0, 1)) for sae in (_planes(0), _planes(*range(1, 32))))
    assert blind.fvu < 0.01 < 0.9 < blind.robust_fvu
    assert good.robust_fvu < 0.01 < 0.9 < good.fvu
    with pytest.raises(UserError, match="of the variance of this block unexplained .*tokens of massive norm left out"):
        refuse_bad_fit(blind, _planes(0), "sae", 0.5)
    refuse_bad_fit(good, _planes(*range(1, 32)), "sae", 0.5)


def test_without_massive_activations_the_robust_figure_is_the_plain_one() -> None:
    x = torch.rand(64, 32, generator=torch.Generator().manual_seed(0))
    fit = measure_fit(_planes(*range(8)), x)
    assert fit.robust_fvu == fit.fvu
    assert math.isnan(measure_fit(_planes(0), x * math.nan).robust_fvu)


@pytest.mark.parametrize(
    ("text", "window", "due"),
    [
        (Text(), 16, []),
        (Text(prepend_bos=True), 16, [r"begin with <s>, and windows have none"]),
        (Text(prepend_bos=False, context_size=16), 16, []),
        (Text(context_size=15), 16, ["trained on contexts of 15 tokens, windows have 16"]),
    ],
)
def test_what_windows_lack_of_an_saes_text_is_told(dataset: Dataset, text: Text, window: int, due: list[str]) -> None:
    sae, tokenizer = _planes(0), dataset.tokenizer()
    sae.text = text
    others = [line for line in due if "<s>" not in line]
    found = differences(sae, tokenizer, window)  # its beginning of a text is its end of one
    assert len(found) == len(others)
    assert all(line in told for line, told in zip(others, found, strict=True))
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    found = differences(sae, tokenizer, window)
    assert len(found) == len(due)
    assert all(line in told for line, told in zip(due, found, strict=True))


def test_a_tokenizer_that_begins_texts_by_itself_is_told_where_an_sae_says_nothing(dataset: Dataset) -> None:
    tokenizer = dataset.tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    (line,) = differences(_planes(0), tokenizer, 16)
    assert "begin with <s>, and windows have none" in line


def test_an_sae_of_shorter_contexts_is_told_once_on_loading(
    own_data: Path, sae_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = _changed(sae_path, tmp_path / "short", metadata={"context_size": 3})
    assert main(["sae", "check", str(short), f"data={own_data}", "tokens=320"]) == 0
    assert capsys.readouterr().err.count("trained on contexts of 3 tokens, windows have") == 1


def _changed(sae: Path, to: Path, **config: Any) -> Path:
    """A copy with another configuration."""
    shutil.copytree(sae, to)
    values = {**json.loads((to / "cfg.json").read_text()), **config}
    (to / "cfg.json").write_text(json.dumps(values))
    return to


def test_a_topk_read_as_relu_is_refused_and_extracted_only_by_force(
    own_data: Path, sae_path: Path, tmp_path: Path
) -> None:
    """As SAELens 5's TopK files once were: dozens of latents fire instead of k."""
    sick = _changed(sae_path, tmp_path / "sick", architecture="standard")
    settings = {"data": str(own_data), "sae": str(sick), "name": "sick"}
    with pytest.raises(UserError, match=r"latents a token fire here, where 1 … 16 .*force=true"):
        extract(ExtractSettings(**settings))
    assert not (own_data / "labels").exists()
    manifest = extract(ExtractSettings(**settings, force=True, train_windows=8))
    assert manifest["sae"]["k"] is None
    assert manifest["fit"]["l0"] > 16


def test_a_scale_folded_twice_is_refused(own_data: Path, sae_path: Path, tmp_path: Path) -> None:
    sick = _changed(sae_path, tmp_path / "sick")
    weights = load_file(sick / SAELENS_WEIGHTS)
    save_file({**weights, "W_enc": weights["W_enc"] * 2}, sick / SAELENS_WEIGHTS)
    with pytest.raises(UserError, match=r"of the variance of this block unexplained \(max_fvu=0.5\).*force=true"):
        extract(ExtractSettings(data=str(own_data), sae=str(sick), name="sick"))


def test_an_sae_of_another_width_is_told_with_both(own_data: Path, teacher_path: Path, tmp_path: Path) -> None:
    sae = write_sae(tmp_path, torch.zeros(31, 40), torch.zeros(40), torch.zeros(40, 31), torch.zeros(31), k=4)
    settings = ExtractSettings(data=str(own_data), sae=str(sae), teacher=str(teacher_path), block=1, name="new")
    with pytest.raises(UserError, match="reads activations of width 31, the teacher .* has width 32: use an SAE that"):
        extract(settings)


def test_the_block_that_the_files_name_must_be_the_one_that_is_asked_for(
    own_data: Path, teacher_path: Path, sae_path: Path, tmp_path: Path
) -> None:
    """What block 2 reads is the output of block 1: an off-by-one is told."""
    sae = _changed(sae_path, tmp_path / "sae", metadata={"hook_name": "blocks.2.hook_resid_pre"})
    (sae / "training.json").unlink()
    settings = {"data": str(own_data), "sae": str(sae), "teacher": str(teacher_path), "name": "new"}
    with pytest.raises(UserError, match="block=2: .* trained on the output of block 1: give block=1"):
        extract(ExtractSettings(**settings, block=2))
    extract(ExtractSettings(**settings, block=1, train_windows=4))


@pytest.mark.parametrize(("family", "due"), [("gpt2", "centre"), ("llama", "none")])
def test_a_model_with_rms_norms_was_never_centred(
    family: str, due: str, dataset: Dataset, sae_path: Path, tmp_path: Path
) -> None:
    teacher = tiny_teacher(tmp_path / family, dataset, family, steps=1)
    centred = {
        "model_from_pretrained_kwargs": {"center_writing_weights": True},
        "hook_name": "blocks.1.hook_resid_post",
    }
    sae = _changed(sae_path, tmp_path / "sae", metadata=centred)
    settings = ExtractSettings(data=str(dataset.folder), sae=str(sae), teacher=str(teacher), block=1)
    assert load_pair(settings, Names(str(teacher), 1), dataset, 16)[1].normalise == due


def test_sae_check_tells_that_a_threshold_decides(
    dataset: Dataset, sae_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    relu = _changed(sae_path, tmp_path / "relu", architecture="standard")
    assert main(["sae", "check", str(relu), f"data={dataset.folder}", "tokens=320"]) == 0
    assert "decided by a threshold" in capsys.readouterr().out
    told = json.loads((relu / "check.json").read_text())
    assert told["k"] is None
    assert told["robust_fvu"] == pytest.approx(told["fvu"])
