"""Configurations: one TOML per run, read into typed sections, overridden by `key=value`, and listed with every default and meaning.

A section is a frozen pydantic model that forbids unknown keys, so that a mistyped setting is an error before anything runs.
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticUndefined

from patchword.errors import ConfigError

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

Section = TypeVar("Section", bound=BaseModel)

RENAMED_KEYS = {"question_answering": "answerer", "alignment": "region_alignment"}
"""Settings of earlier versions, and what they are called now: an old file gets an error that names the new key."""

RENAMED_TASKS = {"classify": "label"}
"""The same for the values of `task`."""


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises ConfigError, naming line and column, where the file is missing or not TOML."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"no configuration at {path}: give the path of a TOML file, for instance one of configs/"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a TOML file: {error}") from error


def override(settings: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Settings with `a.b.c=value` assignments applied; values are TOML, else text; `stage.0.epochs=3` indexes a list."""
    settings = json.loads(json.dumps(settings))
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise ConfigError(
                f"{assignment!r} is not an override: write key=value, for instance optimiser.batch=64"
            )
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        _assign(settings, key.strip().split("."), value, assignment)
    return settings


def _assign(settings: Any, path: list[str], value: Any, assignment: str) -> None:
    for depth, name in enumerate(path):
        last = depth == len(path) - 1
        if isinstance(settings, list):
            if not name.isdigit() or int(name) >= len(settings):
                raise ConfigError(
                    f"{assignment!r}: {'.'.join(path[:depth])} is a list of {len(settings)}; {name!r} is no index into it"
                )
            key: Any = int(name)
        elif isinstance(settings, dict):
            key = name
            if not last:
                settings.setdefault(key, {})
        else:
            raise ConfigError(f"{assignment!r}: {'.'.join(path[:depth])} is a value, not a table")
        if last:
            settings[key] = value
        else:
            settings = settings[key]


def write_toml(settings: dict[str, Any], prefix: str = "") -> str:
    """Settings as TOML: values first, then tables, lists of tables as [[name]]. The inverse of `read_toml` for what a section dumps."""
    lines, tables = [], []
    for name, value in settings.items():
        key = name if name.replace("_", "").replace("-", "").isalnum() else json.dumps(name)
        if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
            tables += [f"\n[[{prefix}{key}]]\n{write_toml(part, f'{prefix}{key}.')}" for part in value]
        elif (
            isinstance(value, dict) and not any(isinstance(part, dict) for part in value.values()) and prefix
        ):
            lines.append(
                f"{key} = {{ {', '.join(f'{json.dumps(k)} = {json.dumps(v)}' for k, v in value.items())} }}"
            )
        elif isinstance(value, dict):
            tables.append(f"\n[{prefix}{key}]\n{write_toml(value, f'{prefix}{key}.')}")
        else:
            lines.append(f"{key} = {json.dumps(value, ensure_ascii=False)}")
    return "\n".join(lines) + ("\n" if lines else "") + "".join(tables)


def load_config(path: Path, assignments: Sequence[str], schema: type[Section]) -> Section:
    """The configuration at `path` with overrides, checked against `schema`. Raises ConfigError listing every wrong setting."""
    return validate(override(read_toml(path), assignments), schema, str(path))


def validate(settings: dict[str, Any], schema: type[Section], where: str) -> Section:
    """`settings` as `schema`; `where` names their origin in the error. Raises ConfigError with one clause per wrong setting."""
    try:
        return schema.model_validate(settings)
    except ValidationError as error:
        clauses = []
        for item in error.errors():
            name = ".".join(str(part) for part in item["loc"]) or "the whole"
            found = (
                "" if item["type"] == "missing" else f" (found {json.dumps(item['input'], default=str)[:80]})"
            )
            hint = _unknown(str(item["loc"][-1])) if item["type"] == "extra_forbidden" else item["msg"]
            clauses.append(f"{name}: {hint}{found}")
        raise ConfigError(f"{where}: " + "; ".join(clauses)) from error


def _unknown(key: str) -> str:
    if key in RENAMED_KEYS:
        return f"this setting is called {RENAMED_KEYS[key]!r} now"
    return "unknown setting; `patchword train --help-config` lists all"


class Field(typing.NamedTuple):
    """One setting, for listings."""

    name: str
    type: str
    default: str
    meaning: str


def fields(schema: type[BaseModel], prefix: str = "") -> Iterator[Field]:
    """Every setting of a schema, sections in order, alternatives of a union one after the other under their `kind`."""
    for name, info in schema.model_fields.items():
        inner = list(_models(info.annotation))
        is_list = typing.get_origin(info.annotation) in (tuple, list) and bool(inner)
        label = f"[[{name}]] " if is_list else f"{name}."
        for model in inner:
            kind = model.model_fields.get("kind")
            path = f"{prefix}{label}"
            if len(inner) > 1 and kind is not None:
                path = f"{prefix}{name}({kind.default})."
            yield from fields(model, path)
        if not inner:
            yield Field(prefix + name, _type_name(info.annotation), _default(info), info.description or "")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        return
    for argument in typing.get_args(annotation):
        yield from _models(argument)


def _type_name(annotation: Any) -> str:
    if typing.get_origin(annotation) is typing.Literal:
        return " | ".join(json.dumps(value) for value in typing.get_args(annotation))
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " | ".join(
            "nothing" if part is type(None) else _type_name(part) for part in typing.get_args(annotation)
        )
    if typing.get_origin(annotation) is typing.Annotated:
        return _type_name(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) is tuple:
        return f"tuple[{', '.join('...' if part is ... else _type_name(part) for part in typing.get_args(annotation))}]"
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return annotation.__name__
    return str(annotation).replace("typing.", "").replace("pathlib.", "")


def _default(info: Any) -> str:
    if info.default_factory is not None:
        return json.dumps(info.default_factory(), default=str)
    return "required" if info.default is PydanticUndefined else json.dumps(info.default, default=str)
