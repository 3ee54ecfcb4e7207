"""TOML read into dataclasses, with file and key named when something is wrong, and written."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import tomli_w

from edgekd.core.errors import SpecError
from edgekd.core.input_files import read_input, shown_path
from edgekd.core.typed_values import from_plain

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")
MAX_BYTES = 1 << 26
"""Bytes of a TOML file; a calibration set of 100,000 images has 10 MB."""
MAX_KEY_PARTS = 64
"""Parts of a dotted key: the time that Python's parser takes grows with the square of their number."""
_LONG_KEY = re.compile(rf"""(?<![\w-])(?:(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){{{MAX_KEY_PARTS}}}""")


def read_toml(path: Path) -> dict[str, Any]:
    """Return the table in a TOML file. Raises SpecError where the file is missing or is not TOML."""
    try:
        content = read_input(path, MAX_BYTES, SpecError)
    except SpecError as error:
        found = error.__cause__.strerror if isinstance(error.__cause__, OSError) else error.found
        raise SpecError(f"{shown_path(path)}: cannot read", found=found, fix="check the path") from error
    try:
        text = content.decode("utf-8")
        if _LONG_KEY.search(text):
            raise ValueError(f"a key of more than {MAX_KEY_PARTS} parts")
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # no UTF-8, no TOML, integers of thousands of digits, deep nesting
        raise SpecError(f"{path}: cannot be read as TOML", found=str(error)[:200]) from error


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
    """Return the dataclass `kind` from a TOML table, as `from_plain` does; an integer is also a float."""
    return from_plain(kind, value, where, widen=True)
