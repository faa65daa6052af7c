"""GGUF files (llama.cpp's format: weights, usually quantised, and tokenizer in one file), where they are and whole.

transformers reads them through the package ``gguf``: ``from_pretrained(folder, gguf_file=name)``.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path
from typing import Any

from cocomix.errors import UserError, explained

SUFFIX = ".gguf"


def find_gguf(path: Path, option: str) -> Path | None:
    """``path`` itself when it is a GGUF file, or the only one in the folder; None where there is none.

    ``option`` is how the user named it (``teacher=models/x``). Raises :class:`UserError` when the folder holds
    several, or the package ``gguf`` is missing.
    """
    found = [path] if path.is_file() and path.suffix == SUFFIX else sorted(path.glob(f"*{SUFFIX}"))
    if not found:
        return None
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise UserError(
            f"{option} holds several GGUF files ({names}): name the one that is meant, as {option}/{found[0].name}"
        )
    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"{option} is a GGUF file, to be read with the package gguf: pip install gguf")
    return found[0]


def quantisation(file: Path) -> dict[str, float]:
    """Share of the parameters in each of GGUF's types (``{"Q4_1": 0.79, "Q8_0": 0.21}``), the largest first.

    Raises :class:`UserError` when the file is truncated or damaged, or transformers would load another model from it.
    """
    reader = _read(file)
    if scaled := _rotary_scaling(reader):
        raise UserError(
            f"{file} scales its rotary positions ({scaled}), which transformers drops when it reads GGUF files: give "
            "the same model as a folder of safetensors"
        )
    sizes: Counter[str] = Counter()
    for tensor in reader.tensors:
        sizes[tensor.tensor_type.name] += int(tensor.n_elements)
    return {name: round(size / sizes.total(), 4) for name, size in sizes.most_common()}


def check_whole(file: Path) -> None:
    """Raises :class:`UserError` when the file is truncated or damaged."""
    _read(file)


def _read(file: Path) -> Any:
    from gguf import GGUFReader

    try:
        with explained(file):
            return GGUFReader(file)
    except (ValueError, IndexError, KeyError, UnicodeDecodeError) as error:  # it maps the file and slices
        lines = str(error).splitlines() or [type(error).__name__]
        raise UserError(f"{file} is no whole GGUF file ({lines[0][:200]}): copy or download it again") from error


def _rotary_scaling(reader: Any) -> str | None:
    """What says that positions are scaled, where transformers does not read it; it does for gpt-oss alone."""
    told = {name: field.contents() for name, field in reader.fields.items() if ".rope.scal" in name}
    architecture = reader.fields.get("general.architecture")
    if architecture is not None and architecture.contents() == "gpt-oss":
        return None
    for name, value in told.items():
        if name.endswith((".rope.scaling.factor", ".rope.scale_linear")) and value != 1:
            return f"{name}={value:g}"
        if name.endswith(".type") and value != "none" and f"{name.removesuffix('type')}factor" not in told:
            return f"{name}={value}"
    tables = ("rope_freqs", "rope_factors_long", "rope_factors_short")
    return next((tensor.name for tensor in reader.tensors if tensor.name.split(".")[0] in tables), None)
