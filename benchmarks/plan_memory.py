"""Does a training step on this CPU take the memory that 'cocomix plan' says? python benchmarks/plan_memory.py

Each row is a recipe: what the plan says, and how much the resident memory of a fresh process grew, at its highest
(VmHWM of /proc, so Linux only), over three real steps on random tokens. The process holds more than its tensors: what
the C library keeps of freed blocks, and the scratch space of matrix products.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

RECIPES = [
    ["tiny/ntp", "data.window=128"],
    ["tiny/cocomix", "data.window=128"],
    ["tiny/cocomix", "data.window=128", "micro_batches=4"],
    ["tiny/cocomix_memory", "data.window=128"],
    ["tiny/cocomix_add", "data.window=128", "activation_checkpointing=blocks"],
    ["69m/ntp", "batch_windows=1", "micro_batches=1"],
    ["69m/cocomix", "batch_windows=1", "micro_batches=1"],
    ["69m/cocomix", "batch_windows=2", "micro_batches=2", "activation_checkpointing=blocks"],
]
"""The tiny ones with GPT-2's vocabulary and 32,768 concepts, as a plan without data assumes them."""


def main() -> None:
    """Prints the table."""
    print(f"{'recipe':<82}{'plan, MB':>10}{'measured':>10}{'ratio':>8}")
    for words in RECIPES:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
        planned = _run("planned", words, environment)
        measured = _run("measured", words, environment)
        print(
            f"{' '.join(words):<82}{planned / 1e6:>10.0f}{measured / 1e6:>10.0f}{measured / planned:>8.2f}", flush=True
        )


def _run(what: str, words: list[str], environment: dict[str, str]) -> int:
    done = subprocess.run(
        [sys.executable, __file__, what, *words], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return int(json.loads(done.stdout.splitlines()[-1]))


def planned(words: list[str]) -> int:
    """The peak that the plan says."""
    from cocomix.train.accelerators import machine_here
    from cocomix.train.plan_known import look
    from cocomix.train.plan_memory import step_memory
    from cocomix.train.plan_settings import PlanSettings, recipe_to_plan

    settings = recipe_to_plan(words)
    return step_memory(settings, machine_here(1e12, 1), look(settings, PlanSettings())).peak


def measured(words: list[str]) -> int:
    """Growth of this process's resident memory, bytes."""
    import torch

    from cocomix.data.batches import Batch
    from cocomix.dist.parallel import Spread
    from cocomix.model.modeling import CoCoMixForCausalLM
    from cocomix.train.build import build_optimizers
    from cocomix.train.plan_known import look
    from cocomix.train.plan_settings import PlanSettings, recipe_to_plan
    from cocomix.train.step import train_step

    settings = recipe_to_plan(words)
    known = look(settings, PlanSettings())
    warm = torch.nn.Linear(64, 64)  # what the first use of autograd and of matrix products loads
    warm(torch.ones(64, 64)).sum().backward()
    before = _status("VmRSS")
    model = CoCoMixForCausalLM(known.config).train()
    if settings.activation_checkpointing == "blocks":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizers = build_optimizers(model, settings.optimizer)
    shape = (settings.batch_windows, known.window)
    ids = torch.randint(0, known.config.text_config.vocab_size, shape)
    columns = {}
    if known.labels:
        columns["concept_ids"] = torch.randint(0, known.config.num_concepts, (*shape, known.labels.k))
    batch = Batch(torch.arange(shape[0]).numpy(), ids, ids.clone(), columns)
    for _ in range(3):
        train_step(Spread(model, model, 1), known.terms, batch.split(settings.micro_batches), optimizers, 1.0)
    return _status("VmHWM") - before


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps({"planned": planned, "measured": measured}[sys.argv[1]](sys.argv[2:])))
    else:
        main()
