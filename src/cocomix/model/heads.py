"""Heads over a large dictionary (vocabulary, concepts) in chunks of tokens: a product, its loss, its gradient at once.

A loss that is a sum has a gradient that is known, up to one factor, as soon as the logits are: softmax − one-hot. So a
chunk's logits are made, used for loss and gradient, and forgotten; nothing of the size tokens × dictionary is kept, and
nothing is computed twice: three products in all, as a plain layer needs. The plain forms are in ``mixers.py`` and
``modeling.py``; tests hold the two equal.

Shapes: N tokens, D hidden size, V entries of the dictionary, L labels a token, K kept entries.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

LOGITS_AT_ONCE = {"cpu": 1 << 21, "cuda": 1 << 28}
"""Logits of a chunk: on a CPU 8 MB, which stay in its caches; on a GPU 1 GB, which fill it."""


class Head(NamedTuple):
    """What :func:`concept_head` returns."""

    nll: Float[Tensor, ""]
    """Sum over the labels with a meaning of −log softmax(x·Wᵀ + b)[label], nats."""
    mixed: Float[Tensor, "N D"]
    """Σ over the K largest logits of logit · row of the compression."""


def linear_nll(
    x: Float[Tensor, "N D"], weight: Float[Tensor, "V D"], labels: Int[Tensor, "N L"], bias: Tensor | None = None
) -> Float[Tensor, ""]:
    """Sum of the NLLs of ``labels`` (negative: none) under softmax(x·Wᵀ + b), in float32 at least."""
    nll, _ = _Head.apply(x, weight, bias, labels, None, 0)
    return nll


def concept_head(
    x: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    bias: Float[Tensor, " V"],
    labels: Int[Tensor, "N L"],
    compress: Float[Tensor, "V D"],
    k: int,
) -> Head:
    """The NLL of the concept labels and the mixed vector, as ``ConceptMixer`` defines them."""
    return Head(*_Head.apply(x, weight, bias, labels, compress, k))


class _Head(torch.autograd.Function):
    """(x, weight, bias, labels, compress or None, k) → (nll, mixed or None)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, compress: Any, k: int) -> Any:
        product = _product_dtype(x)
        total = torch.promote_types(product, torch.float32)
        own, rows = x.to(product), weight.to(product)
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_x = torch.empty_like(own) if wants_x else None
        grad_weight = torch.zeros_like(weight, dtype=total) if wants_weight else None
        grad_bias = torch.zeros_like(bias, dtype=total) if wants_bias and bias is not None else None
        nll = torch.zeros((), dtype=total, device=x.device)
        kept_values, kept_indices = [], []
        for first in range(0, len(x), size := _chunk(x, weight)):
            part = slice(first, first + size)
            logits = own[part] @ rows.t() if bias is None else torch.addmm(bias.to(product), own[part], rows.t())
            if k:
                values, indices = logits.topk(k, dim=-1, sorted=False)
                kept_values.append(values.to(total))
                kept_indices.append(indices)
            logits = logits.to(total)
            here = labels[part]
            meant = here >= 0
            chosen = logits.gather(-1, here.clamp(min=0))
            largest = logits.amax(-1, keepdim=True)
            pull = logits.sub_(largest).exp_()  # in place of the logits: from here on they are gone
            sums = pull.sum(-1, keepdim=True)
            nll += ((sums.log() + largest - chosen) * meant).sum()
            if not (wants_x or wants_weight or wants_bias):
                continue
            # softmax · number of labels − one-hot
            pull.mul_(meant.sum(-1, keepdim=True) / sums)
            pull.scatter_add_(-1, here.clamp(min=0), -meant.to(total))
            if grad_bias is not None:
                grad_bias += pull.sum(0)
            pull = pull.to(product)
            if grad_x is not None:
                torch.mm(pull, rows, out=grad_x[part])
            if grad_weight is not None:
                if grad_weight.dtype == product:
                    grad_weight.addmm_(pull.t(), own[part])
                else:
                    grad_weight += pull.t() @ own[part]
        ctx.has_mix = bool(k)
        ctx.set_materialize_grads(False)  # what nobody used has no gradient, instead of one of zeros
        ctx.shapes = x.dtype, weight.dtype, None if bias is None else bias.dtype
        saved: list[Any] = [grad_x, grad_weight, grad_bias]
        if not k:
            ctx.save_for_backward(*saved)
            return nll, None
        values, indices = torch.cat(kept_values), torch.cat(kept_indices)
        mixed = torch.nn.functional.embedding_bag(
            indices, compress, per_sample_weights=values.to(compress.dtype), mode="sum"
        )
        ctx.save_for_backward(*saved, x, weight, compress, values, indices)
        return nll, mixed.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, pull_nll: Any, pull_mixed: Any) -> Any:
        grad_x, grad_weight, grad_bias, *mix = ctx.saved_tensors
        x_type, weight_type, bias_type = ctx.shapes
        if pull_nll is None:
            pull_nll = torch.zeros((), device=(mix or ctx.saved_tensors)[0].device)
        grad_x = None if grad_x is None else grad_x * pull_nll.to(grad_x.dtype)
        grad_weight = None if grad_weight is None else grad_weight * pull_nll
        grad_bias = None if grad_bias is None else grad_bias * pull_nll
        grad_compress = None
        if ctx.has_mix and pull_mixed is not None:
            x, weight, compress, values, indices = mix
            pull = pull_mixed.to(compress.dtype)
            flat = indices.flatten()
            by_entry = torch.bmm(compress[flat].view(*indices.shape, -1), pull.unsqueeze(-1)).squeeze(-1)
            if grad_x is not None:
                rows = weight[flat].view(*indices.shape, -1)
                grad_x += torch.bmm(by_entry.unsqueeze(1).to(rows.dtype), rows).squeeze(1).to(grad_x.dtype)
            if grad_weight is not None:
                outer = by_entry.unsqueeze(-1) * x.unsqueeze(1).to(by_entry.dtype)
                grad_weight.index_add_(0, flat, outer.flatten(0, 1).to(grad_weight.dtype))
            if grad_bias is not None:
                grad_bias.index_add_(0, flat, by_entry.flatten().to(grad_bias.dtype))
            if ctx.needs_input_grad[4]:
                outer = values.to(pull.dtype).unsqueeze(-1) * pull.unsqueeze(1)
                grad_compress = torch.zeros_like(compress).index_add_(0, flat, outer.flatten(0, 1))
        return (
            None if grad_x is None else grad_x.to(x_type),
            None if grad_weight is None else grad_weight.to(weight_type),
            None if grad_bias is None else grad_bias.to(bias_type),
            None,
            grad_compress,
            None,
        )


def is_plain_linear(module: nn.Module) -> bool:
    """Whether a module computes x·Wᵀ + b and nothing else: no adapter around it, no hook on it; and no compiler looks."""
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
    return type(module) is nn.Linear and not hooks and not torch.compiler.is_compiling()


def _product_dtype(x: Tensor) -> torch.dtype:
    """The type of the products: autocast's where it is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def _chunk(x: Tensor, weight: Tensor) -> int:
    return max(1, LOGITS_AT_ONCE.get(x.device.type, 1 << 26) // len(weight))
