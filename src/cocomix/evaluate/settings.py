"""What `cocomix eval` can be told."""

from __future__ import annotations

from pydantic import Field

from cocomix.config import Settings


class EvalSettings(Settings):
    """Perplexity on whole documents."""

    model: str = Field(description="run folder, export folder or hub id")
    data: str | None = Field(None, description="dataset folder; none: the run's own")
    split: str = Field("val", description="split of the dataset")
    context: int | None = Field(None, ge=2, description="longest context in tokens; none: the dataset's window")
    documents: int | None = Field(None, ge=1, description="how many documents; none: all")
    batch_windows: int = Field(16, ge=1, description="pieces a batch; does not change the result")
    device: str = Field("cpu", description="cpu, cuda, …")
