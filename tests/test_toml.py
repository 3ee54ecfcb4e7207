"""TOML as it is written: what is read back is what was written."""

from __future__ import annotations

import sys

from hypothesis import given
from hypothesis import strategies as st

from edgekd.core.toml import toml_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SCALARS = st.text() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | st.booleans()
VALUES = SCALARS | st.lists(SCALARS) | st.lists(st.lists(st.integers())) | st.dictionaries(st.text(), SCALARS)
TABLES = st.dictionaries(st.text(), VALUES | st.lists(st.dictionaries(st.text(), VALUES)))


@given(TABLES)
def test_a_table_is_read_back_as_it_was_written(table: dict[str, object]) -> None:
    assert tomllib.loads(toml_text(table)) == table


def test_a_list_of_numbers_or_strings_is_one_line() -> None:
    assert toml_text({"mean": [0.5, 1, 2], "a": {"names": ['x,\n "y"']}}).splitlines() == [
        "mean = [0.5, 1, 2]",
        "",
        "[a]",
        r'names = ["x,\n \"y\""]',
    ]


def test_tables_of_a_list_are_a_line_each() -> None:
    rows = [{"name": "a", "at": [1, 2]}, {"name": "b"}]
    assert toml_text({"rows": rows[1:] * 2}).splitlines() == ["rows = [", *['    { name = "b" },'] * 2, "]"]
    assert tomllib.loads(toml_text({"rows": rows})) == {"rows": rows}
