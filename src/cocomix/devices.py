"""The device that a setting names, checked before any work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cocomix.errors import UserError

if TYPE_CHECKING:
    import torch


def pick_device(device: str) -> torch.device:
    """The torch device for a setting; ``auto``: CUDA where there is one.

    Raises :class:`UserError` for one that nothing can be put on here.
    """
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:  # an assertion: PyTorch was built without this kind
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(". ")
        raise UserError(f"device={device} is not usable here ({reason}): give device=cpu") from error
    return found
