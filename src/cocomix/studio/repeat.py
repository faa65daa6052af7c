"""What was done in the studio, written so that it can be done elsewhere."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from cocomix.steer.edits import Edit
from cocomix.steer.settings import GenerateSettings


def as_command(prompt: str, edits: Sequence[Edit], settings: GenerateSettings) -> str:
    """A command line for a POSIX shell."""
    steer = [word for edit in edits for word in ("--steer", str(edit))]
    how = [f"{key}={value}" for key, value in _said(settings).items()]
    is_like_a_setting = prompt.partition("=")[0] in {"prompt", *GenerateSettings.model_fields}
    return shlex.join(["cocomix", "generate", *steer, "--", f"prompt={prompt}" if is_like_a_setting else prompt, *how])


def as_python(prompt: str, edits: Sequence[Edit], settings: GenerateSettings) -> str:
    """A few lines of Python."""
    how = ", ".join(f"{key}={value!r}" for key, value in _said(settings).items())
    written = ", ".join(f"parse_edit({str(edit)!r})" for edit in edits)
    return (
        "from cocomix.steer.edits import parse_edit\n"
        "from cocomix.steer.generation import generate\n"
        "from cocomix.steer.settings import GenerateSettings\n\n"
        f"settings = GenerateSettings({how})\n"
        f"result = generate(settings, {prompt!r}, [{written}])\n"
        'print(result["unsteered"], result["steered"], sep="\\n\\n")\n'
    )


def _said(settings: GenerateSettings) -> dict[str, Any]:
    return settings.model_dump(include={"model", "max_new_tokens", "temperature", "seed"})
