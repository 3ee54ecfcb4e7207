"""TOML read into dataclasses, with file and key named when something is wrong, and written."""

from __future__ import annotations

import dataclasses
import re
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tomli_w

from edgekd.core.errors import SpecError, did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")


def read_toml(path: Path) -> dict[str, Any]:
    """Return the table in a TOML file. Raises SpecError where the file is missing or is not TOML."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SpecError(f"{path}: cannot read", found=error.strerror, fix="check the path") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SpecError(f"{path}: cannot be read as TOML", found=str(error)) from error


def toml_text(table: Mapping[str, Any]) -> str:
    """Return a table as TOML, with lists of numbers and of strings on one line each."""
    return re.sub(r"\[\n +([^\[{]*?),\n *\]", _on_one_line, tomli_w.dumps(table))


def _on_one_line(items: re.Match[str]) -> str:
    return "[" + re.sub(r",\n +", ", ", items[1]) + "]"


def non_default(value: Any) -> Any:
    """Return a dataclass as a table, without the fields that are None or have their default."""
    if isinstance(value, (list, tuple)):
        return [non_default(item) for item in value]
    if not dataclasses.is_dataclass(value):
        return value
    table = {}
    for field in dataclasses.fields(value):
        default = field.default_factory() if callable(field.default_factory) else field.default
        if (item := getattr(value, field.name)) is not None and item != default:
            table[field.name] = non_default(item)
    return table


def parse_table(kind: type[T], value: Any, where: str) -> T:
    """Return the dataclass `kind` from a TOML table: its annotations are the schema, its defaults what may be left out.

    Raises SpecError naming `where` and the key: missing, unknown (with the nearest known one), or of another type.
    """
    cls: Any = get_origin(kind) or kind
    keys = [entry.name for entry in dataclasses.fields(cls)]
    if not isinstance(value, dict):
        raise SpecError(where, expected="a table with " + ", ".join(keys), found=f"{value!r}")
    for key in value:
        if key not in keys:
            raise SpecError(
                f"{where}: unknown key {key!r}", expected="one of " + ", ".join(keys), fix=did_you_mean(key, keys)
            )
    for entry in dataclasses.fields(cls):
        optional = entry.default is not dataclasses.MISSING or entry.default_factory is not dataclasses.MISSING
        if not optional and entry.name not in value:
            raise SpecError(f"{where}: key {entry.name!r} is missing", found=", ".join(value) or "an empty table")
    hints = get_type_hints(cls)
    # A generic dataclass names its parameters as type variables: here is what they stand for.
    bound = dict(zip(getattr(cls, "__parameters__", ()), get_args(kind), strict=False))
    fields = {key: _parse(bound.get(hints[key], hints[key]), item, f"{where}: {key}") for key, item in value.items()}
    parsed: T = cls(**fields)
    return parsed


def _parse(kind: Any, value: Any, where: str) -> Any:
    """Return a value from TOML as the annotated type. Raises SpecError naming the key, `where`, if it is another."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _parse(next(arg for arg in args if arg is not types.NoneType), value, where)
    if origin is Literal:
        return _parse_choice(args, value, where)
    if origin is dict:
        return _parse_dict(args[1], value, where)
    if origin is tuple:
        return _parse_list(args, value, where)
    if dataclasses.is_dataclass(origin or kind):
        return parse_table(kind, value, where)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise SpecError(where, expected=_KINDS[kind], found=f"{value!r}")
    return value


_KINDS = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}


def _parse_choice(choices: tuple[Any, ...], value: Any, where: str) -> Any:
    if value not in choices:
        fix = did_you_mean(str(value), choices)
        raise SpecError(where, expected="one of " + ", ".join(choices), found=f"{value!r}", fix=fix)
    return value


def _parse_dict(kind: Any, value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SpecError(where, expected="a table", found=f"{value!r}")
    return {key: _parse(kind, item, f"{where}: {key}") for key, item in value.items()}


def _parse_list(args: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise SpecError(where, expected="a list", found=f"{value!r}")
    if args[-1] is not Ellipsis and len(value) != len(args):
        raise SpecError(where, expected=f"{len(args)} values", found=f"{value!r}")
    return tuple(_parse(args[0], item, f"{where}[{index}]") for index, item in enumerate(value))
