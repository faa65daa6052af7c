"""The tokenizer of a dataset: trained here or taken; its hash; documents to ids."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt32

from cocomix.data.gguf import SUFFIX as GGUF
from cocomix.data.gguf import check_whole, find_gguf
from cocomix.data.hub import hub_error
from cocomix.errors import UserError, explained
from cocomix.files import TEMPORARY_SUFFIX, sha256_json, sync_folder
from cocomix.places import can_only_be_a_path

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END_OF_TEXT = "<|endoftext|>"
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model")
"""One of these lies in a folder with a tokenizer."""


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of what decides which ids a text becomes: normaliser, pre-tokeniser, model, added tokens.

    Truncation, padding, the template of special tokens, the decoder and the file's version are left out,
    and so are options that are off: the same tokenizer has the same hash after saving, loading, or a change
    of library.
    """
    content = json.loads(_backend(tokenizer).to_str())
    model = {key: value for key, value in content["model"].items() if value}
    parts = {key: content[key] for key in ("normalizer", "pre_tokenizer", "added_tokens")}
    return sha256_json({**parts, "model": model})


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer with GPT-2's way of cutting words, at most ``vocab_size`` entries.

    Any text can be encoded. ``<|endoftext|>`` (id 0) ends a document, and serves as beginning, padding and
    unknown.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder (also a dataset's or a model's), in a GGUF file, or of that name on the hub.

    Raises :class:`UserError` when there is none, when it has no end-of-text token or no fast form.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        inner = folder / "tokenizer"
        folder = inner if inner.is_dir() and not (folder / "tokenizer.json").exists() else folder
    here = folder.is_dir() or (folder.is_file() and folder.suffix == GGUF)
    if not here and can_only_be_a_path(name):
        raise UserError(f"tokenizer={name}: there is no such folder; give a tokenizer's folder or hub id")
    tokenizer = _from_path(folder, name) if here else _from_hub(name)
    _backend(tokenizer)
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"tokenizer={name} has no end-of-text token (eos_token), which must end each document: set "
            "eos_token in its tokenizer_config.json, or leave tokenizer= out to train one on the text"
        )
    return tokenizer


def tokenizer_in(path: Path, option: str) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder, or in a GGUF file that has none beside it. ``option`` is how the user named it."""
    from transformers import AutoTokenizer

    folder = path if path.is_dir() else path.parent
    beside = any((folder / file).is_file() for file in TOKENIZER_FILES)
    gguf = None if beside else find_gguf(path, option)
    if gguf is None:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    check_whole(gguf)  # says plainly what is wrong with a damaged file
    return AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name, trust_remote_code=False)


def _from_path(path: Path, name: str) -> PreTrainedTokenizerBase:
    try:
        return tokenizer_in(path, f"tokenizer={name}")
    except UserError:
        raise
    except Exception as error:  # transformers raises what its many parts raise
        raise UserError(
            f"tokenizer={name}: that folder holds no tokenizer ({first_line(error)}); give a folder with a "
            "tokenizer.json, or leave tokenizer= out to train one on the text"
        ) from error


def _from_hub(name: str) -> PreTrainedTokenizerBase:
    """From the local cache, or else by the network, which is asked once whether it is there at all."""
    from huggingface_hub import HfApi
    from transformers import AutoTokenizer

    try:
        try:
            return AutoTokenizer.from_pretrained(name, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError):
            HfApi().model_info(name, timeout=20)  # without it, no network means a minute of retries
            return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # the hub's client raises its own errors, its HTTP library's and plain ValueErrors
        raise hub_error("tokenizer", name, error) from error


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """The largest id and one: more than the number of entries where ids have holes."""
    return max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=-1))


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes the tokenizer's files into ``folder``, all or none."""
    temporary = folder.with_name(folder.name + TEMPORARY_SUFFIX)
    with explained(folder):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        tokenizer.save_pretrained(str(temporary))
        for path in temporary.rglob("*"):  # several chat templates lie in a folder of their own
            if path.is_file():
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
        sync_folder(folder.parent)


class Encoder:
    """Texts to documents' ids, many at once on all cores (``TOKENIZERS_PARALLELISM=false``: on one).

    A text that contains a special token's characters is encoded as these characters. Where a tokenizer
    holds a special token in its plain vocabulary, so that it comes out all the same, that id is left out:
    an id of the end of text always ends a document. The unknown token is the exception, it stays where the
    tokenizer puts it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        from tokenizers import Tokenizer

        # A copy: the caller's tokenizer keeps its truncation, padding and reading of special tokens.
        self._backend = Tokenizer.from_str(_backend(tokenizer).to_str())
        self._backend.encode_special_tokens = True
        self._backend.no_truncation()
        self._backend.no_padding()
        self.eos_id = int(tokenizer.eos_token_id)
        special = {int(i) for i in tokenizer.all_special_ids} - {tokenizer.unk_token_id} | {self.eos_id}
        self._special = np.array(sorted(special), dtype=np.uint32)

    def __call__(self, texts: Sequence[str]) -> Iterator[UInt32[np.ndarray, " L"]]:
        """The ids of each text in turn, each with the end-of-text id behind it."""
        for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=False):
            ids = np.array([*encoding.ids, self.eos_id], dtype=np.uint32)
            strange = np.isin(ids[:-1], self._special)
            yield np.append(ids[:-1][~strange], ids[-1]) if strange.any() else ids


def first_line(error: BaseException) -> str:
    """What went wrong, short enough to stand inside a sentence."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}".rstrip(" .:")


def _backend(tokenizer: PreTrainedTokenizerBase) -> Any:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not hasattr(backend, "to_str"):
        raise UserError(
            f"the tokenizer {tokenizer.name_or_path or type(tokenizer).__name__} has no fast form "
            "(tokenizer.json): convert it to a tokenizer of the tokenizers library first"
        )
    return backend
