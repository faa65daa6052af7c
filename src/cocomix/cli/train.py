"""`cocomix train`."""

from __future__ import annotations

from cocomix.cli.common import Json, Words, quiet_transformers, show


def train(words: Words = None, as_json: Json = False) -> None:
    """Pretrain a model as a recipe says; the same command resumes it.

    A method is a mixer and some losses: ntp has no mixer; cocomix has the concept mixer and the concept loss. The run
    folder holds recipe.yaml, metrics.jsonl, evals.jsonl, checkpoints/ and, at the end, export/ (a folder that
    transformers' from_pretrained loads).

    Example: cocomix train tiny/ntp data.path=data/mine run=runs/ntp tokens=2000000
    """
    from cocomix.config import load_settings
    from cocomix.train.run import train as run
    from cocomix.train.settings import TrainSettings

    quiet_transformers()
    result = run(load_settings(TrainSettings, words or []))
    evaluation = result["evaluation"] or {}
    text = f"{result['folder']}: finished"
    if evaluation:
        text += (
            f" at {evaluation['tokens']:,} tokens, {evaluation['flops']['student'] / 1e12:.1f} TFLOP, "
            f"{evaluation['seconds']:.0f} s of training; on {evaluation['documents']} held-out documents "
            f"{evaluation['loss']:.4f} nats a token, perplexity {evaluation['ppl']:.2f} a token at context "
            f"{evaluation['context']}"
        )
        if evaluation["bits_per_byte"]:
            text += f", {evaluation['bits_per_byte']:.4f} bits a byte"
    show(result, text, as_json)
