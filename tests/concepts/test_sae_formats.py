"""Every format but SAELens': files by the library that owns it, read by ours, against that library's own numbers and
a slow written-out reference; what does not fit is told."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cocomix.concepts.load_sae import LOADERS, find, load_sae, sae_fingerprint
from cocomix.concepts.pair import measure_fit
from cocomix.errors import UserError
from cocomix.files import sha256_file
from cocomix.testing.autoencoders import DICTIONARIES, FORMATS, TOPK, C, D, Made, P, Planted, make_format, planted_sae

DATA = Path(__file__).parents[1] / "data"
NOISE = torch.randn(50, D, generator=torch.Generator().manual_seed(1)) * 2


@pytest.fixture
def make(tmp_path: Path) -> Callable[[str], Made]:
    """Writes an autoencoder in a format into an empty folder."""

    def of(name: str) -> Made:
        folder = tmp_path / name.replace(" ", "_")
        folder.mkdir()
        return make_format(name, folder)

    return of


def written_out(name: str, x: torch.Tensor) -> tuple[list[int], torch.Tensor]:
    """Active latents and the reconstruction of one token, in float64 and number by number, by the format's words."""
    p = Planted(*(t.double() if isinstance(t, torch.Tensor) else t for t in P))
    x, mean, deviation = x.double(), torch.zeros(()), torch.ones(())
    if name == "openai v5":
        mean, deviation = x.sum() / D, ((x - x.sum() / D).square().sum() / (D - 1)).sqrt()
        x = (x - mean) / (deviation + 1e-5)
    # Every format of the planted autoencoder computes this product, whatever its units and wherever it has the bias.
    pre = [sum(float((x[d] - p.b_dec[d]) * p.W_enc[d, c]) for d in range(D)) + float(p.b_enc[c]) for c in range(C)]
    ranked = sorted(range(C), key=lambda c: -pre[c])
    norms = p.W_dec.norm(dim=-1).tolist()
    thresholds = {"BatchTopKSAE": [0.3] * C, "MatryoshkaBatchTopKSAE": [0.3] * C,
                  "llama scope": [0.5 / n for n in norms], "llama scope, later": [0.5 / n for n in norms],
                  "openai v1": [0.0] * C, "AutoEncoder": [0.0] * C, "AutoEncoderNew": [0.0] * C,
                  "GatedAutoEncoder": (p.threshold + p.b_enc).tolist()}  # fmt: skip
    if name in TOPK:
        active = [c for c in ranked[: p.k] if pre[c] > 0]
    else:
        active = [c for c in ranked if pre[c] > thresholds.get(name, p.threshold.tolist())[c] and pre[c] > 0]
    out = p.b_dec.clone()
    for c in active:
        value = pre[c]
        if name == "GatedAutoEncoder":  # pre is magnitude less bias, the gate was compared without the factor
            value = max(0.0, np.exp(np.linspace(-0.01, 0.01, C)[c]) * (pre[c] - float(p.b_enc[c])) + float(p.b_enc[c]))
        out += value * p.W_dec[c]
    return active, (out * deviation + mean).float()


@pytest.mark.parametrize("name", FORMATS)
def test_reconstructions_equal_a_written_out_reference_and_the_owners_library(
    name: str, make: Callable[[str], Made]
) -> None:
    made = make(name)
    sae = load_sae(made.folder)
    assert (sae.width, sae.latents) == (D, C)
    x = torch.cat([P.x[:8], NOISE[:8]])
    values, indices = sae.encode(x)
    found = sae.decode(values, indices, x)
    for row in range(len(x)):
        active, due = written_out(name, x[row])
        assert set(indices[row][values[row] > 0].tolist()) == set(active)
        torch.testing.assert_close(found[row], due, atol=2e-4, rtol=1e-4)
    if made.owner is not None:
        x = torch.cat([P.x, NOISE])
        torch.testing.assert_close(sae.reconstruct(x), made.owner(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", FORMATS)
def test_planted_data_is_explained_by_k_latents_a_token(name: str, make: Callable[[str], Made]) -> None:
    made, x = make(name), P.x
    if name == "openai v5":  # layer norm leaves the unbiased tokens as they are
        state = torch.load(made.path, weights_only=True)
        torch.save({**state, "pre_bias": torch.zeros(D)}, made.path)
        x = 5 * planted_sae(biased=False).x + 3
    sae = load_sae(made.folder)
    fit = measure_fit(sae, x)
    assert fit.l0 == pytest.approx(P.k, abs=0.01)
    assert fit.fvu < 1e-3
    assert sae.k == (P.k if name in TOPK else None)


@pytest.mark.parametrize("name", FORMATS)
def test_the_fingerprint_is_the_hash_of_the_weights_file(name: str, make: Callable[[str], Made]) -> None:
    made = make(name)
    folder = made.folder
    assert sae_fingerprint(folder) == load_sae(folder).fingerprint == sha256_file(made.path)


@pytest.mark.parametrize(("name", "expected"), [("v1_relu", None), ("v5_topk", 6)])
def test_openais_own_layout_gives_its_expected_numbers(name: str, expected: int | None, tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes((DATA / f"openai_sae_{name}.pt").read_bytes())
    due = load_file(DATA / f"openai_sae_{name}_expected.safetensors")
    sae = load_sae(tmp_path)
    values, indices = sae.encode(due["x"])
    dense = torch.zeros_like(due["latents"]).scatter_add(1, indices, values)
    torch.testing.assert_close(dense, due["latents"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sae.reconstruct(due["x"]), due["reconstruction"], atol=1e-5, rtol=1e-5)
    assert (sae.k, sae.latents, sae.width) == (expected, 40, 24)


@pytest.mark.parametrize("name", ["openai v5", "AutoEncoderTopK", "sparsify", "gemma scope", "llama scope", "saelens"])
def test_missing_extra_transposed_odd_and_infinite_tensors_are_named(name: str, make: Callable[[str], Made]) -> None:
    made = make(name)
    tensors = rewritable(made.path)
    matrix = next(n for n in sorted(tensors) if getattr(tensors[n], "ndim", 0) == 2)
    vector = next(
        n for n in sorted(tensors) if getattr(tensors[n], "ndim", 0) == 1 and n not in ("stats_last_nonzero",)
    )
    for change, sentence in (
        ({matrix: None}, f"lacks {matrix}"),
        ({vector: None}, f"lacks {vector}"),
        ({"spare": torch.zeros(2)}, "also holds spare"),
        ({matrix: tensors[matrix].T}, f"{matrix} is .* is due: it is transposed"),
        ({matrix: tensors[matrix][:, :-1]}, f"{matrix} is .* is due: the file or its configuration is wrong"),
        ({matrix: tensors[matrix] * float("inf")}, f"{matrix} holds values that are not finite"),
    ):
        rewrite(made.path, {k: v for k, v in {**tensors, **change}.items() if v is not None})
        with pytest.raises(UserError, match=sentence) as error:
            load_sae(made.folder)
        assert made.path.name in str(error.value)


def rewritable(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".npz":
        return {name: torch.from_numpy(array) for name, array in np.load(path).items()}
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)


def rewrite(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    if path.suffix == ".npz":
        np.savez(path, **{name: t.numpy() for name, t in tensors.items()})
    elif path.suffix == ".safetensors":
        save_file({name: t.contiguous() for name, t in tensors.items()}, path)
    else:
        torch.save(tensors, path)


@pytest.mark.parametrize("name", ["openai v5", "AutoEncoderTopK", "sparsify", "gemma scope", "llama scope", "saelens"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_a_truncated_file_is_named(name: str, share: float, make: Callable[[str], Made]) -> None:
    made = make(name)
    os.truncate(made.path, int(made.path.stat().st_size * share))
    with pytest.raises(UserError, match="is (truncated|damaged)") as error:
        load_sae(made.folder)
    assert made.path.name in str(error.value)


class Code:
    """What a pickle could do on loading; here it would leave a file."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, ...]]:
        return (os.mkdir, ("was_run",))


@pytest.mark.parametrize("name", ["openai v5", "AutoEncoderTopK", "gemma scope"])
def test_a_pickle_with_code_is_refused_unread(
    name: str, make: Callable[[str], Made], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    made = make(name)
    if made.path.suffix == ".npz":
        np.savez(made.path, W_enc=np.array([Code()], dtype=object), b_enc=np.zeros(3), b_dec=np.zeros(3))
    else:
        torch.save({"encoder.weight": Code(), "pre_bias": torch.zeros(2)}, made.path)
    with pytest.raises(UserError, match="holds more than tensors, so it could run code .* convert it to safetensors"):
        load_sae(made.folder)
    assert not Path("was_run").exists()


def test_a_folder_with_two_autoencoders_is_told_with_both(make: Callable[[str], Made]) -> None:
    first, second = make("openai v5"), make("AutoEncoderTopK")
    (first.folder / "ae.pt").write_bytes(second.path.read_bytes())
    with pytest.raises(UserError, match=r"5.pt \(OpenAI\) and ae.pt \(dictionary_learning\): give a folder with one"):
        load_sae(first.folder)


def test_a_format_is_recognised_by_its_content_beside_other_files(make: Callable[[str], Made]) -> None:
    made = make("sparsify")
    made.path.rename(made.path.with_name("weights.safetensors"))
    folder = made.folder
    torch.save({"optimizer": {"state": torch.zeros(3)}}, folder / "trainer_state.pt")
    save_file({"sparsity": torch.zeros(C)}, folder / "sparsity.safetensors")
    (folder / "broken.pt").write_bytes(b"no file of PyTorch")
    form, path = find(folder)
    assert (form.name, path.name) == ("sparsify", "weights.safetensors")
    assert load_sae(folder).k == P.k


def test_an_empty_or_foreign_folder_is_told_with_what_is_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no sparse autoencoder in a known format") as error:
        load_sae(tmp_path)
    for form in LOADERS:
        assert form.name.removesuffix(" 2") in str(error.value)
    with pytest.raises(UserError, match="is no folder: .* saelens:RELEASE/SAE_ID"):
        load_sae(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "file", "change", "sentence"),
    [
        ("sparsify", "cfg.json", {"transcode": True}, "predicts a module's output"),
        ("sparsify", "cfg.json", {"skip_connection": True}, "passes its latents by"),
        ("sparsify", "cfg.json", {"signed": True}, "may be negative"),
        ("sparsify", "cfg.json", {"activation": "groupmax"}, "only topk"),
        ("sparsify", "cfg.json", {"k": C + 1}, f"k={C + 1} is more than its {C} latents"),
        ("sparsify", "cfg.json", {"num_latents": C + 1}, r"W_dec is|encoder.weight is"),
        ("llama scope", "hyperparams.json", {"hook_point_out": "blocks.2.hook_mlp_out"}, "one activation is wanted"),
        ("llama scope", "hyperparams.json", {"use_glu_encoder": True}, "use_glu_encoder"),
        ("llama scope", "hyperparams.json", {"norm_activation": "token-wise"}, "only dataset-wise"),
        ("llama scope", "hyperparams.json", {"dataset_average_activation_norm": None}, "no dataset_average_act"),
        ("llama scope", "hyperparams.json", {"act_fn": "sine"}, "act_fn='sine'"),
        ("llama scope", "hyperparams.json", {"hook_point_in": "blocks.2.hook_mlp_out",
                                             "hook_point_out": "blocks.2.hook_mlp_out"}, "no block's output"),
        ("gemma scope 2", "config.json", {"hf_hook_point_out": "y"}, "between modules"),
        ("gemma scope 2", "config.json", {"hf_hook_point_in": "model.layers.3.post_feedforward_layernorm.output"},
         "reads model.layers.3.post_feedforward_layernorm.output, which is no block's output"),
        ("AutoEncoder", "config.json", {"trainer": {"layer": 3, "submodule_name": "mlp_out_layer_3"}},
         "reads mlp_out_layer_3, which is no block's output"),
        ("AutoEncoder", "config.json", {"buffer": {"io": "in"}}, "the input of resid_post_layer_2, which is no block"),
        ("AutoEncoder", "config.json", {"trainer": {"dict_class": "AutoEncodr"}}, "did you mean 'AutoEncoder"),
    ],
)  # fmt: skip
def test_what_a_configuration_asks_for_and_we_do_not_do_is_told(
    name: str, file: str, change: dict[str, object], sentence: str, make: Callable[[str], Made]
) -> None:
    folder = make(name).folder
    config = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**config, **change}))
    with pytest.raises(UserError, match=sentence):
        load_sae(folder)


def test_llama_scopes_topk_without_a_threshold_keeps_top_k(make: Callable[[str], Made]) -> None:
    folder = make("llama scope").folder
    config = json.loads((folder / "hyperparams.json").read_text())
    (folder / "hyperparams.json").write_text(json.dumps({**config, "act_fn": "topk", "jump_relu_threshold": 0.0}))
    sae = load_sae(folder)
    assert sae.k == P.k
    assert measure_fit(sae, P.x).fvu < 1e-3


def test_dictionary_learnings_classes_are_told_apart_without_a_configuration(make: Callable[[str], Made]) -> None:
    for name in DICTIONARIES:
        made = make(name)
        due = load_sae(made.path.parent).reconstruct(NOISE)
        (made.path.parent / "config.json").unlink()
        if name in ("AutoEncoderTopK", "BatchTopKSAE"):
            with pytest.raises(UserError, match="may be an AutoEncoderTopK or a BatchTopKSAE: put the config.json"):
                load_sae(made.path.parent)
        else:
            assert torch.equal(load_sae(made.path.parent).reconstruct(NOISE), due)
        if name == "AutoEncoderTopK":  # as files were before BatchTopKSAE came
            state = torch.load(made.path, weights_only=True)
            del state["threshold"]
            torch.save(state, made.path)
            assert torch.equal(load_sae(made.path.parent).reconstruct(NOISE), due)


def test_a_k_that_only_the_configuration_has_is_taken_from_there(make: Callable[[str], Made]) -> None:
    """As files were before k was a tensor; two that differ are told."""
    made = make("AutoEncoderTopK")
    config, state = made.folder / "config.json", torch.load(made.path, weights_only=True)
    told = json.loads(config.read_text())
    config.write_text(json.dumps({**told, "trainer": {**told["trainer"], "k": 2}}))
    with pytest.raises(UserError, match="has k=3, its config.json k=2: one of them is wrong"):
        load_sae(made.folder)
    del state["k"]
    torch.save(state, made.path)
    assert load_sae(made.folder).k == 2
    config.write_text(json.dumps(told))
    with pytest.raises(UserError, match="lacks k, and no config.json beside it says it"):
        load_sae(made.folder)


def test_a_batch_topk_without_an_estimated_threshold_is_told(make: Callable[[str], Made]) -> None:
    made = make("BatchTopKSAE")
    state = torch.load(made.path, weights_only=True)
    state["threshold"].fill_(-1.0)
    torch.save(state, made.path)
    with pytest.raises(UserError, match="threshold was never estimated"):
        load_sae(made.path.parent)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"activation": "Identity"}, "activation Identity is not supported"),
        ({"activation_state_dict": {"k": 3, "postact_fn": "Identity"}}, "TopK with Identity is not supported"),
        ({"activation_state_dict": {"k": C + 1}}, f"k={C + 1} does not fit its {C} latents"),
        ({"activation_state_dict": {}}, "k=None should be a positive whole number"),
    ],
)
def test_openais_other_activations_are_told(
    change: dict[str, object], sentence: str, make: Callable[[str], Made]
) -> None:
    made = make("openai v5")
    torch.save({**torch.load(made.path, weights_only=True), **change}, made.path)
    with pytest.raises(UserError, match=sentence):
        load_sae(made.path.parent)


def test_block_and_l0_are_read_where_files_or_their_places_name_them(
    make: Callable[[str], Made], tmp_path: Path
) -> None:
    for name, block, l0 in (("BatchTopKSAE", 2, 3.0), ("AutoEncoderTopK", 2, None), ("llama scope", 2, 3.0),
                            ("openai v1", None, None)):  # fmt: skip
        sae = load_sae(make(name).folder)
        assert (sae.block, sae.stated_l0) == (block, l0)
    for name, place, block, l0 in (("gemma scope", "layer_12/width_16k/average_l0_82", 12, 82.0),
                                   ("gemma scope", "layer_3/mine/layer_12/width_16k", 12, None),
                                   ("gemma scope 2", "resid_post/layer_17_width_16k_l0_big", 2, None),
                                   ("sparsify", "layers.10", 10, None),
                                   ("sparsify", "mine", None, None)):  # fmt: skip
        folder = tmp_path / "release" / place
        folder.mkdir(parents=True)
        make_format(name, folder)
        sae = load_sae(folder)
        assert (sae.block, sae.stated_l0) == (block, l0)


@pytest.mark.parametrize(
    "place",
    ["embedding/width_4k", "models--google--gemma-scope-2b-pt-mlp/snapshots/0/layer_3/width_16k/average_l0_9",
     "gemma-scope-2b-pt-att/layer_3/width_16k", "gemma-scope-2b-pt-transcoders/layer_3",
     "mlp_out_all/layer_3_width_16k"],
)  # fmt: skip
def test_autoencoders_of_gemma_scope_that_are_on_no_blocks_output_are_told(place: str, tmp_path: Path) -> None:
    folder = tmp_path / place
    folder.mkdir(parents=True)
    make_format("gemma scope", folder)
    with pytest.raises(UserError, match="on embeddings or between modules"):
        load_sae(folder)


@pytest.mark.parametrize("out", [None, "model.layers.2.output"])
def test_a_gemma_scope_that_writes_where_it_reads_is_no_transcoder(
    out: str | None, make: Callable[[str], Made]
) -> None:
    folder = make("gemma scope 2").folder
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hf_hook_point_out": out}))
    assert load_sae(folder).block == 2


def test_gemma_scope_is_known_by_its_folders_in_the_hubs_cache_too(tmp_path: Path) -> None:
    """There files are links into a folder of blobs, which has no such names."""
    (tmp_path / "blobs").mkdir()
    made = make_format("gemma scope", tmp_path / "blobs")
    folder = tmp_path / "snapshots" / "0" / "layer_12" / "width_16k" / "average_l0_82"
    other = tmp_path / "snapshots" / "0" / "embedding" / "width_4k" / "average_l0_6"
    for place in (folder, other):
        place.mkdir(parents=True)
        (place / made.path.name).symlink_to(made.path)
    sae = load_sae(folder)
    assert (sae.block, sae.stated_l0) == (12, 82.0)
    with pytest.raises(UserError, match="on embeddings or between modules"):
        load_sae(other)


@pytest.mark.parametrize("module", ["layers.10.mlp", "model.layers.3.self_attn.o_proj", "embed_tokens"])
def test_a_folder_of_sparsifys_that_names_a_part_of_a_block_is_told(module: str, tmp_path: Path) -> None:
    (tmp_path / module).mkdir()
    make_format("sparsify", tmp_path / module)
    with pytest.raises(UserError, match=f"reads {module}, which is no block's output"):
        load_sae(tmp_path / module)
