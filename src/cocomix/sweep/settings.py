"""What ``sweep.yaml`` can say. Imports no torch: --help reads this."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from cocomix.config import Settings

OF_THE_SWEEP = {"seed": "give seeds: […], a row its own in its seeds", "data.path": "give data: FOLDER"}
"""Settings of a run that are no row's to set, and what to write instead."""


class RunSettings(Settings):
    """A row of a sweep: a run for each point of the grid and each seed."""

    recipe: list[str] = Field(description="recipes, laid over each other, e.g. [tiny/cocomix, ablations/mixing_alone]")
    set: dict[str, Any] = Field(
        default_factory=dict, description="settings of 'cocomix train', e.g. {model.insert_at: 3}"
    )
    labels: str | None = Field(None, description="which of the sweep's labels it reads")
    probabilities: str | None = Field(None, description="which of the sweep's probabilities it reads")
    grid: dict[str, list[Any]] | None = Field(None, description="instead of the sweep's grid; {} for none")
    seeds: list[int] | None = Field(None, description="instead of the sweep's seeds", min_length=1)

    @field_validator("recipe", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class SweepSettings(Settings):
    """Runs in a row, or some at a time."""

    folder: str = Field(description="the runs lie in FOLDER/NAME")
    data: str = Field(description="the dataset folder")
    runs: dict[str, RunSettings] = Field(
        description="rows by name: the method's name, by which comparisons group runs", min_length=1
    )
    set: dict[str, Any] = Field(default_factory=dict, description="settings of every run, e.g. {tokens: 2000000}")
    grid: dict[str, list[Any]] = Field(
        default_factory=dict, description="setting → values: every row with every combination"
    )
    seeds: list[int] = Field([0], description="every point of the grid with every seed", min_length=1)
    labels: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="name → settings of 'cocomix concepts extract'; a cache that holds the same is found by itself; "
        "with train_windows one for each seed",
    )
    probabilities: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="name → settings of 'cocomix concepts probabilities', likewise"
    )
    jobs: int = Field(1, ge=1, description="runs at a time; on a machine with several GPUs they take one each")
    threads: int | None = Field(
        None, ge=1, description="CPU threads of a run that does not set its own; none: the cores, shared by the jobs"
    )
    part: str | None = Field(
        None,
        pattern=r"^\d+/[1-9]\d*$",
        description="I/N: every N-th run, from the I-th on (one of N cluster jobs). Parts count from 1: "
        "sbatch --array=1-16 for part=$SLURM_ARRAY_TASK_ID/16",
    )
    only: list[str] | None = Field(None, description="rows to run, by name; none: all", min_length=1)

    @model_validator(mode="after")
    def _says_once(self) -> SweepSettings:
        """With another seed or dataset in ``set``, runs would not be what their names and the sweep say."""
        rows = self.runs.items()
        sets = [("set", self.set), *((f"runs.{name}.set", row.set) for name, row in rows)]
        grids = [("grid", self.grid), *((f"runs.{name}.grid", row.grid or {}) for name, row in rows)]
        for where, given in [*sets, *grids]:
            data = given.get("data")
            for key in [*given, *(f"data.{inner}" for inner in (data if isinstance(data, dict) else ()))]:
                if key in OF_THE_SWEEP:
                    raise ValueError(f"{where}.{key}: this is said once for the sweep, {OF_THE_SWEEP[key]}")
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> SweepSettings:
        for where, grid in [("grid", self.grid), *((f"runs.{name}.grid", row.grid) for name, row in self.runs.items())]:
            for key, values in (grid or {}).items():
                if not values:
                    raise ValueError(
                        f"{where}.{key} has no values, so there is nothing to run: give some, or leave it out"
                    )
        for name, row in self.runs.items():
            for option in ("labels", "probabilities"):
                wanted, known = getattr(row, option), getattr(self, option)
                if wanted is not None and wanted not in known:
                    raise ValueError(
                        f"runs.{name}.{option}={wanted} is not among the sweep's {option}: "
                        f"{', '.join(known) or 'there are none'}"
                    )
        for name in self.only or []:
            if name not in self.runs:
                raise ValueError(f"only={name} is no row of the sweep: {', '.join(self.runs)}")
        if self.part is not None:
            number, parts = map(int, self.part.split("/"))
            if not 1 <= number <= parts:
                raise ValueError(f"part={self.part}: parts count from 1, give 1/{parts} … {parts}/{parts}")
        return self
