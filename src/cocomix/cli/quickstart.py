"""`cocomix quickstart`."""

from __future__ import annotations

from cocomix.cli.common import Json, Overrides, quiet_transformers, show


def quickstart(words: Overrides = None, as_json: Json = False) -> None:
    """The full pipeline on real text: teacher, sparse autoencoder, labels, three models, comparison, steering.

    Trains on the 256 documents of the CIA World Factbook (public domain, in an installed package; nothing is
    downloaded) and writes a report that opens in a browser. Run again, it finds finished stages; interrupted, it goes
    on.

    Example: cocomix quickstart folder=runs/quickstart
    """
    from cocomix.config import load_settings
    from cocomix.quickstart.settings import QuickstartSettings
    from cocomix.quickstart.stages import quickstart as run

    settings = load_settings(QuickstartSettings, words or [])
    result = run(settings, quiet_transformers)
    show(result, "\n".join([*result["verdicts"], f"Report: {result['report']}"]), as_json)
