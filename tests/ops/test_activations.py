from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN

from cocomix.ops.activations import fuse_activations
from cocomix.testing.models import tiny_model


@pytest.mark.parametrize("name", ["gelu_new", "gelu_fast", "gelu_accurate"])
def test_an_exchanged_activation_is_the_same_function(name: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ModuleDict({"act": ACT2FN[name], "other": ACT2FN["quick_gelu"]}))
    before = model[1]["act"]
    fuse_activations(model)
    after = model[1]["act"]
    assert type(after) is nn.GELU
    assert type(model[1]["other"]) is not nn.GELU
    for dtype, error in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        x = torch.linspace(-8, 8, 4001, dtype=dtype).requires_grad_()
        found, due = after(x), before(x)
        torch.testing.assert_close(found, due, atol=error, rtol=error)
        gradients = [torch.autograd.grad(y.sum(), x)[0] for y in (found, due)]
        torch.testing.assert_close(*gradients, atol=error, rtol=error)


def test_a_gpt2_here_has_pytorchs_own() -> None:
    assert type(tiny_model("gpt2", mixer="none").blocks[0].mlp.act) is nn.GELU
