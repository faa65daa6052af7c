"""What an export is to people who have transformers and not this package."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from cocomix.model.load import load_model
from cocomix.model.modeling import CoCoMixForCausalLM
from cocomix.testing.models import tiny_model
from cocomix.train.export import export_model
from cocomix.train.standalone import imported, module_names, rewritten, source

IDS = torch.arange(1, 25)[None]
NETWORKS = {
    "insert": {"mixing": "insert"},
    "memory": {"mixing": "memory"},
    "add-untied-llama": {"family": "llama", "mixing": "add"},
    "sequential-mistral": {"family": "mistral", "mixing": "insert", "slot_positions": "sequential"},
    "memory-gemma": {"family": "gemma3_text", "mixing": "memory"},
    "pause": {"mixer": "pause", "slot_base": "copy"},
    "bf16": {"mixing": "insert"},
}
ALONE = """
import json, sys

class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("cocomix", "jaxtyping", "beartype"):
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Nowhere())
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

torch.set_num_threads(1)
root, names = sys.argv[1], sys.argv[2:]
found = {}
for name in names:
    folder = f"{root}/{name}"
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        logits = model(input_ids=torch.arange(1, 25)[None]).logits
        words = tokenizer(["The old harbour", "Rain"], return_tensors="pt", padding=True, padding_side="left")
        made = model.generate(**words, max_new_tokens=5, do_sample=False)
    torch.save({"logits": logits, "made": made}, f"{folder}.pt")
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    text = pipeline("text-generation", model=folder, trust_remote_code=True)("The old harbour", max_new_tokens=3)
    model.save_pretrained(f"{folder}-again")
    again = AutoModelForCausalLM.from_pretrained(f"{folder}-again", trust_remote_code=True)
    found[name] = {
        "module": type(model).__module__,
        "dtype": str(model.dtype),
        "tied": head.data_ptr() == embedding.data_ptr(),
        "text": text[0]["generated_text"],
        "again": all(map(torch.equal, model.state_dict().values(), again.state_dict().values())),
        "registered": "cocomix" in CONFIG_MAPPING,
    }
print(json.dumps(found))
"""


def dtype_of(name: str) -> torch.dtype:
    return torch.bfloat16 if name == "bf16" else torch.float32


@pytest.fixture(scope="module")
def exports(dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one export a network of :data:`NETWORKS`."""
    root = tmp_path_factory.mktemp("exports")
    for name, network in NETWORKS.items():
        model = tiny_model(**network, backbone={"vocab_size": dataset.vocab_size}).to(dtype_of(name))
        export_model(model, dataset.tokenizer_folder, root / name, {"run": name, "tokens": 0})
    return root


@pytest.fixture(scope="module")
def alone(exports: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What a Python without this package and without jaxtyping found out about each export."""
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path_factory.mktemp("modules")), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(exports), *NETWORKS],
        capture_output=True, text=True, check=False, env=environment, cwd=exports,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def original(name: str, vocab_size: int) -> CoCoMixForCausalLM:
    return tiny_model(**NETWORKS[name], backbone={"vocab_size": vocab_size}).to(dtype_of(name))


@pytest.mark.parametrize("name", NETWORKS)
def test_without_the_package_the_logits_are_the_same_bit_for_bit(name, exports, alone, dataset):
    assert alone[name]["module"].startswith("transformers_modules.")
    with torch.no_grad():
        wanted = original(name, dataset.vocab_size)(IDS).logits
    assert torch.equal(torch.load(exports / f"{name}.pt")["logits"], wanted)


@pytest.mark.parametrize("name", NETWORKS)
def test_without_the_package_it_generates_the_same(name, exports, alone, dataset):
    tokenizer = dataset.tokenizer()
    words = tokenizer(["The old harbour", "Rain"], return_tensors="pt", padding=True, padding_side="left")
    model = original(name, dataset.vocab_size)
    wanted = model.generate(**words, max_new_tokens=5, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    assert torch.equal(torch.load(exports / f"{name}.pt")["made"], wanted)
    assert alone[name]["text"].startswith("The old harbour")


@pytest.mark.parametrize("name", NETWORKS)
def test_without_the_package_dtype_and_tied_weights_are_kept(name, alone):
    assert alone[name]["dtype"] == str(dtype_of(name))
    assert alone[name]["tied"] == (NETWORKS[name].get("family", "gpt2") in ("gpt2", "gemma3_text"))


def test_without_the_package_it_can_be_saved_and_loaded_again(alone):
    assert all(found["again"] for found in alone.values())


def test_a_copy_does_not_stand_for_all_other_folders(alone):
    assert not any(found["registered"] for found in alone.values())


@pytest.mark.parametrize("trust", [None, True, False])
@pytest.mark.parametrize("name", ["insert", "add-untied-llama", "bf16"])
def test_with_the_package_its_own_class_is_taken_whatever_the_flag_says(name, trust, exports, dataset):
    model, report = AutoModelForCausalLM.from_pretrained(
        exports / name, trust_remote_code=trust, output_loading_info=True
    )
    assert type(model) is CoCoMixForCausalLM
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.dtype == dtype_of(name)
    wanted = original(name, dataset.vocab_size)
    for key, tensor in wanted.state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor), key
    tied = model.lm_head.weight is model.get_input_embeddings().weight
    assert tied == (wanted.lm_head.weight is wanted.get_input_embeddings().weight)


def test_tied_weights_are_stored_once(exports):
    with safe_open(exports / "insert" / "model.safetensors", "pt") as tied:
        assert "lm_head.weight" not in tied.keys()  # noqa: SIM118  (a safetensors file is no mapping)
    with safe_open(exports / "add-untied-llama" / "model.safetensors", "pt") as untied:
        assert "lm_head.weight" in untied.keys()  # noqa: SIM118


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_network_without_a_mixer_is_exported_as_transformers_own(family, dtype, dataset, tmp_path):
    model = tiny_model(family, mixer="none", backbone={"vocab_size": dataset.vocab_size}).to(dtype)
    export_model(model, dataset.tokenizer_folder, tmp_path / "out", {"run": "plain", "tokens": 0})
    assert not list((tmp_path / "out").glob("*.py"))
    assert "auto_map" not in json.loads((tmp_path / "out" / "config.json").read_text())
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert type(plain).__module__.startswith("transformers.models.")
    assert plain.dtype == dtype
    for key, tensor in model.backbone.state_dict().items():
        assert torch.equal(getattr(plain, plain.base_model_prefix).state_dict()[key], tensor), key
    tied = plain.get_output_embeddings().weight is plain.get_input_embeddings().weight
    assert tied == (family == "gpt2")


def test_saving_a_model_oneself_writes_no_code(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".json", ".safetensors"]
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())


def test_the_networks_code_imports_itself_torch_transformers_and_the_standard_library_alone():
    assert {"model.adapters", "model.config", "model.masks", "model.mixers", "model.modeling", "ops.heads"} <= set(
        module_names()
    )
    files = [name.rpartition(".")[2] for name in module_names()]
    assert len(set(files)) == len(files)  # they lie in one folder
    allowed = set(sys.stdlib_module_names) | {"torch", "transformers", "jaxtyping"}
    for name in module_names():
        foreign = {
            module for module in imported(source(name))
            if module.split(".")[0] not in allowed and module.removeprefix("cocomix.") not in module_names()
        }  # fmt: skip
        assert not foreign, f"cocomix/{name.replace('.', '/')}.py is copied into exports, it must not import {foreign}"


def test_rewriting_changes_imports_and_registration_alone():
    text = (
        '"""Text that names cocomix.model.masks and jaxtyping."""\n\n'
        "from jaxtyping import (\n    Float,\n    Int as I,\n)\n"
        "from cocomix.model.config import (\n    A,\n)\nfrom cocomix.model.masks import b\n\nC = 1  # as it was\n"
        "AutoConfig.register('cocomix', A)\n"
    )
    assert rewritten(text).splitlines()[1:] == [
        '"""Text that names cocomix.model.masks and jaxtyping."""', "",
        "from typing import Annotated as Float, Annotated as I",
        "from .configuration_cocomix import (", "    A,", ")",
        "from .masks import b", "", "C = 1  # as it was",
    ]  # fmt: skip


def test_what_is_copied_is_python_without_this_package():
    for name in module_names():
        modules = imported(rewritten(source(name)))
        ast.parse(rewritten(source(name)))
        assert not [module for module in modules if module.split(".")[0] in ("cocomix", "jaxtyping")]


def test_an_export_that_is_loaded_here_and_saved_again_names_no_code_that_it_lacks(dataset, tmp_path):
    model = tiny_model(backbone={"vocab_size": dataset.vocab_size})
    out = export_model(model, dataset.tokenizer_folder, tmp_path / "export", {"run": "tiny", "tokens": 0})
    assert "auto_map" in json.loads((out / "config.json").read_text())
    load_model(str(out))[0].save_pretrained(tmp_path / "again")
    assert "auto_map" not in json.loads((tmp_path / "again" / "config.json").read_text())
