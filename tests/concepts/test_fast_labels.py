"""Fast ways of labelling against their plain definitions, fuzzed over shapes, k, chunk sizes and masks."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from cocomix.concepts import sae
from cocomix.concepts.attribution import active_scores, label_windows
from cocomix.concepts.plain_head import plain_head
from cocomix.concepts.sae import SparseAutoencoder, TopK, Weights
from cocomix.concepts.settings import AttributionSettings
from cocomix.concepts.teacher import Teacher
from cocomix.ops import heads
from cocomix.testing.models import TINY_BACKBONES

PRECISIONS = {torch.float64: 1e-10, torch.float32: 1e-5}
fuzz = settings(max_examples=40, deadline=None, derandomize=True)


def _close(found: torch.Tensor, due: torch.Tensor, dtype: torch.dtype, scale: float = 1.0) -> None:
    torch.testing.assert_close(found, due, atol=PRECISIONS[dtype] * scale, rtol=PRECISIONS[dtype])


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
    with patch.object(sae, "PRE_ACTIVATIONS_AT_ONCE", chunk):
        values, indices = coder.encode(x)
        scores = active_scores(coder, values, indices, gradient)
    pre = (x - coder.b_dec) @ coder.W_enc + coder.b_enc
    _close(values, pre.topk(k).values.relu(), torch.float32, width)
    _close(pre.gather(1, indices).relu(), values, torch.float32, width)
    _close(scores, (gradient @ coder.W_dec.T).gather(1, indices) * values, torch.float32, 10 * width)


def _model(family: str, **config: Any) -> Any:
    torch.manual_seed(0)
    values = {**TINY_BACKBONES[family], "vocab_size": 37, "pad_token_id": 0, "initializer_range": 0.3, **config}
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
    with patch("cocomix.concepts.sae.topk", lambda values, k: tuple(values.topk(k))):
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
    with patch.dict(heads.LOGITS_AT_ONCE, cpu=4 * 5000), Watch():
        teacher.loss_and_gradient(inputs, targets)
    assert max(n for n in made if n != teacher.head.weight.numel()) == 4 * 5000
