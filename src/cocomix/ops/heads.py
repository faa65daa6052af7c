"""Heads over a large dictionary (vocabulary, concepts) in chunks of tokens: a product, its loss, its gradient at once.

A loss that is a sum has a gradient that is known, up to one factor, as soon as the logits are: softmax − one-hot. So a
chunk's logits are made, used for loss and gradient, and forgotten; nothing of the size tokens × dictionary is kept, and
nothing is computed twice: three products in all, as a plain layer needs.

Shapes: N tokens, D hidden size, V entries of the dictionary, L labels a token, K kept entries, n tokens of a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from cocomix.ops.topk import topk

LOGITS_AT_ONCE = {"cpu": 50 << 20, "cuda": 1 << 28}
"""Logits of a chunk: 200 MB on a CPU, 1 GB on a GPU. Each chunk reads the dictionary again, so that few tokens at a
time cost time: at 50,257 entries of width 512, chunks of 64 tokens ran at 130 GFLOP/s, chunks of 512 at 185, and with
1,024 a head takes 1 to 2 % less than with 512."""

_AS_ON: ContextVar[str | None] = ContextVar("as_on", default=None)

ALIGNED = 64

ENTRIES_AT_ONCE = 1 << 19
"""Logits between passes of the softmax over one chunk, so that they stay in a CPU's cache."""

HARMLESS = (math.exp(-60.0), math.exp(60.0))
"""Sums of exponentials between these need no shift by the largest logit: they and their products stay in float32's
range, e^±88, and lose nothing. On a CPU it is tried without first: two passes over all logits less."""

ROWS_AT_ONCE = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Numbers of scaled rows between a product and its sum into a gradient: 4 MB in float32 on a CPU, 256 MB on a GPU."""


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
    nll, _ = _Head.apply(*without_graph(x, weight, bias), labels, None, 0)
    return nll


def concept_head(
    x: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    bias: Float[Tensor, " V"],
    labels: Int[Tensor, "N L"],
    compress: Float[Tensor, "V D"],
    k: int,
) -> Head:
    """The NLL of the concept labels and the mixed vector: paper Eq. 2 (before the mean) and 3 (before the bias)."""
    return Head(*_Head.apply(*without_graph(x, weight, bias), labels, compress, k))


def is_plain_linear(module: nn.Module) -> bool:
    """Whether a module computes x·Wᵀ + b and nothing else: no adapter around it, no hook on it, no compiler looking."""
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
    return type(module) is nn.Linear and not hooks and not torch.compiler.is_compiling()


@contextmanager
def chunks_as_on(kind: str) -> Iterator[None]:
    """Inside, work is cut into pieces as on a device of another kind: to tell that device's memory."""
    before = _AS_ON.set(kind)
    try:
        yield
    finally:
        _AS_ON.reset(before)


def _kind(x: Tensor) -> str:
    """The kind of device as whose pieces are cut."""
    return _AS_ON.get() or x.device.type


def tokens_at_once(tokens: int, entries: int, kind: str | None = None) -> int:
    """Tokens of a chunk: all chunks are of one size, a multiple of :data:`ALIGNED` where they are larger, since odd
    ones cost up to half of the speed."""
    most = max(1, LOGITS_AT_ONCE.get(kind or _AS_ON.get() or "cpu", 1 << 26) // entries)
    size = math.ceil(tokens / max(1, math.ceil(tokens / most)))
    return min(math.ceil(size / ALIGNED) * ALIGNED, tokens) if size > ALIGNED else max(size, 1)


def without_graph(*tensors: Any) -> tuple[Any, ...]:
    """Where no graph is recorded, none of the tensors is to have a gradient (autograd asks their flags alone)."""
    if torch.is_grad_enabled():
        return tensors
    return tuple(t if t is None else t.detach() for t in tensors)


class _Head(torch.autograd.Function):
    """(x, weight, bias, labels, compress or None, k) → (nll, mixed or None)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, compress: Any, k: int) -> Any:
        wants = ctx.needs_input_grad[:3]
        nll, grads, values, indices = _loss_and_gradients(x, weight, bias, labels, k, wants)
        ctx.set_materialize_grads(False)  # what nobody used has no gradient, instead of one of zeros
        ctx.grads = grads
        if not k:
            return nll, None
        mixed = F.embedding_bag(indices, compress, per_sample_weights=values.to(compress.dtype), mode="sum")
        ctx.save_for_backward(x, weight, compress, values, indices)
        return nll, mixed.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, pull_nll: Any, pull_mixed: Any) -> Any:
        if ctx.grads is None:
            raise RuntimeError("the graph behind a head holds its gradients once: backward through it a second time")
        grads, ctx.grads = ctx.grads, None  # in place from here on
        for gradient in grads:
            if gradient is not None:
                gradient.mul_(0.0 if pull_nll is None else pull_nll.to(gradient.dtype))
        grad_compress = None
        if ctx.saved_tensors and pull_mixed is not None:
            x, weight, compress, values, indices = ctx.saved_tensors
            grad_compress = _mixing_gradients(
                x, weight, compress, values, indices, pull_mixed, grads, ctx.needs_input_grad[4]
            )
        return *grads, None, grad_compress, None


def _loss_and_gradients(
    x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, k: int, wants: tuple[bool, bool, bool]
) -> tuple[Tensor, list[Tensor | None], Any, Any]:
    """The NLL; its gradients for x, weight and bias where wanted; values and indices of the K largest logits.

    Logits lie one token a column: so the product runs at full speed on a CPU (as rows at two thirds of it).
    """
    product = product_dtype(x)
    total = torch.promote_types(product, torch.float32)
    own, rows = x.to(product), weight.to(product)
    shift = None if bias is None else bias.to(product).unsqueeze(1)
    grad_x = torch.empty_like(own) if wants[0] else None
    room = torch.empty_like if len(x) else torch.zeros_like
    grad_weight = room(weight, dtype=total) if wants[1] else None
    grad_bias = torch.zeros_like(bias, dtype=total) if wants[2] and bias is not None else None
    nll = torch.zeros((), dtype=total, device=x.device)
    kept = []
    for part, logits in chunks(own, rows):
        if shift is not None:
            logits += shift
        if k:
            kept.append(topk(logits.t(), k))
        logits = logits.to(total)
        here = labels[part].t()
        meant = here >= 0
        here, count = here.clamp(min=0), meant.sum(0)
        chosen = logits.gather(0, here)
        largest = logits.new_zeros(())
        on_cpu = _kind(x) == "cpu"
        if not on_cpu or not _harmless(sums := exponentials(logits, largest)):
            if on_cpu:  # the exponentials stand in the logits' place
                torch.mm(rows, own[part].t(), out=logits) if total == product else logits.copy_(rows @ own[part].t())
                logits += 0 if shift is None else shift
            largest = logits.amax(0)
            sums = exponentials(logits, largest)
        nll += ((sums.log() + largest - chosen) * meant).sum()
        if not any(wants):
            continue
        # The gradient is count·softmax − one-hot = (e^(z − max) − one-hot·sum/count) · count/sum. The factor, one a
        # token, is put on the D numbers beside it and not on the V ones here.
        pull = logits.scatter_add_(0, here, -(meant * (sums / count.clamp(min=1)))).to(product)
        factor = (count / sums).unsqueeze(1)
        if grad_x is not None:
            grad_x[part] = (pull.t() @ rows) * factor.to(product)
        if grad_weight is not None:
            scaled = (own[part] * factor).to(product)
            first = part.start == 0
            if grad_weight.dtype == product:
                torch.addmm(grad_weight, pull, scaled, beta=0.0 if first else 1.0, out=grad_weight)
            elif first:
                grad_weight.copy_(pull @ scaled)
            else:
                grad_weight.add_(pull @ scaled)
        if grad_bias is not None:
            grad_bias += torch.mv(pull, factor.squeeze(1).to(product))
    values, indices = (torch.cat(column) for column in zip(*kept, strict=True)) if kept else (None, None)
    typed: Any = zip((grad_x, grad_weight, grad_bias), (x, weight, bias), strict=True)
    return nll, [None if g is None else g.to(of.dtype) for g, of in typed], values, indices


def chunks(x: Float[Tensor, "N D"], rows: Float[Tensor, "V D"]) -> Iterator[tuple[slice, Float[Tensor, "V n"]]]:
    """Slices of tokens and their logits, in memory that the next chunk takes over."""
    size = tokens_at_once(len(x), len(rows), _kind(x))
    room = x.new_empty(len(rows), size)
    for first in range(0, len(x), size):
        part = x[first : first + size]
        logits = room if len(part) == size else x.new_empty(len(rows), len(part))
        yield slice(first, first + size), torch.mm(rows, part.t(), out=logits)


def _harmless(sums: Float[Tensor, " n"]) -> bool:
    return HARMLESS[0] < float(sums.amin()) <= float(sums.amax()) < HARMLESS[1]


def exponentials(logits: Float[Tensor, "V n"], largest: Float[Tensor, "*n_or_none"]) -> Float[Tensor, " n"]:
    """Makes e^(z − largest) of the logits, in place and a few rows at a time; returns the sums."""
    size = max(1, ENTRIES_AT_ONCE // logits.shape[1]) if _kind(logits) == "cpu" else len(logits)
    shifted = (rows.sub_(largest) if largest.dim() else rows for rows in logits.split(size))
    return torch.stack([rows.exp_().sum(0) for rows in shifted]).sum(0)


def _mixing_gradients(
    x: Tensor, weight: Tensor, compress: Tensor, values: Tensor, indices: Tensor, pull: Tensor, grads: Any, wanted: bool
) -> Tensor | None:
    """Adds to the gradients of x, weight and bias what the mixed vector's brings; returns the compression's own.

    Nothing but K rows a token is touched. Products with rows are left to the kernels of ``embedding_bag`` (forward, and
    its gradient for the weights of a bag), which gather nothing.
    """
    grad_x, grad_weight, grad_bias = grads
    tokens, k = indices.shape
    pull, flat = pull.to(compress.dtype).contiguous(), indices.flatten()
    bags = torch.arange(tokens, device=x.device)
    by_entry = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        pull, compress, flat, bags * k, bags.repeat_interleave(k), 0
    ).view(tokens, k)
    if grad_x is not None:
        brought = F.embedding_bag(indices, weight, per_sample_weights=by_entry.to(weight.dtype), mode="sum")
        grad_x += brought.to(grad_x.dtype)
    if grad_bias is not None:
        grad_bias.index_add_(0, flat, by_entry.flatten().to(grad_bias.dtype))
    grad_compress = torch.zeros_like(compress) if wanted else None
    size = max(1, ROWS_AT_ONCE.get(_kind(x), 1 << 26) // (k * compress.shape[1]))
    for part in (slice(first, first + size) for first in range(0, tokens, size)):
        rows = indices[part].flatten()
        if grad_weight is not None:
            outer = by_entry[part].unsqueeze(-1) * x[part].unsqueeze(1).to(by_entry.dtype)
            grad_weight.index_add_(0, rows, outer.flatten(0, 1).to(grad_weight.dtype))
        if grad_compress is not None:
            outer = values[part].to(pull.dtype).unsqueeze(-1) * pull[part].unsqueeze(1)
            grad_compress.index_add_(0, rows, outer.flatten(0, 1))
    return grad_compress


def product_dtype(x: Tensor) -> torch.dtype:
    """The type of the products: autocast's where it is on. Exponentials' sums want float32's range, which float16 has
    not."""
    kind = x.device.type
    product = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    return torch.float32 if product == torch.float16 else product
