"""A language model's head, where the model does nothing else behind it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

CHECKED_TOKENS = 8


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
