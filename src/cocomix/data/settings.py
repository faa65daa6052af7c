"""What ``cocomix data prepare`` can be told."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from cocomix.config import Seed, Settings

SMALLEST_VOCABULARY = 257
"""256 bytes and the end-of-text token."""


class PrepareSettings(Settings):
    """From a source of text to a dataset folder."""

    source: str = Field(
        description="a .txt, .jsonl or .parquet file (.txt and .jsonl also .gz or .zst), a folder of these, "
        "a dataset id of the Hugging Face hub, or a folder with nanoGPT's train.bin and val.bin"
    )
    out: str = Field(description="the dataset folder to write")
    tokenizer: str | None = Field(
        None, description="a tokenizer's folder or hub id; none trains a byte-level BPE on the text"
    )
    vocab_size: int = Field(
        4096,
        ge=SMALLEST_VOCABULARY,
        le=1_000_000,
        description="entries of the tokenizer that is trained here",
    )
    tokenizer_megabytes: int = Field(
        1000, ge=1, description="text from the source's beginning that a tokenizer is trained on"
    )
    field: str = Field("text", description="the field or column that holds a document's text")
    separator: str | None = Field(
        None,
        min_length=1,
        description="what stands between documents in a .txt file, read as YAML, so write line breaks as "
        "'separator=\"\\n\\n\"'; none: a file up to 64 kB is a document, a longer one is cut at blank lines "
        "into documents of about 16 kB",
    )
    split: str = Field("train", description="the split to read from a hub dataset")
    subset: str | None = Field(None, description="the configuration to read from a hub dataset")
    val_fraction: float = Field(
        0.02,
        gt=0,
        lt=1,
        description="share of documents held out for validation, chosen by their text's hash",
    )
    window: int = Field(256, ge=1, description="inputs of a training window, in tokens")
    shard_tokens: int = Field(
        1 << 25, ge=2, description="a shard ends with the document that brings it to so many tokens"
    )
    seed: Seed = Field(0, description="other seeds hold out other documents")
    limit_documents: int | None = Field(None, ge=1, description="read no more than so many documents")

    @model_validator(mode="after")
    def _fits_together(self) -> PrepareSettings:
        if self.shard_tokens <= self.window:
            raise ValueError(
                f"shard_tokens={self.shard_tokens} must be larger than window={self.window}: "
                "windows do not cross shards"
            )
        if self.tokenizer is not None and "vocab_size" in self.model_fields_set:
            raise ValueError(
                f"vocab_size={self.vocab_size} is for a tokenizer trained here, but "
                f"tokenizer={self.tokenizer} has its own vocabulary: leave one of the two out"
            )
        return self

    def choices(self) -> dict[str, Any]:
        """All that shapes the output, apart from where it comes from and goes to."""
        return self.model_dump(mode="json", exclude={"source", "out"})
