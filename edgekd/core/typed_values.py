"""Dataclasses from the plain values of JSON and TOML: annotations are the schema, errors name the key."""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from edgekd.core.errors import SpecError, did_you_mean

T = TypeVar("T")
_NAMES = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}


class _Rules(NamedTuple):
    """The rules of `from_plain`."""

    widen: bool
    extra: bool


def from_plain(
    kind: type[T] | types.UnionType, value: Any, where: str, *, widen: bool = False, extra: bool = False
) -> T:
    """Return the dataclass `kind` from a table; fields with a default may be left out.

    Args:
        kind: The dataclass, or a union of some that differ in their fields.
        where: What the table is, for errors.
        widen: Convert integers to floats where the field is one, as people write 1 for 1.0. Without it integers stay
            as they are, so that `documents.to_plain` gives the same table again.
        extra: Let unknown keys pass, as in a document of a newer version.

    Raises SpecError with `where` and the key: missing, unknown (with the nearest known one), or of another type.
    """
    rules = _Rules(widen, extra)
    if isinstance(kind, types.UnionType):
        one: T = _parse_union(get_args(kind), value, where, rules)
        return one
    cls: Any = get_origin(kind) or kind
    fields, hints = {entry.name: entry for entry in dataclasses.fields(cls)}, _hints(cls)
    value = _grouped(fields, hints, value)
    _require_table(value, fields, where, extra=extra)
    absent = dataclasses.MISSING
    required = [name for name, entry in fields.items() if entry.default is entry.default_factory is absent]
    _require_keys(required, value, where)
    # A generic dataclass names its parameters as type variables: replace them by the arguments of `kind`.
    bound = dict(zip(getattr(cls, "__parameters__", ()), get_args(kind), strict=False))
    kinds = {key: bound.get(hints[key], hints[key]) for key in value if key in fields}
    parsed: T = cls(**{key: _parse(kind, value[key], f"{where}: {key}", rules) for key, kind in kinds.items()})
    return parsed


def _grouped(fields: Mapping[str, Any], hints: Mapping[str, Any], value: Any) -> Any:
    """Return a table with the entries of fields that `documents.INLINE` marks in tables of their own."""
    for name in (name for name, entry in fields.items() if entry.metadata.get("inline") and isinstance(value, dict)):
        own = {entry.name for entry in dataclasses.fields(hints[name])}
        inner = {key: item for key, item in value.items() if key in own}
        value = {**{key: item for key, item in value.items() if key not in own}, name: inner}
    return value


@cache
def _hints(cls: type) -> Mapping[str, Any]:
    return get_type_hints(cls)


def _require_keys(names: Sequence[str], table: Mapping[str, Any], where: str) -> None:
    """Raise SpecError with the first of the names that is no key of the table."""
    for name in names:
        if name not in table:
            expected, found = "a table with " + ", ".join(names), ", ".join(table) or "no other key"
            raise SpecError(f"{where}: key {name!r} is missing", expected=expected, found=found)


def _require_table(value: Any, keys: Mapping[str, Any], where: str, *, extra: bool) -> None:
    """Raise SpecError unless the value is a table, without unknown keys unless `extra` allows them."""
    if not isinstance(value, dict):
        raise SpecError(where, expected="a table with " + ", ".join(keys), found=value_text(value))
    for key in value:
        if key not in keys and not extra:
            expected = "one of " + ", ".join(keys)
            raise SpecError(f"{where}: unknown key {key!r}", expected=expected, fix=did_you_mean(key, list(keys)))


def _parse(kind: Any, value: Any, where: str, rules: _Rules) -> Any:
    """Return a plain value as the annotated type `kind`. Raises SpecError."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return _parse_union(args, value, where, rules)
    if origin is Literal:
        return _parse_choice(args, value, where)
    if origin in (dict, Mapping, types.MappingProxyType):
        _require(isinstance(value, dict), "a table", value, where)
        return {key: _parse(args[1], item, f"{where}: {key}", rules) for key, item in value.items()}
    if origin in (tuple, list, Sequence):
        return _parse_list(list if origin is list else tuple, args, value, where, rules)
    if isinstance(kind, type) and issubclass(kind, tuple):
        return kind(*_parse_list(tuple, tuple(_hints(kind).values()), value, where, rules))
    if kind is Path:
        return Path(_parse(str, value, where, rules))
    if typing.is_typeddict(kind):
        return _parse_typed_dict(kind, value, where, rules)
    if dataclasses.is_dataclass(origin or kind):
        return from_plain(kind, value, where, widen=rules.widen, extra=rules.extra)
    if hasattr(kind, "_fields"):  # a NamedTuple
        return kind(*_parse_list(tuple, tuple(_hints(kind).values()), value, where, rules))
    if kind is float and type(value) is int:
        _require(abs(value) <= sys.float_info.max, "a number that float64 can hold", value, where)
        return float(value) if rules.widen else value
    _require(type(value) is kind, _NAMES[kind], value, where)
    return value


def _require(holds: bool, expected: str, value: Any, where: str) -> None:
    if not holds:
        raise SpecError(where, expected=expected, found=value_text(value))


def value_text(value: object) -> str:
    """Return a value for an error; its type for integers of thousands of digits, and for lists nested too deeply."""
    try:
        return repr(value)
    except (ValueError, RecursionError):
        return f"a value of type {type(value).__name__}"


def _parse_union(kinds: tuple[Any, ...], value: Any, where: str, rules: _Rules) -> Any:
    """Return the value as one of several types: its own, or the dataclass that has these keys."""
    if value is None and types.NoneType in kinds:
        return None
    others = [kind for kind in kinds if kind is not types.NoneType]
    tables = [kind for kind in others if dataclasses.is_dataclass(kind) and isinstance(value, dict)]
    same = [kind for kind in tables if {entry.name for entry in dataclasses.fields(kind)} == value.keys()]
    scalars = [kind for kind in others if type(value) is kind]
    return _parse((same or scalars or others)[0], value, where, rules)


def _parse_choice(choices: tuple[Any, ...], value: Any, where: str) -> Any:
    if value not in choices:
        fix = did_you_mean(value, choices) if isinstance(value, str) else None
        raise SpecError(where, expected="one of " + ", ".join(choices), found=value_text(value), fix=fix)
    return value


def _parse_list(origin: Any, args: tuple[Any, ...], value: Any, where: str, rules: _Rules) -> Any:
    _require(isinstance(value, list), "a list", value, where)
    if len(args) == 1 or args[-1] is Ellipsis:
        args = (args[0],) * len(value)
    _require(len(value) == len(args), f"{len(args)} values", value, where)
    items = (
        _parse(kind, item, f"{where}[{index}]", rules)
        for index, (kind, item) in enumerate(zip(args, value, strict=True))
    )
    return origin(items)


def _parse_typed_dict(kind: Any, value: Any, where: str, rules: _Rules) -> dict[str, Any]:
    hints = _hints(kind)
    _require_table(value, hints, where, extra=rules.extra)
    _require_keys(list(hints), value, where)
    return {key: _parse(hints[key], item, f"{where}: {key}", rules) for key, item in value.items() if key in hints}
