"""Why the Hugging Face hub gave nothing, and what to do instead."""

from __future__ import annotations

from cocomix.errors import UserError

UNREACHABLE = ("LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError", "ConnectTimeout", "ReadTimeout",
               "ConnectionError", "Timeout", "ProxyError")  # fmt: skip
"""Errors of the hub's client and of the HTTP libraries below it that mean: no answer at all."""


def hub_error(option: str, name: str, error: BaseException) -> UserError:
    """The error to raise for ``option=name``, by what the hub's client says: no connection, no such repository,
    one that asks for consent, or something else."""
    kinds = {kind.__name__ for cause in _causes(error) for kind in type(cause).__mro__}
    told = f"{option}={name}: it is no folder here and the hub gave none"
    if "GatedRepoError" in kinds:
        return UserError(
            f"{told} (it is gated): accept its terms on https://huggingface.co/{name}, log in with 'hf auth login' and "
            "try again"
        )
    if "RepositoryNotFoundError" in kinds:
        return UserError(
            f"{told} (there is no such repository, or it is private): check the name; for a private one log in with "
            "'hf auth login'"
        )
    if kinds.intersection(UNREACHABLE):
        return UserError(
            f"{told} (it cannot be reached from here): run 'hf download {name} --local-dir FOLDER' where there is a "
            f"network, bring that folder here and give {option}=FOLDER"
        )
    lines = str(error).strip().splitlines() or [""]
    reason = f"{type(error).__name__}: {lines[0][:200]}".rstrip(" .:")
    return UserError(f"{told} ({reason}): give {option}=FOLDER, a folder with its files")


def _causes(error: BaseException | None) -> list[BaseException]:
    """The error and those it came from."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found
