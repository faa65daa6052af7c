"""Parts of transformers' backbones that PyTorch has as one kernel: the same function, fewer passes over memory."""

from __future__ import annotations

from torch import nn
from transformers.activations import NewGELUActivation


def fuse_activations(module: nn.Module) -> None:
    """Puts PyTorch's tanh GELU in the place of GPT-2's, which is written as eight operations. They have no weights, and
    the configuration keeps its name for it."""
    for parent in module.modules():
        for name, child in parent.named_children():
            if type(child) is NewGELUActivation:
                setattr(parent, name, nn.GELU(approximate="tanh"))
