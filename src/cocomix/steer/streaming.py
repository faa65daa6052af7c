"""Generated text on the terminal as it comes."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from cocomix.steer.text import continuation


class Live(BaseStreamer):
    """Prints a head before the model has answered, then the text token by token, then an empty line."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, head: str) -> None:
        self._tokenizer, self._head = tokenizer, head
        self._prompt: list[int] | None = None
        self._new: list[int] = []
        self._printed = 0

    def put(self, value: Any) -> None:
        """Takes the prompt, then token by token."""
        if self._prompt is None:
            self._prompt = value[0].tolist()
            print(self._head, end="", flush=True)
            return
        self._new += value.tolist()
        self._print(self._text().rstrip("�"))  # the rest of a character may be the next token

    def end(self) -> None:
        self._print(self._text())
        print("\n", flush=True)

    def _text(self) -> str:
        assert self._prompt is not None
        return continuation(self._tokenizer, self._prompt, self._new)

    def _print(self, text: str) -> None:
        print(text[self._printed :], end="", flush=True)
        self._printed = max(self._printed, len(text))
