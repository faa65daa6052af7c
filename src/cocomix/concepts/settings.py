"""What the verbs of the teacher's side can be told. Imports no torch: --help reads this."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from cocomix.config import Count, Seed, Settings

Dtype = Literal["auto", "float32", "bfloat16"]


class AttributionSettings(Settings):
    """How target concepts are selected (paper Eq. 1; the defaults are the reference's)."""

    k: int = Field(4, ge=1, description="labels a token (the paper's K_attr)")
    latents: Literal["active", "preact"] = Field(
        "active",
        description="score the latents that survive the SAE's activation (reference), or all C of them before "
        "it (paper's equation; costs a product of d × C more)",
    )
    select: Literal["attribution", "activation"] = Field(
        "attribution",
        description="by a latent's effect on the loss, or simply the strongest latents: no gradient, and the "
        "teacher's blocks above the named one are not run",
    )
    gradient_of: Literal["sequence", "next_token"] = Field(
        "sequence",
        description="gradient of the mean loss of all tokens, so effects on later tokens count (reference), or of "
        "the token's own next-token loss alone (paper's equation)",
    )
    at: Literal["original", "reconstruction"] = Field(
        "original",
        description="take the gradient at the teacher's own activation (reference), or with the SAE's "
        "reconstruction in its place (paper's equation)",
    )
    order: Literal["largest", "smallest", "absolute"] = Field(
        "largest",
        description="largest score: more of the concept raises the loss (paper, reference); smallest: its "
        "presence lowers the loss; absolute: either",
    )

    @model_validator(mode="after")
    def _has_effect(self) -> AttributionSettings:
        if self.select == "activation":
            for name in ("gradient_of", "at", "order"):
                value = getattr(self, name)
                if value != type(self).model_fields[name].default:
                    raise ValueError(f"{name}={value} has no effect with select=activation: leave one of the two out")
        return self


class TeacherSettings(Settings):
    """Where a teacher runs."""

    device: str = Field(
        "auto", description="cpu, cuda (of several ranks each takes its own), cuda:1 …; auto: cuda where there is one"
    )
    dtype: Dtype = Field("auto", description="the teacher's precision; auto: bfloat16 on cuda, float32 elsewhere")


class LabellingSettings(TeacherSettings):
    """Which teacher and SAE label windows, and how."""

    sae: str = Field(description="the sparse autoencoder's folder of any known format, or saelens:RELEASE/SAE_ID")
    teacher: str | None = Field(
        None,
        description="run folder, folder or hub id of a causal language model; none: the one the SAE was trained on",
    )
    block: int | None = Field(
        None,
        ge=0,
        description="the SAE reads the output of this block, counted from 0; none: what it was trained on",
    )
    attribution: AttributionSettings = AttributionSettings()
    batch_windows: int = Field(8, ge=1, description="windows that go through the teacher at once")
    max_fvu: float = Field(
        0.5, gt=0, description="refuse an SAE that leaves more than this share of the variance unexplained"
    )
    force: bool = Field(False, description="label although the SAE does not fit the teacher")


NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class CacheSettings(Settings):
    """Which windows of a dataset a teacher is asked about, and in what portions."""

    data: str = Field(description="the dataset folder")
    window: int | None = Field(None, ge=1, description="tokens of a window; none: the dataset's")
    batch_windows: int = Field(8, ge=1, description="windows that go through the teacher at once")
    train_windows: int | None = Field(
        None, ge=1, description="only the training windows that a run reads first, this many; none: all"
    )
    train_seed: Seed = Field(0, description="with train_windows: the seed of those runs")
    unit_tokens: int = Field(
        1_048_576,
        ge=1,
        description="tokens of a unit of work, which one rank takes; labels do not depend on it",
    )


class ExtractSettings(CacheSettings, LabellingSettings):
    """Concept labels of a whole dataset."""

    name: str = Field("concepts", pattern=NAME, description="the labels lie in DATA/labels/NAME")


class ProbabilitySettings(CacheSettings, TeacherSettings):
    """A teacher's next-token probabilities of a whole dataset."""

    teacher: str = Field(description="run folder, folder or hub id of a causal language model")
    name: str = Field("teacher", pattern=NAME, description="they lie in DATA/probabilities/NAME")
    k: int = Field(32, ge=1, description="likeliest tokens that are kept, a token; the others share one bucket")


class OnlineSettings(LabellingSettings):
    """Concept labels made while a run trains, without a cache."""


class OnlineTeacherSettings(TeacherSettings):
    """A teacher that is asked while a run trains: for its probabilities, or for its state after a block."""

    name: str = Field(description="run folder, folder or hub id of a causal language model")
    block: int | None = Field(
        None, ge=0, description="state_… losses: regress the output of this block, counted from 0; none: the middle's"
    )
    k: int | None = Field(
        None, ge=1, description="distill: likeliest tokens, the others share one bucket; none: all of them"
    )
    batch_windows: int = Field(8, ge=1, description="windows that go through the teacher at once")


class SaeTrainSettings(TeacherSettings):
    """A TopK sparse autoencoder on the residual stream after one block of a teacher."""

    teacher: str = Field(description="run folder, folder or hub id of a causal language model")
    data: str = Field(description="the dataset folder; its train split is read")
    block: int = Field(ge=0, description="train on the output of this block, counted from 0")
    out: str = Field(description="the folder to write")
    latents: int = Field(2048, ge=1, description="size C of the dictionary")
    k: int = Field(16, ge=1, description="active latents a token")
    tokens: Count = Field(2_000_000, ge=1, description="activations to train on; passes over the data as needed")
    batch_tokens: int = Field(512, ge=1, description="activations of a training step")
    lr: float | None = Field(
        None, gt=0, description="Adam's learning rate; none: 4e-3 at 1024 latents, falling with their square root"
    )
    warm_up: float = Field(0.05, ge=0, lt=1, description="share of the steps with a rising learning rate")
    decay: float = Field(0.3, ge=0, lt=1, description="share of the steps, at the end, in which it falls to 0")
    dead_steps: int | None = Field(
        None,
        ge=1,
        description="a latent that was silent for so many steps is trained on the error; none: a tenth of the "
        "steps, 1000 at most",
    )
    buffer_tokens: int = Field(
        65536, ge=1, description="activations that are collected and shuffled before they become batches"
    )
    window: int | None = Field(None, ge=1, description="tokens of a window; none: the dataset's")
    batch_windows: int = Field(8, ge=1, description="windows that go through the teacher at once")
    seed: Seed = Field(0, description="of the weights, the order of windows and of activations")
    checkpoint_seconds: float = Field(120, gt=0, description="time between checkpoints")

    @model_validator(mode="after")
    def _fits_together(self) -> SaeTrainSettings:
        if self.k > self.latents:
            raise ValueError(f"k={self.k} is more than latents={self.latents}: choose a smaller k")
        if self.warm_up + self.decay > 1:
            raise ValueError(f"warm_up={self.warm_up} and decay={self.decay} overlap: their sum must not pass 1")
        if self.tokens < self.batch_tokens:
            raise ValueError(f"tokens={self.tokens} is less than one step of batch_tokens={self.batch_tokens}")
        return self

    @property
    def learning_rate(self) -> float:
        """The given one, or 4e-3·√(1024 / latents): larger dictionaries want smaller steps (Gao et al. 2024)."""
        return self.lr if self.lr is not None else 4e-3 * (1024 / self.latents) ** 0.5


class SaeCheckSettings(TeacherSettings):
    """How good a sparse autoencoder is on held-out text."""

    sae: str = Field(description="the sparse autoencoder's folder of any known format, or saelens:RELEASE/SAE_ID")
    data: str = Field(description="the dataset folder; its val split is read")
    teacher: str | None = Field(
        None, description="folder or hub id of the teacher; none: the one that the SAE was trained on"
    )
    block: int | None = Field(None, ge=0, description="the teacher's block; none: what the SAE was trained on")
    window: int | None = Field(None, ge=1, description="tokens of a window; none: the dataset's")
    tokens: Count = Field(100_000, ge=1, description="tokens to look at, at most")
    batch_windows: int = Field(8, ge=1, description="windows that go through the teacher at once")


class SaeConvertSettings(Settings):
    """Any sparse autoencoder as a SAELens 6 folder."""

    sae: str = Field(description="a sparse autoencoder's folder, or saelens:RELEASE/SAE_ID")
    out: str = Field(description="the folder to write")


class LabelsSettings(Settings):
    """Which labels."""

    labels: str | None = Field(None, description="the folder of the labels; or give data= and name=")
    data: str | None = Field(None, description="the dataset folder")
    name: str = Field("concepts", description="the labels' name in the dataset")

    @model_validator(mode="after")
    def _named(self) -> LabelsSettings:
        if self.labels is None and self.data is None:
            raise ValueError("say which labels: give their folder, or data=DATASET and name=NAME")
        return self

    @property
    def folder(self) -> str:
        """The folder of the labels."""
        return self.labels or f"{self.data}/labels/{self.name}"


class RunLabelsSettings(LabelsSettings):
    """Which labels; of a run that learnt from them the run says it."""

    model: str | None = Field(None, description="run folder of a model with concepts, which learnt from the labels")

    @model_validator(mode="after")
    def _named(self) -> RunLabelsSettings:
        if self.labels is None and self.data is None and self.model is None:
            raise ValueError("say which labels: give their folder, or data=DATASET and name=NAME, or model=RUN")
        return self


class AtlasSettings(RunLabelsSettings):
    """A description of every concept from its labels, and of what a model makes of them."""

    teacher: str | None = Field(None, description="the teacher, where it has moved since the extraction")
    sae: str | None = Field(None, description="the SAE's folder, where it has moved since the extraction")
    tokens: Count = Field(10_000_000, ge=1, description="labelled tokens to read, at most")
    contexts: int = Field(8, ge=1, le=1000, description="strongest contexts to keep of each concept")
    random_contexts: int = Field(
        8, ge=1, le=1000, description="contexts to draw of each concept, all its places alike likely"
    )
    promoted: int = Field(10, ge=1, le=1000, description="promoted and suppressed tokens to keep of each concept")
    nearest: int = Field(8, ge=1, le=1000, description="nearest concepts to keep of each concept")
    seed: Seed = Field(0, description="of the contexts that are drawn")
    student_tokens: int = Field(
        200_000, ge=1, description="with model=: tokens that the model reads, the held-out ones first, then training's"
    )
    effects: int = Field(
        256,
        ge=0,
        description="with model=: concepts, those that the model predicts most, whose effect on the next token is "
        "measured; the same command with more goes on",
    )
    effect_tokens: int = Field(256, ge=1, description="with model=: held-out tokens on which an effect is measured")
    device: str = Field("auto", description="with model=: where it runs: cpu, cuda …; auto: cuda where there is one")


class ShowSettings(RunLabelsSettings):
    """One concept's card."""

    id: int = Field(description="the concept's number")


class FindSettings(RunLabelsSettings):
    """Concepts of an atlas by words, or by what they are."""

    text: str | None = Field(None, description="words that stand in its name, tokens or contexts; the first argument")
    only: Literal["dead", "ignored", "named"] | None = Field(
        None, description="dead: no token's label; ignored: by the model (model=); named: by a person"
    )
    by: Literal["frequency", "mean_strength", "effect"] | None = Field(
        None,
        description="the largest first; effect: on the model's next token (model=); none: by frequency, or as found",
    )
    limit: int = Field(20, ge=1, description="how many are told")
