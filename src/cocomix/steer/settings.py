"""What `cocomix inspect` and `cocomix generate` can be told."""

from __future__ import annotations

from pydantic import Field

from cocomix.config import Settings


class InspectSettings(Settings):
    """Predicted concepts of a text."""

    model: str = Field(description="run folder or export folder of a model with concepts")
    atlas: str | None = Field(None, description="atlas file or labels folder for names; none: the run's own")
    top: int = Field(5, ge=1, description="concepts to show, a token")


class GenerateSettings(Settings):
    """Text from a model, steered or not."""

    model: str = Field(description="run folder, export folder or hub id")
    max_new_tokens: int = Field(60, ge=1, description="tokens to add at most")
    temperature: float = Field(0.8, ge=0, description="0: always the most probable token")
    top_k: int | None = Field(50, ge=1, description="sample among this many most probable tokens")
    top_p: float = Field(1.0, gt=0, le=1, description="sample within this probability mass")
    samples: int = Field(1, ge=1, description="texts to make")
    seed: int = Field(0, ge=0, description="the same seed gives the same text")
