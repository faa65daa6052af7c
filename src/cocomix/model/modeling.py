"""CoCoMix over a transformers backbone: lower blocks, a mixer, upper blocks, next-token logits.

Shapes: B batch, T tokens, S positions of a stream (T or 2T), D hidden, V vocabulary, C concepts, L labels a token.
Parallelism, compilation and steering are put on from outside; this file reads from top to bottom.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    DynamicCache,
    GenerationMixin,
    PreTrainedModel,
)

from cocomix.model.adapters import CACHE_ARGUMENT, adapter_for, check_positions, interleave, layer_kinds
from cocomix.model.config import CoCoMixConfig
from cocomix.model.masks import Past, memory_mask, positions_of, stream_mask
from cocomix.model.mixers import ConceptMixer, HiddenMixer, Mixed, PauseMixer
from cocomix.model.output import CoCoMixOutput
from cocomix.model.slots import close, slot_marks, with_slots
from cocomix.model.streams import MemoryKeys, Stream, hold_two_a_token
from cocomix.ops.activations import fuse_activations
from cocomix.ops.distill import Losses, divergence, head_losses
from cocomix.ops.heads import is_plain_linear, linear_nll

IGNORED = -100
"""Target of a position that does not count in the loss (PyTorch's convention)."""


class CoCoMixPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation."""

    config_class = CoCoMixConfig
    config: CoCoMixConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    accepts_loss_kwargs = False
    """Tells transformers' Trainer that ``loss`` is a mean over the batch at hand, whatever else it accumulates."""

    def _init_weights(self, module: nn.Module) -> None:
        """The mixer's layers as the reference starts them: normal with the backbone's deviation, biases zero."""
        std = getattr(self.config.text_config, "initializer_range", 0.02)
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, ConceptMixer):
            nn.init.zeros_(module.pre_bias)
            nn.init.zeros_(module.compress_bias)
        if isinstance(module, PauseMixer):
            nn.init.normal_(module.vector, std=std)


class CoCoMixForCausalLM(CoCoMixPreTrainedModel, GenerationMixin):
    """A causal language model whose stream carries, behind each token, a vector made of predicted concepts."""

    def __init__(self, config: CoCoMixConfig) -> None:
        super().__init__(config)
        config.check()
        text = config.text_config
        self.adapter = adapter_for(text.model_type)
        self.kinds = layer_kinds(text)
        if config.slot_base == "position" and self.adapter.position_embedding is None:
            raise ValueError(
                f"slot_base=position needs learned absolute positions; {text.model_type} rotates, there a slot has its "
                "token's position with slot_positions=shared"
            )
        self.backbone = AutoModel.from_config(text)
        fuse_activations(self.backbone)
        self.mixer: ConceptMixer | PauseMixer | HiddenMixer | None = None
        if config.mixer == "concept":
            self.mixer = ConceptMixer(text.hidden_size, config.num_concepts, config.concept_k)
        elif config.mixer == "pause":
            self.mixer = PauseMixer(text.hidden_size)
        elif config.mixer == "hidden":
            self.mixer = HiddenMixer(text.hidden_size, config.state_size, config.state_width)
        lent: Any = {"memory": self.blocks[config.insert_at :], "insert": self.blocks[-1:]}
        for block in lent.get(config.mixing, ()):
            # Gradient checkpointing takes a block's cache away lest it be filled twice; MemoryKeys only lends keys.
            block._can_checkpoint_with_cache = True
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self._tied_weights_keys = {"lm_head.weight": f"backbone.{self.adapter.embedding}.weight"}
        self.post_init()

    @classmethod
    def from_backbone(cls, name: str, load: dict[str, Any] | None = None, **mixer: Any) -> CoCoMixForCausalLM:
        """A pretrained backbone (hub id or folder) with a new mixer, for continued pretraining.

        ``mixer`` are settings of :class:`CoCoMixConfig`; ``load`` goes to transformers' ``from_pretrained`` (``dtype``,
        ``revision``, ``gguf_file``, …). The compression (or the pause vector) starts at zero: with ``mixing="insert"``
        and ``slot_base="copy"`` a slot starts as its token's own state, with ``memory`` the stream does, so that the
        network starts near the backbone's own function. Raises :class:`ValueError` when its files lack weights.
        """
        loaded: Any = AutoModelForCausalLM.from_pretrained(name, **{**(load or {}), "output_loading_info": True})
        plain, report = loaded
        if lost := sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]])):
            raise ValueError(f"from_backbone={name} lacks weights ({lost[0]} …): they would be random, save it again")
        text = plain.config.get_text_config()
        # A GGUF file's weights are plain numbers from here on; a saved model that said otherwise would not load.
        vars(text).pop("quantization_config", None)
        model: Any = cls(CoCoMixConfig(text_config=text, **mixer)).to(plain.dtype)
        model.backbone.load_state_dict(getattr(plain, plain.base_model_prefix).state_dict())
        model.lm_head.load_state_dict(plain.get_output_embeddings().state_dict())
        model.tie_weights()
        if isinstance(model.mixer, ConceptMixer | HiddenMixer):
            nn.init.zeros_(model.mixer.compress.weight)
        elif isinstance(model.mixer, PauseMixer):
            nn.init.zeros_(model.mixer.vector)
        return model

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.backbone.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head = new_embeddings

    @property
    def blocks(self) -> nn.ModuleList:
        """The backbone's blocks, bottom first."""
        return getattr(self.backbone, self.adapter.blocks)

    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "_ T"] | None = None,
        cache: Any = None,
        labels: Int[Tensor, "B T"] | None = None,
        targets: Int[Tensor, "B T"] | None = None,
        concept_ids: Int[Tensor, "B T L"] | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | None = 0,
        past_key_values: Any = None,
        z_sum: bool = False,
        teacher_probs: Float[Tensor, "B T K_or_V"] | None = None,
        teacher_tokens: Int[Tensor, "B T K"] | None = None,
        loss_weights: tuple[float, float, float] = (1.0, 0.1, 1e-4),
        **unused: Any,
    ) -> CoCoMixOutput:
        """Next-token logits (with ``logits_to_keep`` of the last so many positions; None: none), or the losses' sums.

        ``targets`` (already shifted, −100 ignored) and ``concept_ids`` (−1: no label) ask for ``nll`` and
        ``concept_nll``, ``z_sum`` for that of the targets; no logits are returned then. ``teacher_probs`` ask for
        ``divergence`` too: a teacher's next-token probabilities, all, or those of ``teacher_tokens``. Where more than
        ``nll`` is asked for, ``loss_weights`` are those of ``nll``, ``divergence``, ``z_sum`` in what is minimised (up
        to a common factor). ``labels`` is transformers' convention: equal to ``input_ids``, shifted inside, ``loss`` is
        the mean. ``attention_mask`` [B, past + T] marks real tokens.
        """
        if input_ids is None:
            raise ValueError("input_ids are wanted (input embeddings are not supported)")
        for name in ("output_hidden_states", "output_attentions"):
            if unused.get(name):
                raise ValueError(f"{name}=True is not supported: put a hook on model.blocks[i] (docs/method.md, Hooks)")
        cache = past_key_values if cache is None else cache
        if self.training and torch.is_grad_enabled() and getattr(self.blocks[0], "gradient_checkpointing", False):
            use_cache, cache = False, None  # a block that is run again in the backward pass would fill it twice
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config.get_text_config(decoder=True))
        past = self._past(cache)
        padding = None if attention_mask is None else attention_mask.bool()
        if padding is not None and not torch.compiler.is_compiling() and padding.all():
            padding = None  # (a compiled graph would break where it has to look)
        if position_ids is None:
            position_ids = positions_of(padding, input_ids.shape[0], past, input_ids.shape[1], input_ids.device)
        position_ids = position_ids.expand_as(input_ids)
        hidden, mixed = self._encode(input_ids, position_ids, padding, cache, past, concept_ids)
        output = CoCoMixOutput()
        if mixed is not None:
            output = CoCoMixOutput(concept_nll=mixed.nll, concept_logits=mixed.logits, state=mixed.state)
            if not self.training:  # DDP would take the compression for used where nothing is mixed in
                output["concept_vector"] = mixed.vector
        if use_cache:
            output[CACHE_ARGUMENT] = cache
        if targets is not None:
            losses = self._losses(hidden, targets, teacher_probs, teacher_tokens, z_sum, loss_weights)
            for name, loss in losses._asdict().items():
                if loss is not None:
                    output[name] = loss
            return output
        if logits_to_keep is not None:
            output["logits"] = self.lm_head(hidden[:, -logits_to_keep:])
        if labels is not None:
            shifted = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
            output["loss"] = self._nll(hidden, shifted) / (shifted != IGNORED).sum().clamp(min=1)
        return output

    def _past(self, cache: Any) -> Past:
        """What the cache holds; a new static one gets room for two entries a token in the blocks that need it."""
        if cache is None:
            return Past()
        double = self.mixer is not None and self.config.mixing in ("insert", "memory")
        if not cache.is_compileable:
            if double:
                hold_two_a_token(cache, self.config.insert_at)
            return Past(int(cache.get_seq_length()))
        room = cache.layers[0].max_cache_len
        entries = 2 * room if double else room
        for layer in cache.layers[self.config.insert_at :]:
            if not layer.is_initialized:
                layer.max_cache_len = entries
            elif layer.max_cache_len != entries:
                raise ValueError(
                    f"the static cache has {layer.max_cache_len} entries above the insertion where {entries} are "
                    "wanted: give it to the model before it is initialised"
                )
        return Past(cache.get_seq_length() + 0, room)  # block 0 counts on in place; the masks above want what was

    @staticmethod
    def create_masks_for_generate(attention_mask: Tensor | None = None, **unused: Any) -> Tensor | None:
        """generate() would make one mask for all blocks of a static cache; here each half makes its own from this."""
        return attention_mask

    def _nll(self, hidden: Float[Tensor, "B T D"], targets: Int[Tensor, "B T"]) -> Float[Tensor, ""]:
        if is_plain_linear(self.lm_head):
            return linear_nll(hidden.flatten(0, 1), self.lm_head.weight, targets.reshape(-1, 1))
        logits = self.lm_head(hidden).float().flatten(0, 1)
        return F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED, reduction="sum")

    def _losses(
        self,
        hidden: Float[Tensor, "B T D"],
        targets: Int[Tensor, "B T"],
        probs: Float[Tensor, "B T K_or_V"] | None,
        tokens: Int[Tensor, "B T K"] | None,
        z_sum: bool,
        weights: tuple[float, float, float],
    ) -> Losses:
        if probs is None and not z_sum:
            return Losses(self._nll(hidden, targets))
        due = targets.flatten()
        probs = None if probs is None else probs.flatten(0, 1)
        tokens = None if tokens is None else tokens.flatten(0, 1).long()
        if is_plain_linear(self.lm_head):
            asked = (*weights[:2], weights[2] if z_sum else 0.0)
            found = head_losses(hidden.flatten(0, 1), self.lm_head.weight, due, probs, tokens, asked)
            return found if z_sum else found._replace(z_sum=None)
        logits, counts = self.lm_head(hidden).float().flatten(0, 1), due != IGNORED
        return Losses(
            F.cross_entropy(logits, due, ignore_index=IGNORED, reduction="sum"),
            None if probs is None else (divergence(logits, probs, tokens) * counts).sum(),
            (logits.logsumexp(-1).square() * counts).sum() if z_sum else None,
        )

    def _encode(
        self,
        input_ids: Int[Tensor, "B T"],
        positions: Int[Tensor, "B T"],
        padding: Bool[Tensor, "B N"] | None,
        cache: Any,
        past: Past,
        concept_ids: Int[Tensor, "B T L"] | None,
    ) -> tuple[Float[Tensor, "B T D"], Mixed | None]:
        """The states from which next-token logits are read, one a token, and what the mixer made."""
        depth = len(self.blocks)
        if past.room is None:
            check_positions(self.config.text_config, self.adapter, past.tokens + input_ids.shape[1] - 1)
        hidden = self.adapter.embed(self.backbone, input_ids, positions)
        lower = self._stream(hidden, positions, padding, past, each=1)
        cut = self.config.insert_at if self.mixer is not None else depth
        hidden = self._run(range(cut), hidden, lower, cache)
        mixed = None
        if self.mixer is not None:
            mixed = self.mixer(hidden, concept_ids)
            upper = range(cut, depth)
            match self.config.mixing:
                case "insert":
                    hidden = self._insert(upper, hidden, mixed.vector, positions, padding, cache, past)
                case "memory":
                    hidden = self._memory(upper, hidden, mixed.vector, lower, padding, cache, past)
                case "add":
                    hidden = self._run(upper, hidden + mixed.vector, lower, cache)
                case "none":
                    hidden = self._run(upper, hidden, lower, cache)
        return getattr(self.backbone, self.adapter.norm)(hidden), mixed

    def _stream(
        self,
        states: Float[Tensor, "B S D"],
        positions: Int[Tensor, "B S"],
        padding: Bool[Tensor, "B N"] | None,
        past: Past,
        each: int,
        shown: Bool[Tensor, "B _"] | None = None,
    ) -> Stream:
        text, kinds = self.config.text_config, set(self.kinds)
        return Stream(
            {kind: stream_mask(text, kind, states, padding, past, each, shown) for kind in kinds},
            {kind: self.adapter.block_arguments(self.backbone, states, positions, kind) for kind in kinds},
        )

    def _run(self, places: range, states: Float[Tensor, "B S D"], stream: Stream, cache: Any) -> Float[Tensor, "B S D"]:
        for place in places:
            kind = self.kinds[place]
            mask, arguments = stream.masks[kind], stream.arguments[kind]
            states = self.adapter.run_block(self.blocks[place], states, mask, cache, arguments)
        return states

    def _insert(
        self,
        places: range,
        hidden: Float[Tensor, "B T D"],
        vector: Float[Tensor, "B T D"],
        positions: Int[Tensor, "B T"],
        padding: Bool[Tensor, "B N"] | None,
        cache: Any,
        past: Past,
    ) -> Float[Tensor, "B T D"]:
        """(h₁, ĉ₁, …, h_T, ĉ_T) through the upper blocks; the states at the slots come back (paper, section 3), of
        tokens without a slot their own."""
        slots = vector
        if self.config.slot_base == "copy":
            slots = slots + hidden
        elif self.config.slot_base == "position":
            assert self.adapter.position_embedding is not None
            slots = slots + self.adapter.position_embedding(self.backbone, positions)
        every, of_tokens, of_slots = self.config.slot_every, positions, positions
        if self.config.slot_positions == "sequential":
            of_tokens = positions + positions // every
            of_slots = of_tokens + 1
        whole = padding is None and cache is None and not getattr(self.config.text_config, "sliding_window", None)
        if every > 1 and whole:
            layout = close(hidden.shape[1], every, hidden.device)
            states = with_slots(hidden, slots, every, layout.order)
            stream = self._stream(states, with_slots(of_tokens, of_slots, every, layout.order), None, past, each=1)
            return self._run(places, states, stream, None)[:, layout.read]
        states, doubled = interleave(hidden, slots, dim=1), interleave(of_tokens, of_slots, dim=1)
        if every > 1:
            new = hidden.shape[1]
            shown, own = slot_marks(padding, past.tokens, past.keys(new), new, every, hidden.device)
            stream = self._stream(states, doubled, padding, past, each=2, shown=shown.expand(len(states), -1))
            states = self._run(places, states, stream, cache)
            return torch.where(own.unsqueeze(-1), states[:, 1::2], states[:, 0::2])
        stream = self._stream(states, doubled, padding, past, each=2)
        if "flash" in self.config.text_config._attn_implementation:
            return self._run(places, states, stream, cache)[:, 1::2]
        states = self._run(places[:-1], states, stream, cache)
        return self._last_slots(places[-1], states, doubled, padding, cache, past)

    def _last_slots(
        self,
        place: int,
        states: Float[Tensor, "B S D"],
        positions: Int[Tensor, "B S"],
        padding: Bool[Tensor, "B N"] | None,
        cache: Any,
        past: Past,
    ) -> Float[Tensor, "B T D"]:
        """The last block for the slots alone: nobody reads the tokens' states behind it, only their keys and values."""
        block, kind, text = self.blocks[place], self.kinds[place], self.config.text_config
        tokens, slots = states[:, 0::2], states[:, 1::2]
        of_tokens, of_slots = (
            self.adapter.block_arguments(self.backbone, part, positions[:, first::2], kind)
            for first, part in ((0, tokens), (1, slots))
        )
        memory = MemoryKeys(partial(self.adapter.keys_values, block, tokens, of_tokens), cache)
        mask = memory_mask(text, kind, slots, padding, past)
        return self.adapter.run_block(block, slots, mask, memory, of_slots)

    def _memory(
        self,
        places: range,
        hidden: Float[Tensor, "B T D"],
        vector: Float[Tensor, "B T D"],
        lower: Stream,
        padding: Bool[Tensor, "B N"] | None,
        cache: Any,
        past: Past,
    ) -> Float[Tensor, "B T D"]:
        """One stream from h + ĉ; the token states h stay as additional keys and values of every upper block."""
        text = self.config.text_config
        masks = {kind: memory_mask(text, kind, hidden, padding, past) for kind in set(self.kinds)}
        states = hidden + vector
        for place in places:
            block, kind = self.blocks[place], self.kinds[place]
            arguments = lower.arguments[kind]
            memory = MemoryKeys(partial(self.adapter.keys_values, block, hidden, arguments), cache)
            states = self.adapter.run_block(block, states, masks[kind], memory, arguments)
        return states


AutoConfig.register("cocomix", CoCoMixConfig)
AutoModelForCausalLM.register(CoCoMixConfig, CoCoMixForCausalLM)
