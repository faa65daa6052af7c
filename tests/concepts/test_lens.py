"""What the final norm does to a direction, in families that write it in different ways."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo.modeling_olmo import OlmoLayerNorm

from cocomix.concepts.lens import norm_scale

WIDTH = 8


@pytest.mark.parametrize(
    ("norm", "offset", "centred"),
    [
        (nn.LayerNorm(WIDTH), 0.0, True),
        (LlamaRMSNorm(WIDTH), 0.0, False),
        (Gemma3RMSNorm(WIDTH), 1.0, False),
        (OlmoLayerNorm(WIDTH), None, True),
    ],
    ids=["LayerNorm", "Llama", "Gemma", "OLMo"],
)
def test_the_scale_of_a_final_norm_is_what_it_does(norm: nn.Module, offset: float | None, centred: bool) -> None:
    due = torch.ones(WIDTH)
    if offset is not None:
        weight = torch.linspace(-1, 2, WIDTH)
        norm.load_state_dict({"weight": weight, **({"bias": weight + 3} if "bias" in norm.state_dict() else {})})
        due = weight + offset
    found = norm_scale(norm.bfloat16() if offset else norm, WIDTH)
    torch.testing.assert_close(
        found.gamma, due.bfloat16().float() if offset else due, rtol=1e-2 if offset else 1e-4, atol=1e-4
    )
    assert found.centred is centred
