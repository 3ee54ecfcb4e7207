"""Python literals in the metadata of models: a number, a string, or a list or mapping of these.

Nested literals are not supported, and the whole text is never parsed by Python: its parser needs seconds, and
gigabytes, for some texts of a megabyte.
"""

from __future__ import annotations

import ast
import re
from typing import Any

MAX_TEXT = 1 << 20
"""Largest number of characters of a literal: 10,000 class names of 100 characters."""
_SCALAR = r"""-?\d{1,9}(?:\.\d{1,17})?|'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
_ITEM = re.compile(rf"\s*(?:({_SCALAR})\s*:\s*)?({_SCALAR})\s*(,|$)", re.DOTALL)
_BRACKETS = {"[": "]", "(": ")", "{": "}"}


def read_literal(text: str) -> Any:
    """Return a number, a string, or a list or dictionary of these; None for any other text."""
    text = text.strip()
    if len(text) > MAX_TEXT or not text:
        return None
    try:
        if _BRACKETS.get(text[0]) != text[-1]:
            return _scalar(text) if re.fullmatch(_SCALAR, text, re.DOTALL) else None
        return _items(text[1:-1].strip(), keyed=text[0] == "{")
    except (ValueError, SyntaxError):  # such as for an incomplete escape sequence
        return None


def _items(text: str, *, keyed: bool) -> Any:
    """Return the items of a list or dictionary. Raises ValueError."""
    items, position = [], 0
    while position < len(text):
        found = _ITEM.match(text, position)
        if found is None or (found[1] is not None) != keyed:
            raise ValueError("neither a list nor a dictionary of numbers and texts")
        items.append((_scalar(found[1]) if keyed else None, _scalar(found[2])))
        position = found.end()
    return dict(items) if keyed else [value for _, value in items]


def _scalar(token: str) -> int | float | str:
    value: int | float | str = ast.literal_eval(token)
    return value
