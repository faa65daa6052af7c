"""Where a model is that a user names: a folder, the export of a run, a file, or else a hub id."""

from __future__ import annotations

from pathlib import Path

from cocomix.errors import UserError


def can_only_be_a_path(name: str) -> bool:
    """Whether ``name`` is no hub id (NAME or OWNER/NAME)."""
    path = Path(name).expanduser()
    return path.is_absolute() or path.suffix == ".gguf" or name.startswith((".", "~")) or name.count("/") > 1


def model_place(name: str, option: str) -> Path | None:
    """The folder or file that ``name`` means, a run's folder standing for its export; None: it can only be a hub id.

    ``option`` is how the user named it (``teacher=runs/x``). Raises :class:`UserError` when there is no such path, or
    the run has no export yet.
    """
    path = Path(name).expanduser()
    if (path / "recipe.yaml").is_file():
        if not (path / "export" / "config.json").is_file():
            raise UserError(
                f"{option}: this run is not finished, it has no export: let it finish, or 'cocomix export {name}'"
            )
        return path / "export"
    if path.exists():
        return path
    if can_only_be_a_path(name):
        raise UserError(f"{option}: there is no such folder; give a model's folder or hub id")
    return None
