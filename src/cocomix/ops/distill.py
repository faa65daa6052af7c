"""The head of a student that learns from text and from a teacher at once, or with a z-loss, in chunks of tokens.

The losses share the logits, so they are made once. Known is then the gradient of one weighted sum of them: the weights
are given beforehand, and a backward pass that asks for another ratio is refused.

What the teacher says of a token is its whole distribution [N, V], or its K likeliest tokens and one bucket for the
rest [N, K]. The divergence with the bucket is that of two distributions over K + 1 events, so never above the whole one
(data processing), and its gradient puts no pressure on how the student shares the rest out: softmax_j − p_j for the K
tokens, softmax_j · (1 − rest of p / rest of softmax) for all others.

Shapes: N tokens, D hidden size, V vocabulary, K kept tokens, n tokens of a chunk.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cocomix.ops.heads import chunks, exponentials, product_dtype, without_graph


class Losses(NamedTuple):
    """What :func:`head_losses` returns, in nats, in float32 at least."""

    nll: Float[Tensor, ""]
    """Sum of −log softmax(x·Wᵀ)[target]."""
    divergence: Float[Tensor, ""] | None = None
    """Sum of KL(teacher ‖ student); None without a teacher."""
    z_sum: Float[Tensor, ""] | None = None
    """Sum of (log Σ exp(x·Wᵀ))²."""


def head_losses(
    x: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    targets: Int[Tensor, " N"],
    probs: Float[Tensor, "N K_or_V"] | None,
    tokens: Int[Tensor, "N K"] | None,
    weights: tuple[float, float, float],
) -> Losses:
    """Sums over the tokens whose target is not negative. ``probs``: what a teacher says, if there is one; ``tokens``:
    whose probabilities they are, each once; None: they are all V. ``weights``: those of the three losses in what is
    minimised, up to a common factor."""
    if probs is None:  # one bucket for all: nothing to diverge from
        nothing, weights = x.new_empty(len(x), 0), (weights[0], 0.0, weights[2])
        found = Losses(*_Losses.apply(*without_graph(x, weight), targets, nothing, nothing.long(), weights))
        return found._replace(divergence=None)
    return Losses(*_Losses.apply(*without_graph(x, weight), targets, probs, tokens, weights))


def divergence(
    logits: Float[Tensor, "N V"], probs: Float[Tensor, "N K_or_V"], tokens: Int[Tensor, "N K"] | None
) -> Float[Tensor, " N"]:
    """The divergence of each token from logits at hand, plainly: its definition."""
    given = probs.to(logits.dtype)
    given = given / given.sum(-1, keepdim=True).clamp(min=1)
    log_student = logits.log_softmax(-1)
    if tokens is None:
        return (torch.xlogy(given, given) - given * log_student).sum(-1)
    picked = log_student.gather(-1, tokens)
    rest = (1 - given.sum(-1)).clamp(min=0)
    left = (1 - picked.exp().sum(-1)).clamp(min=torch.finfo(logits.dtype).eps)
    kept = (torch.xlogy(given, given) - given * picked).sum(-1)
    return kept + torch.xlogy(rest, rest) - rest * left.log()


class _Losses(torch.autograd.Function):
    """(x, weight, targets, probs, tokens, weights) → (nll, divergence, z_sum)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, probs: Tensor, tokens: Any, weights: Any) -> Any:
        wants = ctx.needs_input_grad[:2]
        *losses, ctx.grads = _losses_and_gradients(x, weight, targets, probs, tokens, weights, wants)
        ctx.weights = weights
        ctx.set_materialize_grads(False)
        return tuple(losses)

    @staticmethod
    def backward(ctx: Any, *asked: Any) -> Any:
        if ctx.grads is None:
            raise RuntimeError("the graph behind a head holds its gradients once: backward through it a second time")
        grads, ctx.grads = ctx.grads, None
        some = next(p for p in asked if p is not None)
        pulls = torch.stack([some.new_zeros(()) if p is None else p for p in asked])
        due = pulls.new_tensor(ctx.weights)
        factor = pulls.sum() / due.sum()
        torch._assert_async(
            (pulls - due * factor).abs().amax() <= 1e-4 * pulls.abs().amax(),
            "a head's gradient was made for other weights of its losses than the backward pass asks for",
        )
        return *(None if g is None else g.mul_(factor.to(g.dtype)) for g in grads), None, None, None, None


def _losses_and_gradients(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    probs: Tensor,
    tokens: Tensor | None,
    weights: tuple[float, float, float],
    wants: tuple[bool, bool],
) -> tuple[Tensor, Tensor, Tensor, list[Tensor | None]]:
    """The three losses; the gradients of their weighted sum for x and weight where wanted.

    For a token's logits that is nll: softmax − one-hot; z²: 2·z·softmax; divergence: see above.
    """
    product = product_dtype(x)
    total = torch.promote_types(product, torch.float32)
    own, rows = x.to(product), weight.to(product)
    grad_x = torch.zeros_like(own) if wants[0] else None
    grad_weight = torch.zeros_like(weight, dtype=total) if wants[1] else None
    nll = divergence = z_sum = torch.zeros((), dtype=total, device=x.device)
    for part, made in chunks(own, rows):
        logits = made.to(total)
        meant = (targets[part] >= 0).to(total)
        target = targets[part].clamp(min=0).unsqueeze(0)
        given = probs[part].t().to(total)
        given = given / given.sum(0).clamp(min=1)  # (what was rounded on the disk may add up to a hair more)
        events = None if tokens is None else tokens[part].t()
        largest = logits.amax(0)
        chosen = logits.gather(0, target).squeeze(0)
        shifted = (logits if events is None else logits.gather(0, events)) - largest
        cross = (given * shifted).sum(0)  # Σ p·(z − max), before the logits are gone
        picked = None if events is None else shifted
        sums = exponentials(logits, largest)
        log_sums = sums.log()
        z = log_sums + largest
        nll = nll + ((z - chosen) * meant).sum()
        z_sum = z_sum + (z.square() * meant).sum()
        by_token = torch.xlogy(given, given).sum(0) - cross + given.sum(0) * log_sums
        ratio = None
        if picked is not None:
            rest = (1 - given.sum(0)).clamp(min=0)
            left = (1 - (picked - log_sums).exp().sum(0)).clamp(min=torch.finfo(total).eps)
            by_token = by_token + torch.xlogy(rest, rest) - rest * left.log()
            ratio = rest / left
        divergence = divergence + (by_token * meant).sum()
        if not any(wants):
            continue
        text, teacher, square = (weight * meant for weight in weights)
        even = text + 2 * z * square  # what multiplies the softmax, but for the teacher's part
        if picked is None or ratio is None or events is None:
            logits.mul_((even + teacher * given.sum(0)) / sums).sub_(given * teacher)
        else:
            logits.mul_((even + teacher * (1 - ratio)) / sums)
            logits.scatter_add_(0, events, teacher * ((picked - log_sums).exp() * ratio - given))
        pull = logits.scatter_add_(0, target, -text.unsqueeze(0)).to(product)
        if grad_x is not None:
            grad_x[part] = pull.t() @ rows
        if grad_weight is not None:
            grad_weight.add_(pull @ own[part])
    grads = [None if g is None else g.to(o.dtype) for g, o in ((grad_x, x), (grad_weight, weight))]
    return nll, divergence, z_sum, grads
