"""Rules for the values of a JSON document: each takes a value and the name of its field, and returns the value to keep.

A rule raises BundleError, which names the field, what was expected and what was found. No I/O.

Shared with the device: Python 3.8, standard library only.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NoReturn

from edgekd.core.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    Rule = Callable[[Any, str], Any]


def refuse(where: str, expected: str, found: Any) -> NoReturn:
    """Raise BundleError for a value."""
    raise BundleError(f"{where}: wrong", expected=expected, found=shown(found))


def shown(value: Any) -> str:
    """Return a value as JSON, shortened to 80 characters."""
    try:
        content = json.dumps(value, default=str)
    except (ValueError, RecursionError):  # an integer of thousands of digits, lists in lists
        return f"a value of type {type(value).__name__}"
    return content if len(content) <= 80 else content[:77] + "..."


def text(value: Any, where: str) -> str:
    """Accept text of printable characters."""
    if not isinstance(value, str) or not value or not value.isprintable():
        refuse(where, "text of printable characters", value)
    return value


def flag(value: Any, where: str) -> bool:
    """Accept true or false."""
    if not isinstance(value, bool):
        refuse(where, "true or false", value)
    return value


def integer(low: int, high: int) -> Rule:
    """Return the rule for integers from `low` to `high`."""

    def rule(value: Any, where: str) -> int:
        if type(value) is not int or not low <= value <= high:
            refuse(where, f"an integer from {low} to {high}", value)
        return value

    return rule


def number(low: float, high: float) -> Rule:
    """Return the rule for numbers from `low` to `high`."""

    def rule(value: Any, where: str) -> float:
        if type(value) not in (int, float) or not low <= value <= high:
            refuse(where, f"a number from {low:g} to {high:g}", value)
        return float(value)

    return rule


def matching(pattern: re.Pattern[str], meaning: str) -> Rule:
    """Return the rule for text that matches a pattern; meaning: for the error."""

    def rule(value: Any, where: str) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            refuse(where, meaning, value)
        return value

    return rule


def one_of(*choices: str) -> Rule:
    """Return the rule for one of these texts."""

    def rule(value: Any, where: str) -> str:
        if not isinstance(value, str) or value not in choices:
            refuse(where, f"one of {', '.join(choices)}", value)
        return value

    return rule


def optional(rule: Rule) -> Rule:
    """Return the rule that also accepts null."""
    return lambda value, where: None if value is None else rule(value, where)


def list_of(rule: Rule, low: int = 0, high: int = 10_000) -> Rule:
    """Return the rule for lists of `low` to `high` items."""

    def check(value: Any, where: str) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)) or not low <= len(value) <= high:
            refuse(where, f"a list of {low} to {high} items", value)
        return tuple(rule(item, f"{where}[{index}]") for index, item in enumerate(value))

    return check


def table(rule: Rule) -> Rule:
    """Return the rule for objects with any names, whose values keep `rule`."""

    def check(value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            refuse(where, "an object", value)
        return {text(name, where): rule(item, f"{where}.{name}") for name, item in value.items()}

    return check


def object_of(make: Callable[..., Any], may_lack: Collection[str] = (), /, **rules: Rule) -> Rule:
    """Return the rule for an object with exactly these fields, which becomes `make(**fields)`.

    may_lack: fields that may be missing, which are then not passed to `make`.
    """

    def check(value: Any, where: str) -> Any:
        if not isinstance(value, dict):
            refuse(where, "an object", value)
        for name in value:
            if name not in rules:
                refuse(where, f"no field but {', '.join(rules)}", name)
        for name in rules:
            if name not in value and name not in may_lack:
                raise BundleError(f"{where}.{name}: missing", expected=f"the fields {', '.join(rules)}")
        return make(**{name: rule(value[name], f"{where}.{name}") for name, rule in rules.items() if name in value})

    return check
