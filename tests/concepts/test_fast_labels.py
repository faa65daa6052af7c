"""Fast ways of labelling against their plain definitions, fuzzed over shapes, k, chunk sizes and masks."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.activations import ACT2FN

from cocomix.concepts import attribution, nll, sae
from cocomix.concepts.attribution import active_scores, label_windows
from cocomix.concepts.fast_parts import fuse_activations, plain_head
from cocomix.concepts.nll import head_nll, head_nll_and_gradient
from cocomix.concepts.sae import SparseAutoencoder, TopK, Weights
from cocomix.concepts.settings import AttributionSettings
from cocomix.concepts.teacher import Teacher
from cocomix.concepts.topk import BLOCK, LEAST_BLOCKS, exact_topk
from cocomix.testing.models import TINY_BACKBONES

PRECISIONS = {torch.float64: 1e-10, torch.float32: 1e-5}
fuzz = settings(max_examples=40, deadline=None, derandomize=True)


def _close(found: torch.Tensor, due: torch.Tensor, dtype: torch.dtype, scale: float = 1.0) -> None:
    torch.testing.assert_close(found, due, atol=PRECISIONS[dtype] * scale, rtol=PRECISIONS[dtype])


@fuzz
@given(
    tokens=st.integers(1, 13),
    width=st.integers(1, 9),
    entries=st.integers(2, 17),
    chunk=st.integers(1, 60),
    size=st.sampled_from([0.1, 3.0, 100.0]),
    bias=st.booleans(),
    seed=st.integers(0, 10**6),
    dtype=st.sampled_from(list(PRECISIONS)),
)
def test_the_heads_loss_and_gradient_in_chunks_equal_torchs(
    tokens: int, width: int, entries: int, chunk: int, size: float, bias: bool, seed: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(seed)
    head = nn.Linear(width, entries, bias=bias, dtype=dtype).requires_grad_(False)
    hidden = (size * torch.randn(tokens, width, dtype=dtype)).requires_grad_()
    targets = torch.randint(0, entries, (tokens,)).masked_fill(torch.rand(tokens) < 0.3, -100)
    targets[0] = 0  # one has a target
    due = F.cross_entropy(head(hidden), targets)
    (gradient,) = torch.autograd.grad(due, hidden)
    with patch.dict(nll.LOGITS_OF_A_CHUNK, cpu=chunk):
        found = head_nll_and_gradient(hidden.detach(), head, targets)
        alone = head_nll(hidden.detach(), head, targets)
    _close(found[0], due.detach(), dtype, size)
    _close(alone, due.detach(), dtype, size)
    _close(found[1], gradient, dtype)


def test_a_target_that_the_model_rules_out_has_a_finite_loss() -> None:
    head = nn.Linear(1, 2, bias=False).requires_grad_(False)
    head.weight.data[:] = torch.tensor([[1.0], [0.0]])
    hidden, targets = torch.tensor([[500.0]]), torch.tensor([1])
    loss, gradient = head_nll_and_gradient(hidden, head, targets)
    assert float(loss) == 500
    assert float(gradient) == 1


def test_half_precision_stays_what_it_was() -> None:
    torch.manual_seed(0)
    head = nn.Linear(16, 50, dtype=torch.bfloat16).requires_grad_(False)
    hidden, targets = torch.randn(10, 16, dtype=torch.bfloat16).requires_grad_(), torch.arange(10)
    due = F.cross_entropy(head(hidden).float(), targets)
    (gradient,) = torch.autograd.grad(due, hidden)
    loss, found = head_nll_and_gradient(hidden.detach(), head, targets)
    torch.testing.assert_close(loss, due.detach(), atol=1e-2, rtol=1e-2)
    assert (loss.dtype, found.dtype) == (torch.float32, torch.bfloat16)
    assert float((found - gradient).norm() / gradient.norm()) < 0.02


@fuzz
@given(
    rows=st.integers(1, 5),
    k=st.integers(1, 6),
    blocks=st.integers(1, 40),
    rest=st.integers(0, BLOCK - 1),
    levels=st.sampled_from([None, 2, 30]),
    seed=st.integers(0, 10**6),
)
def test_two_stages_find_what_one_search_finds(
    rows: int, k: int, blocks: int, rest: int, levels: int | None, seed: int
) -> None:
    torch.manual_seed(seed)
    width = blocks * BLOCK + rest
    values = torch.randn(rows, width)
    if levels is not None:  # many equal values
        values = torch.randint(-levels, levels, (rows, width)).float()
    values[0, -1 - rest // 2] = 50.0  # in the columns behind the last whole block, if there are any
    found, columns = exact_topk(values, k)
    assert torch.equal(found, values.topk(k).values)
    assert torch.equal(values.gather(1, columns), found)
    assert all(len(set(row.tolist())) == k for row in columns)
    if levels is None:
        assert torch.equal(columns, values.topk(k).indices)


def test_the_search_in_two_stages_keeps_what_is_not_a_number() -> None:
    values = torch.zeros(2, LEAST_BLOCKS * BLOCK * 3)
    values[1, 100] = torch.nan
    found, columns = exact_topk(values, 3)
    assert columns[1, 0] == 100
    assert torch.isnan(found[1, 0])
    assert not torch.isnan(found[0]).any()


@fuzz
@given(
    tokens=st.integers(0, 9),
    k=st.integers(1, 12),
    width=st.integers(2, 8),
    chunk=st.integers(1, 2000),
    seed=st.integers(0, 10**6),
)
def test_encoding_and_scores_in_chunks_equal_dense_ones(tokens: int, k: int, width: int, chunk: int, seed: int) -> None:
    torch.manual_seed(seed)
    latents = 2048
    weights = Weights(*(torch.randn(shape) for shape in ((width, latents), latents, (latents, width), width)))
    coder = SparseAutoencoder(weights, TopK(k), "none")
    x, gradient = torch.randn(2, tokens, width)
    with (
        patch.object(sae, "PRE_ACTIVATIONS_AT_ONCE", chunk),
        patch.object(attribution, "DECODER_VALUES_AT_ONCE", chunk),
    ):
        values, indices = coder.encode(x)
        scores = active_scores(coder, values, indices, gradient)
    pre = (x - coder.b_dec) @ coder.W_enc + coder.b_enc
    _close(values, pre.topk(k).values.relu(), torch.float32, width)
    _close(pre.gather(1, indices).relu(), values, torch.float32, width)
    _close(scores, (gradient @ coder.W_dec.T).gather(1, indices) * values, torch.float32, 10 * width)


@pytest.mark.parametrize("name", ["gelu_new", "gelu_fast", "gelu_accurate"])
def test_an_exchanged_activation_is_the_same_function(name: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ModuleDict({"act": ACT2FN[name], "other": ACT2FN["quick_gelu"]}))
    before = model[1]["act"]
    fuse_activations(model)
    after = model[1]["act"]
    assert type(after) is nn.GELU
    assert type(model[1]["other"]) is not nn.GELU
    for dtype, error in ((torch.float64, 1e-9), (torch.float32, 1e-6)):
        x = torch.linspace(-8, 8, 4001, dtype=dtype).requires_grad_()
        found, due = after(x), before(x)
        torch.testing.assert_close(found, due, atol=error, rtol=error)
        gradients = [torch.autograd.grad(y.sum(), x)[0] for y in (found, due)]
        torch.testing.assert_close(*gradients, atol=error, rtol=error)


def _model(family: str, **config: Any) -> Any:
    torch.manual_seed(0)
    values = {**TINY_BACKBONES[family], "vocab_size": 37, "initializer_range": 0.3, **config}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(**values), dtype=torch.float64).eval()


SCALED: dict[str, dict[str, Any]] = {
    "gemma2": {**TINY_BACKBONES["gemma3_text"], "model_type": "gemma2", "final_logit_softcapping": 3.0},
    "cohere": {**TINY_BACKBONES["llama"], "model_type": "cohere", "logit_scale": 0.5, "pad_token_id": 0},
    "granite": {**TINY_BACKBONES["llama"], "model_type": "granite", "logits_scaling": 3.0},
}


@pytest.mark.parametrize("family", SCALED)
def test_logits_that_are_changed_behind_the_head_are_asked_of_the_model(family: str) -> None:
    model = _model("llama", **SCALED[family])
    assert plain_head(model) is None
    _equals_a_slow_teacher(model)


@pytest.mark.parametrize("family", TINY_BACKBONES)
def test_a_head_that_makes_the_logits_is_known_and_does_not_change_the_gradient(family: str) -> None:
    model = _model(family)
    assert plain_head(model) is model.get_output_embeddings()
    _equals_a_slow_teacher(model)


def _equals_a_slow_teacher(model: Any) -> None:
    """Loss and gradient, by the model's own logits and torch's cross-entropy."""
    inputs, targets = torch.randint(0, 37, (2, 2, 9), generator=torch.Generator().manual_seed(1))
    targets[1, 3] = -100
    states: list[torch.Tensor] = []
    teacher = Teacher(model, 1)

    def leaf(module: object, arguments: object, output: Any) -> Any:
        states.append((output[0] if isinstance(output, tuple) else output).detach().requires_grad_())
        return (states[0], *output[1:]) if isinstance(output, tuple) else states[0]

    handle = teacher.blocks[1].register_forward_hook(leaf)
    logits = model(input_ids=inputs).logits.flatten(0, 1)
    handle.remove()
    loss = F.cross_entropy(logits, targets.flatten())
    (gradient,) = torch.autograd.grad(loss, states[0])
    found = teacher.loss_and_gradient(inputs, targets)
    torch.testing.assert_close(found.loss, loss.detach(), atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(found.gradient, gradient, atol=1e-10, rtol=1e-7)
    torch.testing.assert_close(teacher.cross_entropy(inputs, targets), loss.detach(), atol=1e-10, rtol=1e-10)


def test_the_fast_teachers_labels_are_the_plain_ones() -> None:
    model = _model("gpt2").float()
    torch.manual_seed(2)
    latents = 2048
    decoder = F.normalize(torch.randn(latents, 32), dim=-1)
    coder = SparseAutoencoder(Weights(decoder.T.contiguous(), torch.zeros(latents), decoder, torch.zeros(32)), TopK(8))
    inputs, targets = torch.randint(0, 37, (2, 2, 40))
    fast = Teacher(model, 1)
    found = label_windows(fast, coder, inputs, targets, AttributionSettings())
    plain = Teacher(_model("gpt2").float(), 1)
    plain.head = None
    with patch("cocomix.concepts.sae.exact_topk", lambda values, k: tuple(values.topk(k))):
        due = label_windows(plain, coder, inputs, targets, AttributionSettings())
    assert torch.equal(found.ids, due.ids)
    torch.testing.assert_close(found.scores, due.scores, atol=1e-7, rtol=1e-4)


def test_the_head_never_holds_all_logits() -> None:
    """Every tensor that an operation makes is counted."""
    from torch.utils._python_dispatch import TorchDispatchMode

    made: list[int] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = function(*args, **(kwargs or {}))
            made.extend(t.numel() for t in (out if isinstance(out, tuple | list) else [out]) if torch.is_tensor(t))
            return out

    teacher = Teacher(_model("gpt2", vocab_size=5000).float(), 1)
    inputs, targets = torch.randint(0, 5000, (2, 2, 40))
    with patch.dict(nll.LOGITS_OF_A_CHUNK, cpu=4 * 5000), Watch():
        teacher.loss_and_gradient(inputs, targets)
    assert max(n for n in made if n != teacher.head.weight.numel()) <= 80 * 32 * 4
