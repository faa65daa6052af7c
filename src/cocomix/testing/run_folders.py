"""Run folders with made-up curves, written like real ones: for tests of comparisons and reports. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cocomix.files import write_json, write_text


@dataclass(frozen=True)
class MadeUpRun:
    """What a run folder is to tell; costs are proportional to the tokens."""

    method: str = "ntp"
    seed: int = 0
    tokens: Sequence[int] = (250_000, 500_000, 750_000, 1_000_000)
    losses: Sequence[float] = (5.0, 4.6, 4.4, 4.3)
    flops_per_token: float = 6e6
    seconds_per_token: float = 1e-4
    label_flops_per_token: float = 0.0
    label_seconds_per_token: float = 0.0
    upstream: dict[str, dict[str, float] | None] | None = None
    labels: str = "labels-a"
    of: dict[str, dict[str, str]] | None = None
    """``{"teacher": {"fingerprint"}, "sae": {"fingerprint"}}``; None: not written down."""
    active: int = 1_000_000
    data: str = "data-a"
    tokenizer: str = "tokenizer-a"
    window: int = 128
    evaluation_set: str = "held-out-a"
    finished: bool = True

    @property
    def has_labels(self) -> bool:
        """Whether the run reads a teacher's labels."""
        return self.label_flops_per_token > 0

    def write(self, folder: Path) -> Path:
        """Writes ``run.json``, ``metrics.jsonl`` and ``evals.jsonl`` into ``folder`` and returns it."""
        write_json(folder / "run.json", self._manifest(folder.name))
        points = list(zip(self.tokens, self.losses, strict=True))
        write_text(folder / "metrics.jsonl", "".join(json.dumps(self._metrics(*p)) + "\n" for p in points))
        write_text(folder / "evals.jsonl", "".join(json.dumps(self._evaluation(*p)) + "\n" for p in points))
        return folder

    def _manifest(self, name: str) -> dict[str, Any]:
        labels = {
            "fingerprint": self.labels,
            "flops_per_token": self.label_flops_per_token,
            "seconds_per_token": self.label_seconds_per_token,
            "upstream": self.upstream or {"teacher": None, "sae": None},
            "of": self.of,
        }
        return {
            "format": 1,
            "name": name,
            "method": self.method,
            "seed": self.seed,
            "parameters": {"total": 2 * self.active, "active": self.active},
            "flops_per_token": {"student": self.flops_per_token},
            "data": {
                "fingerprint": self.data,
                "tokenizer_sha256": self.tokenizer,
                "vocab_size": 4096,
                "window": self.window,
            },
            "labels": labels if self.has_labels else None,
            "finished": self.finished,
        }

    def _progress(self, tokens: int) -> dict[str, Any]:
        return {
            "step": tokens // 1000,
            "tokens": tokens,
            "flops": {
                "student": tokens * self.flops_per_token,
                "teacher": tokens * self.label_flops_per_token,
            },
            "seconds": tokens * self.seconds_per_token,
        }

    def _metrics(self, tokens: int, loss: float) -> dict[str, Any]:
        return {**self._progress(tokens), "losses": {"ntp": loss}, "lr": 1e-3, "tokens_per_second": 1e4}

    def _evaluation(self, tokens: int, loss: float) -> dict[str, Any]:
        return {
            **self._progress(tokens),
            "loss": loss,
            "ppl": math.exp(loss),
            "bits_per_byte": loss / 3 / math.log(2),
            "documents": 10,
            "tokens_evaluated": 50_000,
            "context": self.window,
            "fingerprint": self.evaluation_set,
        }
