"""UTF-8 bytes of the text behind the first documents of a split: what bits a byte are divided by."""

from __future__ import annotations

import functools
from itertools import islice
from typing import Any

from cocomix.data.dataset import Dataset

PROBE = "A cap, two  spaces,\ttab\n\n– naïve 文字 🙂 1,000."
"""What a tokenizer must give back as it was for its tokens to say how long a text is."""


@functools.lru_cache(maxsize=8)
def text_bytes(dataset: Dataset, split: str, documents: int | None) -> int | None:
    """Bytes of the first ``documents`` (or all) documents of a split; None where they cannot be known.

    Of all they were counted when the text was prepared; of some their tokens are decoded, once in a process. That is
    exact for tokenizers without a normaliser (NFC, say, may have changed a few characters before).
    """
    found = dataset.split(split)
    if documents is None:
        return found.text_bytes
    rest = found.documents()
    first = list(islice(rest, documents))
    if found.text_bytes is not None and next(rest, None) is None:
        return found.text_bytes
    tokenizer = dataset.tokenizer()
    if _text(tokenizer, tokenizer.encode(PROBE, add_special_tokens=False)) != PROBE:
        return None
    return sum(len(_text(tokenizer, ids[ids != found.eos_id].tolist()).encode()) for ids in first)


def _text(tokenizer: Any, ids: list[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text
