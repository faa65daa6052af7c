"""Log-likelihoods of continuations against one unpadded pass for each token, and against the harness."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from cocomix.data.dataset import Dataset
from cocomix.errors import UserError
from cocomix.evaluate.scoring import encode, longest_context, pieces, score
from cocomix.evaluate.tasks import Request
from cocomix.testing.models import tiny_model
from cocomix.testing.text import english_like

TEXT = next(iter(english_like(1)))
REQUESTS = [
    Request("The old harbour opens at dusk and", " boats"),
    Request("The old harbour opens at dusk and", " the whole town walks down to it"),
    Request("Spaces go over: ", "no"),
    Request("Q: é 你好?\nA:", " ça va — 好"),
    Request("", "Nothing before it"),
    Request(TEXT[:300], TEXT[300:330]),
    Request("long", TEXT[:200]),
]


@pytest.fixture(scope="module")
def tokenizer(dataset: Dataset) -> Any:
    return dataset.tokenizer()


@pytest.fixture(scope="module")
def with_bos(dataset: Dataset) -> Any:
    """The same tokenizer, which puts a token before every text."""
    from tokenizers import processors

    tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(dataset.tokenizer_folder)
    begin, number = tokenizer.bos_token, tokenizer.bos_token_id
    template = processors.TemplateProcessing(f"{begin} $A", special_tokens=[(begin, number)])
    tokenizer.backend_tokenizer.post_processor = template
    assert tokenizer.encode("a")[0] == number
    return tokenizer


def network(dataset: Dataset, family: str = "gpt2", **mixer: Any) -> Any:
    return tiny_model(family, backbone={"vocab_size": dataset.vocab_size}, **mixer)


def slowly(model: Any, before: list[int], behind: list[int], longest: int) -> tuple[float, bool]:
    """Every piece of ``longest`` targets alone; its inputs are the ``longest`` ids before its last target."""
    ids, nats, greedy, done = before + behind, 0.0, True, 0
    while done < len(behind):
        now = min(longest, len(behind) - done)
        end = len(before) + done + now
        window = ids[:end][-longest - 1 :]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([window[:-1]])).logits[0].double()
        for place in range(1, now + 1):
            row = logits[len(window) - 1 - place]
            nats += float(row.log_softmax(-1)[window[-place]])
            greedy = greedy and int(row.argmax()) == window[-place]
        done += now
    return nats, greedy


@pytest.mark.parametrize("longest", [64, 24, 5])
@pytest.mark.parametrize("mixing", ["insert", "memory", "none"])
def test_a_score_is_that_of_passes_without_padding(mixing: str, longest: int, dataset: Dataset, tokenizer: Any) -> None:
    """Contexts that fit, contexts cut from the left, and continuations that are longer than the context."""
    model = network(dataset, **({"mixer": "none"} if mixing == "none" else {"mixing": mixing}))
    found = score(model, tokenizer, REQUESTS, longest, batch=3)
    encoded = [encode(tokenizer, request) for request in REQUESTS]
    due = [slowly(model, *pair, longest) for pair in encoded]
    assert [s.nats for s in found] == pytest.approx([nats for nats, _ in due], abs=2e-4)
    assert [s.greedy for s in found] == [greedy for _, greedy in due]
    assert [s.cut for s in found] == [len(a) + len(b) - 1 > longest for a, b in encoded]
    assert 0 < sum(s.cut for s in found) <= len(REQUESTS) - (2 if longest > 5 else 0)
    assert any(len(behind) > longest for _, behind in encoded)


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "gemma3_text"])
def test_the_batch_size_changes_rounding_alone(family: str, dataset: Dataset, tokenizer: Any) -> None:
    model = network(dataset, family, mixing="memory")
    one, *others = ([s.nats for s in score(model, tokenizer, REQUESTS, 64, batch)] for batch in (1, 3, 16))
    for other in others:
        assert other == pytest.approx(one, abs=1e-4)


def test_a_continuation_that_the_model_prefers_is_greedy(dataset: Dataset, tokenizer: Any) -> None:
    model = network(dataset, mixer="none")
    context = "The old harbour"
    ids = tokenizer.encode(context)
    for _ in range(200):  # until the model's own choice is text that comes back as the same ids
        with torch.no_grad():
            best = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        text = tokenizer.decode([best])
        if tokenizer.encode(context + text) == [*ids, best]:
            break
        context += " so"
        ids = tokenizer.encode(context)
    else:
        pytest.fail("no such text")
    other = " boats" if text != " boats" else " no"
    assert [s.greedy for s in score(model, tokenizer, [Request(context, text), Request(context, other)], 64)] == [
        True,
        False,
    ]


@pytest.mark.parametrize("kind", ["tokenizer", "with_bos"])
def test_ids_and_scores_are_the_harnesss(kind: str, dataset: Dataset, request: pytest.FixtureRequest) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    tokenizer = request.getfixturevalue(kind)
    model = network(dataset, mixing="insert")
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, device="cpu")
    begun = Request(f"{tokenizer.bos_token}Begun already", " or not")
    requests = [*REQUESTS[:6], begun, Request("ends in a break\n\n", "x")]
    for one in requests:
        if one.context:
            assert encode(tokenizer, one) == tuple(harness._encode_pair(*one))
    due = harness.loglikelihood([Instance("loglikelihood", {}, tuple(one), i) for i, one in enumerate(requests)])
    found = score(model, tokenizer, requests, 64, 4)
    assert [s.nats for s in found] == pytest.approx([nats for nats, _ in due], abs=1e-5)
    assert [s.greedy for s in found] == [bool(greedy) for _, greedy in due]
    assert longest_context(model, tokenizer) == harness.max_length == 64
    assert sum(s.cut for s in found) == 1


def test_pieces_of_a_continuation_hold_all_of_it_and_as_much_before_as_there_is_room_for() -> None:
    found = list(pieces(7, [1, 2, 3], [4, 5, 6, 7, 8], 4))
    assert [(piece.request, piece.ids, piece.predicted) for piece in found] == [
        (7, [3, 4, 5, 6, 7], 4),
        (7, [4, 5, 6, 7, 8], 1),
    ]


def test_nothing_to_score_is_told(tokenizer: Any) -> None:
    with pytest.raises(UserError, match="leaves no ids for '' behind 'a text': this task cannot be scored"):
        encode(tokenizer, Request("a text", ""))


def test_mode_and_random_state_are_left_as_they_were(dataset: Dataset, tokenizer: Any) -> None:
    model = network(dataset).train()
    state, heard = torch.get_rng_state(), []
    score(model, tokenizer, REQUESTS, 16, 2, heard.append)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert sum(heard) == len(REQUESTS)


def test_what_fits_exactly_is_not_cut(dataset: Dataset, tokenizer: Any) -> None:
    model = network(dataset, mixer="none")
    before, behind = encode(tokenizer, REQUESTS[1])
    inputs = len(before) + len(behind) - 1
    assert [score(model, tokenizer, REQUESTS[1:2], longest)[0].cut for longest in (inputs, inputs - 1)] == [False, True]


@pytest.mark.parametrize("liked", ["q", "z"])
def test_a_continuation_in_pieces_is_greedy_only_where_all_of_them_are(
    liked: str, dataset: Dataset, tokenizer: Any
) -> None:
    """A network that always says the same token; one piece is made of it, the other is not."""
    model = network(dataset, mixer="none")
    (best,) = tokenizer.encode(liked)
    with torch.no_grad():
        model.backbone.ln_f.weight.zero_()
        model.backbone.ln_f.bias.copy_(10 * model.lm_head.weight[best])
    mixed, alone = Request("b", "zzzzqqqq"), Request("b", liked * 8)
    assert len(encode(tokenizer, mixed)[1]) == len(encode(tokenizer, alone)[1]) == 8
    assert [s.greedy for s in score(model, tokenizer, [mixed, alone], 4)] == [False, True]
