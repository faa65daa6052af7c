"""The benchmarks of speed run, at sizes that tell nothing, and their tables and files have what they promise."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

PLAIN_GPT = """
import dataclasses
import torch

@dataclasses.dataclass
class GPTConfig:
    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float
    bias: bool

class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.table = torch.nn.Embedding(config.vocab_size, config.vocab_size)

    def forward(self, ids, targets):
        logits = self.table(ids)
        return logits, torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.view(-1))
"""
"""What the benchmark wants of a file with nanoGPT's model, and a model of two tokens in it."""


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """Runs a benchmark in this process; returns its table and its JSON."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    threads = torch.get_num_threads()

    def benchmark(name: str, *words: str) -> tuple[str, dict]:
        result = tmp_path / "result.json"
        every = ["--tiny", "--repeats", "1", "--threads", "1", "--json", str(result)]
        assert importlib.import_module(name).main([*every, *words]) == 0
        return capsys.readouterr().out, json.loads(result.read_text())

    yield benchmark
    torch.set_num_threads(threads)


def test_plain_codes_and_every_mixing_stand_beside_next_token_prediction(run, tmp_path):
    (tmp_path / "model.py").write_text(PLAIN_GPT)
    printed, result = run("vs_plain", "--nanogpt", str(tmp_path / "model.py"))
    rows = {row["name"]: row for row in result["rows"]}
    ours = ["cocomix: ntp", "cocomix: insert", "cocomix: add", "cocomix: memory"]
    assert list(rows) == [*ours, "transformers: ntp", "nanoGPT: ntp"]
    assert rows["cocomix: ntp"]["over_ntp"] == rows["cocomix: ntp"]["flops_over_ntp"] == 1
    assert rows["cocomix: insert"]["flops_over_ntp"] > rows["cocomix: memory"]["flops_over_ntp"] > 1
    assert all(row["seconds"] > 0 and row["over_floor"] > 0 for row in result["rows"])
    assert all(name in printed for name in rows)


def test_a_missing_file_of_nanogpt_is_named(run, tmp_path):
    with pytest.raises(SystemExit, match=r"is no Python file: give nanoGPT's model\.py"):
        run("vs_plain", "--nanogpt", str(tmp_path / "none.py"))


def test_decoding_is_compared_with_the_backbone_alone_in_time_and_in_bytes(run):
    printed, result = run("decode", "--batch", "1", "3")
    rows = {(row["batch"], row["method"]): row for row in result["rows"]}
    assert set(rows) == {(batch, method) for batch in (1, 3) for method in ("ntp", "insert", "add", "memory")}
    width, depth, vocabulary, concepts, kept, tokens = 32, 4, 384, 64, 8, 8 + 8 / 2
    weights = depth * 12 * width**2 + vocabulary * width
    plain = 4 * (weights + depth * tokens * 2 * width)
    assert rows[1, "ntp"]["megabytes"] == pytest.approx(plain / 1e6)
    doubled = 4 * ((concepts + kept) * width + 2 * tokens * 2 * width)
    assert rows[1, "insert"]["megabytes"] == pytest.approx((plain + doubled) / 1e6)
    assert rows[3, "ntp"]["megabytes"] < 3 * rows[1, "ntp"]["megabytes"]
    assert "batch 3, memory" in printed


def test_scaling_tells_every_series_and_the_run_s_length_and_draws_them(run, tmp_path):
    printed, result = run("scaling", "--plot", str(tmp_path / "scaling.png"))
    series = {row["series"] for row in result["rows"]}
    assert {"concepts", "width"} < series
    assert len(series) == 4
    assert len(result["rows"]) == 8
    assert result["length"]["steps"] == 8
    assert len(result["length"]["ratios"]) == 2
    assert "in its last quarter" in " ".join(printed.split())
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_the_suite_for_a_gpu_runs_all_its_tables_and_writes_one_file(tmp_path):
    """On a CPU, in bfloat16, without the compiler: its words fit the benchmarks."""
    out = tmp_path / "all.json"
    command = [str(BENCHMARKS / "gpu_suite.sh"), str(out), "cpu", "--tiny", "--repeats", "1", "--threads", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert set(found) == {"vs_plain", "decode", "extraction"}
    assert "bfloat16" in found["vs_plain"]["setting"]
