"""Configuration of a CoCoMix network: a backbone's own configuration and what stands in its middle."""

from __future__ import annotations

import copy
from typing import Any

from transformers import AutoConfig, PreTrainedConfig


class CoCoMixConfig(PreTrainedConfig):
    """What :class:`cocomix.model.modeling.CoCoMixForCausalLM` is built from.

    text_config: the backbone's configuration, any model type in ``cocomix.model.adapters``.
    mixer: what makes the vector behind each token: ``concept`` (predict, TopK, compress), ``pause`` (one learnable
        vector), ``hidden`` (a small network by way of a guess of the teacher's state) or ``none`` (the plain backbone).
    mixing: how the vector enters the upper blocks. ``insert``: as a slot behind its token (the paper); ``memory``: the
        stream goes on from h + ĉ while the token states stay as extra keys and values; ``add``: h + ĉ in the one
        stream; ``none``: not at all (concept loss alone).
    insert_at: the vector is made from the input of this block (0-based) and enters there.
    slot_base: what an inserted slot starts from besides the vector: nothing (the reference), the learned
        ``position`` embedding of its token, or a ``copy`` of its token's state.
    slot_every: an inserted slot stands behind every s-th token; the others' next-token logits are read at themselves.
    slot_positions: under rotary embeddings a slot shares its token's position, or positions count tokens and slots.
    num_concepts: C, the size of the concept dictionary. concept_k: how many predicted concepts are mixed.
    state_size: with mixer ``hidden``, width of the teacher's state. state_width: of the layer before the guess.
    """

    model_type = "cocomix"
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012  (the name and kind that transformers expects)

    def __init__(
        self,
        text_config: dict[str, Any] | PreTrainedConfig | None = None,
        mixer: str = "concept",
        mixing: str = "insert",
        insert_at: int = 3,
        slot_base: str = "none",
        slot_positions: str = "shared",
        slot_every: int = 1,
        num_concepts: int = 32768,
        concept_k: int = 32,
        state_size: int = 768,
        state_width: int = 2048,
        **kwargs: Any,
    ) -> None:
        values = {"model_type": "gpt2"} if text_config is None else text_config
        self.text_config: Any = (
            AutoConfig.for_model(**{"model_type": "gpt2", **values}) if isinstance(values, dict) else values
        )
        self.mixer = mixer
        self.mixing = mixing
        self.insert_at = insert_at
        self.slot_base = slot_base
        self.slot_positions = slot_positions
        self.slot_every = slot_every
        self.num_concepts = num_concepts
        self.concept_k = concept_k
        self.state_size = state_size
        self.state_width = state_width
        # The backbone knows whether embeddings are tied and which ids are special; generate() asks this config.
        kwargs["tie_word_embeddings"] = bool(self.text_config.tie_word_embeddings)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            kwargs[name] = getattr(self.text_config, name, None)
        super().__init__(**kwargs)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> Any:
        """The backbone's configuration; with ``decoder`` as caches are built from it: without sliding windows.

        A sliding layer's cache forgets by positions, of which a token has two above the insertion. So every layer
        keeps all, and the masks leave out what a window, counted in tokens, does not reach.
        """
        text = self.text_config
        if not decoder or not getattr(text, "sliding_window", None):
            return text
        whole = copy.copy(text)
        whole.sliding_window = None
        if getattr(text, "layer_types", None) is not None:
            whole.layer_types = ["full_attention"] * text.num_hidden_layers
        return whole

    def to_dict(self) -> dict[str, Any]:
        """As transformers' own, without the names of code files that saving does not write: only an export does."""
        values = super().to_dict()
        if self._auto_class is None:
            values.pop("auto_map", None)
        return values

    def check(self) -> None:
        """Raises :class:`ValueError`, naming the setting and the mend, when the parts do not fit together."""
        depth = self.text_config.num_hidden_layers
        for name, value, choices in (
            ("mixer", self.mixer, ("none", "concept", "pause", "hidden")),
            ("mixing", self.mixing, ("insert", "memory", "add", "none")),
            ("slot_base", self.slot_base, ("none", "position", "copy")),
            ("slot_positions", self.slot_positions, ("shared", "sequential")),
        ):
            if value not in choices:
                raise ValueError(f"{name}={value!r} is not one of {', '.join(choices)}")
        if self.mixer == "none":
            return
        if not 1 <= self.insert_at < depth:
            raise ValueError(
                f"insert_at={self.insert_at} lies outside the network: with {depth} blocks it must be 1 to {depth - 1} "
                "(the vector is made from the input of that block)"
            )
        if self.slot_base != "none" and self.mixing != "insert":
            raise ValueError(f"slot_base={self.slot_base} needs mixing=insert: {self.mixing} has no slots of its own")
        if self.slot_every < 1:
            raise ValueError(f"slot_every={self.slot_every} must be 1 or more")
        if self.slot_every > 1 and self.mixing != "insert":
            raise ValueError(f"slot_every={self.slot_every} needs mixing=insert: {self.mixing} has no slots of its own")
        if self.mixer == "concept" and not 1 <= self.concept_k <= self.num_concepts:
            raise ValueError(f"concept_k={self.concept_k} must be 1 to num_concepts={self.num_concepts}")
