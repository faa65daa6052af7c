"""What `cocomix eval` can be told."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from cocomix.config import Settings

OF_PERPLEXITY = ("data", "split", "documents", "batch_windows")
OF_TASKS = ("limit", "batch", "include", "out")


class EvalSettings(Settings):
    """Perplexity on whole documents, or benchmark tasks."""

    model: str = Field(description="run folder, export folder or hub id; with tasks also a GGUF file")
    tasks: list[str] | None = Field(
        None,
        description="benchmark tasks instead of perplexity: hellaswag, piqa, social_iqa, arc_easy, winogrande, "
        "lambada_openai, and what lm-eval knows (wikitext, …), as [a,b]",
    )
    limit: int | None = Field(None, ge=1, description="tasks: the first items of each; none: all")
    batch: int = Field(16, ge=1, description="tasks: requests a batch; does not change the result")
    include: str | None = Field(None, description="tasks: folder with lm-eval task definitions of your own")
    out: str | None = Field(
        None, description="tasks: file that keeps finished ones; none: benchmarks.json in the run's or model's folder"
    )
    data: str | None = Field(None, description="perplexity: dataset folder; none: the run's own")
    split: str = Field("val", description="perplexity: split of the dataset")
    documents: int | None = Field(None, ge=1, description="perplexity: how many documents; none: all")
    batch_windows: int = Field(16, ge=1, description="perplexity: pieces a batch; does not change the result")
    context: int | None = Field(
        None, ge=2, description="longest context in tokens; none: the dataset's window, for tasks what the model holds"
    )
    device: str = Field("auto", description="cpu, cuda, …; auto: cuda where there is one")

    @field_validator("tasks", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        """``tasks=piqa`` and ``tasks=piqa,siqa`` are lists too."""
        return [name.strip() for name in value.split(",")] if isinstance(value, str) else value

    @field_validator("tasks")
    @classmethod
    def _some(cls, value: list[str] | None) -> list[str] | None:
        if value is not None and not all(value or [""]):
            raise ValueError("name at least one task, as tasks=[piqa]")
        return value

    @model_validator(mode="after")
    def _of_one_kind(self) -> EvalSettings:
        strange = OF_TASKS if self.tasks is None else OF_PERPLEXITY
        if given := [f"{key}=" for key in strange if key in self.model_fields_set]:
            mend = "add tasks=[…] or leave it out" if self.tasks is None else "leave it out, or leave tasks= out"
            kind = "tasks" if self.tasks is None else "perplexity on documents"
            raise ValueError(f"{', '.join(given)} is a setting of {kind}: {mend}")
        return self
