"""`torch.compile(model)` gives the same, in one graph."""

from __future__ import annotations

import functools
import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys, torch
from cocomix.testing.models import tiny_model

backend = sys.argv[1]
ids = torch.randint(1, 101, (3, 20), generator=torch.Generator().manual_seed(1))
mask = torch.ones_like(ids)
mask[0, :5] = mask[2, :11] = 0
found = {}
for family, mixing in (pair.split("-") for pair in sys.argv[2:]):
    torch._dynamo.reset()
    model = tiny_model(family, mixing=mixing)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    worst = 0.0
    # Without the compiler's own kernels a graph without a mask is met in training, below.
    for arguments in ({}, {"attention_mask": mask}) if backend == "inductor" else ({"attention_mask": mask},):
        with torch.no_grad():
            a, b = (m(ids, **arguments).logits for m in (model, compiled))
        worst = max(worst, (a - b)[arguments.get("attention_mask", torch.ones_like(ids)).bool()].abs().max().item())
    gradients = []
    for m in (model, compiled):
        model.zero_grad()
        output = m(ids, targets=ids, concept_ids=ids[..., None] % 40)
        ((output.nll + output.concept_nll) / ids.numel()).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    found[f"{family}-{mixing}"] = [worst, (gradients[0] - gradients[1]).abs().max().item()]
print(json.dumps(found))
"""
# In a process of its own: the tests' shape checks wrap every function and would break the graph.

CASES = [
    ("inductor", "gpt2", "insert"),
    *(("eager", family, "insert") for family in ("gpt2", "gpt_neox", "llama", "mistral", "gemma3_text")),
]
"""Families that differ: absolute positions, parallel residuals, rotary ones, sliding windows, those in some blocks."""


OTHERS = [("eager", family, mixing) for family in ("gpt2", "llama") for mixing in ("memory", "add")]
"""Families differ below the mixing and mixings above the families: each is met once, not in every pair."""


@functools.cache
def differences(backend: str) -> dict[str, list[float]]:
    """Worst difference of logits and of gradients of every case of the backend, all from one process."""
    pairs = [f"{family}-{mixing}" for own, family, mixing in CASES + OTHERS if own == backend]
    run = [sys.executable, "-W", "ignore", "-c", SCRIPT, backend, *pairs]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("backend", "family", "mixing"), CASES + OTHERS)
def test_compiled_equals_plain_in_one_graph(backend, family, mixing):
    logits, gradients = differences(backend)[f"{family}-{mixing}"]
    assert logits < 1e-5
    assert gradients < 1e-5
