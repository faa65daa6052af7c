"""A continuation's text is what its tokens add to the prompt's, also where a decoder strips a text's first space."""

from __future__ import annotations

import threading

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from cocomix.steer.generation import continue_all
from cocomix.steer.notation import Edit
from cocomix.steer.requests import Request
from cocomix.steer.rows import RowEdits
from cocomix.steer.settings import GenerateSettings
from cocomix.steer.streaming import Live
from cocomix.steer.text import continuation
from cocomix.studio.streaming import stream
from cocomix.testing.models import tiny_model


@pytest.fixture(scope="module")
def llamas() -> PreTrainedTokenizerFast:
    """A tokenizer of the Llama kind whose token i is ``▁w<i>``."""
    made = Tokenizer(WordLevel({f"▁w{i}": i for i in range(101)}, unk_token="▁w0"))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=made)


def test_the_first_word_keeps_its_space(llamas):
    assert llamas.decode([3, 4]) == "w3 w4"
    assert continuation(llamas, [3], [4, 5]) == " w4 w5"
    assert continuation(llamas, [], [4, 5]) == "w4 w5"
    assert continuation(llamas, [3], []) == ""


def test_texts_whole_and_as_they_come_keep_their_first_space(llamas, capsys):
    model, settings = tiny_model(), GenerateSettings(model="", max_new_tokens=3, temperature=0)
    (text,) = continue_all(model, llamas, [Request("w7 w8")], settings, Live(llamas, "w7 w8"))[0]
    assert text.startswith(" w")
    assert text.count(" ") == 3
    assert capsys.readouterr().out == f"w7 w8{text}\n\n"
    written = [made.unsteered for made in stream(model, llamas, [Request("w7 w8")], settings, threading.Event())]
    assert written[-1] == text
    assert text.startswith(written[0])


def test_a_stop_that_begins_with_a_space_is_seen_in_the_first_token(llamas):
    rows = RowEdits([[Edit(3, "set", 9.0, until=" w4")]], [2], llamas)
    edited = rows.apply(torch.zeros(1, 5, 40), torch.tensor([[4, 4, 4, 5, 6]]), torch.arange(5)[None])
    assert (edited[0, :, 3] == 9.0).tolist() == [True, True, False, False, False]
