"""Where a model is that a user names: a folder, the export of a run, a file, or else a hub id."""

from __future__ import annotations

from pathlib import Path

from cocomix.errors import UserError, near_name
from cocomix.files import read_json

ENVIRONMENT = "environment.json"
"""What a run's folder says of where it was trained."""


def can_only_be_a_path(name: str) -> bool:
    """Whether ``name`` is no hub id (NAME or OWNER/NAME): OWNER is no folder that is here."""
    path = Path(name).expanduser()
    written = path.is_absolute() or path.suffix == ".gguf" or name.startswith((".", "~")) or name.count("/") > 1
    return written or ("/" in name and path.parent.is_dir())


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
        raise UserError(f"{option}: there is no such folder{_near(path)}; give a model's folder or hub id")
    return None


def _near(path: Path) -> str:
    """`` (did you mean 'runs/x'?)`` for a run or model beside a path that is not there."""
    beside = path.parent.iterdir() if path.parent.is_dir() else ()
    models = [str(f) for f in beside if any((f / name).is_file() for name in ("recipe.yaml", "config.json"))]
    return near_name(str(path), models)


def recorded_path(run: Path, name: str) -> Path | None:
    """Where the file or folder lies that a run's recipe calls ``name``: there; or else from the directory that the run
    was started in, or from one above the run's own folder, as when both were moved. None: at none of these."""
    path, told = Path(name).expanduser(), run / ENVIRONMENT
    started = read_json(told, "a run's environment").get("directory") if told.is_file() else None
    above = [*([Path(started)] if started else []), *run.resolve().parents]
    return next((place for place in (path, *(folder / path for folder in above)) if place.exists()), None)
