"""The report: one HTML file that needs nothing else, its summary and its figures as files beside it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from cocomix.compare import wording
from cocomix.compare.comparison import Comparison
from cocomix.compare.summary import summary
from cocomix.files import atomic_path, write_json, write_text
from cocomix.report.figure import Plot, method_colours
from cocomix.report.plots import plots
from cocomix.report.sections import SaeCheck, Sections, Steering
from cocomix.report.tables import FORMATS, tables

TEMPLATES = Path(__file__).parent / "templates"
MARKS = {"\n": "↵", "\r": "", "\t": "⇥"}
"""How white space that would vanish on the page is shown."""
NO_BREAK = "\u00a0"


def write_comparison(comparison: Comparison, out: Path | str, reload: int | float | None = None) -> Path:
    """Writes ``index.html``, ``summary.json``, ``table.tex|md|csv`` and ``plots/*.svg|png`` into ``out``; returns the
    page's path.

    A browser loads the page anew every ``reload`` seconds; None: never. Each file is written whole or not at all, the
    page last. Raises :class:`UserError` where ``out`` cannot be written.
    """
    return _write(Path(out), comparison, Sections(), reload)


def write_quickstart(out: Path | str, comparison: Comparison, sections: Sections) -> Path:
    """The quickstart's report: :func:`write_comparison` with the ``sections`` around it; returns the page's path.

    ``sections`` holds plain dicts as the TypedDicts of :mod:`cocomix.report.sections` describe them:
    ``intro`` (corpus, models, stages), ``sae`` (``check.json``), ``prediction``, ``concepts`` (the atlas),
    ``sentence`` and ``steering`` (one or a list). One that is absent or None is left out. Texts may hold markup:
    everything is escaped.
    """
    return _write(Path(out), comparison, sections)


def _write(out: Path, comparison: Comparison, sections: Sections, reload: int | float | None = None) -> Path:
    figures = plots(comparison)
    for plot in figures:
        write_text(out / "plots" / f"{plot.name}.svg", plot.svg)
        with atomic_path(out / "plots" / f"{plot.name}.png") as temporary:
            temporary.write_bytes(plot.png)
    write_json(out / "summary.json", summary(comparison))
    for name, text_of in FORMATS.values():
        write_text(out / name, text_of(comparison))
    page = out / "index.html"
    write_text(page, render(comparison, figures, sections, reload))
    return page


def render(comparison: Comparison, figures: list[Plot], sections: Sections, reload: int | float | None = None) -> str:
    """The page as text."""
    intro = sections.get("intro")
    data = comparison.entries[0].run.manifest.data
    evaluation = next((e.run.last for e in comparison.entries if e.run.last), None)
    return _templates().get_template("page.html").render(
        title=intro["title"] if intro else _title(comparison),
        summary=summary(comparison),
        colours=method_colours(comparison.groups),
        plots={plot.name: plot for plot in figures},
        data=data,
        evaluation=evaluation,
        tables={table.name: table for table in tables(comparison)},
        reload=None if reload is None else max(1, round(reload)),
        few_seeds=wording.few_seeds,
        health=_health(sections.get("sae")),
        steering=_listed(sections.get("steering")),
        sections={name: sections.get(name) for name in Sections.__annotations__},
    )  # fmt: skip


def _title(comparison: Comparison) -> str:
    others = comparison.groups[1:]
    if not others:
        return f"Runs of {comparison.baseline}"
    who = " and ".join(others) if len(others) < 3 else f"{len(others)} methods"
    return f"{who} against {comparison.baseline}"


@functools.cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "share": lambda value: wording.share(value).replace(" ", NO_BREAK),
        "count": wording.count,
        "flops": wording.flops,
        "duration": wording.duration,
        "marks": _marks,
        "visible": _visible,
        "unbroken": lambda text: text.replace(" %", NO_BREAK + "%"),
        "minus": lambda text: text.replace("-", "−"),
        "signed": lambda value: f"{value:+.3f}".replace("-", "−"),
    }
    environment.globals |= {
        "sharing": wording.sharing,
        "style": Markup((TEMPLATES / "style.css").read_text(encoding="utf-8")),
        "inline": lambda plot: Markup(plot.inline),
    }
    return environment


def _marks(text: str) -> str:
    """``text`` with its line ends and tabs shown."""
    for mark, sign in MARKS.items():
        text = text.replace(mark, sign)
    return text


def _visible(token: str) -> str:
    """A token without the space before it; one that is nothing but space is shown as such."""
    text = _marks(token)
    return text.strip(" ") or text.replace(" ", "␣") or "∅"


def _listed(steering: Steering | list[Steering] | None) -> list[Steering]:
    if steering is None:
        return []
    return steering if isinstance(steering, list) else [steering]


def _health(check: SaeCheck | None) -> list[dict[str, Any]]:
    """What is measured of an SAE, whether it is good, and what good looks like."""
    if check is None:
        return []
    loss, k = check["cross_entropy"], check["k"]
    return [
        {
            "name": "Active latents a token (L0)",
            "value": f"{check['l0']:.1f}" + ("" if k is None else f" of k = {k}"),
            "good": check["l0"] >= 1 if k is None else abs(check["l0"] - k) <= 0.05 * k,
            "want": "1 at least, and few: a threshold decides how many"
            if k is None
            else "equal to k: otherwise the SAE was loaded with another activation than it was trained with",
        },
        {
            "name": "Variance not explained (FVU)",
            "value": f"{check['fvu']:.3f}",
            "good": check["fvu"] <= 0.3,
            "want": "below 0.3, better below 0.15: at 1 the reconstruction is no better than the mean",
        },
        {
            "name": "Dead latents",
            "value": wording.share(check["dead_share"]),
            "good": check["dead_share"] <= 0.1,
            "want": "below 10 %: latents that never fire name nothing",
        },
        {
            "name": "Loss recovered",
            "value": wording.share(loss["recovered"]),
            "good": loss["recovered"] >= 0.9,
            "want": f"above 90 %: the teacher's loss is {loss['clean']:.3f} nats untouched, "
            f"{loss['reconstructed']:.3f} through the SAE, {loss['ablated']:.3f} with the block's output removed",
        },
    ]
