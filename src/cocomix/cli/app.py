"""The tree of verbs. Importing this imports typer and nothing heavy: ``cocomix --help`` answers at once."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import typer
import typer.core

from cocomix import __version__
from cocomix.cli import common

NAME = "cocomix"

UsageError: Any = typer.BadParameter.__base__
"""A wrong command line. Typer carries its own copy of click and names only this subclass of it."""


def told(error: Any, words: Sequence[str]) -> str:
    """What is wrong with the command line ``words`` as one sentence; a group without a verb gets its help."""
    message = error.format_message() + _setting_meant(error, words)
    if type(error).__name__ == "NoArgsIsHelpError":
        return str(message)
    verb = error.ctx.command_path if error.ctx else NAME
    return f"error: {' '.join(message.split()).rstrip('.')} (see '{verb} --help')"


def _setting_meant(error: Any, words: Sequence[str]) -> str:
    """What to write instead of an unknown option that is a setting of the verb; empty where it is none."""
    epilog = getattr(error.ctx.command, "epilog", None) if error.ctx else None
    if type(error).__name__ != "NoSuchOption" or not epilog:
        return ""
    option = error.option_name
    name, keys = option.lstrip("-").replace("-", "_"), [key for key, _, _ in _rows(epilog)]
    meant = [key for key in keys if key == name] or [key for key in keys if key.rpartition(".")[2] == name]
    if not meant:
        return ""
    given = dict(zip(words, [*words[1:], "…"], strict=True))  # --lr 1e-3
    given |= {word.partition("=")[0]: word.partition("=")[2] for word in words if "=" in word}  # --lr=1e-3
    value = given.get(option, "…")
    return f": settings are written {meant[0]}={'…' if value.startswith('-') else value}, without dashes"


def _rows(epilog: str) -> list[tuple[str, str, str]]:
    """The settings that a verb's epilog names."""
    from cocomix.config import describe

    _, module, name = epilog.split(":")
    return describe(getattr(importlib.import_module(module), name))


class Verb(typer.core.TyperCommand):
    """A command whose help lists the settings that ``epilog`` names, read only when help is asked for."""

    def invoke(self, ctx: Any) -> Any:
        from cocomix.dist.world import launched
        from cocomix.errors import UserError

        verb = ctx.command_path.removeprefix(f"{NAME} ")
        if launched()[1] > 1 and verb not in OVER_RANKS:
            raise UserError(
                f"'{NAME} {verb}' runs in one process, not under torchrun: only {_listed(OVER_RANKS)} share work"
            )
        return super().invoke(ctx)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        if self.epilog and self.epilog.startswith("settings:"):
            rows = _rows(self.epilog)
            width = max(len(key) for key, _, _ in rows)
            lines = [f"  {key:<{width}}  {meaning}  [{default}]" for key, default, meaning in rows]
            formatter.write("\nSettings (key=value, or in a recipe):\n" + "\n".join(lines) + "\n")
        else:
            super().format_epilog(ctx, formatter)


def group(help_text: str) -> typer.Typer:
    """A group of verbs with the house's behaviour."""
    return typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None, help=help_text)


app = group(
    "Pretrain language models with continuous concepts (CoCoMix), compare them fairly, look inside, "
    "steer them.\n\n"
    "The road: data prepare → train (a teacher) → sae train → concepts extract → train → compare → inspect → "
    "generate."
)


def _version(wanted: bool | None) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: bool | None = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    pass


def _register() -> None:
    groups: dict[str, typer.Typer] = {}
    for path, module, settings in VERBS:
        *parents, name = path.split()
        parent = app
        if parents:
            if parents[0] not in groups:
                groups[parents[0]] = group(GROUPS[parents[0]])
                app.add_typer(groups[parents[0]], name=parents[0])
            parent = groups[parents[0]]
        function: Any = getattr(importlib.import_module(f"cocomix.cli.{module}"), name.replace("-", "_"))
        epilog = common.settings_help(*settings.split(":")) if settings else None
        parent.command(name, cls=Verb, epilog=epilog)(function)


GROUPS = {
    "data": "Text into token shards, and their check.",
    "sae": "Sparse autoencoders on a teacher's residual stream: train, check and convert.",
    "concepts": "What a teacher knows of a dataset: concept labels and probabilities; an atlas of concepts.",
    "steer": "How well a model's concepts steer it.",
}

VERBS: list[tuple[str, str, str]] = [
    # verb, file in cli/, settings class whose fields its --help lists
    ("quickstart", "quickstart", "cocomix.quickstart.settings:QuickstartSettings"),
    ("data prepare", "data", "cocomix.data.settings:PrepareSettings"),
    ("data verify", "data", ""),
    ("sae train", "sae", "cocomix.concepts.settings:SaeTrainSettings"),
    ("sae check", "sae", "cocomix.concepts.settings:SaeCheckSettings"),
    ("sae convert", "sae", ""),
    ("concepts extract", "concepts", "cocomix.concepts.settings:ExtractSettings"),
    ("concepts probabilities", "concepts", "cocomix.concepts.settings:ProbabilitySettings"),
    ("concepts atlas", "concepts", "cocomix.concepts.settings:AtlasSettings"),
    ("concepts find", "concepts", "cocomix.concepts.settings:FindSettings"),
    ("concepts show", "concepts", "cocomix.concepts.settings:ShowSettings"),
    ("concepts names", "concepts", "cocomix.concepts.settings:RunLabelsSettings"),
    ("concepts weights", "concepts", "cocomix.evaluate.weights_settings:WeightsSettings"),
    ("plan", "plan", "cocomix.train.settings:TrainSettings"),
    ("train", "train", "cocomix.train.settings:TrainSettings"),
    ("sweep", "sweep", "cocomix.sweep.settings:SweepSettings"),
    ("eval", "eval", "cocomix.evaluate.settings:EvalSettings"),
    ("compare", "compare", "cocomix.compare.settings:CompareSettings"),
    ("inspect", "inspect", "cocomix.steer.settings:InspectSettings"),
    ("generate", "generate", "cocomix.steer.settings:GenerateSettings"),
    ("steer score", "steer", "cocomix.steer.score_settings:ScoreSettings"),
    ("studio", "studio", "cocomix.studio.settings:StudioSettings"),
    ("export", "export", "cocomix.train.settings:ReferenceSettings"),
]
"""Every verb. The function in the file bears the verb's last word."""

OVER_RANKS = ("data prepare", "sae train", "concepts extract", "concepts probabilities", "train")
"""Verbs whose work the ranks that torchrun starts do together."""


def _listed(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


_register()
