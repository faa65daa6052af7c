"""Which runs may be compared, how they are grouped and paired."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import mean

from cocomix.compare.benchmarks import unlike
from cocomix.compare.curves import Curve, Sharing, curve
from cocomix.compare.pairs import Pair, seed_pair
from cocomix.compare.runs import Run, is_finite
from cocomix.compare.wording import count, share
from cocomix.errors import UserError, near_name

DEFAULT_BASELINE = "ntp"
MACHINE = {
    "device": "on different devices",
    "processor": "on different processors",
    "threads": "with different numbers of threads",
    "ranks": "on different numbers of ranks",
}
"""What seconds depend on besides the method, and how it is told that it differs."""
PARAMETERS_APART = 0.02
"""Active parameters that differ by more than this share are pointed out."""


@dataclass(frozen=True)
class Entry:
    """A run in a comparison."""

    name: str
    """Unique in the comparison: the run's name, or its folder where names repeat."""
    group: str
    """The method; the run's own name where a method has a seed twice (a sweep)."""
    run: Run
    curve: Curve | None
    """None for a run without an evaluation."""


@dataclass(frozen=True)
class Comparison:
    """Runs of the same data and evaluation set by method; every group is held against the baseline's."""

    entries: tuple[Entry, ...]
    """The baseline's runs first."""
    baseline: str
    """Name of the baseline's group."""
    pairs: tuple[Pair, ...]
    notes: tuple[str, ...]
    """Runs that could not be paired, and why; benchmarks that do not compare."""

    @property
    def groups(self) -> list[str]:
        """The groups' names, the baseline first."""
        return list(dict.fromkeys(entry.group for entry in self.entries))

    def of(self, group: str) -> list[Entry]:
        """The runs of a group."""
        return [entry for entry in self.entries if entry.group == group]


def compare(runs: Sequence[Run], baseline: str | None = None, upstream_shared_by: int | None = None) -> Comparison:
    """Groups ``runs`` by method, pairs their seeds, and holds every group against the baseline's.

    ``baseline`` names a method or a run; without it the method ``ntp`` is taken, else that of the first run.
    ``upstream_shared_by`` runs bear the training of teacher and SAE together; without it, as many of ``runs`` as have
    the same teacher bear the teacher's, as many as have the same SAE the SAE's. Raises :class:`UserError` when there is
    no run, when a run is given twice, when the runs differ in tokenizer, data, window, evaluated documents or context,
    or when ``baseline`` names none of them.
    """
    if not runs:
        raise UserError("no run to compare: give the run folders, e.g. 'cocomix compare runs/ntp runs/cocomix'")
    _refuse_twice(runs)
    _refuse_difference(runs)
    names, groups = _names(runs), _groups(runs)
    shared_by = _sharing(runs, upstream_shared_by)
    base = _baseline(runs, names, groups, baseline)
    entries = [
        Entry(name, group, run, curve(run, shared_by(run)) if run.evaluations else None)
        for name, group, run in zip(names, groups, runs, strict=True)
    ]
    entries.sort(key=lambda entry: entry.group != base)
    notes = [note for entry in entries if (note := _unpaired(entry))]
    usable = [entry for entry in entries if entry.run.comparable]
    theirs = [entry for entry in usable if entry.group == base]
    notes += unlike(runs)
    pairs = []
    for group in dict.fromkeys(entry.group for entry in usable if entry.group != base):
        if theirs:
            ours = [entry for entry in usable if entry.group == group]
            pairs.append(_pair(theirs, ours, shared_by(ours[0].run)))
    return Comparison(tuple(entries), base, tuple(pairs), tuple(notes))


def _sharing(runs: Sequence[Run], given: int | None) -> Callable[[Run], Sharing]:
    """Who shares with a run the training of its teacher and its SAE."""
    paying = [run.manifest.labels for run in runs if run.manifest.labels and run.pays_teacher]
    teachers, saes = (Counter(labels.makers(part) for labels in paying) for part in ("teacher", "sae"))

    def shared_by(run: Run) -> Sharing:
        labels = run.manifest.labels
        if given is not None:
            return Sharing(given, given)
        if labels is None or not run.pays_teacher:
            return Sharing(1, 1)
        teacher, sae = labels.makers("teacher"), labels.makers("sae")
        # Where there is no SAE, there is nothing to share either.
        return Sharing(teachers[teacher], saes[sae] if sae else teachers[teacher])

    return shared_by


def _pair(theirs: Sequence[Entry], ours: Sequence[Entry], shared_by: Sharing) -> Pair:
    notes = []
    baselines = {entry.run.seed: entry for entry in theirs}
    couples = [(baselines[entry.run.seed], entry) for entry in ours if entry.run.seed in baselines]
    couples.sort(key=lambda couple: couple[1].run.seed)
    base, group = theirs[0].group, ours[0].group
    if not couples:
        couples = list(zip(theirs, ours, strict=False))
        notes.append(f"{group} and {base} have no seed in common: they are paired in the order given.")
    elif len(couples) < max(len(theirs), len(ours)):
        notes.append(f"Only {len(couples)} seeds are common to {group} and {base}; the other runs are left out.")
    running = [e.name for couple in couples for e in couple if not e.run.manifest.finished]
    if running:
        notes.append(f"Not finished, so a state on the way: {', '.join(dict.fromkeys(running))}.")
    active = [couples[0][k].run.manifest.parameters.active for k in (0, 1)]
    if abs(active[1] / active[0] - 1) > PARAMETERS_APART:
        more = "more" if active[1] > active[0] else "fewer"
        notes.append(
            f"{group} has {share(abs(active[1] / active[0] - 1))} {more} active parameters than {base} "
            f"({count(active[1])} against {count(active[0])})."
        )
    notes += [note for couple in couples for entry in couple if (note := _past_best(entry))]
    notes += _other_machines(couples)
    return Pair(
        baseline=base,
        candidate=group,
        by_seed=tuple(seed_pair(c.run.seed, b.curve, c.curve) for b, c in couples if b.curve and c.curve),
        shared_by=shared_by.teacher,
        sae_shared_by=shared_by.sae,
        has_teacher=couples[0][1].run.pays_teacher,
        notes=tuple(dict.fromkeys(notes)),
    )


def _other_machines(couples: Sequence[tuple[Entry, Entry]]) -> list[str]:
    """A sentence for each thing that seconds depend on and in which two paired runs differ."""
    found: dict[str, str] = {}
    for base, ours in couples:
        for name, words in MACHINE.items():
            values = [getattr(entry.run.environment, name) for entry in (ours, base)]
            if None not in values and values[0] != values[1]:
                found[name] = (
                    f"{ours.group} and {base.group} were trained {words} ({values[0]} and "
                    f"{values[1]}): their seconds do not compare."
                )
    return list(found.values())


def _past_best(entry: Entry) -> str | None:
    """A note on a run whose loss had gone up again: its final loss is an easy target."""
    assert entry.curve is not None
    best = int(entry.curve.loss.argmin())
    rise = float(entry.curve.loss[-1] - entry.curve.loss[best])
    if rise < 0.005:
        return None
    return (
        f"{entry.name} was {rise:.3f} nats better at {count(entry.curve.tokens[best])} tokens than at "
        "its end: its final loss is not its best."
    )


def _unpaired(entry: Entry) -> str | None:
    if entry.run.last is None:
        return f"{entry.name} has not been evaluated yet: it is in no pair."
    if not entry.run.comparable:
        return f"{entry.name} had diverged at its last evaluation (its loss is no number): it is in no pair."
    return None


def _refuse_twice(runs: Sequence[Run]) -> None:
    for folder, times in Counter(run.folder.resolve() for run in runs).items():
        if times > 1:
            raise UserError(f"the run {folder} is given twice: name every run once")


def _refuse_difference(runs: Sequence[Run]) -> None:
    """Raises when two runs do not answer the same question."""
    checks: list[tuple[str, str, Callable[[Run], Iterable[object]]]] = [
        (
            "use different tokenizers",
            "their losses count different tokens",
            lambda r: [r.manifest.data.tokenizer_sha256],
        ),
        ("have different windows", "train both with the same one", lambda r: [r.manifest.data.window]),
        (
            "were trained on different data",
            "compare runs of one dataset",
            lambda r: [r.manifest.data.fingerprint],
        ),
        # The fingerprint covers the next three too: asked first, they say what the difference is.
        (
            "were evaluated with different contexts",
            "evaluate them with the same one",
            lambda r: [e.context for e in r.evaluations],
        ),
        (
            "were evaluated on different numbers of held-out documents",
            "train them with the same eval_documents",
            lambda r: [e.documents for e in r.evaluations if e.documents is not None],
        ),
        (
            "were evaluated on different numbers of held-out tokens",
            "evaluate them on the same documents",
            lambda r: [e.tokens_evaluated for e in r.evaluations if e.tokens_evaluated is not None],
        ),
        (
            "were evaluated on different held-out sets",
            "evaluate them on the same documents",
            lambda r: [e.fingerprint for e in r.evaluations],
        ),
    ]
    for difference, mend, values in checks:
        first: dict[object, Run] = {}
        for run in runs:
            for value in values(run):
                first.setdefault(value, run)
        if len(first) > 1:
            (a, one), (b, two) = list(first.items())[:2]
            who = f"{one.folder} and {two.folder}" if one is not two else f"the evaluations of {one.folder}"
            raise UserError(f"{who} {difference} ({_short(a)} and {_short(b)}): {mend}")


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 12 else text[:12] + "…"


def _names(runs: Sequence[Run]) -> list[str]:
    times = Counter(run.name for run in runs)
    return [run.name if times[run.name] == 1 else run.folder.as_posix() for run in runs]


def _groups(runs: Sequence[Run]) -> list[str]:
    """The method of each run. Where a method has a seed twice (a sweep; whom to pair?) what its runs' names, less the
    ``-sSEED`` at their ends, have in common; their whole names where that leaves a seed twice too."""
    names = _names(runs)
    groups = [run.method for run in runs]
    stems = [name.removesuffix(f"-s{run.seed}") for name, run in zip(names, runs, strict=True)]
    for candidates in (stems, names):
        times = Counter((group, run.seed) for group, run in zip(groups, runs, strict=True))
        twice = {group for (group, _), number in times.items() if number > 1}
        groups = [new if old in twice else old for old, new in zip(groups, candidates, strict=True)]
    return groups


def _baseline(runs: Sequence[Run], names: Sequence[str], groups: Sequence[str], wanted: str | None) -> str:
    """The group that ``wanted`` names. A method's name that stands for several (a sweep's points) means the one with
    the lowest final loss: whatever is held against it shall beat it at its best."""

    def of_run(name: str) -> str | None:
        for run, own, group in zip(runs, names, groups, strict=True):
            if name in (own, run.name, run.folder.as_posix()):
                return group
        return None

    def best_of_method(name: str) -> str | None:
        by_group: dict[str, list[float]] = {}
        for run, group in zip(runs, groups, strict=True):
            if run.method == name:
                by_group.setdefault(group, []).append(_final(run))
        return min(by_group, key=lambda group: mean(by_group[group])) if by_group else None

    if wanted is None:
        return best_of_method(DEFAULT_BASELINE) or of_run(DEFAULT_BASELINE) or groups[0]
    # One of a method's groups may bear its name: the method is meant.
    found = of_run(wanted) or best_of_method(wanted) or (wanted if wanted in groups else None)
    if found is None:
        known = list(dict.fromkeys([*groups, *names]))
        raise UserError(
            f"baseline={wanted} is none of the runs{near_name(wanted, known)}: name one of {', '.join(known)}"
        )
    return found


def _final(run: Run) -> float:
    loss = None if run.last is None else run.last.loss
    return loss if loss is not None and is_finite(loss) else math.inf
