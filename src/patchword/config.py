"""Configurations: one TOML per run, read into typed sections, overridden by `key=value`, and listed with
every default and meaning.

A section is a frozen pydantic model that forbids unknown keys, so that a mistyped setting is an error before
anything runs.
"""

from __future__ import annotations

import difflib
import itertools
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, PydanticCustomError, PydanticUndefined, core_schema

from patchword.errors import ConfigError
from patchword.lookup import look_up

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

Section = TypeVar("Section", bound=BaseModel)

RENAMED_KEYS = {"question_answering": "answerer", "alignment": "region_alignment"}
"""Settings of earlier versions, and what they are called now: an old file gets an error that names the new
key."""

RENAMED_TASKS = {"classify": "label"}
"""The same for the values of `task`."""


class KindSettings(Protocol):
    """A section whose `kind` says which class of settings it is."""

    @property
    def kind(self) -> str: ...


class Kind(typing.NamedTuple):
    """Where one kind of a part is: a module below `patchword`, and in it the class of its settings and the
    class that is built.
    """

    module: str
    settings: str
    part: str

    def settings_class(self) -> type[BaseModel]:
        """The class of its settings, whose `kind` defaults to this kind; its module is imported now."""
        return look_up(f"{self.module}:{self.settings}")

    def part_class(self) -> Any:
        """The class that is built from these settings."""
        return look_up(f"{self.module}:{self.part}")


@dataclass(frozen=True, eq=False)  # compared and hashed by identity, as `typing` asks for
class ByKind:
    """For `Annotated`: a union that `kind` discriminates, of which only the class that a configuration names
    is imported.
    """

    kinds: Mapping[str, Kind]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.read)

    def read(self, value: Any) -> BaseModel:
        """A table with a `kind`, or settings that are read already, as the settings of that kind."""
        kind: Any = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
        if not isinstance(kind, str) or kind not in self.kinds:
            found = "there is none" if kind is None else f"{kind!r} is none of them"
            raise PydanticCustomError(
                "union_tag_invalid",
                "kind must be one of {known}: {found}",
                {"known": ", ".join(self.kinds), "found": found},
            )
        return self.kinds[kind].settings_class().model_validate(value)

    def alternatives(self) -> list[type[BaseModel]]:
        """The settings of every kind, for listings: imports them all."""
        return [kind.settings_class() for kind in self.kinds.values()]


CONFIGS = Path(__file__).resolve().parent / "configs"
"""The runs worth repeating, which come with the package."""


def shipped_configs() -> dict[str, str]:
    """Names of the configurations that came with the package, each with the first sentence of its file."""
    found = {}
    for path in CONFIGS.rglob("*.toml"):
        lines = path.read_text(encoding="utf-8").splitlines()
        header = [line.removeprefix("#").strip() for line in itertools.takewhile(_is_comment, lines)]
        name = path.relative_to(CONFIGS).with_suffix("").as_posix()
        found[name] = re.split(r"(?<=[a-z\d)])\. ", " ".join(header))[0].removesuffix(".")
    return dict(sorted(found.items()))


def _is_comment(line: str) -> bool:
    return line.startswith("#")


def find_config(name: str | Path) -> Path:
    """A TOML file by its path or, where there is none, by the name of a configuration that came with the
    package.

    Raises ConfigError where there is neither.
    """
    if Path(name).exists():
        return Path(name)
    short = Path(name).as_posix().removeprefix("configs/").removesuffix(".toml")
    shipped = CONFIGS / f"{short}.toml"
    if shipped.is_file():
        return shipped
    known = shipped_configs()
    nearest = difflib.get_close_matches(short, known, 3) or list(known)[:3]
    raise ConfigError(
        f"no configuration at {name}: give the path of a TOML file, or the name of one that came with the "
        "package, "
        f"such as {', '.join(nearest)} (`patchword train --list`)"
    )


def read_toml(path: str | Path) -> dict[str, Any]:
    """The tables of a TOML file, found as `find_config` finds it.

    Raises ConfigError, naming line and column, where it is not TOML.
    """
    try:
        return tomllib.loads(find_config(path).read_text(encoding="utf-8"))
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder: give the path of a TOML file in it") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a TOML file: {error}") from error


def override(settings: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Settings with `a.b.c=value` assignments applied; values are TOML, else text; `stage.0.epochs=3` indexes
    a list.
    """
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
                    f"{assignment!r}: {'.'.join(path[:depth])} is a list of {len(settings)}; {name!r} is no "
                    "index into it"
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
    """Settings as TOML: values first, then tables, lists of tables as [[name]].

    The inverse of `read_toml` for what a section dumps.
    """
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


def validate(settings: dict[str, Any], schema: type[Section], where: str) -> Section:
    """`settings` as `schema`; `where` names their origin in the error.

    Raises ConfigError with one clause per wrong setting.
    """
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
    """Every setting of a schema, sections in order, alternatives of a union one after the other under their
    `kind`.
    """
    for name, info in schema.model_fields.items():
        inner = [model for part in (info.annotation, *info.metadata) for model in _models(part)]
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
    if isinstance(annotation, ByKind):
        yield from annotation.alternatives()
        return
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        return
    for argument in (*typing.get_args(annotation), *getattr(annotation, "__metadata__", ())):
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
        return f"tuple[{', '.join('...' if part is ... else _type_name(part) for part in typing.get_args(annotation))}]"  # noqa: E501
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return annotation.__name__
    return str(annotation).replace("typing.", "").replace("pathlib.", "")


def _default(info: Any) -> str:
    if info.default_factory is not None:
        return json.dumps(info.default_factory(), default=str)
    return "required" if info.default is PydanticUndefined else json.dumps(info.default, default=str)
