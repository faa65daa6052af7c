from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from cocomix.data.tokenizer import (
    Encoder,
    load_tokenizer,
    save_tokenizer,
    tokenizer_hash,
    train_tokenizer,
    vocabulary_size,
)
from cocomix.errors import UserError
from cocomix.testing.text import english_like


@pytest.fixture(scope="module")
def trained() -> PreTrainedTokenizerBase:
    return train_tokenizer(english_like(20), 400)


@given(text=st.text())
def test_any_text_comes_back(trained: PreTrainedTokenizerBase, text: str) -> None:
    (ids,) = Encoder(trained)([text])
    assert trained.decode(ids[:-1]) == text
    assert ids[-1] == trained.eos_token_id


def test_trained_tokenizer_ends_pads_and_begins_with_one_token(trained: PreTrainedTokenizerBase) -> None:
    assert len(trained) == 400
    assert {trained.bos_token, trained.eos_token, trained.pad_token, trained.unk_token} == {"<|endoftext|>"}


@given(text=st.text(alphabet="a <|endoftext|>", max_size=60))
def test_special_tokens_in_a_text_stay_text(trained: PreTrainedTokenizerBase, text: str) -> None:
    text = f"{text}<|endoftext|>{text}"
    (ids,) = Encoder(trained)([text])
    assert (ids == trained.eos_token_id).sum() == 1
    assert trained.decode(ids[:-1]) == text


def test_special_token_in_the_plain_vocabulary_is_left_out() -> None:
    """A word-level vocabulary holds ``</s>`` itself, so the characters find its id whatever is said."""
    backend = Tokenizer(models.WordLevel({"</s>": 0, "<unk>": 1, "a": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")
    assert [ids.tolist() for ids in Encoder(tokenizer)(["a </s> a b", ""])] == [[2, 2, 1, 0], [0]]


def test_encoder_leaves_the_tokenizer_as_it_is_and_is_not_truncated_by_it() -> None:
    tokenizer = train_tokenizer(english_like(20), 400)
    tokenizer("a b c d", truncation=True, max_length=2)
    (ids,) = Encoder(tokenizer)(["one two three four"])
    assert len(ids) > 3
    assert tokenizer("<|endoftext|>")["input_ids"] == [tokenizer.eos_token_id]


def test_hash_survives_saving_and_use(trained: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    save_tokenizer(trained, tmp_path / "tokenizer")
    loaded = AutoTokenizer.from_pretrained(str(tmp_path / "tokenizer"))
    assert tokenizer_hash(loaded) == tokenizer_hash(trained)
    loaded(["a", "a b c"], padding=True, truncation=True, max_length=2)
    loaded.save_pretrained(str(tmp_path / "again"))
    again = AutoTokenizer.from_pretrained(str(tmp_path / "again"))
    assert tokenizer_hash(again) == tokenizer_hash(trained)


def test_several_chat_templates_are_saved(trained: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    several = load_tokenizer(str(_saved(trained, tmp_path / "one")))
    several.chat_template = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    save_tokenizer(several, tmp_path / "several")
    assert load_tokenizer(str(tmp_path / "several")).chat_template == several.chat_template


def test_size_of_a_vocabulary_with_holes_is_its_largest_id_and_one() -> None:
    words = {"a": 0, "b": 70_000, "</s>": 5}
    backend = Tokenizer(models.WordLevel(words, unk_token="a"))
    assert vocabulary_size(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")) == 70_001


def _saved(tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    save_tokenizer(tokenizer, folder)
    return folder


def test_hash_tells_tokenizers_apart(trained: PreTrainedTokenizerBase) -> None:
    hashes = {tokenizer_hash(trained), tokenizer_hash(train_tokenizer(english_like(20), 401))}
    extended = train_tokenizer(english_like(20), 400)
    extended.add_tokens(["newword"])
    assert len(hashes | {tokenizer_hash(extended)}) == 3


def test_training_is_the_same_in_another_process(trained: PreTrainedTokenizerBase) -> None:
    program = (
        "from cocomix.data.tokenizer import *; from cocomix.testing.text import english_like;"
        "print(tokenizer_hash(train_tokenizer(english_like(20), 400)))"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == tokenizer_hash(trained)


def test_tokenizer_of_a_dataset_or_model_folder_is_found(trained: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    save_tokenizer(trained, tmp_path / "data" / "tokenizer")
    assert tokenizer_hash(load_tokenizer(str(tmp_path / "data"))) == tokenizer_hash(trained)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer=.*nothing: there is no such folder"):
        load_tokenizer(str(tmp_path / "nothing"))


def test_folder_without_a_tokenizer_says_what_it_should_hold(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"that folder holds no tokenizer .*tokenizer\.json"):
        load_tokenizer(str(tmp_path))


def test_unreachable_hub_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"tokenizer=nobody/nothing: it is no folder here and the hub gave none"):
        load_tokenizer("nobody/nothing")


def test_tokenizer_without_an_end_of_text_token_is_refused(tmp_path: Path) -> None:
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>").save_pretrained(str(tmp_path))
    with pytest.raises(UserError, match="has no end-of-text token"):
        load_tokenizer(str(tmp_path))
