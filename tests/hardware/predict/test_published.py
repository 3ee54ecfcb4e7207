"""The published measurements, and what ships of them."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[3] / "bench"
sys.path.insert(0, str(BENCH / "published"))

from rows import TOO_SLOW, layers_of, read_csv, read_rows, slowed_boards  # noqa: E402

NETWORKS = read_csv("networks.csv")


@pytest.mark.parametrize("network", NETWORKS, ids=lambda each: f"{each['model']}-{each['input']}")
def test_a_network_has_the_operations_that_are_published_for_it(network: dict[str, str]) -> None:
    columns = layers_of(f"{network['model']}-{network['input']}")
    assert bool(network["gflops"]) == bool(network["source"])
    if network["gflops"]:
        assert columns.operations / 1e9 == pytest.approx(float(network["gflops"]), rel=0.02)


def test_networks_that_are_described_here_still_have_the_layers_of_their_tables() -> None:
    from networks import NETWORKS as DESCRIBED

    from edgekd.graph.view import Graph
    from edgekd.hardware.predict.graph import works_of
    from edgekd.hardware.predict.work import multiply_adds

    for model, size in (("resnet50", 224), ("yolov7", 640), ("yolox-s-4", 640)):
        works = works_of(Graph(DESCRIBED[model](size)), model)
        columns = layers_of(f"{model}-{size}")
        assert 2 * multiply_adds(works) == columns.operations
        assert [work.read for work in works] == columns.read.tolist()  # type: ignore[attr-defined]
        assert [work.silu for work in works] == columns.silu.tolist()  # type: ignore[attr-defined]


def test_every_measurement_has_a_source_and_every_device_its_figures() -> None:
    with (BENCH / "published" / "measurements.csv").open(newline="", encoding="utf-8") as stream:
        measurements = list(csv.DictReader(stream))
    assert all(row["source"] for row in measurements)
    rows, powered, others = read_rows()
    used = [row.line for row in rows] + [line for lines in others.values() for line in lines]
    assert sorted(used) == list(range(2, len(measurements) + 2))
    assert all(row.power_w for row in powered)
    assert all(row.gpu.peak > 0 and row.latency_ms > 0 for row in rows)
    assert {row.launch for row in rows} == {"graph", "stream", "python"}


def test_a_board_below_its_clocks_shows_beside_another_of_its_party() -> None:
    rows, _, others = read_rows()
    row = next(row for row in rows if row.target == "agx-orin")
    slower = replace(row, device="other", gpu=replace(row.gpu, peak=row.gpu.peak / 2, clock_ghz=row.gpu.clock_ghz / 2))
    for factor, found in ((2.0, set()), (2.2, {(row.party, "other")})):
        assert slowed_boards([row, replace(slower, latency_ms=row.latency_ms * factor)]) == found
    assert len(others[TOO_SLOW]) == 6


def test_measurements_at_stated_clocks_are_of_a_device_at_these_clocks() -> None:
    rows, powered, _ = read_rows()
    lowered = [row for row in rows if row.gpu.clock_ghz == 0.93075]
    assert {row.device for row in lowered} == {"AGX Orin"}
    assert lowered[0].gpu.peak == pytest.approx(85e12 * 0.93075 / 1.3)
    assert all(row.gpu.clock_ghz > 1 for row in powered if row.device == "AGX Orin")  # energy is of full clocks


def test_what_ships_is_what_the_bench_has_fitted() -> None:
    from edgekd.core.typed_values import from_plain
    from edgekd.hardware.predict.latency import COEFFICIENTS, LatencyModel, shipped

    result = json.loads((BENCH / "results" / "predictor.json").read_text("utf-8"))
    assert shipped() == from_plain(LatencyModel, result["model"], COEFFICIENTS)
    assert [each["claim"] for each in result["claims"] if not each["holds"]] == []
