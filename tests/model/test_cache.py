"""Decoding with a cache and with left padding equals running the whole text anew, whatever computes attention."""

from __future__ import annotations

import contextlib

import pytest
import torch
from transformers import StaticCache

from cocomix.model.adapters import CACHE_ARGUMENT
from cocomix.model.masks import Past, memory_mask, stream_mask
from cocomix.testing.models import TINY_BACKBONES, TINY_MIXERS, tiny_config, tiny_model

FORMS, FEW = TINY_MIXERS, TINY_MIXERS[:5]
ATTENTIONS = ["sdpa", "eager", "flex_attention"]
CASES = [
    (family, form, attention)
    for family in TINY_BACKBONES
    for form in (FORMS if family in ("gpt2", "llama") else FEW)
    for attention in ATTENTIONS
    if (family, attention) != ("gpt2", "flex_attention")  # which transformers does not have
    and (form in FEW or attention != "flex_attention")
    # Families that add nothing but their blocks: each form with the usual attention, each attention with two forms
    and (family in ("gpt2", "llama", "gemma3_text") or attention == "sdpa" or form in FEW[1:3])
]
STATIC = [
    (family, form, attention)
    for family, form, attention in CASES
    if (form in FEW or "slot_every" in form)
    and (attention == "sdpa" or family in ("gpt2", "llama", "gemma3_text"))
    # Flex attention by its definition is slow: of the family with two kinds of layers one form of each mixing
    and (attention != "flex_attention" or family == "llama" or form in FEW[1:3])
]
PROMPT, LENGTH = 8, 20
PIECES = [(0, 5), (5, PROMPT), *((i, i + 1) for i in range(PROMPT, LENGTH))]
PADDED = [0, 3, 7]
"""Left padding of each row of the batch."""


def case_name(value) -> str:
    return value if isinstance(value, str) else "-".join(map(str, value.values()))


@pytest.fixture(autouse=True)
def uncompiled_flex(request):
    """Flex attention by its own definition: compiling its kernel for every shape takes minutes (one test does)."""
    compiled = "compiled" in request.node.name
    with contextlib.nullcontext() if compiled else torch.compiler.set_stance("force_eager"):
        yield


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(1, 101, (3, LENGTH), generator=torch.Generator().manual_seed(1))


def in_pieces(model, ids, mask=None, cache=None):
    """Logits and cache of the text given piece by piece, the last twelve tokens one at a time."""
    cache, found = {} if cache is None else {CACHE_ARGUMENT: cache}, []
    with torch.no_grad():
        for start, end in PIECES:
            seen = None if mask is None else mask[:, :end]
            output = model(ids[:, start:end], attention_mask=seen, use_cache=True, **cache)
            cache = {CACHE_ARGUMENT: output[CACHE_ARGUMENT]}
            found.append(output.logits)
    return torch.cat(found, 1), cache[CACHE_ARGUMENT]


def entries_above(form: dict, tokens: int) -> int:
    return 2 * tokens if form["mixer"] != "none" and form["mixing"] in ("insert", "memory") else tokens


def left_padded(ids):
    padded, mask = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, padding in enumerate(PADDED):
        padded[row, padding:], mask[row, padding:] = ids[row, : LENGTH - padding], 1
    return padded, mask


@pytest.mark.parametrize(("family", "form", "attention"), CASES, ids=case_name)
def test_cached_equals_uncached_at_every_step(family, form, attention, ids):
    form = {"mixing": "insert", **form}
    model = tiny_model(family, attention=attention, **form)
    with torch.no_grad():
        whole = model(ids).logits
    found, cache = in_pieces(model, ids)
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-5)
    above = entries_above(form, LENGTH)
    assert [layer.keys.shape[2] for layer in cache.layers] == [LENGTH, LENGTH, above, above]


@pytest.mark.parametrize(("family", "form", "attention"), CASES, ids=case_name)
def test_a_left_padded_batch_equals_each_text_alone_at_every_step(family, form, attention, ids):
    model = tiny_model(family, attention=attention, **form)
    padded, mask = left_padded(ids)
    found, _ = in_pieces(model, padded, mask)
    with torch.no_grad():
        whole = model(padded, attention_mask=mask).logits
        for row, padding in enumerate(PADDED):
            alone = model(ids[row : row + 1, : LENGTH - padding]).logits[0]
            torch.testing.assert_close(whole[row, padding:], alone, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(found[row, padding:], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("family", "form", "attention"), STATIC, ids=case_name)
def test_a_static_cache_equals_a_growing_one_padded_or_not(family, form, attention, ids):
    form = {"mixing": "insert", **form}
    model = tiny_model(family, attention=attention, **form)
    for text, mask in ((ids, None), left_padded(ids)):
        static = StaticCache(config=model.config, max_cache_len=LENGTH + 4)
        found, cache = in_pieces(model, text, mask, static)
        wanted, _ = in_pieces(model, text, mask)
        real = slice(None) if mask is None else mask.bool()
        torch.testing.assert_close(found[real], wanted[real], atol=1e-5, rtol=1e-5)
        above = entries_above(form, LENGTH + 4)
        assert [layer.keys.shape[2] for layer in cache.layers] == [LENGTH + 4, LENGTH + 4, above, above]


@pytest.mark.parametrize("form", FEW, ids=case_name)
@pytest.mark.parametrize("family", TINY_BACKBONES)
def test_generate_gives_the_same_text_padded_cached_static_and_alone(family, form, ids):
    model = tiny_model(family, **form)
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    padded, mask = (x[:, :12] for x in left_padded(ids))
    texts = model.generate(padded, attention_mask=mask, **settings)
    static = model.generate(padded, attention_mask=mask, cache_implementation="static", **settings)
    assert torch.equal(texts, static)
    for row, padding in enumerate(PADDED):
        prompt = ids[row : row + 1, : 12 - padding]
        alone = model.generate(prompt, attention_mask=torch.ones_like(prompt), use_cache=False, **settings)
        assert texts[row, 12:].tolist() == alone[0, 12 - padding :].tolist()


def test_a_static_cache_that_was_initialised_too_small_is_refused(ids):
    model = tiny_model("llama")
    cache = StaticCache(config=model.config, max_cache_len=30)
    cache.early_initialization(batch_size=3, num_heads=2, head_dim=8, dtype=torch.float32, device=torch.device("cpu"))
    with pytest.raises(ValueError, match="30 entries above the insertion where 60 are wanted"):
        model(ids, use_cache=True, **{CACHE_ARGUMENT: cache})


@pytest.mark.parametrize("mixing", ["insert", "memory"])
def test_compiled_flex_attention_equals_eager_attention(mixing, ids):
    flex, eager = (tiny_model("llama", attention=name, mixing=mixing) for name in ("flex_attention", "eager"))
    padded, mask = left_padded(ids)
    with torch.no_grad():
        found, wanted = (model(padded, attention_mask=mask).logits for model in (flex, eager))
    torch.testing.assert_close(found[mask.bool()], wanted[mask.bool()], atol=1e-5, rtol=1e-5)


def flash_config(family: str):
    config = tiny_config(family).text_config
    config._attn_implementation = "flash_attention_2"
    return config


def test_flash_attention_takes_interleaved_streams_and_refuses_what_it_would_get_wrong(ids):
    """FlashAttention knows a causal mask aligned at the end and one window: enough for slots, not for the rest."""
    states, padding = torch.randn(3, 2 * LENGTH, 32), left_padded(ids)[1].bool()
    assert stream_mask(flash_config("llama"), "full_attention", states, None, Past(), 2) is None
    mask = stream_mask(flash_config("llama"), "full_attention", states, padding, Past(), 2)
    assert torch.equal(mask, padding.repeat_interleave(2, dim=1))
    with pytest.raises(ValueError, match="flash_attention_2 cannot do mixing=memory: load the model with sdpa"):
        memory_mask(flash_config("llama"), "full_attention", states, None, Past())
    with pytest.raises(ValueError, match="flash_attention_2 cannot do a sliding window above the insertion"):
        stream_mask(flash_config("mistral"), "sliding_attention", states, None, Past(), 2)
