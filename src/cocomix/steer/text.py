"""A user's text as token ids, refused at once where no model could read so much; and tokens as text again."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from cocomix.errors import UserError


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str, limit: int | None, what: str) -> list[int]:
    """The text's ids; raises :class:`UserError` when it is longer than ``limit`` tokens, before it is cut into tokens
    where its letters tell. ``what`` names the text."""
    refuse_unreadable(tokenizer, text, limit, what)
    encoded: Any = tokenizer(text, add_special_tokens=False, verbose=False)
    return list(encoded["input_ids"])


def refuse_unreadable(tokenizer: PreTrainedTokenizerBase, text: str, limit: int | None, what: str) -> None:
    """Raises :class:`UserError` for a text with more letters than ``limit`` of the longest tokens have, or with halves
    of letters that JSON can write and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{what} is no Unicode text: letter {error.start} is half of one; mend it") from error
    if limit is not None and len(text) > limit * _longest(tokenizer):
        raise UserError(
            f"{what} has {len(text):,} letters, more than the model's {limit:,} positions can hold: shorten it"
        )


def continuation(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], new: Sequence[int], skip_special_tokens: bool = True
) -> str:
    """The text that ``new`` tokens add to the prompt's. Both are decoded together: by themselves, tokens of the Llama
    kind lose the space that the first begins with."""
    before, whole = (
        str(tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)) for ids in ([*prompt], [*prompt, *new])
    )
    pairs = enumerate(zip(before, whole, strict=False))
    return whole[next((at for at, (was, letter) in pairs if was != letter), len(before)) :]


@functools.lru_cache(maxsize=8)
def _longest(tokenizer: PreTrainedTokenizerBase) -> int:
    return max(map(len, tokenizer.get_vocab()), default=1)
