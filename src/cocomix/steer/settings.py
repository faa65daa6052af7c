"""What `cocomix inspect` and `cocomix generate` can be told."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from cocomix.config import Seed, Settings

DEVICE = "cpu, cuda, cuda:1 …; auto: cuda where there is one"


class InspectSettings(Settings):
    """Predicted concepts of a text."""

    model: str = Field(description="run folder or export folder of a model with concepts")
    atlas: str | None = Field(None, description="atlas file or labels folder for names; none: the run's own")
    top: int = Field(5, ge=1, description="concepts to show, a token")
    contributions: bool = Field(
        False,
        description="measure how much each concept shown, and all that are mixed, raise the log-probability of the "
        "text's next token: each is switched off at its token alone",
    )
    teacher: bool = Field(
        False, description="say which of the concepts are active in the teacher, by the run's labels; loads it"
    )
    picture: str | None = Field(None, description="PNG file to write: the text with its concepts and contributions")
    device: str = Field("auto", description=DEVICE)

    @model_validator(mode="after")
    def _is_png(self) -> InspectSettings:
        if self.picture is not None and not self.picture.endswith(".png"):
            raise ValueError(f"picture={self.picture} is no PNG file: give a name that ends in .png")
        return self


class GenerateSettings(Settings):
    """Text from a model, steered or not."""

    model: str = Field(description="run folder, export folder or hub id")
    prompts: str | None = Field(
        None,
        description='instead of a prompt: a file of lines {"prompt": …, "edits": ["ID=EDIT", …]}, or - for stdin; a '
        "line without edits has those of --steer",
    )
    max_new_tokens: int = Field(60, ge=1, description="tokens to add at most")
    temperature: float = Field(0.8, ge=0, description="0: always the most probable token")
    top_k: int | None = Field(50, ge=1, description="sample among this many most probable tokens")
    top_p: float = Field(1.0, gt=0, le=1, description="sample within this probability mass")
    samples: int = Field(1, ge=1, description="texts to make of a prompt")
    beams: int = Field(1, ge=1, description="above 1: the likeliest texts by beam search, instead of sampling")
    seed: Seed = Field(0, description="the same seed gives the same text, alone or in a batch")
    batch: int = Field(8, ge=1, description="with prompts=: prompts that go through the model at once")
    device: str = Field("auto", description=DEVICE)

    @field_validator("prompts", mode="before")
    @classmethod
    def _dash(cls, value: Any) -> Any:
        return "-" if value == [None] else value  # what YAML makes of a dash

    @model_validator(mode="after")
    def _fits_together(self) -> GenerateSettings:
        if self.beams > 1 and self.temperature > 0 and "temperature" in self.model_fields_set:
            raise ValueError(f"beams={self.beams} do not sample, temperature={self.temperature:g} does: leave one out")
        if self.samples > 1 and self.temperature == 0 and self.beams == 1:
            raise ValueError(
                f"samples={self.samples} of temperature={self.temperature:g} would all be the same text: leave one out"
            )
        if 1 < self.beams < self.samples:
            raise ValueError(f"samples={self.samples} is more than beams={self.beams}: give as many beams, or more")
        return self
