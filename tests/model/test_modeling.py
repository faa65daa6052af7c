from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from cocomix.model.config import CoCoMixConfig
from cocomix.model.mixers import NO_LABEL, concept_nll
from cocomix.model.modeling import CoCoMixForCausalLM
from cocomix.testing.models import TINY_BACKBONES, TINY_MIXERS, tiny_config, tiny_model


def name(form: dict) -> str:
    return "-".join(map(str, form.values()))


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(1, 101, (3, 20), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", TINY_BACKBONES)
def test_without_a_mixer_the_logits_are_the_plain_transformers_models(family, ids):
    model = tiny_model(family, mixer="none")
    plain = AutoModelForCausalLM.from_config(model.config.text_config).eval()
    plain.base_model.load_state_dict(model.backbone.state_dict())
    plain.get_output_embeddings().load_state_dict(model.lm_head.state_dict())
    with torch.no_grad():
        # GPT-2's activation function is PyTorch's one kernel here and eight operations there
        torch.testing.assert_close(
            model(ids).logits, plain(ids).logits, atol=5e-6 if family == "gpt2" else 1e-6, rtol=0
        )


@pytest.mark.parametrize("form", TINY_MIXERS, ids=name)
def test_a_token_is_blind_to_what_comes_behind_it(form, ids):
    model = tiny_model(**form)
    changed = ids.clone()
    changed[:, 12:] = (changed[:, 12:] + 7) % 101
    with torch.no_grad():
        torch.testing.assert_close(model(changed).logits[:, :12], model(ids).logits[:, :12], atol=1e-6, rtol=0)
        assert not torch.allclose(model(changed).logits[:, 12:], model(ids).logits[:, 12:])


@pytest.mark.parametrize("family", TINY_BACKBONES)
def test_keys_and_values_of_given_states_are_those_that_the_block_computes(family, ids):
    model = tiny_model(family)
    hidden = torch.randn(2, 9, 32)
    positions = torch.arange(9).expand(2, -1)
    for place, block in enumerate(model.blocks):
        kind = model.kinds[place]
        arguments = model.adapter.block_arguments(model.backbone, hidden, positions, kind)
        seen = Caught()
        with torch.no_grad():
            model.adapter.run_block(block, hidden, None, seen, arguments)
            keys, values = model.adapter.keys_values(block, hidden, arguments)
        torch.testing.assert_close(keys, seen.keys, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(values, seen.values, atol=1e-6, rtol=1e-6)


class Caught:
    """Stands where a block expects its cache and keeps what the block hands over."""

    def update(self, keys, values, layer_idx, *args, **kwargs):
        self.keys, self.values = keys, values
        return keys, values


def slow_memory_attention(model: CoCoMixForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """`mixing: memory` written out: every upper block sees tokens and slots, and only slots go on."""
    text, cut = model.config.text_config, model.config.insert_at
    positions = torch.arange(ids.shape[1])
    hidden = model.backbone.wte(ids) + model.backbone.wpe(positions)
    length, heads = ids.shape[1], text.n_head
    causal = torch.ones(length, length, dtype=torch.bool).tril()

    def attend(block, queries, keys, mask):
        q = block.attn.c_attn(block.ln_1(queries)).chunk(3, -1)[0]
        _, k, v = block.attn.c_attn(block.ln_1(keys)).chunk(3, -1)
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        scores = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(~mask, -torch.inf)
        return block.attn.c_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))

    for block in model.blocks[:cut]:
        hidden = hidden + attend(block, hidden, hidden, causal)
        hidden = hidden + block.mlp(block.ln_2(hidden))
    slots = hidden + model.mixer(hidden).vector
    for block in model.blocks[cut:]:
        slots = slots + attend(block, slots, torch.cat((hidden, slots), 1), torch.cat((causal, causal), 1))
        slots = slots + block.mlp(block.ln_2(slots))
    return model.lm_head(model.backbone.ln_f(slots))


def test_memory_mixing_equals_its_definition(ids):
    model = tiny_model(mixing="memory").double()
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, slow_memory_attention(model, ids), atol=1e-10, rtol=0)


@pytest.mark.parametrize("family", ["mistral", "gemma3_text"])
def test_resized_embeddings_are_known_to_the_configuration(family, ids):
    model = tiny_model(family)
    model.resize_token_embeddings(104)
    assert model(ids).logits.shape[-1] == model.config.text_config.vocab_size == 104
    assert model.config.text_config.sliding_window == 6


@pytest.mark.parametrize("mixing", ["insert", "memory", "add"])
@pytest.mark.parametrize("family", TINY_BACKBONES)
def test_bfloat16_autocast_trains_near_full_precision(family, mixing, ids, monkeypatch):
    monkeypatch.setattr("cocomix.model.masks.ROWS", 4)  # so that the streams of short texts have no mask of numbers
    model = tiny_model(family, mixing=mixing, backbone={"initializer_range": 0.02}).train()
    labels = torch.randint(0, 40, (3, 20, 4))
    losses = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            output = model(ids, targets=ids, concept_ids=labels)
        losses.append((output.nll / ids.numel(), output.concept_nll / labels.numel()))
        sum(losses[-1]).backward()
    for full, half in zip(*losses, strict=True):
        assert half.dtype == torch.float32
        assert half.item() == pytest.approx(full.item(), abs=0.02)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_labels_without_a_meaning_do_not_count():
    logits = torch.randn(2, 3, 10, dtype=torch.double)
    ids = torch.tensor([[[1, NO_LABEL], [NO_LABEL, NO_LABEL], [4, 9]]] * 2)
    wanted = -sum(
        logits[b, t].log_softmax(-1)[i] for b in range(2) for t in range(3) for i in ids[b, t].tolist() if i != NO_LABEL
    )
    torch.testing.assert_close(concept_nll(logits, ids), wanted)


def test_pause_is_concept_mixing_with_the_vector_in_place_of_the_prediction(ids):
    pause, concept = tiny_model(mixer="pause"), tiny_model(mixer="concept")
    concept.backbone.load_state_dict(pause.backbone.state_dict())
    concept.mixer = pause.mixer
    with torch.no_grad():
        assert torch.equal(pause(ids).logits, concept(ids).logits)


@pytest.mark.parametrize("mixing", ["add", "none"])
def test_a_zero_vector_leaves_the_plain_network(mixing, ids):
    model, plain = tiny_model(mixer="pause", mixing=mixing), tiny_model(mixer="none")
    plain.backbone.load_state_dict(model.backbone.state_dict())
    plain.lm_head.load_state_dict(model.lm_head.state_dict())
    torch.nn.init.zeros_(model.mixer.vector)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, plain(ids).logits, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"insert_at": 4}, "insert_at=4 lies outside the network: with 4 blocks it must be 1 to 3"),
        ({"insert_at": 0}, "insert_at=0 lies outside"),
        ({"concept_k": 41}, "concept_k=41 must be 1 to num_concepts=40"),
        ({"mixing": "memory", "slot_base": "copy"}, "slot_base=copy needs mixing=insert"),
        ({"mixing": "stack"}, "mixing='stack' is not one of"),
    ],
)
def test_settings_that_do_not_fit_are_named(setting, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        CoCoMixForCausalLM(tiny_config(**setting))


def test_a_position_base_is_refused_where_positions_rotate():
    with pytest.raises(ValueError, match="slot_base=position needs learned absolute positions"):
        CoCoMixForCausalLM(tiny_config("llama", slot_base="position"))


def test_a_sequence_beyond_the_position_table_is_refused():
    with pytest.raises(ValueError, match="the sequence has 65 tokens, the backbone's position table holds 64"):
        tiny_model()(torch.zeros(1, 65, dtype=torch.long))


LOAD = """
import json, sys, torch, cocomix.model.modeling
from transformers import AutoModelForCausalLM

found = {}
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids, logits = torch.load(folder + "/expected.pt")
    tied = model.lm_head.weight is model.get_input_embeddings().weight
    found[folder] = [torch.equal(model(ids).logits, logits), tied == model.config.text_config.tie_word_embeddings]
print(json.dumps(found))
"""


def test_saved_and_loaded_in_a_fresh_process_every_family_gives_the_same_logits(ids, tmp_path):
    for family in TINY_BACKBONES:
        model = tiny_model(family)
        model.save_pretrained(tmp_path / family)
        with torch.no_grad():
            torch.save((ids, model(ids).logits), tmp_path / family / "expected.pt")
    folders = [str(tmp_path / family) for family in TINY_BACKBONES]
    done = subprocess.run([sys.executable, "-c", LOAD, *folders], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {folder: [True, True] for folder in folders}


def test_configuration_survives_its_json():
    config = tiny_config("llama", mixing="memory", num_concepts=7)
    again = CoCoMixConfig.from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict()
    assert again.text_config.num_key_value_heads == 2
