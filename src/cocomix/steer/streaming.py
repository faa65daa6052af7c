"""Generated words on the terminal as they come."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase, TextStreamer


class Live(TextStreamer):
    """Prints a head when the first word comes, then the words, then an empty line."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, head: str) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._head: str | None = head

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        head, self._head = self._head or "", None
        print(head + text, end="\n\n" if stream_end else "", flush=True)

    def put(self, value: Any) -> None:
        """Takes the prompt, then token by token; the head shows before the model has answered."""
        if self.next_tokens_are_prompt:
            print(self._head or "", end="", flush=True)
            self._head = None
        super().put(value)
