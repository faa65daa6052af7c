"""Numbers and verdicts in words."""

from __future__ import annotations

from cocomix.compare.curves import Axis
from cocomix.compare.intervals import COVERAGE, Interval, student_t
from cocomix.compare.pairs import Losses, Pair, SeedPair

LEVEL = 0.0005
"""Losses nearer than this (nats a token) are called level."""


def share(value: int | float) -> str:
    """``0.1234`` as ``12.3 %``; from 100 % on without a decimal."""
    percent = 100 * value
    return f"{percent:.0f} %" if abs(percent) >= 99.95 else f"{percent:.1f} %"


def count(value: int | float) -> str:
    """A number of tokens or parameters with three digits: ``1.23M``."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * 0.9995:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def flops(value: int | float) -> str:
    """A number of floating-point operations with three digits: ``1.23 PFLOP``."""
    for size, letter in (
        (1e24, "Y"),
        (1e21, "Z"),
        (1e18, "E"),
        (1e15, "P"),
        (1e12, "T"),
        (1e9, "G"),
        (1e6, "M"),
    ):
        if abs(value) >= size * 0.9995:
            return f"{value / size:.3g} {letter}FLOP"
    return f"{value:.3g} FLOP"


def duration(seconds: int | float) -> str:
    """Seconds as people say them: ``42 s``, ``3 min 20 s``, ``2 h 5 min``, ``3 d 4 h``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    for size, name, below, below_name in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if seconds >= size:
            whole, rest = divmod(round(seconds / below), size // below)
            return f"{whole} {name} {rest} {below_name}" if rest else f"{whole} {name}"
    return f"{seconds:.0f} s"


def saving(value: float, of: str) -> str:
    """``0.12`` as ``12.0 % fewer tokens``, ``-0.12`` as ``12.0 % more tokens``."""
    if abs(value) < 0.0005:
        return f"as many {of}"
    return f"{share(abs(value))} {'fewer' if value > 0 else 'more'} {of}"


def gap(losses: Losses) -> str:
    """``0.043 nats a token worse``, or ``level`` (candidate seen from the baseline)."""
    if abs(losses.difference) < LEVEL:
        return "level"
    return f"{abs(losses.difference):.3f} nats a token {'worse' if losses.difference > 0 else 'better'}"


def interval(bounds: Interval) -> str:
    """A 95 % interval of a share."""
    return f"{share(bounds[0])} to {share(bounds[1])}"


def sharing(teacher: int, sae: int) -> str:
    """Over how many runs the training of teacher and SAE is shared: ``3 runs``, ``6 (teacher) and 3 (SAE) runs``."""
    if teacher != sae:
        return f"{teacher} (teacher) and {sae} (SAE) runs"
    return f"{teacher} run{'s' if teacher != 1 else ''}"


def verdict(pair: Pair) -> str:
    """What a pair shows, in sentences that are as plain when the candidate loses as when it wins."""
    return " ".join(part for part in (_at_equal_tokens(pair), _to_the_same_loss(pair), _certainty(pair)) if part)


def _at_equal_tokens(pair: Pair) -> str:
    at_equal = pair.equal("tokens")
    losses = at_equal or pair.final
    where = f"At equal tokens ({count(losses.at)})" if at_equal else "At the end of its own budget"
    numbers = f"({losses.candidate:.3f} against {losses.baseline:.3f})"
    if gap(losses) == "level":
        return f"{where} {pair.candidate} ends level with {pair.baseline} {numbers}."
    return f"{where} {pair.candidate} ends {gap(losses)} than {pair.baseline} {numbers}."


def _to_the_same_loss(pair: Pair) -> str:
    target = f"{pair.baseline}'s final loss"
    tokens = pair.saved("tokens")
    if tokens is not None:
        return f"It reaches {target} with {_costs(pair, tokens, pair.saved('flops'), pair.saved('seconds'))}."
    if pair.reached:
        return f"It reaches {target} in {pair.reached} of {len(pair.by_seed)} seeds only."
    sentence = f"It never reaches {target} within its budget"
    back = pair.reverse_saved("tokens")
    if back is None:
        return sentence + "."
    costs = _costs(pair, back, pair.reverse_saved("flops"), pair.reverse_saved("seconds"))
    return f"{sentence}; {pair.baseline} reached {pair.candidate}'s final loss with {costs}."


def _costs(pair: Pair, tokens: float, of_flops: float | None, of_seconds: float | None) -> str:
    words = [saving(tokens, "tokens")]
    if of_flops is not None:
        words.append(saving(of_flops, "FLOPs"))
    if of_seconds is not None:
        words.append(saving(of_seconds, "seconds"))
    if len(words) == 1:
        return words[0]
    counted = " (the teacher's labels counted)" if pair.has_teacher else ""
    return ", ".join(words[:-1]) + " and " + words[-1] + counted


def no_saving(pair: Pair, axis: Axis) -> str:
    """Why there is no share saved on ``axis``."""
    if pair.reached == 0:
        return "never reached"
    if pair.reached < len(pair.by_seed):
        return f"reached by {pair.reached} of {len(pair.by_seed)} seeds"
    return "not known"


def no_loss(pair: Pair, axis: Axis) -> str:
    """Why there are no losses at equal cost on ``axis``."""
    return "out of range" if pair.known(axis) else "not known"


def few_seeds(number: int) -> str | None:
    """What a bootstrap over ``number`` seeds is worth, where that is not what it says."""
    if number not in COVERAGE:
        return None
    return (
        f"A 95 % bootstrap over {number} seeds holds the truth in about {share(COVERAGE[number]).replace('.0', '')} of "
        "cases, not in 95 %"
    )


def _certainty(pair: Pair) -> str:
    number = len(pair.by_seed)
    if number == 1:
        return "One seed: no interval."

    # What the first sentence is about: of one seed alone it may be known at equal tokens.
    at_equal = pair.equal("tokens") is not None

    def compared(seed: SeedPair) -> Losses | None:
        return seed.equal["tokens"] if at_equal else seed.final

    bounds = pair.difference_interval(compared)
    saved = pair.saved_interval("tokens")
    words = [f"tokens saved {interval(saved)}"] if saved else []
    if bounds:
        words.append(f"loss difference {bounds[0]:+.3f} to {bounds[1]:+.3f} nats")
    sentence = f"95 % interval over {number} seeds: {', '.join(words)}." if words else f"{number} seeds."
    wide = pair.difference_interval(compared, student_t)
    holds_zero = bounds is not None and bounds[0] <= 0 <= bounds[1]
    if bounds and wide and (few := few_seeds(number)):
        sentence += f" {few}: by Student's t the loss difference is {wide[0]:+.3f} to {wide[1]:+.3f}."
        holds_zero |= wide[0] <= 0 <= wide[1]
    if holds_zero:
        sentence += " It holds zero: these seeds do not tell the two apart."
    return sentence
