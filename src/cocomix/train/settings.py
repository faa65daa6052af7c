"""What a training recipe can say."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from cocomix.config import Settings

DEFAULT_BACKBONE = {"model_type": "gpt2"}


class ModelSettings(Settings):
    """The network."""

    backbone: dict[str, Any] = Field(
        default_factory=lambda: dict(DEFAULT_BACKBONE),
        description="transformers configuration of the backbone: model_type and its own fields; vocabulary size, "
        "end-of-text id and context come from the data",
    )
    from_backbone: str | None = Field(
        None,
        description="start from the weights of this model (hub id, folder, run, GGUF file), not from random ones; its "
        "tokenizer must have made the data",
    )
    mixer: Literal["none", "concept", "pause"] = Field("none", description="what makes the vector behind each token")
    mixing: Literal["insert", "memory", "add", "none"] = Field("insert", description="how the vector enters")
    insert_at: int = Field(3, description="block (0-based) whose input the vector is made from and enters")
    slot_base: Literal["none", "position", "copy"] = Field(
        "none", description="what an inserted slot starts from besides the vector"
    )
    slot_positions: Literal["shared", "sequential"] = Field(
        "shared", description="rotary position of a slot: its token's, or counted on"
    )
    num_concepts: int | None = Field(None, description="size of the concept dictionary; none: the labels'")
    concept_k: int = Field(32, ge=1, description="predicted concepts that are mixed, a token")

    @model_validator(mode="after")
    def _one_backbone(self) -> ModelSettings:
        if self.from_backbone is not None and self.backbone != DEFAULT_BACKBONE:
            raise ValueError(
                f"model.from_backbone={self.from_backbone} brings its own configuration: leave model.backbone out, "
                "also where a recipe sets it"
            )
        return self


class DataSettings(Settings):
    """What is trained on."""

    path: str = Field(description="dataset folder, made by 'cocomix data prepare'")
    window: int | None = Field(None, ge=2, description="tokens of a window; none: the dataset's")
    labels: str | None = Field(None, description="concept labels: a name under DATASET/labels, or a folder")


class OptimizerSettings(Settings):
    """AdamW."""

    lr: float = Field(6e-4, gt=0, description="peak learning rate")
    betas: tuple[float, float] = Field((0.9, 0.95), description="AdamW's moment decays")
    eps: float = Field(1e-8, gt=0, description="AdamW's epsilon")
    weight_decay: float = Field(0.1, ge=0, description="decoupled weight decay")
    decay: Literal["matrices", "all"] = Field(
        "matrices",
        description="which parameters decay: matrices and embeddings, or all as the reference does",
    )
    clip: float = Field(1.0, gt=0, description="largest gradient norm")


class ScheduleSettings(Settings):
    """Learning rate over the run."""

    kind: Literal["cosine", "constant"] = Field("cosine", description="shape after warm-up")
    warmup: float = Field(1 / 300, ge=0, le=1, description="share of the steps that warm up linearly")
    final: float = Field(0.1, ge=0, le=1, description="learning rate at the end, as a share of the peak")


class TrainSettings(Settings):
    """A run."""

    run: str = Field(description="run folder to write, e.g. runs/mine")
    method: str = Field("custom", description="name of the method, by which comparisons group runs")
    seed: int = Field(0, ge=0, description="seed of weights, data order and dropout")
    data: DataSettings
    model: ModelSettings = Field(default_factory=ModelSettings)
    losses: dict[str, float] = Field(
        default_factory=lambda: {"ntp": 1.0},
        description="loss terms and their weights, e.g. {ntp: 1, concept: 0.1}",
    )
    tokens: int | None = Field(None, ge=1, description="budget in tokens (rounded up to whole steps)")
    steps: int | None = Field(None, ge=1, description="budget in steps; goes before tokens")
    batch_windows: int = Field(16, ge=1, description="windows a step")
    micro_batches: int = Field(1, ge=1, description="parts that a step's batch is computed in")
    optimizer: OptimizerSettings = Field(default_factory=OptimizerSettings)
    schedule: ScheduleSettings = Field(default_factory=ScheduleSettings)
    evaluations: int = Field(10, ge=1, description="evaluations over the run, the last at its end")
    eval_documents: int | None = Field(None, ge=1, description="held-out documents to evaluate; none: all")
    checkpoints: int = Field(4, ge=1, description="checkpoints over the run, the last at its end")
    keep: int = Field(2, ge=1, description="checkpoints to keep")
    log_every: int = Field(1, ge=1, description="steps between lines of metrics.jsonl")
    device: str = Field("auto", description="cpu, cuda, …; auto: cuda where there is one")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 on CUDA, fp32 elsewhere")
    threads: int | None = Field(None, ge=1, description="CPU threads; none: as PyTorch chooses")

    @field_validator("losses")
    @classmethod
    def _weights(cls, value: dict[str, float]) -> dict[str, float]:
        if not value or any(weight < 0 for weight in value.values()):
            raise ValueError("at least one loss is wanted, weights must not be negative")
        return {name: weight for name, weight in value.items() if weight > 0}

    @model_validator(mode="after")
    def _fits_together(self) -> TrainSettings:
        if self.tokens is None and self.steps is None:
            raise ValueError("give the budget as tokens=… or steps=…")
        if self.batch_windows % self.micro_batches:
            raise ValueError(
                f"batch_windows={self.batch_windows} must be a multiple of micro_batches={self.micro_batches}"
            )
        if "concept" in self.losses and self.model.mixer != "concept":
            raise ValueError(f"losses.concept needs model.mixer=concept, not {self.model.mixer!r}")
        if "concept" in self.losses and self.data.labels is None:
            raise ValueError("losses.concept needs data.labels=NAME: extract them with 'cocomix concepts extract'")
        return self


class ReferenceSettings(Settings):
    """A checkpoint of the reference implementation, on its way into an export."""

    tokenizer: str = Field(
        "openai-community/gpt2",
        description="with --from-reference: the model's tokenizer, a folder or hub id (its checkpoints come without)",
    )


FREE_ON_RESUME = frozenset(
    {"run", "tokens", "steps", "micro_batches", "evaluations", "eval_documents", "checkpoints", "keep", "log_every",
     "device", "threads"}
)  # fmt: skip
"""Settings that a resumed run may change: they do not alter what a step computes (but the budget the schedule)."""
