"""Typed settings from a YAML recipe and ``key=value`` behind it, with errors that name the key and the mend."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path, PurePath
from typing import Annotated, Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from cocomix.errors import UserError, explained, near_name


class Settings(BaseModel):
    """Base of all settings: frozen, unknown keys refused; field descriptions are the command line's help."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
    packaged_recipes: ClassVar[bool] = False
    """Whether the recipes that come with the package are of this kind."""

    @field_validator("*", mode="before")
    @classmethod
    def _path_as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, PurePath) else value


S = TypeVar("S", bound=Settings)


def _counted(value: Any) -> Any:
    """``2M`` as 2000000; what is not written so stays as it is."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kMB])", value) if isinstance(value, str) else None
    if found is None:
        return value
    number = Decimal(found[1]) * {"k": 10**3, "M": 10**6, "B": 10**9}[found[2]]
    return int(number) if number == int(number) else value


Count = Annotated[int, BeforeValidator(_counted)]
"""A budget, which may be written 2000000, 2e6 or 2M (k, M, B)."""

Seed = Annotated[int, Field(ge=0, lt=1 << 63)]
"""What every generator takes."""


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
    given = {key: value for key, value in given.items() if value is not None}
    for word in words:
        is_recipe = "=" not in word or (word.endswith((".yaml", ".yml")) and Path(word).is_file())
        if is_recipe and not cls.packaged_recipes and not Path(word).is_file():
            raise _no_file(cls, word, [*given, *(other.partition("=")[0] for other in words if "=" in other)])
        values = merge(values, read_recipe(find_recipe(word)) if is_recipe else parse_override(word))
    return validated(cls, merge(values, given))


def _no_file(cls: type[Settings], word: str, said: Sequence[str]) -> UserError:
    """What to do about a word that should be a file of settings; ``said`` are the keys of the command line."""
    if word.endswith((".yaml", ".yml")):
        return UserError(f"{word} does not exist: give a YAML file with settings")
    missing = [key for key in _required(cls) if key not in said]
    mend = f"write {missing[0]}={word}" if missing else "write KEY=VALUE"
    return UserError(f"{word!r} is no setting and no YAML file with settings: {mend}")


def validated(cls: type[S], values: dict[str, Any]) -> S:
    """``cls(**values)`` with pydantic's complaints told as one sentence a key."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise UserError("; ".join(_complaint(cls, e) for e in error.errors())) from error


def _complaint(cls: type[Settings], error: Any) -> str:
    location = [str(part) for part in error["loc"]]
    key = ".".join(location)
    here, value = _settings_at(cls, location), error.get("input")
    if error["type"] == "extra_forbidden":
        parent = _settings_at(cls, location[:-1])
        names = list(parent.model_fields) if parent else []
        known = f"; known here: {', '.join(names)}" if names else ""
        return f"unknown setting '{key}'{near_setting(location[-1], names, cls)}{known}"
    if error["type"] == "missing":
        missing = list(_required(here, f"{key}.")) if here else []
        return "; ".join(f"setting '{name}' is missing: add {name}=…" for name in missing or [key])
    if here is not None and not isinstance(value, dict | None):
        missing = list(_required(here, f"{key}."))
        mend = (
            f"{missing[0]}={value}" if len(missing) == 1 else f"{key}.KEY=VALUE, one of {', '.join(here.model_fields)}"
        )
        return f"{key}={value}: write {mend}"
    message = error["msg"].removeprefix("Value error, ")
    shown = f"={value!r}" if not isinstance(value, dict | list) else ""
    return f"setting '{key}'{shown}: {message[:1].lower() + message[1:]}" if key else message


def near_setting(name: str, names: Iterable[str], cls: type[Settings]) -> str:
    """`` (did you mean 'optimizer.lr'?)`` for the deeper settings of ``cls`` that ``name`` is short for; else for the
    nearest of ``names``; else an empty string."""
    deep = [key for key, _, _ in describe(cls) if "." in key and key.rpartition(".")[2] == name]
    return f" (did you mean {' or '.join(map(repr, deep))}?)" if deep else near_name(name, names)


def _required(cls: type[Settings], prefix: str = "") -> Iterator[str]:
    """The dotted keys that must be given."""
    for name, field in cls.model_fields.items():
        if field.is_required():
            nested = next(_settings_types(field.annotation), None)
            yield from [prefix + name] if nested is None else _required(nested, f"{prefix}{name}.")


def _settings_at(cls: type[Settings], location: Sequence[str]) -> type[Settings] | None:
    annotation: Any = cls
    for part in location:
        current = next(_settings_types(annotation), None)
        if current is None:  # rows by name: dict[str, SETTINGS]
            annotation = typing.get_args(annotation)[1] if typing.get_origin(annotation) is dict else None
        else:
            field = current.model_fields.get(part)
            annotation = None if field is None else field.annotation
    return next(_settings_types(annotation), None)


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
