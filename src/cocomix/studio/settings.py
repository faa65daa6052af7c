"""What `cocomix studio` can be told."""

from __future__ import annotations

from pydantic import Field

from cocomix.config import Settings
from cocomix.steer.settings import DEVICE


class StudioSettings(Settings):
    """A studio on one model."""

    model: str = Field(description="run folder or export folder of a model with concepts (the first word)")
    atlas: str | None = Field(None, description="atlas file or labels folder for names; none: the run's own")
    runs: str | None = Field(None, description="folder whose runs are compared; none: the one that the model lies in")
    host: str = Field("127.0.0.1", description="address to listen at; the default is for this machine alone")
    port: int = Field(7860, ge=0, le=65535, description="port to listen at; 0: any that is free")
    prompt_tokens: int | None = Field(
        None, ge=1, description="longest text and prompt, in tokens; none: what the model reads"
    )
    new_tokens: int = Field(200, ge=1, description="most tokens that a visitor may ask for")
    generations: int = Field(
        2, ge=1, description="texts read, measured or made at the same time; who comes later waits"
    )
    waiting: int = Field(64, ge=1, description="requests that may wait; more are told to come again")
    device: str = Field("auto", description=DEVICE)
