"""A recipe as ``cocomix plan`` reads it: what is not there yet may be left out. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import ConfigDict, Field

from cocomix.config import Settings, load_settings
from cocomix.train.settings import TrainSettings

NOT_YET = "(not yet)"


class PlanSettings(Settings):
    """The machine that a run is planned for, and the teacher whose labels it will read."""

    gpus: int = Field(1, ge=1, description="number of ranks: GPUs, or processes on this machine's CPU")
    gpu: str | None = Field(None, description="kind of GPU; none: this machine's CPU, measured")
    utilisation: float = Field(0.4, gt=0, le=1, description="share of the peak that is reached")
    teacher: str | None = Field(None, description="model that the labels will come from; none: GPT-2 124M's shape")
    block: int | None = Field(None, ge=0, description="its block that the autoencoder reads; none: below its middle")


class _Said(Settings):
    """What a recipe says of its data, whatever it is."""

    model_config = ConfigDict(extra="ignore")
    packaged_recipes: ClassVar[bool] = True
    data: dict[str, Any] = Field(default_factory=dict)


def recipe_to_plan(words: Sequence[str]) -> TrainSettings:
    """The settings of a recipe, whether or not it says its run folder, data and labels."""
    absent = [f"run={NOT_YET}", f"data.path={NOT_YET}"]
    said = load_settings(_Said, words).data
    if not said.get("online"):
        absent.append(f"data.labels={NOT_YET}")
    if not said.get("teacher"):
        absent.append(f"data.probabilities={NOT_YET}")
    return load_settings(TrainSettings, [*absent, *words])
