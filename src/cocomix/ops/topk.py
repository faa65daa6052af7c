"""The k largest of tens of thousands of entries on a CPU, where ``torch.topk`` costs about as much as the matrix
product that made them.

In two stages: the entries are cut into blocks, the k blocks with the largest maxima are found, and the k largest
entries among these. That is exact: the k maxima of the chosen blocks are each as large as any entry of another block.
Of equal values any may be taken, and NaN counts as the largest, as in torch.

Shapes: N tokens, C entries.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 32
"""Entries of a block."""

LEAST_BLOCKS = 4
"""So many times k blocks there must be for two small searches to pay."""


def topk(values: Float[Tensor, "N C"], k: int) -> tuple[Float[Tensor, "N k"], Int[Tensor, "N k"]]:
    """Values and columns of the ``k`` largest entries of each row, largest first, as ``values.topk(k)`` finds them.

    Entries may lie in memory row by row or, as a transposed tensor's, column by column.
    """
    blocks = values.shape[1] // BLOCK
    if values.device.type != "cpu" or blocks < LEAST_BLOCKS * k:
        found = values.topk(k, dim=-1)
        return found.values, found.indices
    # A block is every blocks-th entry: so maxima are taken over whole vectors of neighbours in memory.
    if values.stride(0) == 1:
        maxima = values.t()[: blocks * BLOCK].unflatten(0, (BLOCK, blocks)).amax(0).t().contiguous()
    else:
        maxima = values[:, : blocks * BLOCK].unflatten(1, (BLOCK, blocks)).amax(1)
    return _among(values, maxima, k)


def _among(values: Float[Tensor, "N C"], maxima: Float[Tensor, "N blocks"], k: int) -> tuple[Tensor, Tensor]:
    """The largest among the blocks with the largest maxima and what lies behind the last whole block."""
    blocks, whole = maxima.shape[1], maxima.shape[1] * BLOCK
    chosen = maxima.topk(k, dim=-1, sorted=False).indices
    entries = (chosen.unsqueeze(1) + torch.arange(0, whole, blocks).unsqueeze(-1)).flatten(1)
    if whole < values.shape[1]:
        rest = torch.arange(whole, values.shape[1]).expand(len(values), -1)
        entries = torch.cat([entries, rest], dim=1)
    best, at = values.gather(1, entries).topk(k, dim=-1)
    return best, entries.gather(1, at)
