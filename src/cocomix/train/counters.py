"""Where a run stands; all of it lives in its checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Counters:
    """What was done so far, over all ranks."""

    step: int = 0
    samples: int = 0
    tokens: int = 0
    seconds: float = 0.0
    """Training alone: no evaluations, no checkpoints, no labelling; rank 0's clock."""
    flops: dict[str, float] = field(default_factory=lambda: {"student": 0.0, "teacher": 0.0})
    waited: dict[str, float] = field(default_factory=lambda: {"data": 0.0, "checkpoints": 0.0})
    """Seconds in which rank 0 waited for a batch (part of ``seconds``) and for checkpoints (not a part)."""
    label_seconds: float = 0.0
    """Of labelling while training, on rank 0."""
    average: dict[str, float] = field(default_factory=dict)
    """Moving averages of the losses, nats."""

    def follow(self, losses: dict[str, float], decay: float) -> None:
        """Brings the averages one step on; the first loss is where an average begins."""
        for name, value in losses.items():
            before = self.average.get(name, value)
            self.average[name] = decay * before + (1 - decay) * value
