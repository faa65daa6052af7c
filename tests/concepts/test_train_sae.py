from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cocomix.concepts import activations as activations_module
from cocomix.concepts.activations import ActivationBatches
from cocomix.concepts.check import check_sae
from cocomix.concepts.load_sae import load_sae
from cocomix.concepts.settings import SaeCheckSettings, SaeTrainSettings
from cocomix.concepts.teacher import load_teacher
from cocomix.concepts.train_sae import train_sae
from cocomix.config import load_settings
from cocomix.data.dataset import Dataset
from cocomix.errors import UserError
from cocomix.files import read_json, write_json
from cocomix.stopping import Stopped
from cocomix.testing.teachers import tiny_sae

CPU = torch.device("cpu")


def _settings(dataset: Dataset, teacher: Path, out: Path, **values: object) -> SaeTrainSettings:
    small = {"latents": 96, "k": 8, "tokens": 40_000, "batch_tokens": 256, "buffer_tokens": 2048}
    places = {"teacher": str(teacher), "data": str(dataset.folder), "out": str(out), "block": 1}
    return SaeTrainSettings.model_validate({**small, **places, **values})


@pytest.fixture(scope="module")
def trained(dataset: Dataset, teacher_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "sae"
    train_sae(_settings(dataset, teacher_path, out))
    return out


def test_a_trained_sae_explains_held_out_activations(dataset: Dataset, trained: Path) -> None:
    result = check_sae(SaeCheckSettings(sae=str(trained), data=str(dataset.folder)))
    assert result["fvu"] < 0.15
    assert result["l0"] == pytest.approx(8, abs=0.2)
    assert result["cross_entropy"]["recovered"] > 0.9
    assert (trained / "check.json").is_file()


def test_saelens_loads_the_result_and_agrees(dataset: Dataset, teacher_path: Path, trained: Path) -> None:
    from sae_lens import SAE

    teacher = load_teacher(str(teacher_path), 1, dataset, dataset.window, CPU, "float32")
    tokens = torch.from_numpy(dataset.split("val").read(torch.arange(4).numpy(), dataset.window))
    x = teacher.activations(tokens[:, :-1]).flatten(0, 1)
    with torch.no_grad():
        theirs = SAE.load_from_disk(trained)(x)
    torch.testing.assert_close(load_sae(trained).reconstruct(x), theirs, atol=1e-4, rtol=1e-4)


def test_the_record_tells_the_cost(dataset: Dataset, teacher_path: Path, trained: Path) -> None:
    record = train_sae(_settings(dataset, teacher_path, trained))  # finished: returned at once
    assert record["tokens"] == 40_000 // 256 * 256
    assert record["block"] == 1
    assert record["seconds"] > 0
    assert record["flops"] > 6 * 2 * 32 * 96 * record["tokens"]


def test_a_stopped_and_resumed_training_equals_a_straight_one(
    dataset: Dataset, teacher_path: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle of a buffer, in a process whose random state is another."""
    out, plain, seen = tmp_path / "sae", ActivationBatches.batches, []

    def counted(self: ActivationBatches, step: int):  # type: ignore[no-untyped-def]
        for batch in plain(self, step):
            seen.append(1)
            if len(seen) == 37:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    monkeypatch.setattr(activations_module.ActivationBatches, "batches", counted)
    with pytest.raises(Stopped, match="saved at step 37"):
        train_sae(_settings(dataset, teacher_path, out))
    assert [path.name for path in out.iterdir()] == ["checkpoint-00000037"]
    torch.manual_seed(99)
    train_sae(_settings(dataset, teacher_path, out))
    resumed, straight = (load_file(folder / "sae_weights.safetensors") for folder in (out, trained))
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)
    assert sorted(path.name for path in out.iterdir()) == ["cfg.json", "sae_weights.safetensors", "training.json"]


def test_another_training_in_the_folder_is_refused(dataset: Dataset, teacher_path: Path, trained: Path) -> None:
    with pytest.raises(UserError, match=r"another lr \(None, now 0.1\)"):
        train_sae(_settings(dataset, teacher_path, trained, lr=0.1))
    with pytest.raises(UserError, match="holds files of something else"):
        train_sae(_settings(dataset, teacher_path, teacher_path.parent))


def test_an_sae_of_elsewhere_is_not_overwritten(dataset: Dataset, teacher_path: Path, tmp_path: Path) -> None:
    tiny_sae(tmp_path, teacher_path, dataset)
    with pytest.raises(UserError, match="not trained here"):
        train_sae(_settings(dataset, teacher_path, tmp_path))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["k=97"], "k=97 is more than latents=96"),
        (["warm_up=0.6", "decay=0.6"], "overlap"),
        (["tokens=100"], "less than one step of batch_tokens=256"),
        (["latent=5"], r"unknown setting 'latent' \(did you mean 'latents'\?\)"),
    ],
)
def test_settings_that_cannot_be_are_told(
    dataset: Dataset, teacher_path: Path, tmp_path: Path, words: list[str], sentence: str
) -> None:
    given = _settings(dataset, teacher_path, tmp_path).model_dump()
    with pytest.raises(UserError, match=sentence):
        load_settings(SaeTrainSettings, [f"{k}={v}" for k, v in given.items() if v is not None] + words)


def test_a_block_outside_the_teacher_is_told(dataset: Dataset, teacher_path: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="block=3 is outside"):
        train_sae(_settings(dataset, teacher_path, tmp_path / "sae", block=3))


def test_a_buffer_holds_each_activation_of_its_windows_once_in_another_order(
    dataset: Dataset, teacher_path: Path
) -> None:
    teacher = load_teacher(str(teacher_path), 1, dataset, dataset.window, CPU, "float32")
    batches = ActivationBatches(teacher, dataset.split("train"), dataset.window, 100, 300, 4, seed=3)
    assert batches.buffer_windows == 10
    assert batches.batches_per_buffer == 3
    from cocomix.data.order import window_ids

    ids = window_ids(dataset.split("train").count(dataset.window), 3, 10, 10)
    tokens = torch.from_numpy(dataset.split("train").read(ids, dataset.window))
    plain = teacher.activations(tokens[:, :-1]).flatten(0, 1)
    shuffled = batches.buffer(1)
    distance, match = torch.cdist(shuffled, plain).min(1)
    assert distance.max() < 1e-2
    assert sorted(match.tolist()) == list(range(320))
    assert match.tolist() != list(range(320))
    source = batches.batches(2)
    torch.testing.assert_close(next(source), batches.buffer(0)[200:300])
    torch.testing.assert_close(next(source), shuffled[:100])


def test_a_perfect_sae_loses_nothing_and_an_empty_one_all(dataset: Dataset, teacher_path: Path, tmp_path: Path) -> None:
    """With all 64 signed directions the activations are rebuilt exactly; with one of them hardly."""
    perfect = tiny_sae(tmp_path / "perfect", teacher_path, dataset, k=64)
    whole = check_sae(SaeCheckSettings(sae=str(perfect), data=str(dataset.folder)))
    assert whole["fvu"] < 1e-6
    assert whole["cross_entropy"]["recovered"] == pytest.approx(1, abs=1e-3)
    assert whole["cross_entropy"]["clean"] < whole["cross_entropy"]["ablated"]
    poor = tiny_sae(tmp_path / "poor", teacher_path, dataset, k=1)
    part = check_sae(SaeCheckSettings(sae=str(poor), data=str(dataset.folder)))
    assert 0.2 < part["fvu"] < 1
    assert part["l0"] == pytest.approx(1, abs=0.01)


def test_check_equals_a_computation_at_once(dataset: Dataset, teacher_path: Path, sae_path: Path) -> None:
    window, split = dataset.window, dataset.split("val")
    result = check_sae(
        SaeCheckSettings(sae=str(sae_path), data=str(dataset.folder), batch_windows=3, tokens=10 * window)
    )
    teacher = load_teacher(str(teacher_path), 1, dataset, window, CPU, "float32")
    tokens = torch.from_numpy(split.read(torch.arange(10).numpy(), window))
    x = teacher.activations(tokens[:, :-1])
    flat = x.flatten(0, 1)
    sae = load_sae(sae_path)
    fvu = (sae.reconstruct(flat) - flat).square().sum() / (flat - flat.mean(0)).square().sum()
    assert result["tokens"] == 10 * window
    assert result["fvu"] == pytest.approx(float(fvu), rel=1e-4)
    fired = torch.zeros(sae.latents)
    values, indices = sae.encode(flat)
    fired[indices[values > 0]] = 1
    assert result["dead_share"] == pytest.approx(1 - float(fired.mean()))
    ablated = teacher.cross_entropy(tokens[:, :-1], tokens[:, 1:], lambda h: flat.mean(0).expand(h.shape))
    assert result["cross_entropy"]["ablated"] == pytest.approx(float(ablated), rel=1e-5)


def test_a_teacher_that_was_trained_anew_is_another_one(
    dataset: Dataset, teacher_path: Path, trained: Path, tmp_path: Path
) -> None:
    """Its folder has the same name; an SAE of the weights of before is not taken for one of these."""
    moved, out = tmp_path / "teacher", tmp_path / "sae"
    shutil.copytree(teacher_path, moved)
    shutil.copytree(trained, out)
    record = read_json(out / "training.json", "a record")
    record["settings"]["teacher"] = str(moved)
    write_json(out / "training.json", record)
    settings = _settings(dataset, moved, out)
    assert train_sae(settings)["teacher_fingerprint"] == record["teacher_fingerprint"]
    weights = load_file(moved / "model.safetensors")
    save_file({name: 2 * value for name, value in weights.items()}, moved / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="with other weights than it has now: choose another folder"):
        train_sae(settings)
    shutil.rmtree(moved)
    assert train_sae(settings)["fit"] == record["fit"], "what is finished does not need its teacher"
