"""A full disk is told in one sentence, by every verb that writes; with space the same command goes on."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cocomix.errors import UserError, explained
from cocomix.train.metrics import read_lines

RUN = ["train", "tiny/cocomix", "model.backbone={model_type: gpt2, n_embd: 32, n_layer: 4, n_head: 4}",
       "model.concept_k=8", "data.path=data", "data.labels=concepts", "steps=4", "batch_windows=4",
       "checkpoint.number=2", "evaluations=1", "eval_documents=2"]  # fmt: skip
SAE = ["sae", "train", "teacher=teacher", "data=data", "block=1", "tokens=2048", "latents=256", "buffer_tokens=1024"]
TOLD = "no space left on the disk while writing "


class Disk:
    """A file system in memory, mounted at ``disk`` of the current folder."""

    def __init__(self, kilobytes: int) -> None:
        self.path = Path("disk").resolve()
        self.path.mkdir()
        self._mount(f"size={kilobytes}k", "tmpfs")

    def _mount(self, *words: str) -> None:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", *words, self.path], capture_output=True, check=False)
        if done.returncode:
            pytest.skip("no right to mount a small disk here")

    def grow(self) -> None:
        """Space for everything."""
        subprocess.run(["mount", "-o", "remount,size=64m", self.path], check=True)

    def holds(self) -> set[str]:
        """Names of all files, relative."""
        return {str(path.relative_to(self.path)) for path in self.path.rglob("*") if path.is_file()}


@pytest.fixture
def disk(place) -> Iterator[Callable[[int], Disk]]:
    made: list[Disk] = []

    def of(kilobytes: int) -> Disk:
        made.append(Disk(kilobytes))
        return made[-1]

    yield of
    for one in made:
        subprocess.run(["umount", "--lazy", one.path], check=False)


@pytest.mark.skipif(shutil.which("mount") is None, reason="no mount")
class TestSmallDisk:
    @pytest.mark.parametrize("kilobytes", [4, 16, 24])
    def test_data_prepare(self, kilobytes, disk, refused, works):
        small = disk(kilobytes)
        command = ["data", "prepare", "text.jsonl", "disk/out", "tokenizer=data/tokenizer", "window=32"]
        assert refused(*command).startswith(TOLD + "disk/out")
        assert "no dataset" in refused("data", "verify", "disk/out")
        small.grow()
        works(*command)
        works("data", "verify", "disk/out")

    # 24 kB: no checkpoint fits; 1300 kB: one fits, and no second
    @pytest.mark.parametrize(("kilobytes", "saved"), [(4, 0), (24, 0), (400, 0), (1300, 2)])
    def test_train(self, kilobytes, saved, disk, refused, works):
        small = disk(kilobytes)
        assert refused(*RUN, "run=disk/run").startswith(TOLD + "disk/run")
        steps = {path.parts[1] for path in map(Path, small.holds()) if path.parts[0] == "checkpoints"}
        assert not any(name.endswith(".partial") for name in small.holds())
        assert len(steps) <= 1
        small.grow()
        told = works(*RUN, "run=disk/run")
        assert re.findall(r"resuming at step (\d+)", told) == ([str(saved)] if saved else [])
        clock = ("seconds", "tokens_per_second", "mfu", "waited")
        there, straight = (
            [{k: v for k, v in line.items() if k not in clock} for line in read_lines(Path(run) / "metrics.jsonl")]
            for run in ("disk/run", "run")
        )
        assert there == straight

    # 100 kB: the weights fit, the optimizer's state does not; 256 kB: the checkpoint fits, the result does not
    @pytest.mark.parametrize("kilobytes", [4, 40, 100, 256])
    def test_sae_train(self, kilobytes, disk, refused, works):
        small = disk(kilobytes)
        assert refused(*SAE, "out=disk/sae").startswith(TOLD + "disk/sae")
        assert not any(".partial" in name for name in small.holds())
        assert "disk/sae holds no sparse" in refused(
            "sae", "check", "disk/sae", "data=data", "teacher=teacher", "block=1"
        )
        small.grow()
        told = works(*SAE, "out=disk/sae")
        assert ("going on at step 4 of 4" in told) == (kilobytes == 256)
        works("sae", "check", "disk/sae", "data=data")

    @pytest.mark.parametrize("kilobytes", [100, 150, 300, 340])
    def test_concepts_extract(self, kilobytes, disk, refused, works):
        small = disk(kilobytes)
        shutil.copytree("data", "disk/data", ignore=shutil.ignore_patterns("labels"))
        assert refused("concepts", "extract", "data=disk/data", "sae=sae").startswith(TOLD + "disk/data/labels")
        refused(*RUN, "data.path=disk/data", "run=new")
        small.grow()
        works("concepts", "extract", "data=disk/data", "sae=sae")
        for column in Path("data/labels/concepts").glob("*.bin"):
            assert (Path("disk/data/labels/concepts") / column.name).read_bytes() == column.read_bytes()

    def test_concepts_atlas(self, disk, refused, works):
        small = disk(420)
        shutil.copytree("data", "disk/data", ignore=shutil.ignore_patterns("atlas.sqlite"))
        assert TOLD in refused("concepts", "atlas", "data=disk/data")
        assert "there is no atlas" in refused("concepts", "show", "3", "data=disk/data")
        small.grow()
        works("concepts", "atlas", "data=disk/data")
        works("concepts", "show", "3", "data=disk/data")

    @pytest.mark.parametrize("kilobytes", [4, 100, 300])
    def test_export(self, kilobytes, disk, refused, works):
        small = disk(kilobytes)
        assert refused("export", "run", "disk/model").startswith(TOLD + "disk/model")
        assert small.holds() == set()
        small.grow()
        works("export", "run", "disk/model")
        works("generate", "The", "model=disk/model", "max_new_tokens=2")

    @pytest.mark.parametrize("kilobytes", [4, 100])
    def test_compare(self, kilobytes, disk, refused, works):
        small = disk(kilobytes)
        assert refused("compare", "run", "out=disk/report").startswith(TOLD + "disk/report")
        assert "report/index.html" not in small.holds()
        small.grow()
        works("compare", "run", "out=disk/report")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),  # safetensors
        Exception("No space left on device (os error 28)"),  # tokenizers
        RuntimeError("database or disk is full"),  # SQLite
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 3136 vs 3028"),  # torch.save
    ],
    ids=["safetensors", "tokenizers", "sqlite", "torch"],
)
def test_full_disk_is_understood_in_every_librarys_words(error):
    with pytest.raises(UserError, match=f"^{TOLD}here: free some space"), explained("here"):
        raise error


def test_other_errors_pass_as_they_are():
    for error in (RuntimeError("broken (os error 2)"), ValueError("unexpected pos"), UserError("a (os error 28)")):
        with pytest.raises(type(error)) as caught, explained("here"):
            raise error
        assert caught.value is error
