from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from cocomix.concepts.teacher import Teacher, load_teacher, pick_dtype
from cocomix.data.dataset import Dataset
from cocomix.errors import UserError
from cocomix.testing.teachers import tiny_teacher
from cocomix.testing.text import tiny_dataset

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def folder(request: pytest.FixtureRequest, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_teacher(tmp_path_factory.mktemp(request.param), dataset, request.param)


def _load(folder: Path, dataset: Dataset, block: int = 1) -> Teacher:
    return load_teacher(str(folder), block, dataset, dataset.window, CPU, "float32")


@pytest.mark.parametrize("block", [0, 1])
def test_a_block_means_its_output(folder: Path, dataset: Dataset, block: int) -> None:
    """hidden_states[0] is the embedding, so the output of block b is hidden_states[b + 1]."""
    teacher = _load(folder, dataset, block)
    tokens = torch.randint(0, dataset.vocab_size, (2, 9))
    expected = teacher.model(input_ids=tokens, output_hidden_states=True).hidden_states
    torch.testing.assert_close(teacher.activations(tokens), expected[block + 1], atol=1e-6, rtol=1e-6)


def test_the_last_block_means_its_output_before_the_final_norm(folder: Path, dataset: Dataset) -> None:
    teacher = _load(folder, dataset, 2)
    tokens = torch.randint(0, dataset.vocab_size, (2, 9))
    logits = teacher.model.get_output_embeddings()(teacher.final_norm()(teacher.activations(tokens)))
    torch.testing.assert_close(logits, teacher.model(input_ids=tokens).logits, atol=1e-5, rtol=1e-5)


def test_activations_do_not_run_the_blocks_above(folder: Path, dataset: Dataset) -> None:
    teacher = _load(folder, dataset, 1)
    ran = []
    for number, block in enumerate(teacher.blocks):
        block.register_forward_pre_hook(lambda *_, number=number: ran.append(number))
    teacher.activations(torch.randint(0, dataset.vocab_size, (1, 4)))
    assert ran == [0, 1]


def test_gradient_equals_a_slow_one(folder: Path, dataset: Dataset) -> None:
    teacher = _load(folder, dataset, 1)
    tokens = torch.randint(0, dataset.vocab_size, (2, 8))
    targets = torch.randint(0, dataset.vocab_size, (2, 8))
    targets[0, 3] = -100
    found = teacher.loss_and_gradient(tokens, targets)

    model = AutoModelForCausalLM.from_pretrained(folder).eval()  # every parameter wants a gradient here
    output = model(input_ids=tokens, output_hidden_states=True)
    h = output.hidden_states[2]
    loss = F.cross_entropy(output.logits.flatten(0, 1), targets.flatten())
    (gradient,) = torch.autograd.grad(loss, h)
    torch.testing.assert_close(found.loss, loss.detach())
    torch.testing.assert_close(found.activation, h.detach(), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found.gradient, gradient, atol=1e-7, rtol=1e-4)
    assert all(p.grad is None and not p.requires_grad for p in teacher.model.parameters())


def test_gradient_is_taken_at_what_replaces_the_output(dataset: Dataset, teacher_path: Path) -> None:
    torch.manual_seed(0)
    teacher = _load(teacher_path, dataset)
    tokens, targets = torch.randint(0, dataset.vocab_size, (2, 2, 8))
    shifted = teacher.loss_and_gradient(tokens, targets, lambda h: h.flip(-1))
    place = shifted.gradient.abs().argmax()
    step = torch.zeros_like(shifted.activation)
    step.view(-1)[place] = 1e-2
    up, down = (teacher.cross_entropy(tokens, targets, lambda h, s=s: h.flip(-1) + s * step) for s in (1, -1))
    assert float(shifted.gradient.view(-1)[place]) == pytest.approx(float(up - down) / 2e-2, rel=0.05)
    assert float(shifted.loss) != pytest.approx(float(teacher.cross_entropy(tokens, targets)))


def test_hooks_are_gone_after_use(dataset: Dataset, teacher_path: Path) -> None:
    teacher = _load(teacher_path, dataset)
    tokens, targets = torch.randint(0, dataset.vocab_size, (2, 1, 8))
    before = teacher.model(input_ids=tokens).logits
    teacher.activations(tokens)
    teacher.loss_and_gradient(tokens, targets, torch.zeros_like)
    assert torch.equal(teacher.model(input_ids=tokens).logits, before)


def test_a_teacher_that_does_not_fit_is_refused(dataset: Dataset, teacher_path: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"block=3 .* has 3 blocks, give 0 … 2"):
        _load(teacher_path, dataset, 3)
    context = 2 * dataset.window
    with pytest.raises(UserError, match=f"window={context + 1} is longer than the context .* window={context} or less"):
        load_teacher(str(teacher_path), 1, dataset, context + 1, CPU, "float32")
    other = tiny_dataset(tmp_path / "other", documents=20, vocab_size=300)
    with pytest.raises(UserError, match="another tokenizer than the dataset"):
        load_teacher(str(teacher_path), 1, other, 16, CPU, "float32")
    with pytest.raises(UserError, match="knows 300 tokens"):
        _load(tiny_teacher(tmp_path / "small", other), dataset)


def test_a_folder_that_is_no_teacher_is_told(dataset: Dataset, teacher_path: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such folder"):
        _load(tmp_path / "nowhere", dataset)
    with pytest.raises(UserError, match=r"holds no \*.safetensors"):
        _load(dataset.folder, dataset)
    (tmp_path / "model.safetensors").write_bytes((teacher_path / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match="cannot be loaded as a causal language model"):
        _load(tmp_path, dataset)


def test_missing_weights_are_refused_rather_than_drawn(dataset: Dataset, teacher_path: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for path in teacher_path.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(teacher_path / "model.safetensors")
    weights.pop("transformer.h.1.mlp.c_fc.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks weights \(transformer.h.1.mlp.c_fc.weight"):
        _load(tmp_path, dataset)


def test_precision_follows_the_device() -> None:
    assert pick_dtype("auto", CPU) == "float32"
    assert pick_dtype("auto", torch.device("cuda")) == "bfloat16"
    assert pick_dtype("float32", torch.device("cuda")) == "float32"
