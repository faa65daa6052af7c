from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cocomix.model.config import CoCoMixConfig
from cocomix.model.costs import count_flops, count_parameters
from cocomix.model.modeling import CoCoMixForCausalLM
from cocomix.testing.models import tiny_model

T = 64


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("form", ["none", "insert", "memory", "add", "only-loss", "every-4"])
def test_counted_operations_are_those_that_run(family, form):
    mixer = {
        "none": {"mixer": "none"},
        "only-loss": {"mixing": "none"},
        "every-4": {"mixing": "insert", "slot_every": 4},
    }.get(form, {"mixing": form})
    model = tiny_model(family, attention="eager", backbone={"initializer_range": 0.02}, **mixer)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(torch.zeros(1, T, dtype=torch.long))
    # The counter sees whole attention squares where ours counts the causal half, and no gathered rows.
    above = 2 if form != "none" else 0
    lower = 4 - above
    one = 4 * 32 * T  # scores and values of one position against T keys
    upper = {"none": 0, "insert": (2 * 2 * one + 2 * one) / 2, "memory": 2 * one, "every-4": 1.25**2 * one}
    causal = {
        "none": 0,
        "insert": (4 * one * (2 * T + 1) / (4 * T) + one * (T + 1) / T) / 2,
        "memory": one * (T + 1) / T,
        "every-4": 1.25 * one * (1.25 * T + 1) / (2 * T),
    }.get(form, one * (T + 1) / (2 * T))
    counted = count_flops(model, T)
    gathered = 0 if form in ("none", "only-loss") else 2 * 32 * 5
    ours = counted.total - gathered + lower * one * (1 - (T + 1) / (2 * T)) + above * (upper.get(form, one) - causal)
    if form == "only-loss":  # embedding_bag runs although its result is not used; the counter does not see it
        assert counted.mixer == 2 * 32 * 40
    assert ours * T == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize(
    ("width", "layers", "heads", "insert_at", "plain_width", "active"),
    [(512, 8, 8, 3, 624, 69e6), (1024, 24, 16, 5, 1072, 386e6), (2048, 24, 16, 5, 2096, 1.38e9)],
)
def test_active_parameters_are_the_papers(width, layers, heads, insert_at, plain_width, active):
    def build(size: int, **mixer):
        text = {"model_type": "gpt2", "n_embd": size, "n_layer": layers, "n_head": heads}
        with torch.device("meta"):
            return count_parameters(CoCoMixForCausalLM(CoCoMixConfig(text_config=text, **mixer)))

    cocomix, plain = build(width, insert_at=insert_at), build(plain_width, mixer="none")
    assert cocomix.active == pytest.approx(active, rel=0.02)
    assert plain.active == pytest.approx(cocomix.active, rel=0.02)
    assert plain.active == plain.total
