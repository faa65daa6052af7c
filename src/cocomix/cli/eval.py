"""`cocomix eval`."""

from __future__ import annotations

from typing import Annotated

import typer

from cocomix.cli.common import Json, Overrides, quiet_transformers, show


def eval(
    model: Annotated[str, typer.Argument(help="Run folder, export folder or hub id; with tasks also a GGUF file.")],
    words: Overrides = None,
    as_json: Json = False,
) -> None:
    """Perplexity (nats a token, perplexity a token, bits a byte) on whole held-out documents, or benchmark tasks.

    Every token of a document is predicted once, from what stands before it in its piece of at most `context` tokens.
    With `tasks`, HellaSwag, PIQA and others are scored as lm-evaluation-harness does it; a finished task is kept in
    the run's benchmarks.json, so that an interrupted evaluation goes on with the next one.

    Example: cocomix eval runs/ntp

    Example: cocomix eval runs/ntp tasks=hellaswag,piqa,lambada limit=200
    """
    from cocomix.config import load_settings
    from cocomix.evaluate.settings import EvalSettings

    settings = load_settings(EvalSettings, words or [], model=model)
    quiet_transformers()
    if settings.tasks is not None:
        from cocomix.evaluate.benchmarks import run_benchmarks, told

        results = run_benchmarks(settings)
        show(results, told(results), as_json)
        return
    from cocomix.evaluate.verb import evaluate

    result = evaluate(settings)
    bits = "" if result.bits_per_byte is None else f", {result.bits_per_byte:.4f} bits a byte of text"
    show(
        result.to_json(),
        f"{result.loss:.4f} nats a token, perplexity {result.ppl:.2f} a token{bits} "
        f"({result.documents} documents, {result.tokens_evaluated:,} tokens, context {result.context})",
        as_json,
    )
