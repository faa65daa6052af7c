from __future__ import annotations

import math

import pytest
import torch

from cocomix.errors import UserError
from cocomix.steer.edits import Edit, steering
from cocomix.testing.models import tiny_model

IDS = torch.arange(1, 13)[None]


def logits(model, edits=()):
    with torch.no_grad(), steering(model, edits):
        return model(IDS)


def test_no_edit_and_a_zero_edit_change_nothing_bit_for_bit():
    model = tiny_model()
    plain = logits(model).logits
    for edits in (
        [Edit(3, "scale", 1.0), Edit(4, "add", 0.0)],
        [Edit(3, "clamp", low=-1e5, high=1e5)],
        [Edit(3, "set", 9.0, start=12)],
        [Edit(3, "set", 9.0, start="prompt")],
        [[]],
    ):
        with torch.no_grad(), steering(model, edits, prompt=[12]):
            assert torch.equal(model(IDS).logits, plain)
    assert torch.equal(logits(model).logits, plain)


@pytest.mark.parametrize(
    ("edit", "change"),
    [
        (Edit(3, "scale", -2.0), lambda z: -2.0 * z),
        (Edit(3, "set", 9.0), lambda z: torch.full_like(z, 9.0)),
        (Edit(3, "add", 1.5), lambda z: z + 1.5),
        (Edit(3, "clamp", low=-0.1, high=0.1), lambda z: z.clamp(-0.1, 0.1)),
        (Edit(3, "clamp", high=0.1), lambda z: z.clamp(max=0.1)),
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


def test_concepts_that_are_off_weigh_nothing_however_many():
    model = tiny_model(concept_k=5)
    hidden = torch.randn(1, 6, 32)
    with torch.no_grad(), steering(model, [*(Edit(i, "ablate") for i in range(40)), Edit(3, "scale", 5.0)]):
        vector = model.mixer(hidden).vector
    std, mean = hidden.std(-1, keepdim=True), hidden.mean(-1, keepdim=True)
    torch.testing.assert_close(vector, mean + 0 * std + torch.zeros_like(hidden))


def test_edits_of_one_concept_act_one_after_another_and_contexts_nest():
    model = tiny_model()
    both = logits(model, [Edit(3, "set", 2.0), Edit(3, "add", 1.0)]).concept_logits[..., 3]
    assert (both == 3.0).all()
    with steering(model, [Edit(3, "set", 2.0)]):
        inner = logits(model, [Edit(3, "scale", 4.0)]).concept_logits[..., 3]
        assert (logits(model).concept_logits[..., 3] == 2.0).all()
    assert (inner == 8.0).all()


def test_two_models_are_steered_at_once():
    first, second = tiny_model(), tiny_model(seed=1)
    with steering(first, [Edit(3, "set", 2.0)]), steering(second, [Edit(3, "set", 5.0)]):
        assert (logits(first).concept_logits[..., 3] == 2.0).all()
        assert (logits(second).concept_logits[..., 3] == 5.0).all()


def test_gradients_flow_through_edits():
    model = tiny_model().double()
    with steering(model, [Edit(3, "scale", 2.0), Edit(3, "clamp", low=-9.0), Edit(4, "add", 1.0, start=2)]):
        model(IDS, targets=IDS).nll.backward()
        assert model.mixer.predict.weight.grad.abs().sum() > 0


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


@pytest.mark.parametrize("strength", [math.nan, math.inf, 1e7])
def test_a_strength_that_is_no_number_is_refused(strength):
    with pytest.raises(UserError, match="is no number from"), steering(tiny_model(), [Edit(3, "set", strength)]):
        pass


def test_what_an_edit_wants_to_know_is_asked_for():
    model = tiny_model()
    for edit, missing in (
        (Edit(3, "set", 1.0, unit="usual"), "made raw first"),
        (Edit(3, "set", 1.0, start="prompt"), "prompt= is wanted"),
    ):
        with pytest.raises(ValueError, match=missing), steering(model, [edit]):
            pass
    with pytest.raises(ValueError, match="tokenizer= is wanted"), steering(model, [Edit(3, "ablate", until="a")], [3]):
        pass
    with pytest.raises(ValueError, match="1 rows cannot be dealt to 2 lists of edits"):
        logits(model, [[Edit(3, "ablate")], []])


def test_a_concept_outside_the_dictionary_is_refused_with_the_range():
    with (
        pytest.raises(UserError, match="concept 40 is outside the dictionary: ids go from 0 to 39"),
        steering(tiny_model(), [Edit(40, "ablate")]),
    ):
        pass


def test_edits_are_taken_as_they_are_written():
    model = tiny_model()
    due = logits(model, [Edit(3, "set", 9.0)]).concept_logits
    for written in ("3=set:9", ["3=set:9"], [["3=set:9"]], Edit(3, "set", 9.0), ["3=set:2", Edit(3, "set", 9.0)]):
        assert torch.equal(logits(model, written).concept_logits, due)
    with torch.no_grad(), steering(model, "3=set:9 @prompt:", prompt=5):
        z = model(IDS.expand(2, -1)).concept_logits
    assert (z[..., 3] == 9.0).int().tolist() == [[0] * 5 + [1] * 7] * 2
    with pytest.raises(UserError, match="^'3=9' is no edit: write"), steering(model, ["3=9"]):
        pass


def test_a_model_that_runs_its_exports_code_is_told_apart_from_one_without_concepts():
    model = tiny_model()
    model.mixer = type("ConceptMixer", (torch.nn.Module,), {})()
    with pytest.raises(UserError, match="load it with cocomix.model.load.load_concept_model"), steering(model, []):
        pass


def test_a_model_without_concepts_cannot_be_steered():
    with pytest.raises(UserError, match="predicts no concepts"), steering(tiny_model(mixer="pause"), []):
        pass


def test_a_model_that_mixes_no_concepts_in_cannot_be_steered():
    with pytest.raises(UserError, match="mixing=none"), steering(tiny_model(mixing="none"), []):
        pass
