from __future__ import annotations

import pytest
import torch

from cocomix.errors import UserError
from cocomix.steer.edits import Edit, parse_edit, steering
from cocomix.testing.models import tiny_model

IDS = torch.arange(1, 13)[None]


@pytest.mark.parametrize(
    ("text", "edit"),
    [
        ("12=x5", Edit(12, "scale", 5.0)),
        ("12=×0.5", Edit(12, "scale", 0.5)),
        ("12=x-3", Edit(12, "scale", -3.0)),
        ("0=set:-4", Edit(0, "set", -4.0)),
        ("7=+3", Edit(7, "add", 3.0)),
        ("7=-2.5e1", Edit(7, "add", -25.0)),
        (" 7 = off ", Edit(7, "ablate")),
    ],
)
def test_edits_are_read_as_written(text, edit):
    assert parse_edit(text) == edit


@pytest.mark.parametrize(
    "text", ["", "12", "x5", "12=5", "12=xnan", "12=xinf", "12=set:", "a=x5", "-1=x5", "12=+", "1=x5 x6"]
)
def test_what_is_no_edit_is_refused_with_the_forms(text):
    with pytest.raises(UserError, match="write ID=x5"):
        parse_edit(text)


def logits(model, edits=()):
    with torch.no_grad(), steering(model, edits):
        return model(IDS)


def test_no_edit_and_a_zero_edit_change_nothing_bit_for_bit():
    model = tiny_model()
    plain = logits(model).logits
    assert torch.equal(logits(model, [Edit(3, "scale", 1.0), Edit(4, "add", 0.0)]).logits, plain)
    assert torch.equal(logits(model).logits, plain)


@pytest.mark.parametrize(
    ("edit", "change"),
    [
        (Edit(3, "scale", -2.0), lambda z: -2.0 * z),
        (Edit(3, "set", 9.0), lambda z: torch.full_like(z, 9.0)),
        (Edit(3, "add", 1.5), lambda z: z + 1.5),
    ],
)
def test_an_edit_changes_its_concept_before_topk_and_no_other(edit, change):
    model = tiny_model()
    before, after = logits(model).concept_logits, logits(model, [edit]).concept_logits
    torch.testing.assert_close(after[..., 3], change(before[..., 3]))
    others = [i for i in range(40) if i != 3]
    assert torch.equal(after[..., others], before[..., others])


def test_a_set_concept_is_mixed_with_just_that_weight():
    model = tiny_model(concept_k=1)
    torch.nn.init.zeros_(model.mixer.compress.weight)
    model.mixer.compress.weight.data[3] = torch.arange(32.0)
    hidden = torch.randn(1, 4, 32)
    with torch.no_grad(), steering(model, [Edit(3, "set", 50.0)]):
        vector = model.mixer(hidden).vector
    std, mean = hidden.std(-1, keepdim=True), hidden.mean(-1, keepdim=True)
    torch.testing.assert_close(vector, 50.0 * torch.arange(32.0) * std + mean)


def test_an_ablated_concept_is_never_mixed():
    model = tiny_model(concept_k=39)
    torch.nn.init.zeros_(model.mixer.compress.weight)
    model.mixer.compress.weight.data[3] = 1e3
    with torch.no_grad():
        hidden = torch.randn(1, 6, 32)
        plain = model.mixer(hidden).vector
        with steering(model, [Edit(3, "ablate")]):
            ablated = model.mixer(hidden).vector
    std, mean = hidden.std(-1, keepdim=True), hidden.mean(-1, keepdim=True)
    torch.testing.assert_close(ablated, mean + 0 * std + torch.zeros_like(hidden))
    assert not torch.allclose(plain, ablated)


def test_several_edits_hold_at_once_and_end_with_the_context():
    model = tiny_model()
    edited = logits(model, [Edit(3, "set", 8.0), Edit(4, "set", 7.0)]).concept_logits
    assert (edited[..., 3] == 8.0).all()
    assert (edited[..., 4] == 7.0).all()
    with pytest.raises(RuntimeError), steering(model, [Edit(3, "set", 8.0)]):
        raise RuntimeError
    assert not (logits(model).concept_logits[..., 3] == 8.0).any()


def test_edits_hold_while_generating_with_a_cache():
    model = tiny_model()
    edit = [Edit(3, "set", 30.0)]
    with steering(model, edit):
        cached = model.generate(IDS, max_new_tokens=12, do_sample=False, eos_token_id=-1)
        uncached = model.generate(IDS, max_new_tokens=12, do_sample=False, use_cache=False, eos_token_id=-1)
    plain = model.generate(IDS, max_new_tokens=12, do_sample=False, eos_token_id=-1)
    assert cached.tolist() == uncached.tolist()
    assert cached.tolist() != plain.tolist()


def test_a_concept_outside_the_dictionary_is_refused_with_the_range():
    with (
        pytest.raises(UserError, match="concept 40 is outside the dictionary: ids go from 0 to 39"),
        steering(tiny_model(), [Edit(40, "ablate")]),
    ):
        pass


def test_a_model_without_concepts_cannot_be_steered():
    with pytest.raises(UserError, match="predicts no concepts"), steering(tiny_model(mixer="pause"), []):
        pass
