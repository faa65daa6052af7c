"""Settings of ``cocomix compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from cocomix.config import Settings


class CompareSettings(Settings):
    """What ``cocomix compare`` takes after the run folders."""

    out: Path | None = Field(
        None, description="Folder of the report; without it, comparison/ beside the first run's folder."
    )
    baseline: str | None = Field(
        None,
        description="Method or run that the others are held against; without it ntp, else the first run.",
    )
    upstream_shared_by: int | None = Field(
        None,
        ge=1,
        description="Runs that share the training of teacher and SAE; without it those compared that have the same "
        "teacher, and the same SAE.",
    )
    format: Literal["text", "latex", "markdown", "csv"] = Field(
        "text",
        description="What is printed: a table of runs and the verdicts, or the methods' table for a paper, which is "
        "also written beside the page.",
    )
