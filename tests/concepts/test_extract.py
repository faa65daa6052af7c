from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cocomix.concepts import labelling
from cocomix.concepts.attribution import ConceptLabels, label_windows
from cocomix.concepts.extract import extract, extract_probabilities
from cocomix.concepts.labels import Labels
from cocomix.concepts.load_sae import load_sae
from cocomix.concepts.sae import SparseAutoencoder
from cocomix.concepts.settings import AttributionSettings, ExtractSettings, ProbabilitySettings
from cocomix.concepts.teacher import Teacher, load_teacher
from cocomix.concepts.verify import verify_caches
from cocomix.data.dataset import Dataset
from cocomix.errors import UserError
from cocomix.files import read_json, write_json
from cocomix.stopping import Stopped
from cocomix.testing.teachers import tiny_sae, tiny_teacher, write_sae
from cocomix.testing.text import tiny_dataset


def _settings(data: Path, sae: Path, **values: object) -> ExtractSettings:
    return ExtractSettings.model_validate({"data": str(data), "sae": str(sae), **values})


def test_labels_on_disk_are_those_of_each_window_alone(
    dataset: Dataset, teacher_path: Path, sae_path: Path, labelled: Path
) -> None:
    labels = Labels.open(dataset, "shared")
    teacher = load_teacher(str(teacher_path), 1, dataset, dataset.window, torch.device("cpu"), "float32")
    sae = load_sae(sae_path)
    for name in ("train", "val"):
        split = dataset.split(name)
        ids = np.array([split.count(dataset.window) - 1, 0, split.count(dataset.window) // 2])
        found, strengths = labels.read(name, ids), labels.strengths(name, ids)
        assert found.dtype == np.int64
        assert found.shape == (3, dataset.window, 4)
        for row, window in enumerate(ids):
            tokens = torch.from_numpy(split.read(np.array([window]), dataset.window))
            alone = label_windows(teacher, sae, tokens[:, :-1], tokens[:, 1:], AttributionSettings())
            agree = found[row] == alone.ids.numpy()
            assert agree.mean() > 0.99  # rounding may swap two scores that are all but equal
            np.testing.assert_allclose(strengths[row][agree], alone.strengths.numpy()[agree], rtol=2e-3, atol=1e-4)
    assert (labels.strengths("train", np.arange(20))[labels.read("train", np.arange(20)) == -1] == 0).all()


def test_the_manifest_tells_what_the_labels_are_and_cost(
    dataset: Dataset, teacher_path: Path, sae_path: Path, labelled: Path
) -> None:
    manifest = read_json(labelled / "labels.json", "labels")
    windows = {name: dataset.split(name).count(dataset.window) for name in ("train", "val")}
    assert manifest["tokens"] == sum(windows.values()) * dataset.window
    assert manifest["cost"]["flops"] == pytest.approx(manifest["cost"]["flops_per_token"] * manifest["tokens"])
    assert manifest["cost"]["seconds"] > 0
    assert manifest["upstream"] == {
        "teacher": {"flops": 1e9, "seconds": 2.0},
        "sae": {"flops": 1e8, "seconds": 1.0},
    }
    assert manifest["no_label"] == 65535
    assert manifest["teacher"]["block"] == 1
    assert manifest["teacher"]["dtype"] == "float32"
    labels = Labels.open(dataset, str(labelled))
    ids = np.concatenate([labels.read(name, np.arange(count)).reshape(-1) for name, count in windows.items()])
    assert manifest["statistics"]["masked_share"] == pytest.approx(float((ids < 0).mean()))
    assert manifest["statistics"]["distinct_concepts"] == len(np.unique(ids[ids >= 0]))
    for name, due in manifest["files"].items():
        assert hashlib.sha256((labelled / name).read_bytes()).hexdigest() == due
    assert labels.verify() == []


@pytest.mark.parametrize("after", [1, 40])
def test_a_stopped_and_resumed_extraction_equals_a_straight_one_byte_for_byte(
    own_data: Path, sae_path: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    seen = []

    def counted(*arguments: object) -> object:
        seen.append(1)
        if len(seen) == after:
            os.kill(os.getpid(), signal.SIGTERM)
        return label_windows(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(labelling, "label_windows", counted)
    settings = _settings(own_data, sae_path, name="stopped")
    with pytest.raises(Stopped, match="the same command goes on"):
        extract(settings)
    with pytest.raises(UserError, match="is not finished: run the same"):
        Labels.open(Dataset.open(own_data), "stopped")
    resumed = extract(settings)
    straight = read_json(labelled / "labels.json", "labels")
    assert resumed["files"] == straight["files"]
    assert len(seen) * 8 < resumed["tokens"] // resumed["window"] + 8 * 8  # nothing was computed twice
    assert {path.name for path in (own_data / "labels" / "stopped").iterdir()} == {"labels.json", *straight["files"]}


def test_a_killed_extraction_goes_on_from_what_is_durable(own_data: Path, sae_path: Path, labelled: Path) -> None:
    code = """if True:
        import sys, time, torch
        torch.set_num_threads(1)
        from cocomix.concepts import extract, extraction, labelling
        extraction.SECONDS_BETWEEN_MEETINGS = 0.0
        whole = labelling.label_windows
        def slow(*arguments):
            time.sleep(0.05)
            return whole(*arguments)
        labelling.label_windows = slow
        extract.extract(extract.ExtractSettings(data=sys.argv[1], sae=sys.argv[2], name="killed"))
    """
    process = subprocess.Popen([sys.executable, "-c", code, own_data, sae_path])
    state = own_data / "labels" / "killed" / "extraction.json"
    while process.poll() is None and not (state.is_file() and _windows(state) >= 200):
        time.sleep(0.02)
    assert process.poll() is None, "it ended before it could be killed"
    process.kill()
    process.wait()
    with next((own_data / "labels" / "killed" / "units").glob("*.partial")).open("ab") as file:
        file.write(b"torn")
    resumed = extract(_settings(own_data, sae_path, name="killed"))
    assert resumed["files"] == read_json(labelled / "labels.json", "labels")["files"]


def _windows(state: Path) -> int:
    return sum(map(sum, read_json(state, "state")["windows"].values()))


def test_a_finished_extraction_returns_at_once(
    dataset: Dataset, sae_path: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labelling, "load_pair", None)  # no model is loaded
    again = extract(_settings(dataset.folder, sae_path, name="shared"))
    assert again == read_json(labelled / "labels.json", "labels")


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"attribution": {"k": 3}}, "attribution.k \\(4, now 3\\)"),
        ({"attribution": {"order": "smallest"}}, "attribution.order \\(largest, now smallest\\)"),
        ({"window": 16}, "window \\(32, now 16\\)"),
        ({"dtype": "bfloat16"}, "teacher.dtype \\(float32, now bfloat16\\)"),
    ],
)
def test_other_settings_under_the_same_name_are_refused(
    dataset: Dataset, sae_path: Path, labelled: Path, change: dict[str, object], difference: str
) -> None:
    with pytest.raises(UserError, match=f"another {difference}: give another name"):
        extract(_settings(dataset.folder, sae_path, name="shared", **change))


def test_an_sae_that_does_not_fit_the_teacher_is_refused_unless_forced(
    own_data: Path, teacher_path: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    decoder = torch.nn.functional.normalize(torch.randn(64, 32), dim=-1)
    sae = write_sae(tmp_path / "random", decoder.T, torch.zeros(64), decoder, torch.zeros(32), k=8)
    settings = {"teacher": str(teacher_path), "block": 1, "name": "forced"}
    with pytest.raises(UserError, match=r"of the variance of this block unexplained \(max_fvu=0.5\)"):
        extract(_settings(own_data, sae, **settings))
    assert extract(_settings(own_data, sae, **settings, force=True))["fit"]["fvu"] > 0.5


@pytest.fixture
def nan_teacher(teacher_path: Path, tmp_path: Path) -> Path:
    """The teacher with a weight that is no number above the labelled block, and a sound stream below it."""
    folder = Path(shutil.copytree(teacher_path, tmp_path / "nan"))
    weights = load_file(folder / "model.safetensors")
    above = next(name for name in weights if ".h.2." in name and name.endswith("c_fc.weight"))
    weights[above][0, 0] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_a_teacher_that_is_not_finite_gives_no_labels(own_data: Path, sae_path: Path, nan_teacher: Path) -> None:
    with pytest.raises(UserError, match="was trained on other weight files than teacher=.* has now"):
        extract(_settings(own_data, sae_path, teacher=str(nan_teacher)))
    with pytest.raises(UserError, match=r"activations or gradients are not finite at windows 0 … \d+ of train"):
        extract(_settings(own_data, sae_path, teacher=str(nan_teacher), force=True))
    settings = {"data": str(own_data), "teacher": str(nan_teacher), "k": 4}
    with pytest.raises(UserError, match="probabilities are not finite at windows 0"):
        extract_probabilities(ProbabilitySettings.model_validate(settings))


def test_the_teacher_sees_at_most_batch_windows_at_once_and_mass_is_of_what_was_asked(
    own_data: Path, sae_path: Path, teacher_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, whole = [], label_windows

    def counted(teacher: Teacher, sae: SparseAutoencoder, inputs: torch.Tensor, *more: Any) -> ConceptLabels:
        sizes.append(len(inputs))
        return whole(teacher, sae, inputs, *more)

    monkeypatch.setattr(labelling, "label_windows", counted)
    few = {"train_windows": 24, "train_seed": 3, "batch_windows": 4}
    extract(_settings(own_data, sae_path, **few))
    assert max(sizes) <= 4
    settings = {"data": str(own_data), "teacher": str(teacher_path), "k": Dataset.open(own_data).vocab_size, **few}
    made = extract_probabilities(ProbabilitySettings.model_validate(settings))
    assert made["statistics"]["mass"] == pytest.approx(1, abs=1e-2)


def test_parts_that_do_not_fit_are_refused(own_data: Path, teacher_path: Path, sae_path: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="was trained on block 1: give block=1"):
        extract(_settings(own_data, sae_path, block=0))
    narrow = write_sae(
        tmp_path / "narrow", torch.randn(16, 40), torch.zeros(40), torch.randn(40, 16), torch.zeros(16), k=4
    )
    with pytest.raises(UserError, match="block= is missing"):
        extract(_settings(own_data, narrow, teacher=str(teacher_path)))
    with pytest.raises(UserError, match="reads activations of width 16, the teacher .* has width 32"):
        extract(_settings(own_data, narrow, teacher=str(teacher_path), block=1, name="narrow"))
    with pytest.raises(UserError, match="block=7 is outside the teacher"):
        extract(_settings(own_data, narrow, teacher=str(teacher_path), block=7, name="outside"))
    with pytest.raises(UserError, match="attribution.k=13 is more than the 12 latents"):
        extract(_settings(own_data, sae_path, attribution={"k": 13}, name="many"))


def test_a_refused_extraction_does_not_block_the_mended_command(own_data: Path, sae_path: Path) -> None:
    with pytest.raises(UserError, match="attribution.k=13"):
        extract(_settings(own_data, sae_path, attribution={"k": 13}))
    assert extract(_settings(own_data, sae_path, attribution={"k": 2}))["attribution"]["k"] == 2


def test_labels_of_another_dataset_are_refused(labelled: Path, tmp_path: Path) -> None:
    other = tiny_dataset(tmp_path / "other", documents=20, window=32)
    with pytest.raises(UserError, match=f"{labelled} belong to another dataset"):
        Labels.open(other, str(labelled))
    with pytest.raises(UserError, match="has no such labels, only none at all"):
        Labels.open(other, "shared")


def test_a_wrong_name_of_labels_gets_the_near_one(dataset: Dataset, labelled: Path) -> None:
    with pytest.raises(UserError, match=r"did you mean 'shared'"):
        Labels.open(dataset, "shred")


def test_damaged_label_files_are_named(own_data: Path, sae_path: Path) -> None:
    extract(_settings(own_data, sae_path, name="damaged"))
    dataset = Dataset.open(own_data)
    path = own_data / "labels" / "damaged" / "val-00000.concept_ids.bin"
    content = path.read_bytes()
    path.write_bytes(content[:-2])
    with pytest.raises(UserError, match=r"val-00000.concept_ids.bin has .* truncated or foreign"):
        Labels.open(dataset, "damaged")
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    assert [line.split(" is not")[0] for line in Labels.open(dataset, "damaged").verify()] == [str(path)]
    verdict = verify_caches(dataset)
    assert verdict.caches == 1
    assert [line.split(" is not")[0] for line in verdict.problems] == [str(path)]
    path.unlink()
    with pytest.raises(UserError, match=r"val-00000.concept_ids.bin is missing"):
        Labels.open(dataset, "damaged")
    manifest = path.parent / "labels.json"
    write_json(manifest, {**read_json(manifest, "labels"), "format": 7})
    with pytest.raises(UserError, match="has format 7"):
        Labels.open(dataset, "damaged")


def test_the_same_labels_have_the_same_fingerprint_wherever_they_lie(
    dataset: Dataset, own_data: Path, sae_path: Path, labelled: Path
) -> None:
    extract(_settings(own_data, sae_path, name="again"))
    extract(_settings(own_data, sae_path, name="other", attribution={"order": "smallest"}))
    prints = [Labels.open(Dataset.open(own_data), name).fingerprint for name in ("again", "other")]
    assert Labels.open(dataset, "shared").fingerprint == prints[0] != prints[1]


def test_a_teacher_in_half_precision_gives_nearly_the_same_labels(
    dataset: Dataset, own_data: Path, sae_path: Path, labelled: Path
) -> None:
    manifest = extract(_settings(own_data, sae_path, name="half", dtype="bfloat16"))
    assert manifest["teacher"]["dtype"] == "bfloat16"
    windows = np.arange(64)
    whole = Labels.open(dataset, "shared").read("train", windows)
    half = Labels.open(Dataset.open(own_data), "half").read("train", windows)
    kept = [len(set(a) & set(b)) / 4 for a, b in zip(whole.reshape(-1, 4), half.reshape(-1, 4), strict=True)]
    assert np.mean(kept) > 0.8


def test_many_concepts_are_stored_in_four_bytes() -> None:
    from cocomix.concepts.labels import label_columns

    assert label_columns(65535, 4)[0].dtype == "uint16"
    assert label_columns(65536, 4)[0].dtype == "uint32"


def test_a_llama_teacher_gives_labels_too(own_data: Path, tmp_path: Path) -> None:
    dataset = Dataset.open(own_data)
    teacher = tiny_teacher(tmp_path / "llama", dataset, "llama")
    sae = tiny_sae(tmp_path / "sae", teacher, dataset)
    assert extract(_settings(own_data, sae, name="llama"))["statistics"]["distinct_concepts"] > 32
