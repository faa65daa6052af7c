"""Token ids as readable text: the bytes of every token, and text around one token in a window."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Context(NamedTuple):
    """A token in its text."""

    before: str
    token: str
    after: str


class Pieces:
    """The bytes that each id of a vocabulary stands for.

    Byte-level BPE and SentencePiece-like vocabularies are known; others give their tokens' own spelling. A token
    may hold a part of a character: text is only decoded at the characters' borders.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, size: int) -> None:
        known = tokenizer.convert_ids_to_tokens(list(range(min(size, len(tokenizer)))))
        special = set(tokenizer.all_special_tokens)
        spell = _spelling(tokenizer)
        self.bytes = [t.encode() if t in special else spell(t) for t in (token or "" for token in known)]
        self.bytes += [b""] * (size - len(self.bytes))

    def text(self, token: int) -> str:
        """One token; bytes that are no whole character are shown as �."""
        return self.bytes[token].decode("utf-8", errors="replace")

    def context(self, ids: Sequence[int], at: int) -> Context:
        """``ids`` as text around the token at place ``at``: a character that the token shares with its neighbours
        counts to the token; halves of characters at the ends are dropped."""
        pieces = [self.bytes[i] for i in ids]
        whole = b"".join(pieces)
        start = sum(map(len, pieces[:at]))
        end = start + len(pieces[at])
        while 0 < start < len(whole) and _continues(whole[start]):
            start -= 1
        while end < len(whole) and _continues(whole[end]):
            end += 1
        before, token, after = whole[:start], whole[start:end], whole[end:]
        return Context(before.decode(errors="ignore"), token.decode(errors="replace"), after.decode(errors="ignore"))


def _continues(byte: int) -> bool:
    return byte & 0b1100_0000 == 0b1000_0000


def _spelling(tokenizer: Any) -> Any:
    """From a token of the vocabulary to its bytes."""
    text = json.loads(tokenizer.backend_tokenizer.to_str())
    parts = json.dumps([text.get("decoder"), text.get("pre_tokenizer")])
    if "ByteLevel" in parts:
        table = {char: byte for byte, char in _byte_characters().items()}
        return lambda token: (
            bytes(table[char] for char in token) if all(char in table for char in token) else token.encode()
        )

    def sentence_piece(token: str) -> bytes:
        if re.fullmatch(r"<0x[0-9A-F]{2}>", token):
            return bytes([int(token[3:5], 16)])
        return token.replace("▁", " ").encode()

    return sentence_piece


def _byte_characters() -> dict[int, str]:
    """GPT-2's visible character for each byte: printable Latin-1 stands for itself, the rest from U+0100 on."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {**{b: chr(b) for b in plain}, **{byte: chr(256 + n) for n, byte in enumerate(others)}}
