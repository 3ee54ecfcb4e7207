"""The generators of docs/reference/results.md and of charts: tools that fail, older results, what is drawn."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"
MODULES = ("drawing", "generated", "layer_charts", "readme", "result_values", "results_accuracy")


@pytest.fixture(autouse=True)
def docs_modules(monkeypatch: pytest.MonkeyPatch) -> object:
    """Import from `docs/`, and forget what was imported."""
    monkeypatch.syspath_prepend(str(DOCS))
    yield
    for name in MODULES:
        sys.modules.pop(name, None)


def row(method: str, model: str, score: float | None) -> dict[str, Any]:
    scores = {} if score is None else {"val": [score, 0.6]}
    return {"method": method, "model": model, "scores": scores, "seconds": 2.0, "bytes": 3e6, "packed_bytes": 1e6}


def test_a_tool_that_fails_stays_a_row_and_the_best_plain_int8_graph_is_bold() -> None:
    baselines = importlib.import_module("results_accuracy").baselines
    rows = [
        row("float32", "a.pt", 0.5),
        row("Peer", "a.pt", 0.3),
        row("Other", "a.pt", None),
        row("edgekd, recipe `ptq`", "a.pt", 0.4),
        row("edgekd, recipe `mixed`, packed into 1/5 of the float file", "a.pt", 0.45),
        row("Peer", "b.onnx", 0.2),
    ]
    lines = baselines(rows, "val").splitlines()
    assert lines[0] == "|  | a mAP50-95 | seconds | MB | b mAP50-95 | seconds | MB |"
    assert lines[3] == "| Peer | 0.3000 | 2.0 | 3.00 | **0.2000** | 2.0 | 3.00 |"
    assert lines[4] == "| Other | failed |  |  | – |  |  |"
    assert lines[5] == "| edgekd, recipe `ptq` | **0.4000** | 2.0 | 1.00 | – |  |  |"
    assert [line for line in lines if "**" in line] == [lines[3], lines[5]]


def test_a_result_is_called_older_until_it_is_measured_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    values = importlib.import_module("result_values")
    monkeypatch.setattr(values, "RESULTS", tmp_path)
    monkeypatch.setattr(values, "OLDER", {"a": ("2026-12-01T05", "it was slow")})
    (tmp_path / "a.json").write_text(json.dumps({"date": "2026-12-01T04:59:00+00:00"}))
    assert values.link("a") == "([table](../../bench/results/a.md); of 2026-12-01, when it was slow)"
    (tmp_path / "a.json").write_text(json.dumps({"date": "2026-12-01T05:00:00+00:00"}))
    assert values.link("a") == "([table](../../bench/results/a.md))"


def test_a_search_is_reported_once_it_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    accuracy = importlib.import_module("results_accuracy")
    for module in (accuracy, sys.modules["result_values"]):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    assert not list(accuracy.search())
    share, worst = {"random": 1.0, "edgekd": 0.25}, {"random": 1.0, "edgekd": 0.4}
    content = {"rows": [{}, {}], "candidates": 40, "share": share, "worst": worst}
    (tmp_path / "search_efficiency.json").write_text(json.dumps(content))
    (block,) = accuracy.search()
    assert "edgekd 0.25 (at most 0.40)" in block


def test_ways_to_distil_are_compared_by_the_seeds_that_all_have(monkeypatch: pytest.MonkeyPatch) -> None:
    readme = importlib.import_module("readme")

    def rows(method: str, *scores: float) -> list[dict[str, Any]]:
        return [{"method": method, "seed": seed, "map50_95": {"test": one}} for seed, one in enumerate(scores)]

    found = [*rows("edgekd", 0.5, 0.1), *rows("no distillation", 0.4, 0.2), *rows(readme.ULTRALYTICS, 0.3)]
    monkeypatch.setattr(readme, "result", lambda name: {"rows": found})
    expected = ("what", "0.5000", "labels alone 0.4000, Ultralytics 0.3000", "name")
    assert readme.distilled("name", "edgekd", "what") == expected


def test_paragraphs_and_items_are_wrapped_and_tables_are_not() -> None:
    wrapped = importlib.import_module("result_values").wrapped
    items = wrapped(f"- {'word ' * 40}\n  more\n- next")
    assert [line[:2] for line in items.splitlines()] == ["- ", "  ", "- "]
    assert max(map(len, items.splitlines())) <= 120
    table = f"| {'cell ' * 40} |"
    assert wrapped(table) == table


def test_a_chart_shows_every_point_within_its_frame_and_labels_apart() -> None:
    drawing = importlib.import_module("drawing")
    points = [
        drawing.Point("float32", 1.0, 1.0),
        drawing.Point("1/8", 8.0, 0.98, ours=True),
        drawing.Point("A & B", 3.0, 0.901),
        drawing.Point("C", 3.0, 0.9),
    ]
    chart = ElementTree.fromstring(drawing.size_chart("t", points, drawing.DARK))
    texts = {each.text: each for each in chart.iter() if each.tag.endswith("text")}
    assert {point.label for point in points} <= set(texts)
    assert float(texts["C"].get("y", 0)) - float(texts["A & B"].get("y", 0)) >= drawing.LINE
    circles = [each for each in chart.iter() if each.tag.endswith("circle")]
    assert len(circles) == len(points)
    for circle in circles:
        assert drawing.LEFT <= float(circle.get("cx", 0)) <= drawing.WIDTH - drawing.RIGHT
        assert drawing.TOP <= float(circle.get("cy", 0)) <= drawing.HEIGHT - drawing.BOTTOM


def bars_of(svg: str, name: str) -> list[float]:
    """Return the heights of the bars of a style, in the order in which they are drawn."""
    bars = ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}rect")
    return [float(bar.attrib["height"]) for bar in bars if bar.attrib["class"] == name][1:]  # the first is the legend


def test_the_chart_of_a_plan_has_bits_and_error_of_every_layer() -> None:
    from edgekd.compress.quantization.plan import Plan, PlannedLayer

    charts = importlib.import_module("layer_charts")
    layers = (
        PlannedLayer("a", "int8", weights=1000, bytes=750, error=0.09),
        PlannedLayer("b", "float16", weights=1000, bytes=1500, error=0.0),
        PlannedLayer("c", "int8", weights=1000, bytes=1500, error=0.01),
    )
    svg = charts.plan_chart("A plan", Plan(layers, "0" * 64, predicted_bytes=3750, predicted_error=0.1))
    assert "int8 (2)" in svg
    assert "3 layers in graph order, 0.00 MB" in svg
    six_bits, twelve_bits, most_error, some_error = bars_of(svg, "int8")
    assert (six_bits, twelve_bits) == (charts.PANEL / 2, charts.PANEL)
    assert 0 < some_error < most_error < charts.PANEL
    assert bars_of(svg, "float") == [charts.PANEL, 0], "no error is no bar"


def test_the_chart_of_a_pruned_network_has_channels_before_and_after() -> None:
    charts = importlib.import_module("layer_charts")
    svg = charts.widths_chart("Pruned", {"a": (64, 32), "b": (32, 32)}, (200, 80))
    assert "2 units in graph order, 40% of the multiply-adds left" in svg
    assert bars_of(svg, "before") == [charts.PANEL, charts.PANEL / 2]
    assert bars_of(svg, "int8") == [charts.PANEL / 2, charts.PANEL / 2]
