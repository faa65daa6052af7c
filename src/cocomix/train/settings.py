"""What a training recipe can say."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from cocomix.concepts.settings import OnlineSettings, OnlineTeacherSettings
from cocomix.config import Count, Seed, Settings, validated
from cocomix.dist.settings import DistSettings

DEFAULT_BACKBONE = {"model_type": "gpt2"}
MomentDecay = Annotated[float, Field(ge=0, lt=1)]


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
    mixer: Literal["none", "concept", "pause", "hidden"] = Field(
        "none", description="what makes the vector after each token"
    )
    mixing: Literal["insert", "memory", "add", "none"] = Field("insert", description="how the vector enters")
    insert_at: int = Field(3, description="block (0-based) whose input the vector is made from and enters")
    slot_base: Literal["none", "position", "copy"] = Field(
        "none", description="what an inserted slot starts from besides the vector"
    )
    slot_every: int = Field(1, ge=1, description="an inserted slot after every so many tokens")
    slot_positions: Literal["shared", "sequential"] = Field(
        "shared", description="rotary position of a slot: its token's, or counted on"
    )
    num_concepts: int | None = Field(None, description="size of the concept dictionary; none: the labels'")
    concept_k: int = Field(32, ge=1, description="predicted concepts that are mixed, a token")
    state_size: int | None = Field(
        None, ge=1, description="mixer=hidden: width of the teacher's state; none: the width of data.teacher"
    )
    state_width: int = Field(2048, ge=1, description="mixer=hidden: width of the layer before the guess of that state")

    @field_validator("backbone", mode="before")
    @classmethod
    def _unset(cls, value: Any) -> Any:
        """``model.backbone=null`` takes back what a recipe before it sets."""
        return dict(DEFAULT_BACKBONE) if value is None else value

    @model_validator(mode="after")
    def _one_backbone(self) -> ModelSettings:
        if self.from_backbone is not None and self.backbone != DEFAULT_BACKBONE:
            raise ValueError(
                f"model.from_backbone={self.from_backbone} brings its own configuration: leave model.backbone out, "
                "where a recipe sets it add model.backbone=null"
            )
        return self


class DataSettings(Settings):
    """What is trained on."""

    path: str = Field(description="dataset folder, made by 'cocomix data prepare'")
    window: int | None = Field(None, ge=2, description="tokens of a window; none: the dataset's")
    labels: str | None = Field(None, description="concept labels: a name under DATASET/labels, or a folder")
    online: OnlineSettings | None = Field(
        None, description="labels made while training, by this teacher and SAE, instead of data.labels"
    )
    probabilities: str | None = Field(
        None, description="a teacher's next-token probabilities: a name under DATASET/probabilities, or a folder"
    )
    teacher: OnlineTeacherSettings | None = Field(
        None, description="a teacher asked while training, for losses distill and state_…"
    )
    verify: bool = Field(True, description="compare the hashes of all shards and label files before training")


class OptimizerSettings(Settings):
    """AdamW, or Muon for the blocks' matrices with AdamW for the rest."""

    kind: Literal["adamw", "muon"] = Field(
        "adamw", description="adamw for all; muon: for the matrices of the blocks, adamw for embeddings, head, vectors"
    )
    lr: float = Field(6e-4, gt=0, description="AdamW's peak learning rate")
    muon_lr: float = Field(
        1e-3, gt=0, description="Muon's peak learning rate, scaled for each matrix to the size of AdamW's updates"
    )
    momentum: float = Field(0.95, ge=0, lt=1, description="Muon's momentum")
    betas: tuple[MomentDecay, MomentDecay] = Field((0.9, 0.95), description="AdamW's moment decays")
    eps: float = Field(1e-8, gt=0, description="AdamW's epsilon")
    weight_decay: float = Field(0.1, ge=0, description="decoupled weight decay")
    decay: Literal["matrices", "all"] = Field(
        "matrices",
        description="which parameters decay: matrices and embeddings, or all as the reference does",
    )
    clip: float = Field(1.0, gt=0, description="largest gradient norm")


class ScheduleSettings(Settings):
    """Learning rate over the run."""

    kind: Literal["cosine", "wsd", "constant"] = Field(
        "cosine", description="shape after warm-up; wsd: constant, then a linear decay"
    )
    warmup: float = Field(1 / 300, ge=0, le=1, description="share of the steps that warm up linearly")
    decay: float = Field(0.2, gt=0, le=1, description="with wsd: share of the steps, at the end, that decay")
    final: float = Field(0.1, ge=0, le=1, description="learning rate at the end, as a share of the peak")


class CheckpointSettings(Settings):
    """When checkpoints are written, and which are kept."""

    number: int = Field(4, ge=1, description="checkpoints spread over the run, the last at its end")
    seconds: float | None = Field(1800.0, gt=0, description="also one when so long ago was the last; none: never")
    keep: int = Field(2, ge=1, description="the last so many are kept")
    keep_every: int | None = Field(None, ge=1, description="those at a multiple of so many steps are kept for good")
    background: Literal["auto"] | bool = Field(
        "auto", description="write while training goes on, from a copy in the CPU's memory; auto: true on CUDA"
    )


class TrainSettings(Settings):
    """A run."""

    packaged_recipes: ClassVar[bool] = True

    run: str = Field(description="run folder to write, e.g. runs/mine")
    method: str = Field("custom", description="name of the method, by which comparisons group runs")
    seed: Seed = Field(0, description="seed of weights, data order and dropout")
    resume: Literal["auto", "must", "never"] | int = Field(
        "auto",
        description="auto: go on from the last whole checkpoint, or begin; must: refuse to begin; never: refuse to go "
        "on; a number: go on from that step's checkpoint, later ones are set aside",
    )
    data: DataSettings
    model: ModelSettings = Field(default_factory=ModelSettings)
    losses: dict[str, float] = Field(
        default_factory=lambda: {"ntp": 1.0},
        description="loss terms and their weights, e.g. {ntp: 1, concept: 0.1}; z (squared log-sum-exp of the "
        "next-token logits) is off by default",
    )
    tokens: Count | None = Field(None, ge=1, description="budget in tokens (rounded up to whole steps): 2000000 or 2M")
    steps: Count | None = Field(None, ge=1, description="budget in steps; overrides tokens")
    flops: float | None = Field(
        None, gt=0, description="budget in the student's FLOPs (rounded up to whole steps); overrides steps and tokens"
    )
    seconds: float | None = Field(
        None, gt=0, description="budget in seconds of training; overrides all others; the schedule follows the clock"
    )
    batch_windows: int = Field(16, ge=1, description="windows a step, over all ranks")
    micro_batches: int = Field(1, ge=1, description="parts that a rank's share of a step is computed in")
    optimizer: OptimizerSettings = Field(default_factory=OptimizerSettings)
    schedule: ScheduleSettings = Field(default_factory=ScheduleSettings)
    evaluations: int = Field(10, ge=1, description="evaluations over the run, the last at its end")
    eval_documents: int | None = Field(None, ge=1, description="held-out documents to evaluate; none: all")
    checkpoint: CheckpointSettings = Field(default_factory=CheckpointSettings)
    log_every: int = Field(1, ge=1, description="steps between lines of metrics.jsonl")
    loss_average: float = Field(0.98, ge=0, lt=1, description="decay of the losses' moving averages, a step")
    logs: list[Literal["tensorboard", "wandb"]] = Field(
        default_factory=list, description="where metrics go besides metrics.jsonl (pip install -e '.[logs]')"
    )
    device: str = Field("auto", description="cpu, cuda, …; auto: cuda where there is one")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 on CUDA, fp32 elsewhere")
    compile: Literal["none", "blocks"] = Field("none", description="torch.compile each block of the backbone")
    activation_checkpointing: Literal["none", "blocks"] = Field(
        "none", description="keep only each block's input for the backward pass and run the block again there"
    )
    dist: DistSettings = Field(default_factory=DistSettings)
    threads: int | None = Field(None, ge=1, description="CPU threads; none: as PyTorch chooses")

    @field_validator("losses")
    @classmethod
    def _weights(cls, value: dict[str, float]) -> dict[str, float]:
        for name, weight in value.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"losses.{name}={weight} must be a finite number, 0 or more")
        wanted = {name: weight for name, weight in value.items() if weight}
        if not wanted:
            raise ValueError("at least one loss of a weight above 0 is wanted, e.g. losses.ntp=1")
        return wanted

    @model_validator(mode="after")
    def _fits_together(self) -> TrainSettings:
        if self.tokens is self.steps is self.flops is self.seconds is None:
            raise ValueError("give the budget as tokens=…, steps=…, flops=… or seconds=…")
        if self.batch_windows % self.micro_batches:
            raise ValueError(
                f"batch_windows={self.batch_windows} must be a multiple of micro_batches={self.micro_batches}"
            )
        if "concept" in self.losses and self.model.mixer != "concept":
            raise ValueError(f"losses.concept needs model.mixer=concept, not {self.model.mixer!r}")
        if "concept" in self.losses and self.data.labels is None and self.data.online is None:
            raise ValueError(
                "losses.concept needs data.labels=NAME (made with 'cocomix concepts extract') or data.online.sae=…"
            )
        if "distill" in self.losses and self.data.probabilities is None and self.data.teacher is None:
            raise ValueError(
                "losses.distill needs data.probabilities=NAME (made with 'cocomix concepts probabilities') or "
                "data.teacher.name=…"
            )
        if self.data.probabilities is not None and self.data.teacher is not None and "distill" in self.losses:
            raise ValueError(
                f"data.probabilities={self.data.probabilities} and data.teacher are two sources of probabilities: "
                "leave one out"
            )
        for name in (name for name in self.losses if name.startswith("state_")):
            if self.model.mixer != "hidden" or self.data.teacher is None:
                raise ValueError(f"losses.{name} needs model.mixer=hidden and data.teacher.name=…")
        if self.data.labels is not None and self.data.online is not None:
            raise ValueError(f"data.labels={self.data.labels} and data.online are two sources of labels: leave one out")
        return self


class ReferenceSettings(Settings):
    """A checkpoint of the reference implementation, on its way into an export."""

    tokenizer: str = Field(
        "openai-community/gpt2",
        description="with --from-reference: the model's tokenizer, a folder or hub id (its checkpoints come without)",
    )


FREE_ON_RESUME = frozenset(
    {"run", "resume", "tokens", "steps", "flops", "seconds", "micro_batches", "evaluations", "eval_documents",
     "checkpoint", "log_every", "logs", "device", "precision", "compile", "activation_checkpointing", "dist", "threads",
     "data.verify", "data.online.force", "data.online.max_fvu"}
)  # fmt: skip
"""Settings that a resumed run may change: they do not alter what a step computes (but the budget the schedule). What
``precision`` comes to on a device may not: a run compares that itself."""


def resolved_precision(precision: str, cuda: bool) -> str:
    """``fp32`` or ``bf16``: what the setting means on a device."""
    return ("bf16" if cuda else "fp32") if precision == "auto" else precision


def first_difference(
    old: dict[str, Any], new: dict[str, Any], free: frozenset[str] = FREE_ON_RESUME, prefix: str = ""
) -> str | None:
    """The first setting outside ``free`` that differs, ``"optimizer.lr (0.001, now 0.002)"``; None: there is none."""
    for key in sorted(set(old) | set(new)):
        name = prefix + key
        if name in free:
            continue
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            if found := first_difference(a, b, free, f"{name}."):
                return found
        elif a != b:
            return f"{name} ({a}, now {b})"
    return None


def recorded(recipe: dict[str, Any]) -> dict[str, Any]:
    """A run's ``recipe.yaml`` through today's settings: those that the version which wrote it did not have are at their
    defaults."""
    return validated(TrainSettings, recipe).model_dump(mode="json")
