"""GGUF files (llama.cpp's format: weights, usually quantised, and tokenizer in one file), where they are and whole.

transformers reads them through the package ``gguf``: ``from_pretrained(folder, gguf_file=name)``.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path

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

    Raises :class:`UserError` when the file is truncated or damaged.
    """
    from gguf import GGUFReader

    try:
        with explained(file):
            tensors = GGUFReader(file).tensors
    except (ValueError, IndexError, KeyError, UnicodeDecodeError) as error:  # it maps the file and slices
        lines = str(error).splitlines() or [type(error).__name__]
        raise UserError(f"{file} is no whole GGUF file ({lines[0][:200]}): copy or download it again") from error
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        sizes[tensor.tensor_type.name] += int(tensor.n_elements)
    return {name: round(size / sizes.total(), 4) for name, size in sizes.most_common()}
