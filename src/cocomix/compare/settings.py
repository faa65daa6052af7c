"""Settings of ``cocomix compare``."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from cocomix.config import Settings


class CompareSettings(Settings):
    """What ``cocomix compare`` takes behind the run folders."""

    out: Path | None = Field(
        None, description="Folder of the report; without it, comparison/ beside the first run's folder."
    )
    baseline: str | None = Field(
        None,
        description="Method or run that the others are held against; without it ntp, else the first run.",
    )
