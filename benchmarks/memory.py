"""How much memory a training step and its labels take here, and in the paper's reference implementation.

    python benchmarks/memory.py [--reference FOLDER --reference-python PYTHON] [--json FILE]

Each number is of a fresh process that does one thing twice (the optimizer's moments exist from the first step on).
"Built" is what is resident once models are there; "growth" what the highest resident size (VmHWM of /proc, so Linux
only) is above it; "highest" both, libraries and all. By default the paper's 69M network with GPT-2 124M and a TopK
autoencoder of 32,768 latents as its teacher. Without --reference our side is measured alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from common import machine, machine_line, medians, table, write
from sides import COMMANDS, Side, Sizes, arguments, sides_of
from vs_reference import WORK

COLUMNS = {
    "work": "", "side": "side", "built": "built, MB", "growth": "growth, MB", "highest": "highest, MB",
    "growth_ratio": "growth, reference/ours", "highest_ratio": "highest, reference/ours",
}  # fmt: skip


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures, prints the table, and returns what ``--json`` writes."""
    options = arguments(__doc__)
    options.set_defaults(repeats=1)
    given = options.parse_args(words)
    sizes, commands = sides_of(options, given)
    rows = []
    for command in COMMANDS:
        found = {name: measure(name, start, sizes, command, given.repeats) for name, start in commands.items()}
        for name, numbers in found.items():
            row = {"command": command, "work": WORK[command], "side": name, **numbers}
            if name == "reference":
                row |= {f"{key}_ratio": numbers[key] / found["ours"][key] for key in ("growth", "highest")}
            rows.append(row)
    facts = machine()
    print(table(rows, COLUMNS))
    print(f"\n{sizes.batch} windows of {sizes.window} tokens, float32, {sizes.threads} threads\n{machine_line(facts)}")
    result = {"benchmark": "memory", "machine": facts, "sizes": asdict(sizes), "rows": rows}
    write(given.json, result)
    return result


def measure(name: str, start: list[str], sizes: Sizes, command: str, repeats: int) -> dict[str, float]:
    """Megabytes: medians over ``repeats`` fresh processes."""
    return {
        key: values
        for key, values in medians(_columns([_once(name, start, sizes, command) for _ in range(repeats)])).items()
    }


def _once(name: str, start: list[str], sizes: Sizes, command: str) -> dict[str, float]:
    with Side(name, start, sizes) as side:
        side.ask(f"build {command}")
        built = side.ask("forget")["resident"]
        for _ in range(2):
            side.ask(command)
        highest = side.ask("memory")["highest"]
    return {"built": built / 1e6, "growth": (highest - built) / 1e6, "highest": highest / 1e6}


def _columns(rows: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    return {key: [row[key] for row in rows] for key in rows[0]}


if __name__ == "__main__":
    main()
