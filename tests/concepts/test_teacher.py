from __future__ import annotations

import shutil
from pathlib import Path

import httpx
import pytest
import torch
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from cocomix.concepts.nll import mean_nll, mean_nll_and_gradient
from cocomix.concepts.teacher import Teacher, load_teacher, pick_dtype
from cocomix.concepts.teacher_files import find_teacher
from cocomix.data.dataset import Dataset
from cocomix.errors import UserError
from cocomix.testing.teachers import tiny_teacher
from cocomix.testing.text import tiny_dataset

CPU = torch.device("cpu")


def _answer(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    request = httpx.Request("GET", "https://huggingface.co/api/models/org/name")
    return kind("broken", response=httpx.Response(status, request=request))


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def folder(request: pytest.FixtureRequest, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_teacher(tmp_path_factory.mktemp(request.param), dataset, request.param)


def test_attention_that_would_leave_out_a_cap_on_scores_is_exchanged() -> None:
    """transformers 5.17 chooses SDPA for Gemma 2, which leaves out its cap in silence."""
    config = AutoConfig.for_model(
        "gemma2", hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, vocab_size=20, initializer_range=1.0, attn_logit_softcapping=1.0,
    )  # fmt: skip
    tokens = torch.arange(8)[None]
    losses = []
    for attention in ("eager", None):  # None: what transformers chooses
        torch.manual_seed(0)
        teacher = Teacher(AutoModelForCausalLM.from_config(config, attn_implementation=attention), 0)
        losses.append(teacher.cross_entropy(tokens, tokens.roll(-1)))
    torch.testing.assert_close(losses[1], losses[0])


def _load(folder: Path, dataset: Dataset, block: int = 1) -> Teacher:
    return load_teacher(str(folder), block, dataset, dataset.window, CPU, "float32")


def test_a_teacher_needs_no_dataset(folder: Path, dataset: Dataset) -> None:
    alone, tokens = load_teacher(str(folder), 1), torch.arange(1, 9)[None]
    assert torch.equal(alone.activations(tokens), _load(folder, dataset).activations(tokens))


@pytest.mark.parametrize("shown", [True, False])
def test_transformers_progress_bars_stay_as_they_were(folder: Path, shown: bool, monkeypatch) -> None:
    monkeypatch.setattr(logging, "_tqdm_active", shown)
    load_teacher(str(folder), 1)
    assert logging.is_progress_bar_enabled() == shown


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
    small = tiny_teacher(tmp_path / "small", other)
    with pytest.raises(UserError, match=f"another tokenizer .* prepare the data with tokenizer={small}"):
        _load(small, dataset)
    (small / "tokenizer.json").unlink()  # weights alone
    with pytest.raises(UserError, match="knows 300 tokens"):
        _load(small, dataset)


def test_a_folder_that_is_no_teacher_is_told(dataset: Dataset, teacher_path: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such folder"):
        _load(tmp_path / "nowhere", dataset)
    with pytest.raises(UserError, match=r"holds no \*.safetensors"):
        _load(dataset.folder, dataset)
    (tmp_path / "model.safetensors").write_bytes((teacher_path / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match="cannot be loaded as a causal language model"):
        _load(tmp_path, dataset)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pth"])
def test_pickled_weights_are_refused_unread(dataset: Dataset, teacher_path: Path, tmp_path: Path, name: str) -> None:
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(teacher_path / file, tmp_path / file)
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch " + bytes(tmp_path / "ran") + b"'\ntR.")
    with pytest.raises(UserError, match=rf"holds no \*\.safetensors but {name}: .* save the model again"):
        _load(tmp_path, dataset)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncated_weights_are_named(dataset: Dataset, teacher_path: Path, tmp_path: Path, share: float) -> None:
    folder = Path(shutil.copytree(teacher_path, tmp_path / "cut"))
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=r"cut/model\.safetensors is no whole safetensors file .* download it again"):
        _load(folder, dataset)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OfflineModeIsEnabled("offline"), r"be reached .*'hf download org/name --local-dir FOLDER' .* teacher=FOLDER"),
        (LocalEntryNotFoundError("Got: ConnectError"), "cannot be reached from here.* give teacher=FOLDER"),
        (httpx.ConnectTimeout("slow"), "cannot be reached from here"),
        (_answer(RepositoryNotFoundError, 404), r"no such repository, or it is private.* 'hf auth login'"),
        (_answer(GatedRepoError, 403), r"it is gated\): accept its terms on https://huggingface.co/org/name"),
        (_answer(HfHubHTTPError, 500), r"HfHubHTTPError: broken\): give teacher=FOLDER"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_the_hub_says_is_told_apart(error: Exception, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's client raises at the network: the one place that is not real here."""

    def snapshot_download(name: str, local_files_only: bool = False, **kinds: object) -> str:
        raise LocalEntryNotFoundError("not in the cache") if local_files_only else error

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(UserError, match=f"teacher=org/name: it is no folder here and the hub gave none .*{sentence}"):
        find_teacher("org/name")


def test_an_unreachable_hub_is_told(dataset: Dataset) -> None:
    with pytest.raises(UserError, match=r"teacher=nobody/nothing: .*cannot be reached .* 'hf download nobody/nothing"):
        _load(Path("nobody/nothing"), dataset)


def test_missing_weights_are_refused_rather_than_drawn(dataset: Dataset, teacher_path: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for path in teacher_path.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(teacher_path / "model.safetensors")
    weights.pop("transformer.h.1.mlp.c_fc.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks weights \(transformer.h.1.mlp.c_fc.weight"):
        _load(tmp_path, dataset)


def test_a_bidirectional_model_is_refused(dataset: Dataset, teacher_path: Path, tmp_path: Path) -> None:
    """transformers takes an encoder for a causal model and only logs that it should be a decoder."""
    sizes = {"vocab_size": dataset.vocab_size, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
             "num_attention_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.5}  # fmt: skip
    for file in teacher_path.glob("tokenizer*"):
        shutil.copy(file, tmp_path / file.name)
    for decoder in (True, False):
        config = AutoConfig.for_model("roberta", **sizes, is_decoder=decoder)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
        if decoder:
            assert _load(tmp_path, dataset).width == 16
    with pytest.raises(UserError, match=r"\(roberta\) is no causal model: its tokens see those behind them"):
        _load(tmp_path, dataset)


def test_the_method_of_quantised_safetensors_is_known(teacher_path: Path, tmp_path: Path) -> None:
    assert find_teacher(str(teacher_path)).quantisation() is None
    shutil.copy(teacher_path / "model.safetensors", tmp_path)
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "fp8"}}')
    assert find_teacher(str(tmp_path)).quantisation() == "fp8"


def test_precision_follows_the_device() -> None:
    assert pick_dtype("auto", CPU) == "float32"
    assert pick_dtype("auto", torch.device("cuda")) == "bfloat16"
    assert pick_dtype("float32", torch.device("cuda")) == "float32"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_loss_and_gradient_in_pieces_equal_torchs(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cocomix.concepts.nll.LOGITS_AT_ONCE", 3 * 50)
    torch.manual_seed(0)
    logits = (5 * torch.randn(10, 50)).to(dtype).requires_grad_()
    targets = torch.randint(0, 50, (10,))
    targets[4] = targets[9] = -100
    loss = F.cross_entropy(logits if dtype == torch.float64 else logits.float(), targets)
    (gradient,) = torch.autograd.grad(loss, logits)
    found = mean_nll_and_gradient(logits.detach(), targets)
    torch.testing.assert_close(found[0], loss.detach())
    torch.testing.assert_close(found[1], gradient)
    assert found[1].dtype == dtype
    torch.testing.assert_close(mean_nll(logits.detach(), targets), loss.detach())
