"""What a recipe can say about more than one process. Imports no torch: --help reads this."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cocomix.config import Settings


class DistSettings(Settings):
    """How work is spread over the ranks that torchrun starts; one process needs none of it."""

    strategy: Literal["ddp", "fsdp"] = Field(
        "ddp", description="with several ranks: every rank holds the model (ddp), or a part of each block (fsdp)"
    )
    replicas: int = Field(
        1, ge=1, description="with fsdp: groups of ranks that hold the whole model each (hybrid sharding: one a node)"
    )
    reshard: bool = Field(
        True, description="with fsdp: free a block's gathered weights after its forward pass (less memory)"
    )
    offload: bool = Field(False, description="with fsdp: weights and optimizer state lie in the CPU's memory")
    timeout: float = Field(600.0, gt=0, description="seconds that ranks wait for one that hangs")
