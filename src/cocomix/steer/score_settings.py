"""What `cocomix steer score` can be told."""

from __future__ import annotations

import math
from typing import Any

from pydantic import Field, field_validator, model_validator

from cocomix.config import Settings
from cocomix.steer.settings import DEVICE

MOST_DOSE = 1000.0


class ScoreSettings(Settings):
    """How well a run's concepts steer, beside two baselines at the same doses."""

    model: str = Field(description="run folder of a model with concepts; the first word of the command line")
    labels: str | None = Field(None, description="labels folder with an atlas; none: those that the run learnt from")
    concepts: int | list[int] = Field(
        16, description="how many are drawn at random, or which ([12] or 12,40); never chosen by their effect"
    )
    doses: list[float] = Field(
        [1.0, 2.0, 4.0, 8.0], description="multiples of a concept's usual strength; 0 is always measured too"
    )
    prompts: int = Field(16, ge=1, description="beginnings of held-out windows that are continued, for each dose")
    prompt_tokens: int = Field(16, ge=1, description="tokens of such a beginning")
    max_new_tokens: int = Field(48, ge=4, description="tokens of a continuation, always as many")
    temperature: float = Field(0.8, gt=0, description="of the sampling, the same in student and teacher")
    top_k: int | None = Field(50, ge=1, description="sample among this many most probable tokens")
    fluency: float = Field(
        1.5, gt=1, description="the summary's bound: perplexity at most this many times the unsteered text's"
    )
    judge: str | None = Field(None, description="another teacher that judges; with judge_sae=; none: the labels' own")
    judge_sae: str | None = Field(None, description="its autoencoder; a concept is the latent that goes with it best")
    judge_block: int | None = Field(None, ge=0, description="the block that judge_sae reads; none: what its files say")
    seed: int = Field(0, ge=0, description="of concepts, prompts, sampling and random directions")
    batch: int = Field(64, ge=1, description="texts that go through a model at once; all prompts of a dose at least")
    out: str | None = Field(None, description="folder of the result; none: steering/ in the run's folder")
    device: str = Field("auto", description=DEVICE)

    @field_validator("concepts", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        """``12,40``, as a command line says it."""
        words = value.split(",") if isinstance(value, str) else []
        if not all(word.strip().isdecimal() for word in words):
            raise ValueError(f"concepts={value} is neither a number nor a list of ids: write concepts=16 or 12,40")
        return words if len(words) > 1 else value

    @field_validator("doses", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        """``0,1,2``, as a command line says it, or one number."""
        return value.split(",") if isinstance(value, str) else [value] if isinstance(value, int | float) else value

    @field_validator("concepts")
    @classmethod
    def _some_concepts(cls, value: int | list[int]) -> int | list[int]:
        if isinstance(value, int):
            if value < 1:
                raise ValueError(f"concepts={value} are none: give a number from 1, or a list of ids")
            return value
        if not value or min(value) < 0 or len(set(value)) < len(value):
            raise ValueError(f"concepts={value} is no list of different ids: write concepts=12,40")
        return value

    @field_validator("doses")
    @classmethod
    def _rising(cls, value: list[float]) -> list[float]:
        doses = sorted({dose for dose in value if dose != 0})
        if not doses or not all(math.isfinite(dose) and 0 < dose <= MOST_DOSE for dose in value if dose != 0):
            raise ValueError(f"doses={value}: give numbers above 0, at most {MOST_DOSE:g}, such as doses=1,2,4,8")
        return doses

    @model_validator(mode="after")
    def _whole_judge(self) -> ScoreSettings:
        if (self.judge is None) != (self.judge_sae is None):
            raise ValueError("judge= and judge_sae= belong together: give both, or neither")
        return self
