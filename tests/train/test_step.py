"""Clipping is PyTorch's, and leaves alone what is short enough."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cocomix.train.step import clip_gradients


@pytest.mark.parametrize("largest", [0.5, 5.0, 50.0])
def test_gradients_are_clipped_to_the_norm_and_no_further(largest: float):
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    unused = nn.Linear(2, 2)  # a parameter without a gradient is passed over
    torch.manual_seed(0)
    for mine, its in zip(model.parameters(), other.parameters(), strict=True):
        mine.grad = 3 * torch.randn_like(mine)
        its.grad = mine.grad.clone()
    norm = clip_gradients(nn.ModuleList([model, unused]), largest)
    assert norm == pytest.approx(float(nn.utils.clip_grad_norm_(other.parameters(), largest)))
    for mine, its in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, its.grad)
    left = float(nn.utils.get_total_norm([p.grad for p in model.parameters()]))
    assert left == pytest.approx(min(norm, largest), rel=1e-5)
