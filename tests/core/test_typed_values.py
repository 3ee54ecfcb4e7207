"""Dataclasses from plain values, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.core.documents import INLINE, to_plain
from edgekd.core.errors import SpecError
from edgekd.core.typed_values import from_plain


class Row(TypedDict):
    name: str
    score: float | None


@dataclass(frozen=True)
class Inner:
    count: int
    pair: tuple[int, str]


@dataclass(frozen=True)
class Other:
    error: str


@dataclass(frozen=True)
class Outer:
    ratio: float
    text: str | None
    flag: bool
    kind: Literal["a", "b"]
    inner: Inner | None
    either: Inner | Other
    rows: Mapping[str, Row]
    many: tuple[Inner, ...]
    numbers: list[float]
    free: Any = None
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)


class Span(NamedTuple):
    low: float
    high: float


@dataclass(frozen=True)
class Written:
    inner: Inner = field(metadata=INLINE)
    path: Path
    span: Span
    more: Sequence[Inner]


INNER = {"count": 1, "pair": [2, "x"]}
TABLE: dict[str, Any] = {
    "ratio": 0.5,
    "text": None,
    "flag": True,
    "kind": "b",
    "inner": None,
    "either": {"error": "no"},
    "rows": {"cat": {"name": "cat", "score": None}},
    "many": [INNER, INNER],
    "numbers": [1.5],
    "free": {"any": [1]},
    "names": {"red": ["dark", "light"]},
}


def test_a_table_becomes_a_dataclass_and_the_same_table_again() -> None:
    value = from_plain(Outer, TABLE, "table")
    assert value.many == (Inner(1, (2, "x")),) * 2
    assert value.either == Other("no")
    assert value.names == {"red": ("dark", "light")}
    assert to_plain(value) == TABLE
    assert from_plain(Outer, {**TABLE, "either": INNER}, "table").either == Inner(1, (2, "x"))


def test_unknown_keys_pass_where_they_may() -> None:
    newer = {**TABLE, "more": 1, "inner": {**INNER, "more": [1]}, "many": [{**INNER, "more": None}]}
    value = from_plain(Outer, newer, "table", extra=True)
    assert (value.inner, value.many) == (Inner(1, (2, "x")), (Inner(1, (2, "x")),))


def test_documents_of_the_writer_are_read_back() -> None:
    value = Written(Inner(1, (2, "x")), Path("file"), Span(1.0, 2.0), [Inner(2, (3, "y"))])
    document = json.loads(json.dumps(to_plain(value)))
    more = [{"count": 2, "pair": [3, "y"]}]
    assert document == {"count": 1, "pair": [2, "x"], "path": "file", "span": [1.0, 2.0], "more": more}
    assert from_plain(Written, document, "document") == replace(value, more=tuple(value.more))


def test_what_has_a_default_may_be_left_out() -> None:
    required = {key: value for key, value in TABLE.items() if key not in ("free", "names")}
    assert from_plain(Outer, required, "table").names == {}


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**15), 10**15))
def test_numbers_are_written_as_they_were_read(number: float) -> None:
    again = to_plain(from_plain(Outer, {**TABLE, "ratio": number}, "table"))
    assert json.dumps(again["ratio"]) == json.dumps(number)


def test_people_write_integers_for_floats() -> None:
    ratio = from_plain(Outer, {**TABLE, "ratio": 1}, "table", widen=True).ratio
    assert (ratio, type(ratio)) == (1.0, float)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ratio": "1"}, r"table: ratio; expected a number; found '1'"),
        ({"ratio": True}, r"table: ratio; expected a number; found True"),
        ({"text": 1}, r"table: text; expected a string; found 1"),
        ({"flag": 1}, r"table: flag; expected true or false; found 1"),
        ({"kind": "c"}, r"table: kind; expected one of a, b; found 'c'"),
        ({"kind": 2**20_000}, r"table: kind; expected one of a, b; found a value of type int"),
        ({"inner": {"count": 1}}, r"table: inner: key 'pair' is missing"),
        ({"inner": {**INNER, "pair": [2]}}, r"table: inner: pair; expected 2 values"),
        ({"inner": {**INNER, "pair": [2, 3]}}, r"table: inner: pair\[1\]; expected a string"),
        ({"inner": []}, r"table: inner; expected a table with count, pair"),
        ({"either": {"eror": ""}}, r"table: either: unknown key 'eror'"),
        ({"rows": {"cat": {"name": "cat"}}}, r"table: rows: cat: key 'score' is missing"),
        ({"rows": {"cat": {"name": "cat", "score": 1.0, "more": 1}}}, r"table: rows: cat: unknown key 'more'"),
        ({"many": {}}, r"table: many; expected a list"),
        ({"many": [INNER, {**INNER, "count": 1.5}]}, r"table: many\[1\]: count; expected an integer"),
        ({"numbers": [None]}, r"table: numbers\[0\]; expected a number"),
        ({"ratoi": 1}, r"table: unknown key 'ratoi'.*ratio"),
    ],
)
def test_errors_name_the_key(change: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        from_plain(Outer, {**TABLE, **change}, "table")


def test_a_missing_key_is_named() -> None:
    with pytest.raises(SpecError, match=r"table: key 'ratio' is missing"):
        from_plain(Outer, {key: value for key, value in TABLE.items() if key != "ratio"}, "table")
