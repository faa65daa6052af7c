"""What a quickstart's report tells beside the comparison: plain dicts, each of them may be left out."""

from __future__ import annotations

from typing import TypedDict


class Stage(TypedDict):
    """One step of the whole run."""

    name: str
    what: str
    """What it did, in a few words."""
    seconds: float | None
    flops: float | None


class Model(TypedDict):
    """A model's size."""

    name: str
    total: int
    active: int


class Intro(TypedDict):
    """What was run."""

    title: str
    text: str
    corpus: str
    tokens: int
    """Training tokens of each run."""
    models: list[Model]
    stages: list[Stage]


class CrossEntropy(TypedDict):
    """The teacher's loss in nats a token when the SAE's block is left alone, reconstructed, zeroed."""

    clean: float
    reconstructed: float
    ablated: float
    recovered: float
    """(ablated − reconstructed) / (ablated − clean)."""


class SaeCheck(TypedDict):
    """``check.json`` of an SAE folder."""

    latents: int
    k: int | None
    """None where a threshold decides how many latents are active."""
    l0: float
    fvu: float
    dead_share: float
    cross_entropy: CrossEntropy
    tokens: int


class Promoted(TypedDict):
    """A token that a concept makes likelier."""

    token: str
    score: float


class Context(TypedDict):
    """A place in the text where a concept is strong."""

    before: str
    token: str
    after: str
    strength: float


class Concept(TypedDict):
    """A concept of the atlas."""

    id: int
    name: str
    frequency: float
    """Share of the tokens that are labelled with it."""
    count: int
    mean_strength: float
    promoted: list[Promoted]
    contexts: list[Context]


class ActiveConcept(TypedDict):
    """A concept predicted at a token."""

    id: int
    name: str
    strength: float


class SentenceToken(TypedDict):
    """A token of the sentence and its concepts, the strongest first."""

    token: str
    concepts: list[ActiveConcept]


class Sentence(TypedDict):
    """A sentence with the concepts that the model predicts at each token."""

    text: str
    tokens: list[SentenceToken]


class NamedConcept(TypedDict):
    """A concept by name."""

    id: int
    name: str


class Sample(TypedDict):
    """A text that was generated under an edit, such as ``×5``."""

    edit: str
    text: str


class Steering(TypedDict):
    """One prompt, one concept, several strengths."""

    prompt: str
    concept: NamedConcept
    unsteered: str
    samples: list[Sample]


class Prediction(TypedDict):
    """How well the model predicts its teacher's concepts, against guessing by their frequency."""

    recall: float
    """Share of the labels among the model's first K."""
    marginal_recall: float
    loss: float
    """Cross-entropy of the labels, nats."""
    marginal_loss: float


class Sections(TypedDict, total=False):
    """The sections of a quickstart's report; what is absent or None is left out."""

    intro: Intro | None
    sae: SaeCheck | None
    prediction: Prediction | None
    concepts: list[Concept] | None
    sentence: Sentence | None
    steering: Steering | list[Steering] | None
