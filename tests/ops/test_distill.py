"""The distilling head against its definition: autograd over plain logits, double precision."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from cocomix.ops import heads
from cocomix.ops.distill import divergence, head_losses


def _case(seed: int, n: int, d: int, v: int, k: int | None, dtype: torch.dtype = torch.double):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(v, d, generator=generator, dtype=dtype).requires_grad_()
    targets = torch.randint(0, v, (n,), generator=generator)
    targets[:: max(2, n // 2)] = -100
    whole = (2 * torch.randn(n, v, generator=generator, dtype=dtype)).softmax(-1)
    if k is None:
        return x, weight, targets, whole, None
    probs, tokens = whole.topk(k)
    return x, weight, targets, probs, tokens


def _plain(x, weight, targets, probs, tokens):
    logits = x @ weight.t()
    nll = F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum")
    z_sum = (logits.logsumexp(-1).square() * (targets >= 0)).sum()
    return nll, (divergence(logits, probs, tokens) * (targets >= 0)).sum(), z_sum


@given(
    seed=st.integers(0, 10_000),
    n=st.integers(2, 40),
    d=st.integers(1, 9),
    v=st.integers(3, 50),
    share=st.one_of(st.none(), st.floats(0, 1)),
    chunk=st.integers(1, 400),
    weights=st.sampled_from([(1.0, 0.1, 0.0), (0.0, 1.0, 0.2), (0.3, 2.0, 1.0), (0.0, 0.0, 1.0)]),
)
def test_losses_and_gradients_are_those_of_the_definition(seed, n, d, v, share, chunk, weights):
    k = None if share is None else max(1, round(share * (v - 1)))
    x, weight, *given_ = _case(seed, n, d, v, k)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(heads.LOGITS_AT_ONCE, "cpu", chunk)
        found = head_losses(x, weight, *given_, weights)
        loss = sum(w * value for w, value in zip(weights, found, strict=True) if w)
        ours = torch.autograd.grad(3 * loss, (x, weight))
    due = _plain(x, weight, *given_)
    theirs = torch.autograd.grad(3 * sum(w * value for w, value in zip(weights, due, strict=True)), (x, weight))
    for a, b in zip((*found, *ours), (*due, *theirs), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-9)


def test_in_single_precision_they_agree_within_rounding():
    x, weight, *given_ = _case(3, 64, 16, 500, 20, torch.float32)
    ours = torch.autograd.grad(sum(head_losses(x, weight, *given_, (1.0, 1.0, 1.0))), (x, weight))
    theirs = torch.autograd.grad(sum(_plain(x, weight, *given_)), (x, weight))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-5 * b.abs().max())


def test_the_bucket_never_asks_for_more_than_the_whole_distribution():
    x, weight, targets, whole, _ = _case(0, 30, 8, 60, None)
    _, full, _ = head_losses(x, weight, targets, whole, None, (1.0, 1.0, 0.0))
    before = torch.zeros(())
    for k in (1, 5, 20, 59):
        probs, tokens = whole.topk(k)
        _, part, _ = head_losses(x, weight, targets, probs, tokens, (1.0, 1.0, 0.0))
        assert before < part <= full + 1e-9
        before = part
    assert torch.allclose(before, full, rtol=1e-6)  # 59 of 60 tokens leave a bucket of one token


def test_a_teacher_that_is_the_student_has_nothing_to_teach():
    x, weight, targets, *_ = _case(1, 20, 8, 40, None)
    probs, tokens = (x @ weight.t()).softmax(-1).detach().topk(10)
    _, found, _ = head_losses(x, weight, targets, probs, tokens, (0.0, 1.0, 0.0))
    assert found.item() == pytest.approx(0, abs=1e-9)
    assert float(torch.autograd.grad(found, x)[0].abs().max()) < 1e-9


def test_another_ratio_of_the_losses_than_was_said_is_refused():
    x, weight, *given_ = _case(2, 8, 4, 20, 5)
    nll, found, _ = head_losses(x, weight, *given_, (1.0, 0.1, 0.0))
    with pytest.raises(RuntimeError, match="other weights"):
        (nll + found).backward()


def test_no_weight_leaves_the_gradient_of_the_text_alone():
    x, weight, *given_ = _case(4, 33, 8, 40, 7)
    nll, *_ = head_losses(x, weight, *given_, (1.0, 0.0, 0.0))
    ours = torch.autograd.grad(nll, (x, weight))
    theirs = torch.autograd.grad(_plain(x, weight, *given_)[0], (x, weight))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("weights", [(1.0, 0.1, 1e-4), (0.0, 0.0, 1.0), (0.5, 0.0, 2.0)], ids=str)
def test_without_a_teacher_the_squares_of_z_share_the_logits_of_the_text(weights, monkeypatch):
    monkeypatch.setitem(heads.LOGITS_AT_ONCE, "cpu", 200)
    x, weight, *given_ = _case(5, 33, 8, 40, 7)
    nll, nothing, z_sum = head_losses(x, weight, given_[0], None, None, weights)
    assert nothing is None
    ours = torch.autograd.grad(weights[0] * nll + weights[2] * z_sum, (x, weight))
    due, _, squares = _plain(x, weight, *given_)
    theirs = torch.autograd.grad(weights[0] * due + weights[2] * squares, (x, weight))
    for a, b in zip((nll, z_sum, *ours), (due, squares, *theirs), strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-10)
