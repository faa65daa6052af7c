"""A compiled network obeys edits, whether it was compiled before they were put on or after."""

from __future__ import annotations

import json
import subprocess
import sys

SCRIPT = """
import json, torch
from cocomix.steer.edits import Edit, steering
from cocomix.testing.models import tiny_model

ids = torch.randint(1, 101, (2, 20), generator=torch.Generator().manual_seed(1))
mask = torch.ones_like(ids)
mask[0, :5] = 0
rows = [[Edit(3, "set", 30.0, start=4)], [Edit(3, "scale", -9.0, end=12), Edit(5, "ablate")]]
one = [Edit(7, "set", 20.0)]

def run(model, edits, attention_mask):
    with torch.no_grad(), steering(model, edits):
        logits = model(ids, attention_mask=attention_mask).logits
    return logits if attention_mask is None else logits[attention_mask > 0]

found = []
model = tiny_model(mixing="insert", backbone={"n_layer": 2}, insert_at=1)
before = torch.compile(model, backend="eager", fullgraph=True)
for edits, attention_mask in (([], None), (one, None), (rows, mask), ([], None)):
    a, b = run(before, edits, attention_mask), run(model, edits, attention_mask)
    found.append(["before", str(edits), (a - b).abs().max().item()])
plain, edited = run(before, [], None), run(before, one, None)
with steering(model, one), torch.no_grad():
    within = torch.compile(model, backend="eager")
    found.append(["within", str(one), (within(ids).logits - edited).abs().max().item()])
found.append(["within", "none", (run(within, [], None) - plain).abs().max().item()])
print(json.dumps({"differences": found, "effect": (plain - edited).abs().max().item()}))
"""
# In a process of its own: the tests' shape checks wrap every function and would break the graph.


def test_compiled_networks_obey_edits_that_come_and_go():
    run = [sys.executable, "-W", "ignore", "-c", SCRIPT]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert [case for case in found["differences"] if case[2] > 1e-5] == []
    assert len(found["differences"]) == 6
    assert found["effect"] > 0.1
