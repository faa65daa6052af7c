from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from cocomix.model.modeling import CoCoMixForCausalLM
from cocomix.testing.models import TINY_BACKBONES, tiny_config

IDS = torch.randint(1, 101, (2, 24), generator=torch.Generator().manual_seed(3))


@pytest.fixture(params=TINY_BACKBONES)
def plain(request, tmp_path):
    """A pretrained backbone of each family, saved in a folder: (model, folder)."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(request.param).text_config).eval()
    model.save_pretrained(tmp_path)
    return model, str(tmp_path)


def divergence(plain, model) -> float:
    """Mean KL divergence in nats a token of the model's next-token distribution from the backbone's."""
    with torch.no_grad():
        wanted, found = (m(input_ids=IDS).logits.log_softmax(-1) for m in (plain, model))
    return float((wanted.exp() * (wanted - found)).sum(-1).mean())


def test_without_a_mixer_it_is_the_backbone(plain):
    model = CoCoMixForCausalLM.from_backbone(plain[1], mixer="none").eval()
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, plain[0](IDS).logits, atol=1e-5, rtol=1e-5)


def test_a_slot_that_copies_its_token_leaves_the_function_of_the_backbone(plain):
    """In the last block a slot sees every key twice, which a softmax does not notice; lower down tokens see themselves
    once and all others twice, so there the function is near, not equal."""
    model = CoCoMixForCausalLM.from_backbone(
        plain[1], mixer="pause", mixing="insert", slot_base="copy", insert_at=3
    ).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, plain[0](IDS).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "mixing", [{"mixing": "insert", "slot_base": "copy"}, {"mixing": "memory"}, {"mixing": "add"}], ids=str
)
def test_with_concepts_it_starts_far_nearer_than_the_reference_mixing(plain, mixing):
    concepts = {"mixer": "concept", "insert_at": 2, "num_concepts": 40, "concept_k": 5}
    near = CoCoMixForCausalLM.from_backbone(plain[1], **concepts, **mixing).eval()
    bare = CoCoMixForCausalLM.from_backbone(plain[1], **concepts, mixing="insert").eval()
    assert divergence(plain[0], near) < 0.5 * divergence(plain[0], bare)


def test_missing_weights_are_refused_rather_than_drawn(plain):
    file = Path(plain[1]) / "model.safetensors"
    weights = load_file(file)
    lost = sorted(name for name in weights if name.endswith("weight") and ".1." in name)[0]
    save_file({name: weight for name, weight in weights.items() if name != lost}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"from_backbone=.* lacks weights \({re.escape(lost)} …\)"):
        CoCoMixForCausalLM.from_backbone(plain[1], mixer="none")


def test_settings_for_loading_are_passed_on(plain):
    model = CoCoMixForCausalLM.from_backbone(plain[1], {"dtype": torch.bfloat16}, mixing="add", insert_at=2)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
