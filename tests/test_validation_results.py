"""Contributed results: each is one, and the table is made of all of them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from test_json_contract import assert_documented

FOLDER = Path(__file__).resolve().parents[1] / "bench" / "validation"
RESULTS = sorted((FOLDER / "results").glob("*.json"))


@pytest.fixture(scope="module")
def collect() -> ModuleType:
    """The script that makes the table."""
    spec = importlib.util.spec_from_file_location("collect", FOLDER / "collect.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_a_result_is_as_the_schema_says(path: Path) -> None:
    assert_documented(json.loads(path.read_bytes()), "validation")


def test_the_table_is_made_of_all_results(collect: Any) -> None:
    assert RESULTS
    assert (FOLDER / "table.md").read_text("utf-8") == collect.page(RESULTS)


def test_text_of_a_result_is_no_markup_in_the_table(collect: Any, tmp_path: Path) -> None:
    document = json.loads(RESULTS[0].read_bytes())
    document["system"]["device"]["model"] = "a|b [c](javascript:d) <script>"
    (tmp_path / "evil.json").write_text(json.dumps(document), "utf-8")
    assert r"| a\|b \[c\](javascript:d) \<script\> |" in collect.page([tmp_path / "evil.json"])
