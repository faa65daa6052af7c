"""``cocomix concepts weights``: norms of known weights, from every layout, and from nothing else."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from cocomix.errors import UserError
from cocomix.evaluate.weights import TENSOR, concept_weights
from cocomix.evaluate.weights_settings import WeightsSettings

NORMS = [3.0, 0.001, 5.0, 0.0, 0.02]


def weights():
    """Rows of the norms above, along different directions."""
    rows = torch.zeros(5, 4)
    for row, norm in enumerate(NORMS):
        rows[row, row % 4] = 0.6 * norm
        rows[row, (row + 1) % 4] = -0.8 * norm
    return rows


def export(folder, tensor=None, mixer="concept", mixing="insert", file="model.safetensors"):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "cocomix", "mixer": mixer, "mixing": mixing}))
    save_file({TENSOR: weights() if tensor is None else tensor, "mixer.pre_bias": torch.zeros(4)}, folder / file)
    return folder


def found(model, **settings):
    return concept_weights(WeightsSettings(model=str(model), **settings))


def test_norms_are_those_of_the_rows_and_counted_below_the_bound(tmp_path):
    result = found(export(tmp_path / "model"))
    assert result["norms"] == pytest.approx(NORMS)
    assert (result["concepts"], result["width"], result["bound"]) == (5, 4, 0.01)
    assert (result["below"], result["share_below"]) == (2, 0.4)
    assert result["quantiles"]["0.5"] == pytest.approx(0.02)
    assert [concept["id"] for concept in result["smallest"]] == [3, 1, 4, 0, 2]
    assert result["largest"][0] == {"id": 2, "norm": pytest.approx(5.0)}
    assert found(tmp_path / "model", bound=4.0)["below"] == 4


def test_run_folder_stands_for_its_export_and_an_index_for_its_files(tmp_path):
    run = tmp_path / "run"
    export(run / "export", file="model-00002-of-00002.safetensors")
    index = {"weight_map": {TENSOR: "model-00002-of-00002.safetensors"}}
    (run / "export" / "model.safetensors.index.json").write_text(json.dumps(index))
    (run / "recipe.yaml").write_text("run: here")
    assert found(run)["norms"] == pytest.approx(NORMS)


def test_weights_in_bfloat16_are_read(tmp_path):
    result = found(export(tmp_path / "model", weights().bfloat16()))
    assert result["norms"] == pytest.approx(NORMS, rel=0.01)


def test_norms_are_those_of_a_model_that_a_run_would_export(tmp_path):
    from cocomix.testing.models import tiny_model

    model = tiny_model(mixer="concept")
    model.save_pretrained(tmp_path / "model")
    expected = model.mixer.compress.weight.detach().norm(dim=1).tolist()
    assert found(tmp_path / "model")["norms"] == pytest.approx(expected)


def test_no_model_is_built(tmp_path):
    export(tmp_path / "model")
    code = (
        "import sys; from cocomix.evaluate.weights import concept_weights as f;"
        "from cocomix.evaluate.weights_settings import WeightsSettings as S;"
        f"f(S(model={str(tmp_path / 'model')!r})); print('transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_verb_writes_norms_and_their_histogram_into_the_models_folder(tmp_path, cli):
    folder = export(tmp_path / "model")
    code, out, err = cli("concepts", "weights", folder, "bound=0.01")
    assert code == 0
    assert out.startswith("2 of 5 concepts (40.0%) have weights of a norm below 0.01; median 0.02, largest 5")
    assert json.loads((folder / "compression.json").read_text())["norms"] == pytest.approx(NORMS)
    assert (folder / "compression.png").read_bytes().startswith(b"\x89PNG")
    assert str(folder / "compression.png") in err
    code, out, _ = cli("concepts", "weights", folder, f"out={tmp_path / 'elsewhere'}", "--json")
    assert cli("concepts", "weights", f"model={folder}", "--json")[1] == out
    assert json.loads(out) == json.loads((tmp_path / "elsewhere" / "compression.json").read_text())


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda path: export(path, mixer="pause"), "predicts no concepts: give a run with model.mixer=concept"),
        (lambda path: export(path, mixing="none"), "mixes no concepts in .*: give a run with another model.mixing"),
        (lambda path: path.mkdir(), "is no folder with a config.json: give a run folder or an export folder"),
        (lambda path: export(path, file="other.safetensors"), "its weights cannot be read"),
        (lambda path: export(path, torch.full((3, 2), float("nan"))), "the weights of 3 concepts are no numbers"),
    ],
)
def test_what_has_no_such_weights_is_named(tmp_path, made, message):
    made(tmp_path / "model")
    with pytest.raises(UserError, match=rf"model=.*model:? {message}"):
        found(tmp_path / "model")


def test_torn_file_and_a_name_that_is_no_folder_are_named(tmp_path):
    folder = export(tmp_path / "model")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(UserError, match="its weights cannot be read"):
        found(folder)
    with pytest.raises(UserError, match="there is no such folder"):
        found(tmp_path / "nowhere")
    with pytest.raises(UserError, match="model=gpt2 is no folder with a config.json"):
        found("gpt2")
