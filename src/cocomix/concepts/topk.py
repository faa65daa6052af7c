"""The k largest entries of long rows on a CPU, where ``torch.topk`` over tens of thousands of columns costs about as
much as the matrix product that made them.

Shapes: N rows, C columns.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 32
"""Columns of a block."""

LEAST_BLOCKS = 4
"""So many times k blocks there must be for two small searches to pay."""


def exact_topk(values: Float[Tensor, "N C"], k: int) -> tuple[Float[Tensor, "N k"], Int[Tensor, "N k"]]:
    """Values and columns of the ``k`` largest entries of each row, largest first, as ``values.topk(k)`` finds them.

    In two stages: the columns are cut into blocks, the k blocks with the largest maxima are found, and the k largest
    entries among these. That is exact: the k maxima of the chosen blocks are each as large as any entry of another
    block. Of equal values any may be taken, as in torch; NaN counts as the largest, as in torch.
    """
    blocks = values.shape[1] // BLOCK
    if values.device.type != "cpu" or blocks < LEAST_BLOCKS * k:
        found = values.topk(k, dim=-1)
        return found.values, found.indices
    # A block is every blocks-th column: so the maxima are taken over whole vectors of neighbouring columns.
    cut = values[:, : blocks * BLOCK].unflatten(1, (BLOCK, blocks))
    chosen = cut.amax(1).topk(k, dim=-1, sorted=False).indices
    columns = (chosen.unsqueeze(1) + torch.arange(0, blocks * BLOCK, blocks).unsqueeze(-1)).flatten(1)
    if blocks * BLOCK < values.shape[1]:  # the columns behind the last whole block may win too
        rest = torch.arange(blocks * BLOCK, values.shape[1]).expand(len(values), -1)
        columns = torch.cat([columns, rest], dim=1)
    best, at = values.gather(1, columns).topk(k, dim=-1)
    return best, columns.gather(1, at)
