from __future__ import annotations

import json
from collections import Counter
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from rich.text import Text

from cocomix.cli import main
from cocomix.concepts import gather as gather_module
from cocomix.concepts.atlas import Atlas
from cocomix.concepts.atlas_card import drawn_card
from cocomix.concepts.build_atlas import build_atlas
from cocomix.concepts.labels import Labels
from cocomix.concepts.lens import lens_tokens
from cocomix.concepts.load_sae import load_sae
from cocomix.concepts.pieces import Pieces
from cocomix.concepts.settings import AtlasSettings
from cocomix.concepts.teacher import load_teacher
from cocomix.data.dataset import Dataset
from cocomix.data.tokenizer import train_tokenizer
from cocomix.errors import UserError


@pytest.fixture(scope="module")
def atlas(labelled: Path) -> Atlas:
    small = pytest.MonkeyPatch()
    small.setattr(gather_module, "TOKENS_AT_ONCE", 1000)  # many rounds, as with a large dataset
    made = build_atlas(AtlasSettings(labels=str(labelled), contexts=5))
    small.undo()
    return made


@pytest.fixture(scope="module")
def everything(dataset: Dataset, labelled: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, strengths and inputs of all training windows."""
    labels = Labels.open(dataset, "shared")
    windows = np.arange(dataset.split("train").count(dataset.window))
    inputs = dataset.split("train").read(windows, dataset.window)[:, :-1]
    return labels.read("train", windows), labels.strengths("train", windows), inputs


def test_counts_and_strengths_equal_a_slow_count(
    atlas: Atlas, everything: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    ids, strengths, inputs = everything
    for concept in (0, 7, 33, 63):
        entry, here = atlas.concept(concept), ids == concept
        assert entry["count"] == here.sum()
        assert entry["frequency"] == pytest.approx(here.sum() / inputs.size)
        assert entry["mean_strength"] == pytest.approx(float(strengths[here].astype(np.float64).mean()), rel=1e-5)


def test_contexts_are_the_strongest_of_distinct_windows(
    atlas: Atlas, dataset: Dataset, everything: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    ids, strengths, inputs = everything
    tokenizer = dataset.tokenizer()
    for concept in (3, 40):
        per_window = np.where(ids == concept, strengths, 0).max((1, 2))
        due = np.sort(per_window)[::-1][:5]
        contexts = atlas.concept(concept)["contexts"]
        assert [c["strength"] for c in contexts] == pytest.approx(due.tolist(), abs=1e-3)
        window = int(per_window.argmax())
        position = int(np.where(ids == concept, strengths, 0)[window].max(1).argmax())
        best = contexts[0]
        assert best["token"] == tokenizer.decode(inputs[window, position])
        whole = tokenizer.decode(inputs[window])
        assert best["before"] + best["token"] + best["after"] in whole
        assert len(best["before"]) > 0 or position == 0 or inputs[window, position - 1] == dataset.eos_id


def test_labelled_tokens_are_counted(
    atlas: Atlas, dataset: Dataset, everything: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    ids, _, inputs = everything
    pieces = Pieces(dataset.tokenizer(), dataset.vocab_size)
    counts = Counter(inputs[np.nonzero(ids == 5)[:2]].tolist())
    texts = {pieces.text(token): count for token, count in counts.items()}
    found = atlas.concept(5)["labelled"]
    assert len(found) == 10
    assert all(texts[entry["token"]] == entry["count"] for entry in found)
    share = {t: n / inputs.size for t, n in Counter(inputs.reshape(-1).tolist()).items()}
    total = sum(counts.values())
    best = max(counts, key=lambda t: counts[t] * np.log(counts[t] / total / share[t]))
    assert found[0]["token"] == pieces.text(best)


def test_promoted_tokens_are_those_a_step_along_the_row_raises(
    dataset: Dataset, teacher_path: Path, sae_path: Path, atlas: Atlas
) -> None:
    """Slowly: through the norm's weight and the unembedding, less what the average row and token get."""
    teacher = load_teacher(str(teacher_path), 1, dataset, dataset.window, torch.device("cpu"), "float32")
    sae = load_sae(sae_path)
    (ids, scores), (lowest, low_scores) = lens_tokens(teacher, sae, 3, np.arange(dataset.vocab_size))
    state = teacher.model.state_dict()
    u, gamma = state["transformer.wte.weight"], state["transformer.ln_f.weight"]
    logits = torch.stack([((row - row.mean()) * gamma) @ u.T for row in sae.W_dec])
    logits = logits - logits.mean(0) - (logits - logits.mean(0)).mean(1, keepdim=True)
    assert np.array_equal(ids[:10], logits.topk(3).indices.numpy()[:10])
    np.testing.assert_allclose(scores, logits.topk(3).values.numpy(), atol=1e-4)
    assert np.array_equal(lowest[:10], logits.topk(3, largest=False).indices.numpy()[:10])
    np.testing.assert_allclose(low_scores, logits.topk(3, largest=False).values.numpy(), atol=1e-4)
    promoted = atlas.concept(0)["promoted"]
    assert [e["score"] for e in promoted] == sorted((e["score"] for e in promoted), reverse=True)


def test_search_top_and_names(atlas: Atlas) -> None:
    top = atlas.top(64)
    counts = [entry["count"] for entry in top]
    assert counts == sorted(counts, reverse=True)
    assert len(counts) == 64
    strongest = atlas.top(1, by="mean_strength")[0]
    assert strongest["mean_strength"] == max(entry["mean_strength"] for entry in top)
    assert atlas.name(top[0]["id"]) == top[0]["name"]
    assert " → " in top[0]["name"]
    word = top[3]["labelled"][0]["token"]
    assert top[3]["id"] in [entry["id"] for entry in atlas.search(word, n=64)]
    assert atlas.search("%") == [e for e in atlas.search("%") if "%" in json.dumps(e)]
    assert atlas.search("lighthouse")  # cut into tokens, it stands in contexts only
    with pytest.raises(UserError, match="by='beauty'"):
        atlas.top(3, by="beauty")


def test_a_concept_outside_the_dictionary_is_told_with_the_range(atlas: Atlas) -> None:
    for id in (-1, 64):
        with pytest.raises(UserError, match=f"no concept {id}: .* has concepts 0 … 63"):
            atlas.concept(id)


def test_ids_of_numpy_and_torch_are_concepts(atlas: Atlas) -> None:
    for id in (np.int64(5), np.uint16(5), torch.tensor(5)):
        assert atlas.concept(id) == atlas.concept(5)
        assert atlas.name(id) == atlas.name(5)
    due = {5: atlas.name(5), 7: atlas.name(7)}
    for ids in (np.array([5, 7, -1]), torch.tensor([5, 7, -1])):
        assert atlas.names(ids) == due


def test_a_missing_or_damaged_atlas_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="make it with 'cocomix concepts atlas"):
        Atlas.open(tmp_path)
    (tmp_path / "atlas.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(UserError, match="is damaged"):
        Atlas.open(tmp_path)


def test_characters_cut_into_tokens_are_shown_whole() -> None:
    tokenizer = train_tokenizer(["plain words only"] * 3, 260)
    pieces = Pieces(tokenizer, len(tokenizer))
    ids = tokenizer("aé→z")["input_ids"]
    assert len(ids) == 7  # é is two bytes, → three
    assert pieces.context(ids, 2) == ("a", "é", "→z")
    assert pieces.context(ids, 1) == ("a", "é", "→z")
    assert pieces.context(ids[2:], 0) == ("", "\ufffd", "→z")
    assert pieces.context(ids[:-2], 0) == ("", "a", "é")
    assert pieces.text(tokenizer.eos_token_id) == "<|endoftext|>"


def test_the_teacher_must_be_the_one_of_the_labels(labelled: Path, dataset: Dataset, tmp_path: Path) -> None:
    from cocomix.testing.teachers import tiny_teacher

    other = tiny_teacher(tmp_path, dataset, seed=5)
    with pytest.raises(UserError, match="is not what the labels .* were extracted with"):
        build_atlas(AtlasSettings(labels=str(labelled), teacher=str(other)))


def test_verbs_print_results_on_stdout(
    dataset: Dataset, labelled: Path, atlas: Atlas, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["concepts", "atlas", f"data={dataset.folder}", "name=shared", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["concepts"] == 64
    assert main(["concepts", "show", "5", f"labels={labelled}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == Atlas.open(labelled).concept(5)
    assert main(["concepts", "show", "5", f"labels={labelled}"]) == 0
    assert "concept 5: " in capsys.readouterr().out
    assert main(["concepts", "show", "64", f"labels={labelled}"]) == 2
    assert "concepts 0 … 63" in capsys.readouterr().err
    assert main(["concepts", "show", "5"]) == 2
    assert "say which labels" in capsys.readouterr().err


def test_the_token_of_a_context_stands_out_where_styles_do_not_show(atlas: Atlas) -> None:
    entry = atlas.concept(5)
    context = entry["contexts"][0]
    marked, plain = (
        "".join(
            char if char.isprintable() else repr(char)[1:-1] for char in context["before"] + token + context["after"]
        )
        for token in (f"[{context['token']}]", context["token"])
    )
    for terminal, shown in ((False, marked), (True, plain)):
        console = Console(file=StringIO(), width=400, force_terminal=terminal, color_system="auto")
        with console.capture() as capture:
            console.print(drawn_card(entry))
        assert shown.strip() in Text.from_ansi(capture.get()).plain


def test_sae_and_extract_verbs(
    dataset: Dataset, sae_path: Path, labelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = f"data={dataset.folder}"
    assert main(["sae", "check", str(sae_path), data, "tokens=320"]) == 0
    assert "loss recovered" in capsys.readouterr().out
    assert main(["concepts", "extract", data, f"sae={sae_path}", "name=shared", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "shared"
    assert main(["sae", "train", data, f"teacher={dataset.folder}", "block=1", "out=x", "k=9", "latents=8"]) == 2
    assert "k=9 is more than latents=8" in capsys.readouterr().err
