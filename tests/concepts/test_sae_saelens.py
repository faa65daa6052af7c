"""SAELens' folders, releases, and what we convert to them, against SAELens itself."""

from __future__ import annotations

import json
import shutil
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cocomix.cli import main
from cocomix.concepts.extract import extract
from cocomix.concepts.load_sae import load_sae, sae_fingerprint
from cocomix.concepts.pair import measure_fit
from cocomix.concepts.sae_saelens import SAELENS_CONFIG, SAELENS_SCALER, SAELENS_WEIGHTS
from cocomix.concepts.settings import ExtractSettings
from cocomix.errors import UserError
from cocomix.files import sha256_file
from cocomix.testing.autoencoders import FORMATS, C, D, P, make_format, planted_sae
from cocomix.testing.teachers import write_sae

X = torch.cat([P.x, 2 * torch.randn(50, D, generator=torch.Generator().manual_seed(1)) + 1])
BASIC = {"W_enc": P.W_enc, "b_enc": P.b_enc, "W_dec": P.W_dec, "b_dec": P.b_dec}
GATED = {"W_enc": P.W_enc, "W_dec": P.W_dec, "b_dec": P.b_dec, "b_mag": P.b_enc, "b_gate": -P.threshold,
         "r_mag": torch.linspace(-0.3, 0.3, C)}  # fmt: skip
TENSORS = {"standard": BASIC, "topk": BASIC, "jumprelu": {**BASIC, "threshold": P.threshold}, "gated": GATED}


@pytest.fixture(scope="module")
def sae_lens() -> types.ModuleType:
    """Imported once and only here: it takes seconds."""
    import sae_lens

    return sae_lens


def theirs(sae_lens: Any, folder: Path, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents [N, C] and reconstructions by SAELens' own loader and classes."""
    with torch.no_grad():
        sae = sae_lens.SAE.load_from_disk(folder)
        latents = sae.encode(x)
        return latents, sae.decode(latents)


def ours(folder: Path | str, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    sae = load_sae(folder)
    values, indices = sae.encode(x)
    assert (values.diff(dim=1) <= 0).all(), "strongest first"
    return torch.zeros(len(x), sae.latents).scatter_add(1, indices, values), sae.decode(values, indices, x)


def assert_equal(found: tuple[torch.Tensor, torch.Tensor], due: tuple[torch.Tensor, torch.Tensor]) -> None:
    for a, b in zip(found, due, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-5)


def write(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> Path:
    """A folder with just these tensors and this configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: t.contiguous().clone() for name, t in tensors.items()}, folder / SAELENS_WEIGHTS)
    (folder / SAELENS_CONFIG).write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"normalize_activations": "layer_norm"},
        {"normalize_activations": "constant_norm_rescale"},
        {"apply_b_dec_to_input": False},
    ],
    ids=["plain", "layer_norm", "constant_norm", "b_dec_not_subtracted"],
)
@pytest.mark.parametrize("architecture", TENSORS)
def test_what_saelens_6_saves_gives_its_own_latents_and_reconstructions(
    architecture: str, config: dict[str, Any], sae_lens: Any, tmp_path: Path
) -> None:
    values = {
        "architecture": architecture,
        "d_in": D,
        "d_sae": C,
        **({"k": 3} if architecture == "topk" else {}),
        **config,
    }
    sae = sae_lens.SAE.from_dict(values)
    sae.load_state_dict(TENSORS[architecture])
    sae.save_model(tmp_path)
    assert_equal(ours(tmp_path, X), theirs(sae_lens, tmp_path, X))


def test_topk_by_decoder_norms_equals_saelens(sae_lens: Any, tmp_path: Path) -> None:
    write_sae(tmp_path, *BASIC.values(), k=5, rescale_acts_by_decoder_norm=True)
    assert_equal(ours(tmp_path, X), theirs(sae_lens, tmp_path, X))


def test_a_trained_batch_topk_is_read_as_saelens_saves_it(sae_lens: Any, tmp_path: Path) -> None:
    config = sae_lens.BatchTopKTrainingSAEConfig(d_in=D, d_sae=C, k=3)
    trained = sae_lens.BatchTopKTrainingSAE(config)
    trained.load_state_dict({**trained.state_dict(), **BASIC, "topk_threshold": torch.tensor(0.3).double()})
    trained.save_inference_model(tmp_path)
    assert load_sae(tmp_path).k is None
    assert_equal(ours(tmp_path, X), theirs(sae_lens, tmp_path, X))


V5 = {"d_in": D, "d_sae": C, "dtype": "float32", "device": "cpu", "model_name": "gpt2", "hook_layer": 8,
      "hook_name": "blocks.8.hook_resid_pre", "prepend_bos": True, "context_size": 128,
      "sae_lens_training_version": None, "finetuning_scaling_factor": False, "activation_fn_str": "relu",
      "activation_fn_kwargs": {}, "apply_b_dec_to_input": True, "normalize_activations": "none"}  # fmt: skip
"""What SAELens 5 wrote."""


@pytest.mark.parametrize(
    ("tensors", "config"),
    [
        ("standard", {"architecture": "standard"}),
        ("standard", {}),
        ("topk", {"architecture": "standard", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}}),
        ("topk", {"architecture": "topk", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3},
                  "normalize_activations": "layer_norm"}),
        ("jumprelu", {"architecture": "jumprelu", "normalize_activations": None}),
        ("gated", {"architecture": "gated", "normalize_activations": False}),
    ],
    ids=["standard", "no_architecture", "topk_by_function", "topk_layer_norm", "jumprelu", "gated"],
)  # fmt: skip
def test_version_5_configurations_mean_what_saelens_6_makes_of_them(
    tensors: str, config: dict[str, Any], sae_lens: Any, tmp_path: Path
) -> None:
    write(tmp_path, TENSORS[tensors], {**V5, **config})
    assert_equal(ours(tmp_path, X), theirs(sae_lens, tmp_path, X))
    sae = load_sae(tmp_path)
    assert sae.block == 7, "what block 8 reads is the output of block 7"
    assert sae.k == (3 if tensors == "topk" else None)


def test_a_topk_of_version_5_has_an_l0_of_k_and_explains_its_data(tmp_path: Path) -> None:
    topk = {"architecture": "standard", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}}
    fit = measure_fit(load_sae(write(tmp_path, {**BASIC, "b_enc": P.b_enc + 1}, {**V5, **topk})), P.x)
    assert fit.l0 == 3
    relu = measure_fit(load_sae(write(tmp_path, {**BASIC, "b_enc": P.b_enc + 1}, V5)), P.x)
    assert relu.l0 > 3 * fit.l0


def test_the_scale_of_expected_average_only_in_is_folded_as_saelens_does(sae_lens: Any, tmp_path: Path) -> None:
    config = {"architecture": "jumprelu", "d_in": D, "d_sae": C, "normalize_activations": "expected_average_only_in"}
    sae = sae_lens.SAE.from_dict(config)
    sae.load_state_dict(TENSORS["jumprelu"])
    sae.save_model(tmp_path)
    with pytest.raises(UserError, match="without the scale: fold it into the weights with SAELens"):
        load_sae(tmp_path)
    (tmp_path / SAELENS_SCALER).write_text(json.dumps({"scaling_factor": 1.7}))
    found = ours(tmp_path, X)
    sae.fold_activation_norm_scaling_factor(1.7)
    with torch.no_grad():
        assert_equal(found, (sae.encode(X), sae.decode(sae.encode(X))))


def test_finetuning_factors_scale_what_is_decoded(tmp_path: Path) -> None:
    factor = torch.linspace(0.5, 2, C)
    config = {**V5, "finetuning_scaling_factor": True}
    latents, found = ours(write(tmp_path, {**BASIC, "scaling_factor": factor}, config), X)
    torch.testing.assert_close(found, (latents * factor) @ P.W_dec + P.b_dec, atol=1e-4, rtol=1e-4)
    plain = ours(write(tmp_path, {**BASIC, "scaling_factor": torch.ones(C)}, V5), X)
    assert_equal(plain, ours(write(tmp_path, BASIC, V5), X))
    with pytest.raises(UserError, match="finetuning_scaling_factor=false: one of them is wrong"):
        load_sae(write(tmp_path, {**BASIC, "scaling_factor": factor}, V5))


def test_an_sae_of_a_centred_model_reads_the_uncentred_stream(sae_lens: Any, tmp_path: Path) -> None:
    p = planted_sae(biased=False)
    tensors = {"W_enc": p.W_enc, "b_enc": p.b_enc, "W_dec": p.W_dec, "b_dec": p.b_dec}
    centred = {**V5, "model_from_pretrained_kwargs": {"center_writing_weights": True}}
    stream = p.x + 3 * torch.randn(len(p.x), 1)
    assert measure_fit(load_sae(write(tmp_path, tensors, V5)), stream).fvu > 0.1
    sae = load_sae(write(tmp_path, tensors, centred))
    assert measure_fit(sae, stream).fvu < 1e-3
    latents, _ = theirs(sae_lens, tmp_path, stream - stream.mean(-1, keepdim=True))
    assert_equal((ours(tmp_path, stream)[0],), (latents,))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"k": C + 1}, f"k={C + 1} is more than its d_sae={C}"),
        ({"k": 0}, "k=0 should be a positive whole number"),
        ({"architecture": "transcoder"}, "architecture='transcoder' is not supported, only standard, topk, jumprelu"),
        ({"activation_fn_str": "tanh-relu"}, "'tanh-relu' is not supported"),
        ({"normalize_activations": "covariance_whitening"}, "'covariance_whitening' is not supported, only none"),
        ({"normalize_activations": "constant_scalar_rescale"}, "'constant_scalar_rescale' is not supported"),
        ({"reshape_activations": "hook_z"}, "reads attention heads"),
        ({"hook_name": "blocks.3.hook_mlp_out"}, "reads blocks.3.hook_mlp_out, which is no block's output"),
        ({"hook_name": "model.layers.3.mlp"}, "reads model.layers.3.mlp, which is no block's output"),
        ({"hook_name": "blocks.0.hook_resid_pre"}, "which is no block's output"),
        ({"d_sae": C + 1}, "W_enc is .* is due: the file or its configuration is wrong"),
        ({"architecture": "jumprelu"}, "lacks threshold"),
    ],
)
def test_an_unsupported_configuration_is_told(tmp_path: Path, config: dict[str, Any], sentence: str) -> None:
    write_sae(tmp_path, *BASIC.values(), **{"k": 3, **config})
    with pytest.raises(UserError, match=sentence) as error:
        load_sae(tmp_path)
    assert "cfg.json" in str(error.value) or "sae_weights" in str(error.value)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_converts_to_what_saelens_reads_the_same(name: str, sae_lens: Any, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    made = make_format(name, tmp_path / "source")
    out = tmp_path / "converted"
    assert main(["sae", "convert", str(made.folder), str(out)]) == 0
    due = load_sae(made.folder).reconstruct(X)
    torch.testing.assert_close(theirs(sae_lens, out, X)[1], due, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(load_sae(out).reconstruct(X), due, atol=1e-5, rtol=1e-5)
    again = load_sae(out)
    assert (again.k, again.block) == (load_sae(made.folder).k, load_sae(made.folder).block)


def test_converting_keeps_what_files_say_of_l0_model_and_text(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    batch = make_format("BatchTopKSAE", tmp_path / "source").folder
    write(tmp_path / "v5", BASIC, V5)
    for source, l0, text in ((batch, 3.0, ("tiny", None, 8)), (tmp_path / "v5", None, ("gpt2", True, 128))):
        assert main(["sae", "convert", str(source), str(source.with_suffix(".out"))]) == 0
        for sae in (load_sae(source), load_sae(source.with_suffix(".out"))):
            assert (sae.stated_l0, tuple(sae.text)) == (l0, text)


def test_converting_keeps_the_facts_and_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    write_sae(source, *BASIC.values(), k=3, normalize_activations="layer_norm")
    facts = {"flops": 1e9, "seconds": 2.0, "tokens": 100, "teacher": "runs/teacher", "block": 5}
    (source / "training.json").write_text(json.dumps({**facts, "dataset": "fingerprint", "settings": {}}))
    (source / "check.json").write_text(json.dumps({"l0": 2.5}))
    assert main(["sae", "convert", str(source), str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["format"], told["architecture"], told["k"]) == ("SAELens", "topk", 3)
    assert json.loads((out / "training.json").read_text()) == facts
    assert json.loads((out / "check.json").read_text()) == {"l0": 2.5}
    assert load_sae(out).block == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]
    assert main(["sae", "convert", str(source), str(out)]) == 2
    assert f"out={out} is there already" in capsys.readouterr().err
    assert main(["sae", "convert", str(source), str(tmp_path / "second")]) == 0
    assert "SAELens → SAELens 6, architecture topk, 20 latents of k = 3" in capsys.readouterr().out


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """An empty cache of the hub, offline; called with a repository and a folder in it, lays that folder's place."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def lay(repository: str, folder: str) -> Path:
        place = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text("0" * 40)
        found = place / "snapshots" / ("0" * 40) / folder
        found.mkdir(parents=True)
        return found

    return lay


RELEASE = "saelens:gpt2-small-resid-post-v5-32k/blocks.5.hook_resid_post"


def test_a_release_in_the_cache_is_loaded_offline_by_its_name(
    hub: Callable[[str, str], Path], sae_lens: Any, tmp_path: Path
) -> None:
    folder = hub("jbloom/GPT2-Small-OAI-v5-32k-resid-post-SAEs", "v5_32k_layer_5.pt")
    config = {**V5, "hook_name": "blocks.5.hook_resid_post", "activation_fn_str": "topk",
              "activation_fn_kwargs": {"k": 3}, "normalize_activations": "layer_norm"}  # fmt: skip
    write(folder, BASIC, config)
    assert_equal(ours(RELEASE, X), theirs(sae_lens, folder, X))
    sae = load_sae(RELEASE)
    assert (sae.k, sae.block, sae.normalise, sae.stated_l0) == (3, 5, "layer_norm", 32.0)
    assert sae_fingerprint(RELEASE) == sae.fingerprint
    assert main(["sae", "convert", RELEASE, str(tmp_path / "out")]) == 0
    torch.testing.assert_close(load_sae(tmp_path / "out").reconstruct(X), sae.reconstruct(X), atol=1e-6, rtol=1e-6)


def test_check_and_extract_take_a_release_by_its_name(
    hub: Callable[[str, str], Path], own_data: Path, teacher_path: Path, sae_path: Path
) -> None:
    folder = hub("someone/saes", "block_1")
    for name in (SAELENS_CONFIG, SAELENS_WEIGHTS):
        shutil.copy(sae_path / name, folder / name)
    words = ["sae=saelens:someone/saes/block_1", f"data={own_data}", f"teacher={teacher_path}", "block=1"]
    assert main(["sae", "check", words[0].removeprefix("sae="), *words[1:], "tokens=320"]) == 0
    assert main(["concepts", "extract", *words, "name=released", "train_windows=4"]) == 0
    plain = extract(ExtractSettings(data=str(own_data), sae=str(sae_path), name="plain", train_windows=4))
    labels = [(own_data / "labels" / name / file) for name in ("released", "plain") for file in plain["files"]]
    assert len({path.read_bytes() for path in labels}) == len(plain["files"]), "the same labels"
    assert main(["concepts", "extract", *words, "name=released", "train_windows=4"]) == 0


def test_a_repository_in_saelens_layout_is_loaded_by_owner_name_and_folder(
    hub: Callable[[str, str], Path], sae_lens: Any
) -> None:
    folder = hub("someone/saes", "deep/layer_3")
    write(folder, TENSORS["jumprelu"], {"architecture": "jumprelu", "d_in": D, "d_sae": C, "dtype": "float32",
                                        "metadata": {"sae_lens_version": "6.1.0"}})  # fmt: skip
    assert_equal(ours("saelens:someone/saes/deep/layer_3", X), theirs(sae_lens, folder, X))


def test_a_release_that_cannot_be_downloaded_is_told_with_what_to_do(hub: Callable[[str, str], Path]) -> None:
    with pytest.raises(UserError, match="not in the hub's cache and could not be downloaded") as error:
        load_sae(RELEASE)
    assert f"sae={RELEASE}" in str(error.value)
    assert "download it where there is a network" in str(error.value)
    assert "sae=FOLDER" in str(error.value)


def test_unknown_releases_and_ids_are_told_with_near_ones(hub: Callable[[str, str], Path]) -> None:
    with pytest.raises(UserError, match="knows no release .*did you mean 'gpt2-small-resid-post-v5-32k'"):
        load_sae("saelens:gpt2-small-resid-post-v5-32/blocks.5.hook_resid_post")
    with pytest.raises(UserError, match="did you mean 'gemma-scope-2b-pt-res-canonical'.*could not be downloaded"):
        load_sae("saelens:gemma-scope-2b-pt-res-canonicl/layer_20/width_16k/canonical")
    with pytest.raises(UserError, match=r"has no SAE 'blocks.55.hook_resid_post' \(did you mean 'blocks.5"):
        load_sae("saelens:gpt2-small-resid-post-v5-32k/blocks.55.hook_resid_post")


def test_a_listed_repository_wants_the_name_of_its_release() -> None:
    """SAELens knows of it what its files do not say: that its model was centred."""
    with pytest.raises(
        UserError, match=r"lists jbloom/GPT2-Small-SAEs-Reformatted as gpt2-small-res-jb.*: give sae="
    ) as e:
        load_sae("saelens:jbloom/GPT2-Small-SAEs-Reformatted/blocks.8.hook_resid_pre")
    assert "saelens:gpt2-small-res-jb/blocks.8.hook_resid_pre," in str(e.value)


def test_a_release_of_an_unsupported_kind_is_told(hub: Callable[[str, str], Path]) -> None:
    folder = hub("someone/saes", "deep")
    tensors = {**BASIC, "b_dec_out": P.b_dec}
    write(folder, tensors, {"architecture": "transcoder", "d_in": D, "d_out": D, "d_sae": C, "dtype": "float32",
                            "metadata": {"sae_lens_version": "6.1.0"}})  # fmt: skip
    with pytest.raises(UserError, match="sae=saelens:someone/saes/deep"):
        load_sae("saelens:someone/saes/deep")


def test_the_fingerprint_of_a_folder_is_its_weights_hash(tmp_path: Path) -> None:
    write(tmp_path, BASIC, V5)
    assert sae_fingerprint(tmp_path) == load_sae(tmp_path).fingerprint == sha256_file(tmp_path / SAELENS_WEIGHTS)
    assert load_file(tmp_path / SAELENS_WEIGHTS).keys() == BASIC.keys()


def test_llama_scope_reads_as_saelens_reads_that_release(
    hub: Callable[[str, str], Path], sae_lens: Any, tmp_path: Path
) -> None:
    """Two readings of the format: theirs keeps the latents in units of scaled activations, and takes the decoder's
    columns to have norm 1 as the release's do."""
    from sae_lens.loading.pretrained_saes_directory import get_norm_scaling_factor

    repository, place = "fnlp/Llama3_1-8B-Base-LXR-8x", "Llama3_1-8B-Base-L3R-8x"
    scale = get_norm_scaling_factor("llama_scope_lxr_8x", "l3r_8x")
    assert scale is not None
    sizes = P.W_dec.norm(dim=-1)
    folder = hub(repository, place)
    (folder / "checkpoints").mkdir()
    tensors = {
        "encoder.weight": (P.W_enc * sizes).T.contiguous(),
        "encoder.bias": (P.b_enc - P.b_dec @ P.W_enc) * sizes * scale,
        "decoder.weight": (P.W_dec / sizes[:, None]).T.contiguous(),
        "decoder.bias": P.b_dec * scale,
    }
    save_file(tensors, folder / "checkpoints" / "final.safetensors")
    norm = D**0.5 / scale
    config = {"d_model": D, "d_sae": C, "act_fn": "jumprelu", "jump_relu_threshold": 0.5, "top_k": 3,
              "norm_activation": "dataset-wise", "dataset_average_activation_norm": {"in": norm, "out": norm},
              "hook_point_in": "blocks.3.hook_resid_post", "hook_point_out": "blocks.3.hook_resid_post"}  # fmt: skip
    (folder / "hyperparams.json").write_text(json.dumps(config))
    mine, released = load_sae(folder), load_sae("saelens:llama_scope_lxr_8x/l3r_8x")
    torch.testing.assert_close(mine.reconstruct(X), released.reconstruct(X), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(mine.encode(X)[0] * scale, released.encode(X)[0], atol=1e-3, rtol=1e-4)
    assert measure_fit(mine, P.x).l0 == 3
    assert (mine.block, released.block) == (3, 3)


@pytest.mark.parametrize(
    "name", ["AutoEncoder", "AutoEncoderTopK", "BatchTopKSAE", "JumpReluAutoEncoder", "GatedAutoEncoder"]
)
def test_dictionary_learning_reads_as_saelens_reads_its_releases(
    name: str, hub: Callable[[str, str], Path], sae_lens: Any
) -> None:
    place = "pythia70m_sweep_topk_ctx128_0730/resid_post_layer_3/trainer_0"
    folder = hub("canrager/lm_sae", place)
    make_format(name, folder)
    config = json.loads((folder / "config.json").read_text())
    config["trainer"] |= {"activation_dim": D, "dict_size": C, "k": 3}
    (folder / "config.json").write_text(json.dumps(config))
    release = "saelens:sae_bench_pythia70m_sweep_topk_ctx128_0730/blocks.3.hook_resid_post__trainer_0"
    assert_equal(ours(folder, X), ours(release, X))
