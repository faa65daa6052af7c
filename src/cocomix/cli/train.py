"""`cocomix train`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cocomix.cli.common import Json, Words, quiet_transformers, show

Replay = Annotated[
    bool, typer.Option("--replay-batch", help="Look closely at the step whose loss or gradient was not finite.")
]


def train(words: Words = None, as_json: Json = False, replay_batch: Replay = False) -> None:
    """Pretrain a model as a recipe says; the same command resumes it.

    A method is a mixer and some losses: ntp has no mixer; cocomix has the concept mixer and the concept loss. The run
    folder holds recipe.yaml, metrics.jsonl, evals.jsonl, checkpoints/ and, at the end, export/ (a folder that
    transformers' from_pretrained loads). On several GPUs or machines: torchrun -m cocomix train … (docs/cluster.md).

    Exit codes: 0 finished, 2 a mistake to mend, 75 stopped by a signal after a checkpoint, 69 another rank was lost.

    Example: cocomix train tiny/ntp data.path=data/mine run=runs/ntp tokens=2000000
    """
    from cocomix.config import load_settings
    from cocomix.progress import is_first_rank
    from cocomix.train.fault import replay
    from cocomix.train.run import Run
    from cocomix.train.settings import TrainSettings
    from cocomix.train.verb import train as run

    quiet_transformers()
    settings = load_settings(TrainSettings, words or [])
    if replay_batch:
        found = replay(Run(settings))
        show(found, _told(found), as_json)
        return
    result = run(settings)
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
    if is_first_rank():
        show(result, text, as_json)


def _told(found: dict[str, Any]) -> str:
    """The replay of a step for people: a line a window, the sick ones with where it began."""
    sick = found["weights_not_finite"]
    lines = [f"step {found['step']:,}: {found['what']}"]
    if sick:
        lines.append(f"weights that were not finite before the step: {', '.join(sick)}")
    for entry in found["by_window"]:
        losses = " ".join(f"{name} {_short(value)}" for name, value in entry["losses"].items())
        line = f"  window {entry['window']:>8}  {losses}  gradient norm {_short(entry['grad_norm'])}"
        if entry["first_not_finite"]:
            line += f"  first not finite: {entry['first_not_finite']}"
        elif entry["gradients_not_finite"]:
            line += f"  gradient not finite: {', '.join(entry['gradients_not_finite'][:4])}"
        lines.append(line)
    return "\n".join(lines)


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
