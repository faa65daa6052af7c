"""The model in the tools that people already use."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import StoppingCriteria, Trainer, TrainingArguments, pipeline

from cocomix.data.batches import sample_batch
from cocomix.model.load import load_model
from cocomix.testing.models import TINY_BACKBONES, tiny_model
from cocomix.train.export import export_model

MIXED = [{"mixing": "insert"}, {"mixing": "memory"}, {"mixing": "add"}]
IDS = torch.randint(1, 101, (3, 12), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def exported(dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_model(mixing="insert", backbone={"vocab_size": dataset.vocab_size, "initializer_range": 0.05})
    out = tmp_path_factory.mktemp("exported") / "model"
    return export_model(model, dataset.tokenizer_folder, out, {"run": "tiny", "tokens": 0})


@pytest.mark.parametrize("mixing", MIXED, ids=lambda m: m["mixing"])
@pytest.mark.parametrize("family", TINY_BACKBONES)
def test_beams_with_a_cache_equal_beams_without(family, mixing):
    model = tiny_model(family, **mixing)
    beams = {"num_beams": 3, "max_new_tokens": 6, "do_sample": False, "eos_token_id": -1}
    assert torch.equal(model.generate(IDS, **beams), model.generate(IDS, use_cache=False, **beams))


@pytest.mark.parametrize("mixing", MIXED, ids=lambda m: m["mixing"])
def test_sampling_depends_on_the_seed_alone(mixing):
    model = tiny_model(**mixing)
    texts = []
    for seed, cached in ((1, True), (1, False), (2, True)):
        torch.manual_seed(seed)
        texts.append(model.generate(IDS, do_sample=True, max_new_tokens=8, use_cache=cached, eos_token_id=-1))
    assert torch.equal(texts[0], texts[1])
    assert not torch.equal(texts[0], texts[2])


@pytest.mark.parametrize("mixing", MIXED, ids=lambda m: m["mixing"])
@pytest.mark.parametrize("family", ["gpt2", "mistral"])
def test_assisted_decoding_takes_tokens_back_and_equals_plain_decoding(family, mixing):
    model, text = tiny_model(family, **mixing), IDS[:1].repeat(1, 2)  # a text that repeats gives guesses, most wrong
    greedy = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": -1}
    assert torch.equal(model.generate(text, prompt_lookup_num_tokens=3, **greedy), model.generate(text, **greedy))


class AfterFour(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((len(input_ids),), input_ids.shape[1] >= 16)


def test_a_stopping_criterion_stops():
    assert tiny_model().generate(IDS, max_new_tokens=20, stopping_criteria=[AfterFour()], eos_token_id=-1).shape == (
        3,
        16,
    )


def test_text_generation_pipeline(exported):
    model, tokenizer = load_model(str(exported))
    made = pipeline("text-generation", model=model, tokenizer=tokenizer)("The old harbour", max_new_tokens=5)
    assert made[0]["generated_text"].startswith("The old harbour")


@pytest.mark.parametrize("mixing", MIXED, ids=lambda m: m["mixing"])
@pytest.mark.parametrize("family", TINY_BACKBONES)
def test_gradient_checkpointing_gives_the_same_gradients(family, mixing):
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model(family, **mixing).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert all(block.gradient_checkpointing for block in model.blocks)
        output = model(IDS, targets=IDS, concept_ids=IDS[..., None] % 40, use_cache=checkpointing)
        (output.nll + output.concept_nll).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_accumulating_in_transformers_trainer_gives_the_gradients_of_one_batch(dataset, tmp_path):
    batch = sample_batch(dataset.split("train"), dataset.window, 0, 0, 8, {})
    examples = [{"input_ids": row, "labels": row} for row in batch.inputs]
    norms = []
    for parts in (1, 4):
        model = tiny_model(backbone={"vocab_size": dataset.vocab_size})
        arguments = TrainingArguments(
            output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=8 // parts,
            gradient_accumulation_steps=parts, report_to=[], use_cpu=True, logging_steps=1, save_strategy="no",
            disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(model=model, args=arguments, train_dataset=examples)
        trainer.train()
        norms += [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)


def test_transformers_trainer_lowers_the_loss(dataset, tmp_path):
    model = tiny_model(backbone={"vocab_size": dataset.vocab_size, "initializer_range": 0.02}).train()
    batch = sample_batch(dataset.split("train"), dataset.window, 0, 0, 64, {})
    examples = [{"input_ids": row, "labels": row} for row in batch.inputs]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=12, per_device_train_batch_size=8, learning_rate=1e-2, report_to=[],
        use_cpu=True, logging_steps=1, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=examples)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.2
