"""Files of tensors, in any of the containers that autoencoders come in: safetensors, PyTorch's ``.pt``, NumPy's
``.npz``. Nothing that could run code is loaded."""

from __future__ import annotations

import pickle
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cocomix.errors import UserError, explained

SUFFIXES = (".safetensors", ".pt", ".pth", ".npz")


def tensor_names(path: Path) -> frozenset[str]:
    """Names of what a file holds, without reading its values; raises like :func:`read_tensors`."""
    if path.suffix == ".safetensors":
        with _readable(path), safe_open(path, "pt") as file:
            return frozenset(file.keys())
    if path.suffix == ".npz":
        with _readable(path), np.load(path, allow_pickle=False) as file:
            return frozenset(file.files)
    # Mapped, so that no values are read; what is kept is read for good, as the file may change.
    return frozenset(_read_pt(path, mmap=zipfile.is_zipfile(path)))


def read_tensors(path: Path) -> dict[str, Any]:
    """Everything in a file by name: tensors, and from a ``.pt`` file also plain values.

    Raises :class:`UserError` when the file is truncated, of another kind, or holds pickled objects.
    """
    if path.suffix == ".safetensors":
        with _readable(path), safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if path.suffix == ".npz":
        with _readable(path), np.load(path, allow_pickle=False) as file:
            return {name: torch.from_numpy(np.array(file[name])) for name in file.files}
    return _read_pt(path, mmap=False)


def check_tensors(
    tensors: Mapping[str, Any], wanted: Mapping[str, tuple[int, ...]], where: object, ignored: Collection[str] = ()
) -> None:
    """Raises :class:`UserError` unless ``tensors`` are those ``wanted`` (name: shape), finite, and no others but
    ``ignored`` ones. ``where`` names the file."""
    for word, names in (("lacks", wanted.keys() - tensors), ("also holds", tensors.keys() - wanted - set(ignored))):
        if names:
            raise UserError(
                f"{where} {word} {', '.join(sorted(names))}: of an autoencoder of this format {', '.join(wanted)} are "
                "wanted and nothing else, save or download it again"
            )
    for name, shape in wanted.items():
        if not isinstance(tensors[name], Tensor):
            raise UserError(f"{where}: {name} is no tensor: save or download it again")
        found = tuple(tensors[name].shape)
        if found != shape:
            hint = "it is transposed" if found == shape[::-1] else "the file or its configuration is wrong"
            raise UserError(f"{where}: {name} is {list(found)} where {list(shape)} is due: {hint}, save it again")
        if not torch.isfinite(tensors[name]).all():
            raise UserError(f"{where}: {name} holds values that are not finite: train or download the SAE again")


def length(tensors: Mapping[str, Any], name: str, where: object) -> int:
    """Length of the vector ``name``; biases say what sizes the matrices should have."""
    vector = tensors.get(name)
    if vector is None:
        raise UserError(f"{where} lacks {name}: save or download it again")
    if not isinstance(vector, Tensor) or vector.dim() != 1:
        raise UserError(f"{where}: {name} is no vector: save or download it again")
    return len(vector)


def whole_number(config: Mapping[str, Any], key: str, where: object) -> int:
    """``config[key]``, a positive whole number; raises :class:`UserError` when it is none."""
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{where}: {key}={value!r} should be a positive whole number: save the SAE again")
    return value


def _read_pt(path: Path, mmap: bool) -> dict[str, Any]:
    with _readable(path):
        state = torch.load(path, weights_only=True, map_location="cpu", mmap=mmap)
    if not isinstance(state, dict):
        raise UserError(f"{path} holds a {type(state).__name__}, not an autoencoder's tensors by name")
    return {str(name): value for name, value in state.items()}


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns what the containers' readers raise into a :class:`UserError`."""
    try:
        with explained(path):
            yield
    except SafetensorError as error:
        raise UserError(f"{path} is damaged or no safetensors file ({error}): copy or train it again") from error
    except pickle.UnpicklingError as error:
        raise UserError(_PICKLED.format(path)) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        if "allow_pickle" in str(error) and zipfile.is_zipfile(path):  # NumPy says it of any foreign file too
            raise UserError(_PICKLED.format(path)) from error
        kind = "NumPy" if path.suffix == ".npz" else "PyTorch"
        raise UserError(f"{path} is truncated or no {kind} file: copy or download it again") from error


_PICKLED = "{} holds more than tensors, so it could run code when loaded: convert it to safetensors where you trust it"
