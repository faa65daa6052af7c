"""Parts of a frozen model that may be computed in a cheaper way because they are known: activations, and the head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import AccurateGELUActivation, FastGELUActivation, NewGELUActivation

TANH_GELUS = (NewGELUActivation, FastGELUActivation, AccurateGELUActivation)
"""transformers' spellings of 0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³))), each of eight passes over memory."""

CHECKED_TOKENS = 8


def fuse_activations(model: nn.Module) -> None:
    """Exchanges GELUs of many small operations for PyTorch's one kernel: the same function to rounding."""
    for parent in model.modules():
        for name, child in parent.named_children():
            if type(child) in TANH_GELUS:
                setattr(parent, name, nn.GELU(approximate="tanh"))


def plain_head(model: Any) -> nn.Linear | None:
    """The model's head where its logits are exactly what this layer returns; None where they are not.

    Measured on a few tokens, since some families scale or cap logits behind the head, or have several heads.
    """
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or head.weight.device.type == "meta":
        return None
    returned: list[Tensor] = []
    # a copy: a model may change what the head returned in place
    handle = head.register_forward_hook(lambda module, arguments, output: returned.append(output.clone()))
    tokens = torch.arange(CHECKED_TOKENS, device=head.weight.device).unsqueeze(0) % head.out_features
    try:
        with torch.no_grad():
            logits = model(input_ids=tokens, use_cache=False).logits
    finally:
        handle.remove()
    same = len(returned) == 1 and returned[0].shape == logits.shape and torch.equal(returned[0], logits)
    return head if same else None
