"""What `cocomix concepts weights` can be told."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from cocomix.config import Settings


class WeightsSettings(Settings):
    """Norms of the compression's weights, one a concept."""

    model: str = Field(description="run folder or export folder of a model with mixer=concept")
    bound: float = Field(
        1e-2, gt=0, allow_inf_nan=False, description="a concept whose weights' norm is below is called unused"
    )
    out: Path | None = Field(
        None, description="folder of compression.json and compression.png; none: the run's or the model's folder"
    )
