"""What `cocomix quickstart` can be told. The defaults take minutes on two CPU cores."""

from __future__ import annotations

from pydantic import Field

from cocomix.config import Count, Seed, Settings


class QuickstartSettings(Settings):
    """Sizes and budgets of the quickstart."""

    folder: str = Field("runs/quickstart", description="where everything is written; the report is FOLDER/report")
    documents: int | None = Field(None, ge=1, description="documents of the corpus to use; none: all 256")
    vocab_size: int = Field(4096, ge=257, description="vocabulary of the tokenizer trained on the text")
    window: int = Field(256, ge=16, description="tokens of a window")
    teacher_tokens: Count = Field(500_000, ge=1, description="tokens that the teacher is trained on")
    sae_tokens: Count = Field(250_000, ge=1, description="activations that the sparse autoencoder is trained on")
    latents: int = Field(512, ge=1, description="size of the concept dictionary")
    tokens: Count = Field(300_000, ge=1, description="tokens that each student is trained on")
    seed: Seed = Field(0, description="seed of weights and data order")
    prompt: str = Field("The economy of the island depends on", description="prompt of the steering samples")
    sentence: str = Field(
        "The country exports crude oil and natural gas to its neighbors.", description="sentence to look into"
    )
