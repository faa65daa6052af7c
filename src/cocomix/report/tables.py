"""The methods as tables for a paper: LaTeX, Markdown, CSV; one row a method."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cocomix.compare.benchmarks import Score
from cocomix.compare.comparison import Comparison
from cocomix.compare.curves import AXES, Axis
from cocomix.compare.intervals import Interval, Spread
from cocomix.compare.methods import Level, Method, budgets, methods
from cocomix.compare.pairs import Losses, Pair
from cocomix.compare.wording import count, duration, few_seeds, flops, interval, no_loss, no_saving, share, sharing

AT_EQUAL: dict[Axis, str] = {
    "tokens": "tokens",
    "student_flops": "FLOPs, student",
    "flops": "FLOPs + teacher",
    "upstream_flops": "FLOPs + upstream",
    "seconds": "time",
}
"""The axes of the tables and their names; with the student's time alone and upstream's they would be too wide."""

NONE = "–"


@dataclass(frozen=True)
class Table:
    """A table in plain words, one row a method."""

    name: str
    """For a reference to it."""
    caption: str
    columns: list[str]
    rows: list[list[str]]


def tables(comparison: Comparison) -> list[Table]:
    """Every table that the comparison can fill: losses, perplexities, savings, loss differences, accuracies."""
    found = methods(comparison)
    at = budgets(comparison)
    result = [
        _levels("loss", "Held-out loss in nats a token", found, at, lambda level: level.loss, 3),
        _levels("perplexity", "Held-out perplexity a token", found, at, lambda level: level.ppl, 2),
    ]
    if comparison.pairs:
        result += [_savings(comparison, found), _differences(comparison, found)]
    names = list(dict.fromkeys(name for method in found for name in method.benchmarks))
    if names:
        result.append(_benchmarks(names, found))
    return result


def _levels(
    name: str,
    what: str,
    found: Sequence[Method],
    at: Mapping[Axis, float | None],
    part: Callable[[Level], Spread],
    digits: int,
) -> Table:
    rows = []
    for method in found:
        final = NONE if method.final is None else _spread(part(method.final), digits)
        cells = [
            _spread(part(level), digits) if isinstance(level, Level) else level
            for level in (method.equal[axis] for axis in AT_EQUAL)
        ]
        rows.append([method.name, count(method.active), _seeds(method), final, *cells])
    say: dict[Axis, Callable[[float], str]] = {"tokens": count, "seconds": duration}
    costs = [f"{AT_EQUAL[axis]} {say.get(axis, flops)(cost)}" for axis in AT_EQUAL if (cost := at[axis]) is not None]
    caption = (
        f"{what}, mean ± half the 95 % interval over seeds (Student's t): at each run's end, and at equal cost, where "
        f"the run that has spent least has ended ({'; '.join(costs)}). Out of range: no evaluation at that cost. "
        "Active: parameters that a token touches."
    )
    return Table(name, caption, ["method", "active", "seeds", "final", *AT_EQUAL.values()], rows)


def _savings(comparison: Comparison, found: Sequence[Method]) -> Table:
    def cell(pair: Pair, axis: Axis) -> str:
        saved, bounds = pair.saved(axis), pair.saved_interval(axis)
        if saved is None:
            return no_saving(pair, axis)
        return _minus(share(saved)) + ("" if bounds is None else f" ({_minus(interval(bounds))})")

    base = comparison.baseline
    caption = (
        f"Cost saved on the way to {base}'s final loss, as a share of what {base} needed for it; negative: lost. In "
        f"brackets the 95 % interval, a bootstrap over paired seeds. {_upstream(comparison)}"
    )
    return _against("saved", caption, found, cell)


def _differences(comparison: Comparison, found: Sequence[Method]) -> Table:
    def cell(pair: Pair, axis: Axis) -> str:
        losses, bounds = pair.equal(axis), pair.equal_interval(axis)
        return no_loss(pair, axis) if losses is None else _difference(losses, bounds)

    caption = (
        f"Loss difference to {comparison.baseline} in nats a token at equal cost, where the cheaper of the two has "
        "ended; negative: better. In brackets the 95 % interval, a bootstrap over paired seeds. "
        f"{_upstream(comparison)}"
    )
    return _against("difference", caption, found, cell)


def _against(name: str, caption: str, found: Sequence[Method], cell: Callable[[Pair, Axis], str]) -> Table:
    numbers = [len(method.pair.by_seed) for method in found if method.pair]
    few = few_seeds(min([number for number in numbers if number > 1], default=1))
    rows = [
        [
            method.name,
            str(len(method.pair.by_seed)) if method.pair else NONE,
            *([cell(method.pair, axis) for axis in AT_EQUAL] if method.pair else [NONE] * len(AT_EQUAL)),
        ]
        for method in found
    ]
    return Table(name, caption + (f" {few}." if few else ""), ["method", "seeds", *AT_EQUAL.values()], rows)


def _upstream(comparison: Comparison) -> str:
    by = {(pair.shared_by, pair.sae_shared_by) for pair in comparison.pairs if pair.has_teacher}
    if not by:
        return "No method has a teacher."
    runs = " or ".join(sharing(*numbers) for numbers in sorted(by))
    return f"+ upstream: with the training of teacher and SAE, borne by {runs}."


def _benchmarks(names: Sequence[str], found: Sequence[Method]) -> Table:
    rows = [[m.name, *(_score(m.benchmarks.get(name)) for name in names)] for m in found]
    caption = "Accuracy in %, mean over the runs that have it ± standard error over the task's items."
    return Table("benchmarks", caption, ["method", *names], rows)


def _seeds(method: Method) -> str:
    return str(len(method.seeds)) + (f" ({method.left_out} left out)" if method.left_out else "")


def _spread(spread: Spread, digits: int) -> str:
    return f"{spread.mean:.{digits}f}" + ("" if spread.half is None else f" ± {spread.half:.{digits}f}")


def _score(score: Score | None) -> str:
    if score is None:
        return NONE
    return f"{100 * score.value:.1f}" + ("" if score.stderr is None else f" ± {100 * score.stderr:.1f}")


def _difference(losses: Losses, bounds: Interval | None) -> str:
    difference = losses.difference if abs(losses.difference) >= 0.0005 else 0.0
    text = f"{difference:+.3f}" + ("" if bounds is None else f" ({bounds[0]:+.3f} to {bounds[1]:+.3f})")
    return _minus(text)


def _minus(text: str) -> str:
    """``text`` with real minus signs."""
    return text.replace("-", "−")


def as_markdown(comparison: Comparison) -> str:
    """The tables as GitHub's Markdown, each below its caption, and what must be known before trusting them."""
    parts = []
    for table in tables(comparison):
        head = ["| " + " | ".join(map(_markdown, table.columns)) + " |"]
        rule = ["|---|" + "---:|" * (len(table.columns) - 1)]
        body = ["| " + " | ".join(map(_markdown, row)) + " |" for row in table.rows]
        parts.append("\n".join([_markdown(table.caption), "", *head, *rule, *body]))
    if notes := _notes(comparison):
        parts.append("\n".join(f"- {_markdown(note)}" for note in notes))
    return "\n\n".join(parts) + "\n"


def _markdown(text: str) -> str:
    """``text`` without a meaning in Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>|#$~])", r"\\\1", " ".join(text.split()))


def as_latex(comparison: Comparison) -> str:
    """The tables as LaTeX ``table*`` environments, no wider than the page; what must be known as comments."""
    parts = ["% Needs \\usepackage{booktabs} and \\usepackage{adjustbox}."]
    for table in tables(comparison):
        rows = [" & ".join(map(_latex, row)) + r" \\" for row in (table.columns, *table.rows)]
        parts.append(
            "\n".join(
                [
                    r"\begin{table*}[t]",
                    r"\centering",
                    rf"\caption{{{_latex(table.caption)}}}",
                    rf"\label{{tab:{table.name}}}",
                    r"\begin{adjustbox}{max width=\textwidth}",
                    rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}",
                    r"\toprule",
                    rows[0],
                    r"\midrule",
                    *rows[1:],
                    r"\bottomrule",
                    r"\end{tabular}",
                    r"\end{adjustbox}",
                    r"\end{table*}",
                ]
            )
        )
    parts += [f"% {' '.join(note.split())}" for note in _notes(comparison)]
    return "\n\n".join(parts) + "\n"


LATEX = {
    "\\": r"\textbackslash{}",
    **{sign: "\\" + sign for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    '"': "''",
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
}


def _latex(text: str) -> str:
    """``text`` without a meaning in LaTeX."""
    text = "".join(LATEX.get(letter, letter) for letter in " ".join(text.split()))
    return text.replace(r" \%", r"\,\%").replace(r" $\pm$ ", r" $\pm$~")


def as_csv(comparison: Comparison) -> str:
    """One line a method with plain numbers, for a program: all axes, FLOPs and seconds in full; shares as fractions."""
    found = methods(comparison)
    at = budgets(comparison)
    benchmarks = list(dict.fromkeys(name for method in found for name in method.benchmarks))
    lines = [_csv_line(comparison, method, at, benchmarks) for method in found]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _csv_line(
    comparison: Comparison, method: Method, at: Mapping[Axis, float | None], benchmarks: Sequence[str]
) -> dict[str, object]:
    pair = method.pair
    line: dict[str, object] = {
        "method": method.name,
        "baseline": comparison.baseline,
        "seeds": len(method.seeds),
        "left_out": method.left_out,
        "active_parameters": method.active,
        "total_parameters": method.total,
        **_csv_level("final", method.final),
    }
    for axis in AXES:
        line |= {f"equal_{axis}_at": at[axis], **_csv_level(f"equal_{axis}", method.equal[axis])}
    line["paired_seeds"] = len(pair.by_seed) if pair else None
    line["upstream_shared_by"] = pair.shared_by if pair else None
    line["sae_shared_by"] = pair.sae_shared_by if pair else None
    for axis in AXES:
        saved = pair.saved(axis) if pair else None
        low, high = (pair.saved_interval(axis) if pair else None) or (None, None)
        said = no_saving(pair, axis) if pair and saved is None else saved
        line |= {f"{axis}_saved": said, f"{axis}_saved_low": low, f"{axis}_saved_high": high}
    for axis in AXES:
        losses = pair.equal(axis) if pair else None
        low, high = (pair.equal_interval(axis) if pair else None) or (None, None)
        said = no_loss(pair, axis) if pair and losses is None else losses.difference if losses else None
        name = f"loss_difference_{axis}"
        line |= {name: said, f"{name}_low": low, f"{name}_high": high}
    for name in benchmarks:
        score = method.benchmarks.get(name)
        line |= {name: score.value if score else None, f"{name} stderr": score.stderr if score else None}
    return line


def _csv_level(name: str, level: Level | str | None) -> dict[str, object]:
    cells: dict[str, object] = {}
    for part in ("loss", "ppl"):
        spread = getattr(level, part, None)
        cells[f"{name}_{part}"] = spread.mean if spread else level
        cells[f"{name}_{part}_half"] = spread.half if spread else None
    return cells


def _notes(comparison: Comparison) -> list[str]:
    notes = [*comparison.notes, *(note for pair in comparison.pairs for note in pair.notes)]
    return list(dict.fromkeys(notes))


FORMATS: dict[str, tuple[str, Callable[[Comparison], str]]] = {
    "latex": ("table.tex", as_latex),
    "markdown": ("table.md", as_markdown),
    "csv": ("table.csv", as_csv),
}
"""Name of a format → its file beside the page, and what makes its text."""
