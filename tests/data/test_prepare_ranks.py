"""`data prepare` on several ranks: the bytes of one, whatever happens on the way."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cocomix.cli import main
from cocomix.data import prepare as preparing
from cocomix.data.encoding import RAYON
from cocomix.data.prepare import prepare, prepare_from
from cocomix.data.settings import PrepareSettings
from cocomix.data.sources import Document, Source, open_source
from cocomix.data.tokenizer import Encoder
from cocomix.dist.world import joined
from cocomix.files import write_text
from cocomix.testing.ranks import Outcome, on_ranks, values
from cocomix.testing.text import english_like

DOCUMENTS = 40
WORDS = {"vocab_size": 300, "window": 16, "val_fraction": 0.2, "shard_tokens": 2000}


def settings_for(folder: Path, out: str, **more: Any) -> PrepareSettings:
    return PrepareSettings.model_validate(
        {"source": str(folder / "a.jsonl"), "out": str(folder / out), **WORDS, **more}
    )


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    texts = [*english_like(DOCUMENTS), "", "end"]
    write_text(folder / "a.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in texts))
    prepare(settings_for(folder, "straight"))
    return folder


class Acting:
    """A source that does something when its n-th document is read; a tokenizer's reading counts too."""

    def __init__(self, source: Source, number: int, act: Any) -> None:
        self.identity, self.total_bytes = source.identity, source.total_bytes
        self._source, self._left, self._act = source, number, act

    def documents(self) -> Iterator[Document]:
        for document in self._source.documents():
            if self._left == 0:
                self._act()
            self._left -= 1
            yield document


def prepare_joined(settings: PrepareSettings) -> tuple[dict[str, Any], int]:
    """The manifest, and how many texts this rank encoded."""
    encoded, plain = [], Encoder.__call__

    def counted(self: Encoder, texts: list[str]) -> Any:
        encoded.extend(texts)
        return plain(self, texts)

    preparing.BATCH_DOCUMENTS = 3
    Encoder.__call__ = counted  # type: ignore[method-assign]
    with joined():
        return prepare(settings), len(encoded)


def die_at(settings: PrepareSettings, number: int) -> None:
    preparing.BATCH_DOCUMENTS = 3
    with joined(timeout=30.0):
        prepare_from(Acting(open_source(settings), number, lambda: os._exit(9)), settings)


def on(size: int, settings: PrepareSettings, **more: Any) -> list[Outcome]:
    return on_ranks(size, prepare_joined, settings)


@pytest.mark.parametrize("size", [2, 3])
def test_any_number_of_ranks_writes_the_same_bytes_and_shares_the_encoding(folder: Path, size: int) -> None:
    done = values(on(size, settings_for(folder, f"on-{size}")))
    assert content(folder / f"on-{size}") == content(folder / "straight")
    assert [manifest for manifest, _ in done] == [json.loads((folder / "straight" / "dataset.json").read_text())] * size
    counts = [count for _, count in done]
    assert sum(counts) == DOCUMENTS + 1
    assert max(counts) - min(counts) <= 3  # a batch


@pytest.mark.parametrize(("first", "second"), [(2, 1), (2, 3), (1, 2)])
def test_killed_and_resumed_on_another_number_of_ranks_writes_the_same_bytes(
    folder: Path, first: int, second: int
) -> None:
    wanted = settings_for(folder, f"killed-{first}-{second}")
    outcomes = on_ranks(first, die_at, wanted, DOCUMENTS + 2 + 30)
    assert outcomes[0].error == "Died: exit code 9"
    for other in outcomes[1:]:
        assert (other.error or "").startswith("RankLost: rank 1, in round ")
    out = Path(wanted.out)
    kept = (out / "train-00000.bin").stat()
    done = values(on(second, wanted))
    assert sum(count for _, count in done) < DOCUMENTS  # the documents of complete shards are not encoded again
    assert content(out) == content(folder / "straight")
    assert (out / "train-00000.bin").stat().st_ino == kept.st_ino


def test_held_out_documents_chosen_anew_are_the_same_on_several_ranks(folder: Path) -> None:
    prepare(settings_for(folder, "anew-straight", val_fraction=0.0001))
    values(on(2, settings_for(folder, "anew", val_fraction=0.0001)))
    assert content(folder / "anew") == content(folder / "anew-straight")


def signal_to(rank: int, settings: PrepareSettings) -> None:
    preparing.BATCH_DOCUMENTS = 3
    plain = Encoder.__call__

    def signalled(self: Encoder, texts: list[str]) -> Any:
        if (world.rank, "end" in texts) == (rank, False) and (Path(settings.out) / "train-00000.bin").exists():
            os.kill(os.getpid(), signal.SIGTERM)
            Encoder.__call__ = plain  # type: ignore[method-assign]
        return plain(self, texts)

    with joined() as world:
        Encoder.__call__ = signalled  # type: ignore[method-assign]
        prepare(settings)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_rank_stops_all_and_the_same_command_goes_on(folder: Path, rank: int) -> None:
    wanted = settings_for(folder, f"stopped-{rank}")
    for outcome in on_ranks(2, signal_to, rank, wanted):
        assert outcome.error == f"Stopped: complete shards are in {wanted.out}; the same command goes on from there"
    assert not (Path(wanted.out) / "dataset.json").exists()
    values(on(2, wanted))
    assert content(Path(wanted.out)) == content(folder / "straight")


def verb(*words: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["data", "prepare", *words])
    return code, out.getvalue(), err.getvalue()


def test_the_verb_prints_its_result_once(folder: Path) -> None:
    words = [f"{key}={value}" for key, value in WORDS.items()]
    first, other = values(on_ranks(2, verb, str(folder / "a.jsonl"), str(folder / "verb"), *words, "--json"))
    assert json.loads(first[1])["splits"]["val"]["documents"] > 0
    assert (first[0], other) == (0, (0, "", ""))
    assert content(folder / "verb") == content(folder / "straight")


@pytest.mark.parametrize(
    ("line", "sentence"), [('{"text": 5}\n', "line 43"), ('{"text": "wor', "line 43")], ids=["no text", "truncated"]
)
def test_a_damaged_source_ends_all_ranks_and_is_told_once(
    folder: Path, tmp_path: Path, line: str, sentence: str
) -> None:
    source = tmp_path / "bad.jsonl"
    write_text(source, (folder / "a.jsonl").read_text() + line)
    tokenizer = f"tokenizer={folder / 'straight'}"  # the damage is met while encoding, not before it
    first, other = values(on_ranks(2, verb, str(source), str(tmp_path / "out"), tokenizer, "window=16"))
    assert first[0] == other[0] == 2
    assert sentence in first[2]
    assert (first[2].count("error: "), other[1:]) == (1, ("", ""))


def elsewhere(folder: str, settings: PrepareSettings) -> None:
    """Rank 1 does not see what rank 0 writes."""
    with joined() as world:
        if not world.first:
            os.chdir(folder)
        prepare(settings)


def test_a_rank_that_does_not_see_the_folder_ends_all_with_a_reason(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.chdir(tmp_path)
    wanted = settings_for(folder, "unused").model_copy(update={"out": "unseen"})
    for outcome in on_ranks(2, elsewhere, str(other), wanted):
        assert (outcome.error or "").startswith(
            "UserError: rank 1 does not see unseen/tokenizer, which rank 0 has written"
        )


def prepare_and_tell_threads(settings: PrepareSettings, given: str | None) -> str | None:
    os.environ.pop(RAYON, None)
    if given is not None:
        os.environ[RAYON] = given
    with joined():
        prepare(settings)
    return os.environ.get(RAYON)


def test_ranks_of_one_machine_share_its_cores_unless_the_user_says_otherwise(folder: Path, tmp_path: Path) -> None:
    share = str(max(1, len(os.sched_getaffinity(0)) // 2))
    wanted = settings_for(folder, "straight")
    assert values(on_ranks(2, prepare_and_tell_threads, wanted, None)) == [share, share]
    assert values(on_ranks(2, prepare_and_tell_threads, wanted, "7")) == ["7", "7"]
    assert values(on_ranks(1, prepare_and_tell_threads, wanted, None)) == [None]


def test_token_files_of_nanogpt_are_taken_by_rank_0_alone(folder: Path, tmp_path: Path) -> None:
    for name in ("train.bin", "val.bin"):
        np.arange(100, dtype=np.uint16).tofile(tmp_path / name)
    given = {"source": str(tmp_path), "tokenizer": str(folder / "straight"), "window": 16}
    straight = prepare(PrepareSettings(out=str(tmp_path / "one"), **given))
    assert [m for m, _ in values(on(2, PrepareSettings(out=str(tmp_path / "two"), **given)))] == [straight] * 2
    assert content(tmp_path / "one") == content(tmp_path / "two")
