"""Each row has its own edits at its own tokens: padded, cached, static, beams, repeated, until a stop."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast, StaticCache

from cocomix.model.adapters import CACHE_ARGUMENT
from cocomix.steer.edits import Edit, steering
from cocomix.steer.rows import RowEdits
from cocomix.testing.models import tiny_model

LENGTH, PADDED, PROMPT = 20, [0, 3, 7], 5
PIECES = [(0, 9), (9, 14), *((i, i + 1) for i in range(14, LENGTH))]
MIXED = [
    [Edit(3, "set", 30.0, start=4, end=9)],
    [Edit(3, "scale", -8.0, start="prompt"), Edit(5, "set", 20.0)],
    [Edit(7, "ablate", end="prompt"), Edit(2, "set", 25.0, start=11), Edit(9, "clamp", low=12.0, end=3)],
]
FORMS = [("gpt2", {"mixing": "insert"}), ("llama", {"mixing": "memory"}), ("mistral", {"mixing": "add"}),
         ("gemma3_text", {"mixing": "insert", "slot_every": 3})]  # fmt: skip


@pytest.fixture
def padded() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(1, 101, (3, LENGTH), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    for row, padding in enumerate(PADDED):
        ids[row, :padding] = mask[row, :padding] = 0
    return ids, mask


def by_hand(model, ids, edits):
    """z of one text under edits that are applied position by position, in one uncached pass."""

    def change(module, args, z):
        z = z.clone()
        for position in range(z.shape[1]):
            for edit in edits:
                start, end = (PROMPT if place == "prompt" else place for place in (edit.start, edit.end))
                if start <= position and (end is None or position < end):
                    old = z[0, position, edit.concept].item()
                    z[0, position, edit.concept] = {
                        "scale": old * edit.value,
                        "set": edit.value,
                        "clamp": max(old, edit.low or 0.0),
                        "ablate": -1e9,
                    }[edit.kind]
        return z

    handle = model.mixer.edit_point.register_forward_hook(change)
    with torch.no_grad():
        output = model(ids)
    handle.remove()
    return output.logits


@pytest.mark.parametrize(("family", "form"), FORMS)
@pytest.mark.parametrize("cached", ["whole", "growing", "static", "given positions"])
def test_each_row_of_a_padded_batch_is_edited_at_its_own_tokens(family, form, cached, padded):
    model = tiny_model(family, **form)
    ids, mask = padded
    prompts = [PROMPT] * 3
    with torch.no_grad(), steering(model, MIXED, prompts):
        if cached == "whole":
            found = model(ids, attention_mask=mask).logits
        else:
            cache = {CACHE_ARGUMENT: StaticCache(config=model.config, max_cache_len=24)} if cached == "static" else {}
            parts = []
            for start, end in PIECES:
                more = {}
                if cached == "given positions":
                    more["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, start:end]
                output = model(ids[:, start:end], attention_mask=mask[:, :end], use_cache=True, **cache, **more)
                cache = {CACHE_ARGUMENT: output[CACHE_ARGUMENT]}
                parts.append(output.logits)
            found = torch.cat(parts, 1)
    for row, padding in enumerate(PADDED):
        wanted = by_hand(model, ids[row : row + 1, padding:], MIXED[row])[0]
        torch.testing.assert_close(found[row, padding:], wanted, atol=2e-5, rtol=1e-5)
        with torch.no_grad():
            plain = model(ids[row : row + 1, padding:]).logits[0]
        assert not torch.allclose(plain, wanted, atol=1e-3)  # the edits do something


@pytest.mark.parametrize("search", [{"num_beams": 3, "num_return_sequences": 2}, {"num_beams": 3, "use_cache": False},
                                    {"cache_implementation": "static"}])  # fmt: skip
def test_generate_gives_each_prompt_of_a_batch_its_edits(search, padded):
    model = tiny_model(mixing="insert")
    ids, mask = padded
    settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, **search}
    prompts = [LENGTH - padding for padding in PADDED]
    edits = [[], [Edit(3, "set", 30.0, start="prompt")], [Edit(3, "set", 30.0, end="prompt"), Edit(4, "set", 30.0)]]
    with steering(model, edits, prompts):
        together = model.generate(ids, attention_mask=mask, **settings)[:, LENGTH:]
    each, plain = len(together) // 3, []
    for row, padding in enumerate(PADDED):
        prompt = ids[row : row + 1, padding:]
        with steering(model, edits[row], [prompts[row]]):
            alone = model.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)
        assert together[row * each : (row + 1) * each].tolist() == alone[:, prompt.shape[1] :].tolist()
        plain.append(model.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)[:, prompt.shape[1] :])
    assert plain[0].tolist() == together[:each].tolist()
    assert plain[1].tolist() != together[each : 2 * each].tolist()


def letters() -> PreTrainedTokenizerFast:
    """A tokenizer for which token i is letter i of the alphabet."""
    made = Tokenizer(WordLevel({chr(97 + i): i for i in range(26)}))
    made.decoder = Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=made)


@pytest.mark.parametrize("use_cache", [True, False])
def test_an_edit_ends_where_its_stop_was_written(use_cache):
    edit = Edit(3, "set", 9.0, until="cde")
    rows = RowEdits([[edit], [edit], [edit]], [4, 4, 4], letters())
    texts = torch.tensor([[2, 3, 4, 0, 0, 2, 3, 4, 0, 0], [0, 0, 0, 0, 2, 3, 5, 2, 3, 4], [0] * 10])  # a stop in the
    z, where = torch.zeros(3, 1, 40), []  # prompt does not count
    for place in range(10):
        seen = slice(place, place + 1) if use_cache else slice(0, place + 1)
        positions = torch.arange(10)[seen].expand(3, -1)
        edited = rows.apply(z.expand(3, positions.shape[1], 40), texts[:, seen], positions)
        where.append(edited[:, -1, 3] == 9.0)
    found = torch.stack(where, 1).int().sum(1)
    assert found.tolist() == [7, 9, 10]
    # Another text in the same rows: what was seen before is forgotten.
    again = rows.apply(z.expand(3, 10, 40), torch.zeros_like(texts), torch.arange(10).expand(3, -1))
    assert (again[:, :, 3] == 9.0).all()
