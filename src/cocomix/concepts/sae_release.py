"""Released autoencoders by the name that SAELens gives them: ``saelens:RELEASE/SAE_ID``.

SAELens finds and downloads the files, knows each release's convention, and is imported only here and for training.
"""

from __future__ import annotations

import hashlib
import warnings
from functools import lru_cache
from typing import Any

import numpy as np

from cocomix.concepts.sae import SparseAutoencoder
from cocomix.concepts.sae_saelens import from_saelens
from cocomix.errors import UserError, near_name

PREFIX = "saelens:"

DOWNLOAD_ERRORS = ("huggingface_hub", "httpx", "httpcore", "requests", "urllib3")
"""Where the exceptions of a failed download come from."""


def is_release(name: str) -> bool:
    """Whether ``name`` means a release, not a folder."""
    return name.startswith(PREFIX)


def load_release(name: str) -> SparseAutoencoder:
    """The autoencoder ``saelens:RELEASE/SAE_ID`` from the hub's cache, or downloaded.

    Raises :class:`UserError` when there is no such release or id, when the hub cannot be reached and the cache does
    not hold it, or when it is of a kind that is not supported. Its fingerprint is over its tensors.
    """
    from sae_lens import SAE
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    directory = get_pretrained_saes_directory()
    release, sae_id = _split(name, directory)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SAELens warns of hooks that it would need and we do not use
            loaded: Any = SAE.from_pretrained(release, sae_id)
    except Exception as error:  # SAELens' loaders raise their own and those of three libraries below
        hint = "" if release in directory else near_name(name.removeprefix(PREFIX).split("/")[0], directory)
        raise UserError(_told(name + hint, error)) from error
    config = loaded.cfg.to_dict()
    tensors = {key: tensor.detach() for key, tensor in loaded.state_dict().items()}
    known = directory.get(release)
    l0 = known.expected_l0.get(sae_id) if known is not None else None
    return from_saelens(config, tensors, f"sae={name}", f"sae={name}", _digest(tensors), stated_l0=l0 or None)


@lru_cache(maxsize=8)
def release_fingerprint(name: str) -> str:
    """The fingerprint of a release: SHA-256 over its tensors, which are loaded for it."""
    return load_release(name).fingerprint


def _split(name: str, directory: dict[str, Any]) -> tuple[str, str]:
    """Release and id: a release of SAELens' list, or else a hub repository OWNER/REPOSITORY in SAELens' layout."""
    words = name.removeprefix(PREFIX).split("/")
    size = 1 if words[0] in directory else 2
    release, sae_id = "/".join(words[:size]), "/".join(words[size:])
    if not release or not sae_id:
        raise UserError(
            f"sae={name}: SAELens knows no release {words[0]!r}{near_name(words[0], directory)}: write "
            f"sae={PREFIX}RELEASE/SAE_ID as in its list of pretrained SAEs, or {PREFIX}OWNER/REPOSITORY/FOLDER"
        )
    # Of its list SAELens knows more than the files say, and applies it by the release's name alone.
    if size == 2 and (listed := [key for key, known in directory.items() if known.repo_id == release]):
        found = next(
            (f"{key}/{i}" for key in listed for i, at in directory[key].saes_map.items() if at == sae_id), None
        )
        raise UserError(
            f"sae={name}: SAELens lists {release} as {', '.join(listed[:3])}{' …' if len(listed) > 3 else ''}: give "
            f"sae={PREFIX}{found or f'{listed[0]}/SAE_ID'}, by which it knows the autoencoder's convention"
        )
    if size == 1 and sae_id not in (ids := directory[release].saes_map):
        raise UserError(
            f"sae={name}: release {release} has no SAE {sae_id!r}{near_name(sae_id, ids)}: it has "
            f"{', '.join(list(ids)[:5])}{' …' if len(ids) > 5 else ''}"
        )
    return release, sae_id


def _told(name: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    chain: BaseException | None = error
    while chain is not None:
        if type(chain).__module__.split(".")[0] in DOWNLOAD_ERRORS:
            return (
                f"sae={name} is not in the hub's cache and could not be downloaded ({reason}): download it where there "
                "is a network, with huggingface_hub or SAELens, and copy the cache, or give the folder of its files as "
                "sae=FOLDER"
            )
        chain = chain.__cause__ or chain.__context__
    return (
        f"sae={name} could not be loaded by SAELens ({reason}): download its files and give their folder as sae=FOLDER"
    )


def _digest(tensors: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for key in sorted(tensors):
        values = tensors[key].float().cpu().numpy()
        digest.update(f"{key} {values.shape}".encode())
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()
