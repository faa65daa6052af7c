from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from tokenizers.normalizers import Lowercase
from transformers import AutoModelForCausalLM

from cocomix.data.batches import ColumnSource
from cocomix.data.dataset import Dataset
from cocomix.evaluate.concept_quality import concept_quality
from cocomix.evaluate.perplexity import evaluate_documents
from cocomix.evaluate.text_bytes import text_bytes
from cocomix.testing.models import tiny_model


@pytest.fixture(scope="module")
def model(dataset):
    return tiny_model(backbone={"vocab_size": dataset.vocab_size, "initializer_range": 0.05})


def slow_nats(model, split, context: int) -> tuple[float, int]:
    """Every token predicted once, one piece at a time, in double precision."""
    nats, tokens = 0.0, 0
    for ids in split.documents():
        ids = [split.eos_id, *ids.tolist()]
        for start in range(0, len(ids) - 1, context):
            piece = torch.tensor([ids[start : start + context + 1]])
            with torch.no_grad():
                scores = model(piece[:, :-1]).logits[0].double().log_softmax(-1)
            nats -= scores[torch.arange(len(scores)), piece[0, 1:]].sum().item()
            tokens += len(scores)
    return nats, tokens


@pytest.mark.parametrize("context", [32, 50])
def test_loss_is_the_mean_over_every_token_of_every_document(dataset, model, context):
    split = dataset.split("val")
    result = evaluate_documents(model, split, context)
    nats, tokens = slow_nats(model, split, context)
    assert tokens == split.tokens == result.tokens_evaluated
    assert result.loss == pytest.approx(nats / tokens, abs=1e-5)
    assert result.ppl == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    assert result.bits_per_byte == pytest.approx(nats / math.log(2) / split.text_bytes, rel=1e-5)


def test_bits_a_byte_of_some_documents_are_over_their_own_bytes(dataset, model):
    split = dataset.split("val")
    documents = list(split.documents())
    whole = Dataset(dataset.folder, copy.deepcopy(dataset.manifest))
    del whole.manifest["splits"]["val"]["text_bytes"]  # nobody counted: the tokens have to say it
    assert text_bytes(whole, "val", len(documents)) == split.text_bytes == text_bytes(dataset, "val", 10**6)
    assert text_bytes(whole, "val", None) is None
    parts = [text_bytes(dataset, "val", n) for n in range(len(documents) + 1)]
    assert parts[0] == 0
    assert parts == sorted(set(parts))
    assert parts[-1] == split.text_bytes
    result = evaluate_documents(model, split, 32, 2, text_bytes(dataset, "val", 2))
    assert result.bits_per_byte == pytest.approx(result.loss * result.tokens_evaluated / math.log(2) / parts[2])
    assert evaluate_documents(model, split, 32, 2).bits_per_byte is None


def test_a_tokenizer_that_loses_text_says_nothing_of_its_bytes(dataset, tmp_path):
    lossy = Dataset(tmp_path, dataset.manifest)
    tokenizer = dataset.tokenizer()
    tokenizer.backend_tokenizer.normalizer = Lowercase()
    tokenizer.save_pretrained(lossy.tokenizer_folder)
    for shard in dataset.split("val").shards:
        (tmp_path / shard.path.name).write_bytes(shard.path.read_bytes())
    assert text_bytes(lossy, "val", 1) is None


def test_the_result_does_not_move_with_the_batch_size(dataset, model):
    results = [evaluate_documents(model, dataset.split("val"), 32, batch_windows=n).loss for n in (1, 3, 64)]
    assert results == pytest.approx([results[0]] * 3, abs=1e-6)


def test_a_plain_transformers_model_is_measured_the_same(dataset):
    ours = tiny_model(mixer="none", backbone={"vocab_size": dataset.vocab_size})
    plain = AutoModelForCausalLM.from_config(ours.config.text_config).eval()
    plain.transformer.load_state_dict(ours.backbone.state_dict())
    a, b = (evaluate_documents(m, dataset.split("val"), 32, limit=2) for m in (ours, plain))
    assert a.loss == pytest.approx(b.loss, abs=1e-5)
    assert a.fingerprint == b.fingerprint


def test_other_documents_or_context_give_another_fingerprint(dataset, model):
    split = dataset.split("val")
    prints = {
        evaluate_documents(model, split, context, limit=limit).fingerprint for context in (16, 32) for limit in (1, 2)
    }
    assert len(prints) == 4


def test_training_mode_comes_back_and_no_random_number_is_drawn(dataset, model):
    model.train()
    state = torch.get_rng_state()
    evaluate_documents(model, dataset.split("val"), 32, limit=1)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    model.eval()


class Labels(ColumnSource):
    """Concepts 3 and 7 everywhere; the second label has no meaning at even positions."""

    def read(self, split, window_ids):
        ids = np.tile(np.array([3, 7]), (len(window_ids), 32, 1))
        ids[:, ::2, 1] = -1
        return ids


def test_concept_quality_against_its_definition(dataset):
    model = tiny_model(backbone={"vocab_size": dataset.vocab_size}, concept_k=1)
    torch.nn.init.zeros_(model.mixer.predict.weight)
    torch.nn.init.zeros_(model.mixer.predict.bias)
    model.mixer.predict.bias.data[3] = 2.0  # always predicts concept 3 with a known probability
    quality = concept_quality(model, dataset.split("val"), Labels(), 32, limit=5)
    total = math.log(39 + math.exp(2.0))
    assert quality.labels == 5 * 48
    assert quality.recall == pytest.approx(2 / 3)
    assert quality.marginal_recall == pytest.approx(2 / 3)
    assert quality.loss == pytest.approx((2 * (total - 2.0) + total) / 3, rel=1e-5)
    assert quality.marginal_loss == pytest.approx(-(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3)))
