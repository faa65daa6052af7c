"""The search in two stages against torch's own."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cocomix.ops.topk import BLOCK, LEAST_BLOCKS, topk

fuzz = settings(max_examples=60, deadline=None, derandomize=True)


@fuzz
@given(
    rows=st.integers(1, 5),
    k=st.integers(1, 6),
    blocks=st.integers(1, 40),
    rest=st.integers(0, BLOCK - 1),
    levels=st.sampled_from([None, 2, 30]),
    seed=st.integers(0, 10**6),
    by_columns=st.booleans(),
)
def test_two_stages_find_what_one_search_finds(
    rows: int, k: int, blocks: int, rest: int, levels: int | None, seed: int, by_columns: bool
) -> None:
    torch.manual_seed(seed)
    width = blocks * BLOCK + rest
    values = torch.randn(rows, width)
    if levels is not None:  # many equal values
        values = torch.randint(-levels, levels, (rows, width)).float()
    values[0, -1 - rest // 2] = 50.0  # in the columns behind the last whole block, if there are any
    if by_columns:
        values = values.t().contiguous().t()
    found, columns = topk(values, k)
    assert torch.equal(found, values.topk(k).values)
    assert torch.equal(values.gather(1, columns), found)
    assert all(len(set(row.tolist())) == k for row in columns)
    if levels is None:
        assert torch.equal(columns, values.topk(k).indices)


def test_the_search_in_two_stages_keeps_what_is_not_a_number() -> None:
    values = torch.zeros(2, LEAST_BLOCKS * BLOCK * 3)
    values[1, 100] = torch.nan
    found, columns = topk(values, 3)
    assert columns[1, 0] == 100
    assert torch.isnan(found[1, 0])
    assert not torch.isnan(found[0]).any()
