"""Activation functions that PyTorch has as one kernel: the same function to rounding, fewer passes over memory."""

from __future__ import annotations

from torch import nn
from transformers.activations import AccurateGELUActivation, FastGELUActivation, NewGELUActivation

TANH_GELUS = (NewGELUActivation, FastGELUActivation, AccurateGELUActivation)
"""transformers' spellings of 0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³))), each of about eight passes."""


def fuse_activations(model: nn.Module) -> None:
    """Exchanges GELUs of many small operations for PyTorch's one kernel. They have no weights, and a model's
    configuration keeps its name for them."""
    for parent in model.modules():
        for name, child in parent.named_children():
            if type(child) in TANH_GELUS:
                setattr(parent, name, nn.GELU(approximate="tanh"))
