"""Where a teacher's weights are, whether they are whole, and what they are: their hash and their precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from cocomix.data.gguf import SUFFIX as GGUF
from cocomix.data.gguf import find_gguf, quantisation
from cocomix.data.hub import hub_error
from cocomix.errors import UserError
from cocomix.files import read_json, sha256_file, sha256_json
from cocomix.places import model_place

DOWNLOADED = ["*.safetensors", "*.json", "*.model", "*.txt"]
COCOMIX = "cocomix"
"""What a configuration calls a network with a mixer."""
PICKLED = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")


class TeacherFiles(NamedTuple):
    """A folder of safetensors files, or a GGUF file in it."""

    folder: Path
    gguf: Path | None

    @property
    def weights(self) -> list[Path]:
        """The files that hold the weights."""
        return [self.gguf] if self.gguf is not None else sorted(self.folder.glob("*.safetensors"))

    def fingerprint(self) -> str:
        """Hash over the weights' files."""
        return sha256_json([sha256_file(file) for file in self.weights])

    def quantisation(self) -> dict[str, float] | str | None:
        """Share of the parameters in each of a GGUF file's types, or the method that a configuration names (``fp8``,
        ``gptq``); None for weights that are not quantised."""
        if self.gguf is not None:
            return quantisation(self.gguf)
        path = self.folder / "config.json"
        config = read_json(path, "a model's configuration") if path.is_file() else {}
        stated = (config.get("quantization_config") or {}).get("quant_method")
        return None if stated is None else str(stated)

    def check_whole(self, name: str) -> None:
        """Raises :class:`UserError` when a weights' file is truncated or damaged; ``name`` is how the
        user named the teacher."""
        from safetensors import SafetensorError, safe_open

        if self.gguf is not None:
            quantisation(self.gguf)
            return
        for file in self.weights:
            try:
                with safe_open(file, "pt"):
                    pass
            except SafetensorError as error:
                reason = str(error).splitlines()[0]
                raise UserError(
                    f"teacher={name}: {file} is no whole safetensors file ({reason}): copy or download it again"
                ) from error


def find_teacher(name: str) -> TeacherFiles:
    """The files of the teacher ``name``: a folder, the export of a run's folder, a GGUF file or a folder with one, or
    a hub repository, downloaded where it is not yet.

    Raises :class:`UserError` when there is no such thing, it holds no weights that are loaded here, or it is one of
    our own models with a mixer.
    """
    path = model_place(name, f"teacher={name}") or _downloaded(name)
    if path.is_file():
        return TeacherFiles(path.parent, find_gguf(path, f"teacher={name}"))
    files = TeacherFiles(path, None if any(path.glob("*.safetensors")) else find_gguf(path, f"teacher={name}"))
    if files.weights:
        _refuse_cocomix(files, name)
        return files
    pickled = sorted(file.name for pattern in PICKLED for file in path.glob(pattern))
    if pickled:
        raise UserError(
            f"teacher={path} holds no *.safetensors but {pickled[0]}: pickled weights can run code when they are "
            "loaded, so they are not; save the model again with save_pretrained"
        )
    raise UserError(f"teacher={path} holds no *.safetensors and no *{GGUF}: give the folder of a model's weights")


def _refuse_cocomix(files: TeacherFiles, name: str) -> None:
    path = files.folder / "config.json"
    config = read_json(path, "a model's configuration") if files.gguf is None and path.is_file() else {}
    if config.get("model_type") == COCOMIX:
        raise UserError(
            f"teacher={name} is a CoCoMix model: a teacher must be a plain causal model; give an ntp run or a hub id"
        )


def _downloaded(name: str) -> Path:
    """The hub repository's snapshot: from the local cache where it has weights, or else by the network."""
    from huggingface_hub import snapshot_download

    kinds: dict[str, Any] = {"allow_patterns": DOWNLOADED, "ignore_patterns": ["*/*"]}
    try:
        try:
            folder = Path(snapshot_download(name, local_files_only=True, **kinds))
        except (OSError, ValueError):
            folder = None
        # A snapshot without weights is there when only the tokenizer was asked for before.
        if folder is None or not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, **kinds))
    except Exception as error:  # the hub's client raises its own errors and its HTTP library's
        raise hub_error("teacher", name, error) from error
    return folder


def training_record(folder: Path | str) -> dict[str, Any] | None:
    """``training.json`` of a model's or autoencoder's folder: what its training cost; None where there is none."""
    path = Path(folder) / "training.json"
    return read_json(path, "a training record") if path.is_file() else None
