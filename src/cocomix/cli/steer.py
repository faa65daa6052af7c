"""`cocomix steer`."""

from __future__ import annotations

from typing import Annotated

import typer

from cocomix.cli.common import Json, Overrides, plain, quiet_transformers, show


def score(
    run: Annotated[str | None, typer.Argument(help="Run folder of a model with concepts.")] = None,
    words: Overrides = None,
    as_json: Json = False,
) -> None:
    """How well concepts steer, over many concepts and strengths: judged by the teacher and its autoencoder, by promoted
    tokens, perplexity and repetition, beside the decoder row in the teacher and a random direction at equal doses.

    Writes steering.json, steering.md and steering.png; a score that was stopped goes on with the same command.

    Example: cocomix steer score runs/cocomix concepts=32 doses=1,2,4,8
    """
    from cocomix.config import load_settings
    from cocomix.progress import say
    from cocomix.report.steering_plot import write_score
    from cocomix.steer.score import score as measure
    from cocomix.steer.score import score_folder
    from cocomix.steer.score_settings import ScoreSettings

    quiet_transformers()
    settings = load_settings(ScoreSettings, words or [], model=None if run is None else plain("model", run))
    folder = score_folder(settings)
    result, table = write_score(measure(settings), settings.fluency, folder)
    say(f"picture: {folder / 'steering.png'}")
    show(result, table, as_json)
