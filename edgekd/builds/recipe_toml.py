"""A recipe as the TOML that `edgekd build --recipe` reads: what is not said is as it always is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from edgekd.builds.recipe import Recipe, kind_of


def recipe_toml(recipe: Recipe) -> str:
    """The recipe; paths in it stay as they are."""
    lines = [f"name = {_value(recipe.name)}", f"description = {_value(recipe.description)}"]
    if not recipe.steps:
        lines.append("steps = []")
    for step in recipe.steps:
        lines += ["", "[[steps]]", f"kind = {_value(kind_of(type(step)))}"]
        lines += [f"{name} = {text}" for name, text in _changed(step)]
    return "\n".join(lines) + "\n"


def _changed(value: Any) -> Iterator[tuple[str, str]]:
    """Name and text of each field of a dataclass that is not as usual."""
    for entry in fields(value):
        usual = entry.default_factory() if entry.default_factory is not MISSING else entry.default
        now = getattr(value, entry.name)
        if now is not None and (usual is MISSING or now != usual):
            yield entry.name, _value(now)


def _value(value: Any) -> str:
    if is_dataclass(value):
        return f"{{ {', '.join(f'{name} = {text}' for name, text in _changed(value))} }}"
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{_value(name)} = {_value(held)}' for name, held in value.items())} }}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_value, value))}]"
    # JSON writes strings, numbers and booleans as TOML does, but for one character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
