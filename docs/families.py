"""Write docs/reference/families.md, and the counts in README.md, from tests marked with `family`: `make schemas`.

`--check` writes nothing, and fails if a file is out of date.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from generated import write

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "families.md"
README = ROOT / "README.md"
COUNTS = re.compile(r"\d+ families by ONNX file and \d+ by checkpoint")
MARKED = re.compile(r"mark\.family|family_marks")
ONNX = "ONNX"
CAPABILITIES = {
    "describe": "boxes, scores, classes and their order are those of the family's own rules or package",
    "eval": "`edgekd eval` scores it, and the bundle as its evidence says",
    "INT8": "`edgekd build` with the recipe `ptq` gives a graph with Q/DQ",
    "bundle": "the build gives a bundle that verifies",
    "agent": "the agent installs the bundle, passes its self-test, and finds in a frame what the host finds",
    "prune": "channels that do nothing are removed, and the outputs are the same",
    "distill": "it learns as a student from a teacher",
    "teach": "a student learns from it",
}
"""Meaning of each column; the `family` mark of a test names the columns that the test proves."""
HEAD = """# Families of detectors

Written by `docs/families.py` from the tests: ✓ is a passing test, mostly of a small network with random weights; (✓) is
one that `make test-release` runs and CI leaves out. What is in an empty cell is not tested, or refused in one line.
Options for each family: [by ONNX file](heads.md), by a checkpoint of
[Ultralytics](../getting-started/your-own-model.md), [transformers](../guides/model-formats.md#transformers),
[LibreYOLO](../guides/model-formats.md#libreyolo), [rfdetr](../guides/model-formats.md#rfdetr) or
[torchvision](../guides/model-formats.md#torchvision).
"""

Row = tuple[str, str]
"""Package, and names of the families that share a row."""
Table = dict[Row, dict[str, bool]]
"""Tested capabilities of each row; True if CI runs such a test, False if only `make test-release` does."""


class Collector:
    """Pytest plugin that records the `family` marks of collected tests."""

    def __init__(self) -> None:
        self.table: Table = defaultdict(dict)
        self.families: dict[str, set[str]] = defaultdict(set)

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        for mark in item.iter_markers("family"):
            names, *capabilities = mark.args
            package, form = mark.kwargs.get("package", ONNX), mark.kwargs.get("form", "")
            unknown = set(capabilities) - set(CAPABILITIES)
            if unknown:
                raise ValueError(f"{item.nodeid}: unknown capabilities {sorted(unknown)}")
            shown, in_ci = self.table[package, names + form], item.get_closest_marker("release") is None
            shown.update({each: in_ci or shown.get(each, False) for each in capabilities})
            self.families["graph" if package == ONNX else "checkpoint"].update(names.split(", "))


def collected() -> Collector:
    """Collect the tests in files with `family` marks. Raises SystemExit if pytest fails."""
    tests = sorted((ROOT / "tests").rglob("test_*.py"))
    files = [str(path) for path in tests if MARKED.search(path.read_text("utf-8"))]
    collector = Collector()
    code = pytest.main(["--collect-only", "-qq", "--rootdir", str(ROOT), *files], plugins=[collector])
    if code:
        raise SystemExit(int(code))
    return collector


def page(found: Collector) -> str:
    """Return the page: a table of graphs, and one of checkpoints."""
    meanings = "".join(f"- **{name}**: {meaning}\n" for name, meaning in CAPABILITIES.items())
    graphs = {row: shown for row, shown in found.table.items() if row[0] == ONNX}
    checkpoints = {row: shown for row, shown in sorted(found.table.items()) if row[0] != ONNX}
    of_graphs, of_checkpoints = list(CAPABILITIES)[:5], list(CAPABILITIES)
    forms = f"{len(found.families['graph'])} families, and {len(graphs)} forms of what they export: a row each.\n\n"
    return (
        f"{HEAD}\n{meanings}\n## By ONNX file\n\n{forms}"
        + _rows(["family", *of_graphs], ([names, *_ticks(shown, of_graphs)] for (_, names), shown in graphs.items()))
        + "\n## By checkpoint\n\n"
        + _rows(
            ["package", "family", *of_checkpoints],
            ([*row, *_ticks(shown, of_checkpoints)] for row, shown in checkpoints.items()),
        )
    )


def _ticks(shown: dict[str, bool], columns: list[str]) -> list[str]:
    return [("✓" if shown[name] else "(✓)") if name in shown else "" for name in columns]


def _rows(head: list[str], rows: Iterable[list[str]]) -> str:
    return "".join(f"| {' | '.join(line)} |\n" for line in [head, ["---"] * len(head), *rows])


def main() -> None:
    found = collected()
    by_graph, by_checkpoint = (len(found.families[kind]) for kind in ("graph", "checkpoint"))
    counts = f"{by_graph} families by ONNX file and {by_checkpoint} by checkpoint"
    write({PAGE: page(found), README: COUNTS.sub(counts, README.read_text("utf-8"))})


if __name__ == "__main__":
    main()
