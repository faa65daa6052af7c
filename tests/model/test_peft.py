"""LoRA on the backbone's layers by the library peft."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cocomix.testing.models import tiny_model

peft = pytest.importorskip("peft")

IDS = torch.randint(1, 101, (3, 12), generator=torch.Generator().manual_seed(5))
TARGETS = {"gpt2": ["c_attn", "c_proj"], "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"]}
CASES = [(family, mixing) for family in TARGETS for mixing in ("insert", "memory", "add")]


def adapted(family: str, mixing: str, **settings: Any) -> Any:
    """A tiny network with LoRA; ``settings`` go to peft."""
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, target_modules=TARGETS[family], fan_in_fan_out=family == "gpt2", **settings
    )
    torch.manual_seed(1)
    return peft.get_peft_model(tiny_model(family, mixing=mixing), config)


def trained(model: Any, steps: int = 6) -> list[float]:
    """Losses over a few steps on one batch."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        output = model(input_ids=IDS, labels=IDS)
        output.loss.backward()
        optimizer.step()
        losses.append(float(output.loss.detach()))
    model.eval()
    return losses


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def mixer(model: Any) -> dict[str, Tensor]:
    """The mixer's weights that the forward pass uses, under the plain model's names."""
    return {
        name.rpartition("mixer.")[2].removeprefix("modules_to_save.default."): parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if "mixer." in name and "original_module" not in name
    }


@pytest.mark.parametrize(("family", "mixing"), CASES)
def test_lora_trains_is_saved_loaded_and_merged(family, mixing, tmp_path):
    model = adapted(family, mixing)
    untouched = logits(tiny_model(family, mixing=mixing))
    torch.testing.assert_close(logits(model), untouched, atol=1e-5, rtol=1e-5)
    losses = trained(model)
    assert losses[-1] < losses[0] - 0.2
    wanted = logits(model)
    assert not torch.allclose(wanted, untouched, atol=1e-2)
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(tiny_model(family, mixing=mixing), tmp_path).eval()
    torch.testing.assert_close(logits(again), wanted, atol=1e-5, rtol=1e-5)
    merged = again.merge_and_unload()
    assert type(merged) is type(tiny_model())
    torch.testing.assert_close(logits(merged), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("family", "mixing"), CASES)
def test_the_mixer_stays_frozen_unless_it_is_asked_for(family, mixing):
    model = adapted(family, mixing)
    before = mixer(model)
    trained(model, 2)
    assert before
    assert all(torch.equal(value, before[name]) for name, value in mixer(model).items())


@pytest.mark.parametrize(("family", "mixing"), CASES)
def test_a_mixer_that_is_asked_for_trains_and_is_saved_with_the_adapter(family, mixing, tmp_path):
    model = adapted(family, mixing, modules_to_save=["mixer"])
    before = mixer(model)
    trained(model)
    after = mixer(model)
    assert all(not torch.equal(value, before[name]) for name, value in after.items() if name != "predict.bias")
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(tiny_model(family, mixing=mixing), tmp_path).eval()
    assert all(torch.equal(value, after[name]) for name, value in mixer(again).items())
    torch.testing.assert_close(logits(again), logits(model), atol=1e-5, rtol=1e-5)
    merged = again.merge_and_unload()
    assert mixer(merged).keys() == after.keys() == mixer(tiny_model()).keys()
    torch.testing.assert_close(logits(merged), logits(model), atol=1e-4, rtol=1e-4)


def test_an_adapted_model_generates_with_its_cache():
    model = adapted("llama", "insert")
    trained(model, 2)
    words = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": -1}
    made = model.generate(input_ids=IDS, **words)
    assert torch.equal(made, model.generate(input_ids=IDS, use_cache=False, **words))
