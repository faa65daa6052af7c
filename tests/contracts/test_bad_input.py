"""A user's mistake is told in one sentence that names the mend, and leaves nothing behind that stands in its way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cocomix.testing.text import english_like

GOOD_TEXT = "\n\n".join(english_like(20))
GOOD_LINES = "".join(json.dumps({"text": text}) + "\n" for text in english_like(20))
RUN = ["train", "tiny/cocomix", "model.backbone={model_type: gpt2, n_embd: 32, n_layer: 4, n_head: 4}", "steps=1",
       "model.concept_k=8", "run=new"]  # fmt: skip
ON_DATA = [*RUN, "data.path=data", "data.labels=concepts"]
LABELS = ["concepts", "extract", "sae=sae", "name=new"]
STEER = ["generate", "The", "model=run", "max_new_tokens=2", "--steer"]
SAE = ["sae", "train", "block=1", "out=new", "tokens=1024"]


def tree(folder: Path) -> dict[str, int]:
    """Sizes of all files below."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("name", "bad", "sentence"),
    [
        ("a.txt", b"", "a.txt holds no text: every document is empty"),
        ("a.jsonl", b"", "a.jsonl holds no text: every document is empty"),
        ("a.jsonl", b'{"text": ""}\n{"text": "  "}\n', "a.jsonl holds no text: every document is empty"),
        ("a.txt", b"abc \xff def", "a.txt is not UTF-8: byte 4 is wrong; convert the file to UTF-8"),
        ("a.jsonl", b'{"text": "a\xff"}\n', "a.jsonl is not UTF-8: byte 11 is wrong; convert the file to UTF-8"),
        ("a.jsonl", b'{"text": "a', "a.jsonl, line 1 is no valid JSON"),
        ("a.jsonl", b'{"txt": "a"}\n', "there is no field=text (did you mean 'txt'?); fields here: txt"),
        ("a.txt", b"A few words.", "do not fill a window of 32 tokens for training and one for validation"),
    ],
)
def test_bad_text_is_named_and_the_mended_command_works(name, bad, sentence, tmp_path, monkeypatch, refused, works):
    monkeypatch.chdir(tmp_path)
    command = ["data", "prepare", name, "out", "vocab_size=300", "window=32"]
    Path(name).write_bytes(bad)
    assert sentence in refused(*command)
    assert "no dataset" in refused("data", "verify", "out")
    Path(name).write_text(GOOD_LINES if name.endswith("jsonl") else GOOD_TEXT)
    works(*command)
    works("data", "verify", "out")


def test_documents_of_one_token_are_prepared_read_and_evaluated(place, works):
    texts = [*"abcdefgh", *english_like(12)]
    Path("short.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    works("data", "prepare", "short.jsonl", "out", "tokenizer=data/tokenizer", "window=32", "val_fraction=0.4")
    held_out = json.loads(Path("out/dataset.json").read_text())["splits"]["val"]
    assert held_out["documents"] > 3
    works("eval", "run", "data=out")
    works("concepts", "extract", "data=out", "sae=sae")
    works(*RUN, "data.path=out", "data.labels=concepts")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        # words that are no verb, recipe or setting
        (["trian", "tiny/ntp"], "No such command 'trian'. Did you mean 'train'? (see 'cocomix --help')"),
        (["train", "--jsn"], "No such option: --jsn (Possible options: --json) (see 'cocomix train --help')"),
        (["train", "tiny/ntp", "--tokens", "100"],
         "No such option: --tokens: settings are written tokens=100, without dashes (see 'cocomix train --help')"),
        (["eval", "run", "--batch-windows=2"], "settings are written batch_windows=2, without dashes"),
        ([*SAE, "-kk"], "No such option: -k: settings are written k=…, without dashes"),
        (["train", "tiny/ntp", "--lr"], "settings are written optimizer.lr=…, without dashes"),
        (["inspect", "The", "run"], "'run' is no setting and no YAML file with settings: write model=run"),
        (["sae", "check", "sae", "data"], "'data' is no setting and no YAML file with settings: write data=data"),
        (["eval", "run", "data"], "'data' is no setting and no YAML file with settings: write KEY=VALUE"),
        (["sweep", "nope.yaml"], "nope.yaml does not exist: give a YAML file with settings"),
        (["concepts", "show"], "Missing argument 'ID' (see 'cocomix concepts show --help')"),
        ([*ON_DATA, "optimiser.lr=1"], "unknown setting 'optimiser' (did you mean 'optimizer'?)"),
        ([*ON_DATA, "model.concept_kk=1"], "unknown setting 'model.concept_kk' (did you mean 'concept_k'?)"),
        (["train", "tiny/nto", "data.path=data", "run=new"], "no recipe 'tiny/nto' (did you mean 'tiny/ntp'?)"),
        (["train", "./none.yaml", "data.path=data", "run=new"], "no recipe './none.yaml'"),
        (["train", "tiny/ntp", "data.path=", "run="], "setting 'run'=None: input should be a valid string"),
        # a dataset of another tokenizer
        (["eval", "run", "data=other"],
         "data=other was made with another tokenizer than model=run has: prepare the text again with "
         "tokenizer=run/export"),
        ([*SAE, "teacher=teacher", "data=other"], "teacher=teacher has another tokenizer than the dataset other"),
        (["sae", "check", "sae", "data=other"], "teacher=teacher has another tokenizer than the dataset other"),
        ([*LABELS, "data=other"], "teacher=teacher has another tokenizer than the dataset other"),
        # labels that are not for this run
        ([*RUN, "data.path=same", "data.labels=data/labels/concepts"], "belong to another dataset"),
        ([*ON_DATA, "data.window=16"], "data.labels=concepts was extracted for windows of 32 tokens, the run"),
        ([*ON_DATA, "data.labels=concept"], "data has no such labels (did you mean 'concepts'?), only concepts"),
        ([*ON_DATA, "model.num_concepts=7"], "model.num_concepts=7 differs from the labels' 64: leave it out"),
        # numbers out of range
        ([*SAE, "teacher=teacher", "data=data", "latents=8", "k=9"], "k=9 is more than latents=8: choose a smaller k"),
        ([*SAE, "teacher=teacher", "data=data", "block=3"], "block=3 is outside the teacher teacher: it has 3 blocks"),
        ([*SAE, "teacher=teacher", "data=data", "window=65"], "window=65 is longer than the context of the teacher"),
        ([*LABELS, "data=data", "block=2"], "sae was trained on block 1: give block=1"),
        ([*LABELS, "data=data", "attribution.k=13"], "attribution.k=13 is more than"),
        ([*LABELS, "data=data", "attribution.gradient_of=token"], "'sequence' or 'next_token'"),
        ([*LABELS, "data=data", "attribution={select: activation, order: smallest}"],
         "order=smallest has no effect with select=activation: leave one of the two out"),
        ([*LABELS, "data=data", "window=9999"], "window=9999 is longer than every"),
        ([*LABELS, "data=data", "name=concepts", "window=16"], "labels with another window (32, now 16)"),
        ([*ON_DATA, "model.concept_k=65"], "concept_k=65 must be 1 to num_concepts=64"),
        ([*ON_DATA, "model.insert_at=4"], "insert_at=4 lies outside the network: with 4 blocks it must be 1 to 3"),
        ([*ON_DATA, "model.insert_at=0"], "insert_at=0 lies outside the network: with 4 blocks it must be 1 to 3"),
        (["train", "tiny/ntp", "data.path=data", "run=new", "data.window=99999"], "are fewer than a window of 99999"),
        (["eval", "run", "context=33"], "context=33 is longer than the model's 32 positions: choose context=32"),
        (["eval", "run", "split=test"], "data has no split 'test', only train, val"),
        (["concepts", "show", "64", "data=data"], "there is no concept 64: data/labels/concepts has concepts 0 … 63"),
        (["concepts", "show", "--", "-1", "data=data"], "there is no concept -1: data/labels/concepts has"),
        ([*STEER, "64=off"], "concept 64 is outside the dictionary"),
        ([*STEER, "3"], "--steer '3' is no edit: write ID=x5 (scale)"),
        (["generate", "The", "model=run"], "max_new_tokens=60 exceed the model's 32 positions"),
        (["inspect", "The " * 50, "model=run"], "tokens, the model reads 32: shorten it"),
        # devices
        ([*ON_DATA, "device=foo"], "device=foo is not usable here (Expected one of cpu, cuda"),
        ([*ON_DATA, "device=cuda:64"], "device=cuda:64 is not usable here ("),
        (["eval", "run", "device=foo"], "device=foo is not usable here (Expected one of cpu, cuda"),
        (["eval", "run", "device=cuda:64"], "device=cuda:64 is not usable here ("),
        (["eval", "run", "tasks=piqa", "limit=1", "device=cuda:64"], "): give device=cpu"),
        # what is named is not there, or something else
        (["eval", "nowhere"], "nowhere is no folder here; a model of the hub names no dataset: give a run folder, or "),
        (["eval", "teacher"], "teacher is no run that names its dataset: give a run folder, or data=FOLDER as well"),
        (["eval", "run/exprt", "data=data"],
         "model=run/exprt: there is no such folder (did you mean 'run/export'?); give a model's folder or hub id"),
        (["eval", "run/nope"], "model=run/nope: there is no such folder"),
        (["eval", "./nowhere", "data=data"], "model=./nowhere: there is no such folder; give a model's folder"),
        (["inspect", "The", "model=teacher"], "model=teacher predicts no concepts: give a run with model.mixer"),
        ([*LABELS, "data=data", "sae=nowhere"], "sae=nowhere is no folder: train one with 'cocomix sae train'"),
        ([*LABELS, "data=nowhere"], "data=nowhere is no dataset: it holds no dataset.json; make one with"),
        (["concepts", "show", "3", "labels=nowhere"], "there is no atlas nowhere: make it with 'cocomix concepts"),
        ([*SAE, "teacher=./nowhere", "data=data"], "teacher=./nowhere: there is no such folder"),
        ([*SAE, "teacher=nowhere.gguf", "data=data"], "teacher=nowhere.gguf: there is no such folder"),
        ([*SAE, "teacher=org/name", "data=data"], "(it cannot be reached from here): run 'hf download org/name"),
        ([*SAE, "teacher=data", "data=data"], "teacher=data holds no *.safetensors and no *.gguf"),
        ([*SAE, "teacher=run", "data=data"], "teacher=run is a CoCoMix model: a teacher must be a plain causal model;"),
        (["sae", "check", "sae", "teacher=run", "data=data"], "give an ntp run or a hub id"),
        (["compare", "run", "teacher"], "teacher is no run: it holds no run.json; give the folders that"),
    ],
)  # fmt: skip
def test_mistake_is_one_sentence_and_touches_nothing(words, sentence, place, refused):
    before = tree(place)
    assert sentence in refused(*words)
    assert tree(place) == before
    assert not Path("new").exists()


@pytest.mark.parametrize("verb", [SAE, LABELS, ["sae", "check", "sae"]], ids=" ".join)
def test_damaged_weights_of_a_teacher_are_named(verb, place, refused):
    weights = Path("teacher/model.safetensors")
    whole = weights.read_bytes()
    words = [*verb, "data=data", *(["teacher=teacher"] if verb is SAE else [])]
    weights.write_bytes(whole[:-1])
    assert "teacher/model.safetensors is no whole safetensors file" in refused(*words)
    weights.rename("teacher/pytorch_model.bin")
    assert "holds no *.safetensors but pytorch_model.bin: pickled weights can run code" in refused(*words)
    Path("teacher/model.gguf").write_bytes(b"GGUF")
    assert "teacher/model.gguf is no whole GGUF file" in refused(*words)
    assert not Path("new").exists()


def test_a_model_s_own_code_is_never_run_nor_asked_about(place, refused, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *words: pytest.fail("asked whether to run custom code"))
    mine = {
        "AutoTokenizer": ["mine.Tokenizer", None],
        "AutoConfig": "mine.Config",
        "AutoModelForCausalLM": "mine.Model",
    }
    for name in ("config.json", "tokenizer_config.json"):
        file = Path("teacher") / name
        file.write_text(json.dumps({**json.loads(file.read_text()), "auto_map": mine, "model_type": "mine",
                                    "tokenizer_class": "Mine"}))  # fmt: skip
    Path("teacher/mine.py").write_text("raise SystemExit(7)\n")
    asked = [
        ([*SAE, "teacher=teacher", "data=data"], "teacher=teacher"),
        (["data", "prepare", "text.jsonl", "new", "tokenizer=teacher"], "tokenizer=teacher"),
        (["eval", "teacher", "data=data"], "model=teacher"),
        (["plan", "tiny/cocomix", "--teacher", "teacher"], "teacher=teacher"),
        (["train", "tiny/ntp", "model.backbone=null", "model.from_backbone=teacher", "data.path=data", "run=new"],
         "model.from_backbone=teacher"),
    ]  # fmt: skip
    for words, option in asked:
        assert option in refused(*words)


def test_dataset_of_another_tokenizer_can_be_prepared_again_as_the_message_says(place, refused, works):
    word = next(word for word in refused("eval", "run", "data=other").split() if word.startswith("tokenizer="))
    works("data", "prepare", "text.jsonl", "new", word, "window=32", "val_fraction=0.2")
    works("eval", "run", "data=new")


def test_tokenizer_that_cannot_be_had_is_told_and_the_mended_command_works(place, refused, works):
    command = ["data", "prepare", "text.jsonl", "new", "window=32"]
    assert "tokenizer=nowhere.gguf: there is no such folder" in refused(*command, "tokenizer=nowhere.gguf")
    assert "run 'hf download org/name --local-dir FOLDER'" in refused(*command, "tokenizer=org/name")
    works(*command, "tokenizer=teacher")
    works("sae", "train", "teacher=teacher", "data=new", "block=1", "out=saenew", "tokens=1024", "latents=64")


WRITING = {
    "data prepare": ["data", "prepare", "text.jsonl", "OUT", "tokenizer=data/tokenizer", "window=32"],
    "train": [*ON_DATA, "run=OUT"],
    "sae train": [*SAE, "teacher=teacher", "data=data", "out=OUT"],
    "export": ["export", "run", "OUT"],
    "compare": ["compare", "run", "out=OUT"],
    "quickstart": ["quickstart", "folder=OUT"],
}


def to(verb: str, out: str) -> list[str]:
    """The command of a verb that writes, with its folder."""
    return [word.replace("OUT", out) for word in WRITING[verb]]


@pytest.mark.parametrize("verb", WRITING)
@pytest.mark.parametrize("out", ["text.jsonl", "text.jsonl/below"])
def test_output_where_no_folder_can_be_is_told_before_the_work(verb, out, place, refused):
    before = tree(place)
    sentence = refused(*to(verb, out))
    assert out in sentence
    assert "is a file" in sentence
    if verb in ("train", "sae train"):  # hours of work: the folder itself is tried first, not a file in it at the end
        assert sentence.startswith((f"{out} is a file", f"{out}: a part of this path is a file"))
    assert tree(place) == before


@pytest.mark.parametrize(
    "words",
    [["eval", "text.jsonl"], ["eval", "text.jsonl", "data=data"], ["eval", "run", "data=text.jsonl"],
     ["export", "text.jsonl"], ["compare", "text.jsonl"], ["generate", "The", "model=text.jsonl"],
     ["inspect", "The", "model=text.jsonl"],
     ["inspect", "The", "model=run", "atlas=text.jsonl"], ["concepts", "atlas", "text.jsonl"],
     ["concepts", "show", "1", "labels=text.jsonl"], ["concepts", "extract", "data=data", "sae=text.jsonl"],
     ["concepts", "extract", "data=text.jsonl", "sae=sae"], ["sae", "check", "text.jsonl", "data=data"],
     ["data", "verify", "text.jsonl"], [*SAE, "teacher=text.jsonl", "data=data"],
     [*RUN, "data.path=text.jsonl", "data.labels=concepts"]],
    ids=lambda words: " ".join(words[-3:]),
)  # fmt: skip
def test_file_where_a_folder_is_wanted_is_named(words, place, refused):
    before = tree(place)
    assert "text.jsonl" in refused(*words)
    assert tree(place) == before


@pytest.mark.parametrize("verb", [verb for verb in WRITING if verb != "quickstart"])
def test_files_of_others_in_the_output_folder_stay_as_they_are(verb, place, cli):
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("mine")
    code, _, err = cli(*to(verb, "mine"))
    assert code == 0 or err.startswith("error: ")
    assert Path("mine/notes.txt").read_text() == "mine"


@pytest.mark.parametrize("kind", ["data", "run", "sae"])
@pytest.mark.parametrize("verb", ["export", "sae train"])
def test_work_of_another_kind_is_never_replaced(kind, verb, place, refused):
    before = tree(place)
    assert f"out={kind} " in refused(*to(verb, kind))
    assert tree(place) == before
