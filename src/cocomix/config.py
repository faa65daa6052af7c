"""Typed settings from a YAML recipe and ``key=value`` behind it, with errors that name the key and the mend."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from cocomix.errors import UserError, explained, near_name


class Settings(BaseModel):
    """Base of all settings: frozen, unknown keys refused; field descriptions are the command line's help."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


S = TypeVar("S", bound=Settings)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads ``6e-4`` as a string; people who write recipes mean the number."""


_Loader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def recipes_folder() -> Path:
    """The recipes that come with the package (in a checkout: the folder ``recipes/`` at its root)."""
    packaged = Path(__file__).parent / "recipes"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "recipes"


def find_recipe(name: str) -> Path:
    """The recipe file for a path, or for the name of a packaged recipe (``quickstart/ntp``)."""
    for candidate in (Path(name), recipes_folder() / name, recipes_folder() / f"{name}.yaml"):
        if candidate.is_file():
            return candidate
    known = sorted(p.relative_to(recipes_folder()).with_suffix("").as_posix() for p in recipes_folder().rglob("*.yaml"))
    raise UserError(
        f"no recipe {name!r}{near_name(name, known)}: give a YAML file or one of {', '.join(known) or '(none)'}"
    )


def read_recipe(path: Path) -> dict[str, Any]:
    """The settings in a YAML file; ``base: other.yaml`` (relative to the file) is merged below them."""
    try:
        with explained(path):
            values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from error
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise UserError(f"{path}: a recipe is a mapping of settings, this is a {type(values).__name__}")
    base = values.pop("base", None)
    return merge(read_recipe(path.parent / base), values) if base else values


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """``below`` with the entries of ``above`` laid over it, mappings merged key by key."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def parse_override(word: str) -> dict[str, Any]:
    """``a.b=1`` as ``{"a": {"b": 1}}``; values are read as YAML."""
    key, equals, text = word.partition("=")
    if not equals or not key:
        raise UserError(f"{word!r} is neither a recipe nor a setting: write key=value")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        value = text
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def load_settings(cls: type[S], words: Sequence[str] = (), **given: Any) -> S:
    """Settings of type ``cls`` from words of the command line: recipes first, then ``key=value``.

    ``given`` are values that the command line names in another way (positional arguments); None is left out.
    Raises :class:`UserError` that lists every bad key and value at once.
    """
    values: dict[str, Any] = {}
    for word in words:
        is_recipe = "=" not in word or (word.endswith((".yaml", ".yml")) and Path(word).is_file())
        values = merge(values, read_recipe(find_recipe(word)) if is_recipe else parse_override(word))
    values = merge(values, {k: v for k, v in given.items() if v is not None})
    return validated(cls, values)


def validated(cls: type[S], values: dict[str, Any]) -> S:
    """``cls(**values)`` with pydantic's complaints told as one sentence a key."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise UserError("; ".join(_complaint(cls, e) for e in error.errors())) from error


def _complaint(cls: type[Settings], error: Any) -> str:
    location = [str(part) for part in error["loc"]]
    key = ".".join(location)
    if error["type"] == "extra_forbidden":
        parent = _settings_at(cls, location[:-1])
        names = list(parent.model_fields) if parent else []
        return f"unknown setting '{key}'{near_name(location[-1], names)}; known here: {', '.join(names)}"
    if error["type"] == "missing":
        return f"setting '{key}' is missing: add {key}=…"
    message = error["msg"].removeprefix("Value error, ")
    value = error.get("input")
    shown = f"={value!r}" if not isinstance(value, dict | list) else ""
    return f"setting '{key}'{shown}: {message[:1].lower() + message[1:]}" if key else message


def _settings_at(cls: type[Settings], location: Sequence[str]) -> type[Settings] | None:
    current: type[Settings] | None = cls
    for part in location:
        field = current.model_fields.get(part) if current else None
        current = next(_settings_types(field.annotation), None) if field else None
    return current


def _settings_types(annotation: Any) -> Iterator[type[Settings]]:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        yield annotation
    elif typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        for part in typing.get_args(annotation):
            yield from _settings_types(part)


def describe(cls: type[Settings], prefix: str = "") -> list[tuple[str, str, str]]:
    """(key, default, meaning) of every setting, nested ones with dotted keys: the help of a verb."""
    rows: list[tuple[str, str, str]] = []
    for name, field in cls.model_fields.items():
        nested = next(_settings_types(field.annotation), None)
        if nested is not None:
            rows += describe(nested, f"{prefix}{name}.")
            continue
        if field.is_required():
            default = "required"
        else:
            value = field.get_default(call_default_factory=True)
            default = "none" if value is None else str(value)
        choices = typing.get_args(field.annotation) if typing.get_origin(field.annotation) is typing.Literal else ()
        meaning = (field.description or "") + (f" ({' | '.join(map(str, choices))})" if choices else "")
        rows.append((prefix + name, default, meaning))
    return rows


def dump_yaml(settings: Settings) -> str:
    """The settings, defaults included, as a YAML text that loads back to the same."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
