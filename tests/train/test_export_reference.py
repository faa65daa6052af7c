"""A training folder of the reference implementation, made of its own tensors, becomes an export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

STEP = Path(__file__).parents[1] / "data" / "cocomix_gpt2_step.safetensors"


def reference_tensors() -> dict[str, Tensor]:
    """The weights of the reference's model under the reference's names."""
    return {
        name.removeprefix("weights."): tensor
        for name, tensor in load_file(STEP).items()
        if name.startswith("weights.") and name != "weights.lm_head.weight"
    }


@pytest.fixture
def training(tmp_path) -> Path:
    """A log folder as the reference's trainer leaves it, with one checkpoint on the way and the last."""
    with safe_open(STEP, "pt") as opened:
        meta = opened.metadata()
    folder = tmp_path / "logs" / "gpt2_embd48_L4_H4" / "cocomix_bs512_ctx1024_lam0.1_seed_22"
    for name in ("step_2000", "last"):
        (folder / name).mkdir(parents=True)
        config = {
            "model_type": "gpt2", "architectures": ["GPT2CoCoMixLMHeadModel"], "torch_dtype": "float32",
            "transformers_version": "4.44.2", "bos_token_id": 0, "eos_token_id": 0, **json.loads(meta["config"]),
        }  # fmt: skip
        (folder / name / "config.json").write_text(json.dumps(config))
        save_file(reference_tensors(), folder / name / "model.safetensors", {"format": "pt"})
        torch.save({"state": {}}, folder / name / "optimizer.pt")
    (folder / "config.yaml").write_text(
        f"mode: cocomix\nn_embd: 48\nblock_size: 1024\ninsert_layer_index: {meta['insert_layer_idx']}\n"
        f"concept_dim: {meta['concept_dim']}\nconcept_num: {meta['concept_num']}\nlam_concept: 0.1\nload_path: null\n"
    )
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of the tiny model's 211 entries."""
    backend = Tokenizer(models.WordLevel({f"w{i}": i for i in range(211)}, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="w0", bos_token="w0").save_pretrained(folder)
    return folder


def rewrite(checkpoint: Path, tensors: dict[str, Tensor]) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, checkpoint / "model.safetensors")


def reference_logits() -> tuple[Tensor, Tensor]:
    tensors = load_file(STEP)
    return tensors["input_ids"], tensors["logits"]


def assert_has_the_references_logits(folder: Path) -> None:
    ids, wanted = reference_logits()
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, wanted, atol=1e-5, rtol=0)
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_a_log_folder_becomes_an_export_with_the_references_logits(training, tokenizer, tmp_path, cli):
    code, out, err = cli("export", "--from-reference", training, tmp_path / "out", f"tokenizer={tokenizer}", "--json")
    assert code == 0, err
    assert json.loads(out)["checkpoint"] == str(training / "last")
    assert json.loads(out)["class"] == "CoCoMixForCausalLM"
    assert_has_the_references_logits(tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").encode("w7 w9") == [7, 9]
    assert (tmp_path / "out" / "modeling_cocomix.py").is_file()
    # An export may be replaced by the next one.
    assert cli("export", "--from-reference", training, tmp_path / "out", f"tokenizer={tokenizer}")[0] == 0


def test_one_checkpoint_may_be_named(training, tokenizer, tmp_path, cli):
    code, out, _ = cli(
        "export", "--from-reference", training / "step_2000", tmp_path / "out", f"tokenizer={tokenizer}", "--json"
    )
    assert (code, json.loads(out)["checkpoint"]) == (0, str(training / "step_2000"))


def test_without_a_last_one_the_highest_step_is_taken(training, tokenizer, tmp_path, cli):
    (training / "last").rename(training / "step_10000")
    _, out, _ = cli("export", "--from-reference", training, tmp_path / "out", f"tokenizer={tokenizer}", "--json")
    assert json.loads(out)["checkpoint"] == str(training / "step_10000")


def as_ddp(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{name}": tensor for name, tensor in tensors.items()}


def as_compiled_fsdp(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    wrapped = {f"_orig_mod.{n.replace('.0.', '.0._fsdp_wrapped_module.')}": t for n, t in tensors.items()}
    return {**wrapped, "lm_head.weight": tensors["transformer.wte.weight"].clone()}


@pytest.mark.parametrize("wrapped", [as_ddp, as_compiled_fsdp])
def test_names_of_wrapped_models_are_understood(wrapped, training, tokenizer, tmp_path, cli):
    rewrite(training / "last", wrapped(reference_tensors()))
    code, _, err = cli("export", "--from-reference", training, tmp_path / "out", f"tokenizer={tokenizer}")
    assert code == 0, err
    assert_has_the_references_logits(tmp_path / "out")


def test_sharded_and_pickled_weights_are_read(training, tokenizer, tmp_path, cli):
    tensors = reference_tensors()
    names = sorted(tensors)
    for form, write in (("bin", torch.save), ("safetensors", save_file)):
        stem = {"bin": "pytorch_model", "safetensors": "model"}[form]
        (training / "last" / "model.safetensors").unlink(missing_ok=True)
        parts = {f"{stem}-0000{i + 1}-of-00002.{form}": names[i::2] for i in range(2)}
        for part, inside in parts.items():
            write({name: tensors[name].contiguous() for name in inside}, training / "last" / part)
        index = {"weight_map": {name: part for part, inside in parts.items() for name in inside}}
        (training / "last" / f"{stem}.{form}.index.json").write_text(json.dumps(index))
        code, _, err = cli("export", "--from-reference", training, tmp_path / form, f"tokenizer={tokenizer}")
        assert code == 0, err
        assert_has_the_references_logits(tmp_path / form)


def test_a_training_without_concepts_becomes_transformers_own_model(training, tokenizer, tmp_path, cli):
    mixer = ("pre_bias", "concept_predictor", "compress_layer")
    tensors = {n: t for n, t in reference_tensors().items() if not any(part in n for part in mixer)}
    rewrite(training / "last", as_ddp(tensors))
    (training / "config.yaml").write_text("mode: ntp\ninsert_layer_index: null\n")
    code, out, err = cli("export", "--from-reference", training, tmp_path / "out", f"tokenizer={tokenizer}", "--json")
    assert (code, json.loads(out)["class"]) == (0, "GPT2LMHeadModel"), err
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(plain.transformer.wte.weight, tensors["transformer.wte.weight"])


class Payload:
    def __reduce__(self):
        return (print, ("this must not run",))


def spoil(training: Path, how: str) -> None:
    last, tensors = training / "last", reference_tensors()
    if how == "missing":
        del tensors["transformer.h.1.ln_1.bias"]
    elif how == "extra":
        tensors["transformer.h.9.ln_1.bias"] = torch.zeros(48)
    elif how == "shape":
        tensors["transformer.pre_bias"] = torch.zeros(47)
    elif how == "truncated":
        content = (last / "model.safetensors").read_bytes()
        (last / "model.safetensors").write_bytes(content[: len(content) // 2])
        return
    elif how in ("code", "more than tensors"):
        (last / "model.safetensors").unlink()
        torch.save({**tensors, "x": Payload() if how == "code" else 3}, last / "pytorch_model.bin")
        return
    elif how == "no settings":
        (training / "config.yaml").unlink()
    elif how == "no layer":
        (training / "config.yaml").write_text("concept_dim: 64\nconcept_num: 5\ninsert_layer_index: null\n")
    elif how == "beyond":
        (training / "config.yaml").write_text("concept_dim: 64\nconcept_num: 5\ninsert_layer_index: 4\n")
    rewrite(last, tensors)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("missing", "it lacks transformer.h.1.ln_1.bias"),
        ("extra", "it has transformer.h.9.ln_1.bias, which no such model has"),
        ("shape", "it has transformer.pre_bias of shape [47] where [48] is due"),
        ("truncated", "model.safetensors is truncated or damaged"),
        ("code", "pytorch_model.bin holds more than named tensors"),
        ("more than tensors", "pytorch_model.bin holds more than named tensors"),
        ("no settings", "there is no config.yaml"),
        ("no layer", "insert_layer_index=null: set it"),
        ("beyond", "insert_at=4 lies outside the network"),
    ],
)
def test_what_does_not_fit_is_told_in_a_sentence(how, said, training, tokenizer, tmp_path, cli):
    spoil(training, how)
    code, out, err = cli("export", "--from-reference", training, tmp_path / "out", f"tokenizer={tokenizer}")
    assert code == 2
    assert said in err
    assert err.count("\n") == 1
    assert "must not run" not in out + err
    assert not (tmp_path / "out").exists()


def test_where_the_tokenizer_cannot_be_had_the_mend_is_told(training, tmp_path, cli):
    code, _, err = cli("export", "--from-reference", training, tmp_path / "out")
    assert code == 2
    assert "tokenizer=openai-community/gpt2" in err
    assert "give tokenizer=FOLDER" in err


def test_a_tokenizer_of_another_size_is_refused(training, dataset, tmp_path, cli):
    words = ("export", "--from-reference", training, tmp_path / "out", f"tokenizer={dataset.tokenizer_folder}")
    code, _, err = cli(*words)
    assert code == 2
    assert "the model knows 211" in err


def test_a_folder_without_weights_is_refused(tmp_path, cli):
    code, _, err = cli("export", "--from-reference", tmp_path, tmp_path / "out")
    assert code == 2
    assert "give the log folder of a training" in err


@pytest.mark.parametrize("words", [["--from-reference", "x"], ["--from-reference", "x", "tokenizer=y"]])
def test_the_folder_to_write_must_be_named(words, cli):
    code, _, err = cli("export", *words)
    assert code == 2
    assert "needs a folder to write" in err
