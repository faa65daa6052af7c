"""`cocomix eval`."""

from __future__ import annotations

from typing import Annotated

import typer

from cocomix.cli.common import Json, Overrides, quiet_transformers, show


def eval(
    model: Annotated[str, typer.Argument(help="Run folder, export folder or hub id.")],
    words: Overrides = None,
    as_json: Json = False,
) -> None:
    """Perplexity (nats a token, perplexity a token, bits a byte) on whole held-out documents.

    Every token of a document is predicted once, from what stands before it in its piece of at most `context` tokens.

    Example: cocomix eval runs/ntp
    """
    from cocomix.config import load_settings
    from cocomix.evaluate.settings import EvalSettings
    from cocomix.evaluate.verb import evaluate

    quiet_transformers()
    result = evaluate(load_settings(EvalSettings, words or [], model=model))
    bits = "" if result.bits_per_byte is None else f", {result.bits_per_byte:.4f} bits a byte of text"
    show(
        result.to_json(),
        f"{result.loss:.4f} nats a token, perplexity {result.ppl:.2f} a token{bits} "
        f"({result.documents} documents, {result.tokens_evaluated:,} tokens, context {result.context})",
        as_json,
    )
