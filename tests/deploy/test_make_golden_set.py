"""The golden set that travels with a graph: frames that show something, tolerances from the graph itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from running import Built

from edgekd.agent.engines.parity import output_error
from edgekd.core.detection.decode import candidate_confidence, candidate_rows
from edgekd.core.detection.preprocess import letterbox, to_tensor
from edgekd.core.detection.types import DetectorSpec
from edgekd.core.errors import CompressError
from edgekd.core.formats.golden_set import GoldenSet, from_bytes, to_bytes
from edgekd.data.images import read_image
from edgekd.deploy.golden_set import BEST, FRAMES, MIN_TOLERANCE, SPREAD, golden_set
from edgekd.detectors.onnx import describe
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU
from edgekd.graph.view import load_graph


@pytest.fixture(scope="module")
def images(tiny_data: Path) -> list[np.ndarray]:
    return [read_image(path) for path in sorted((tiny_data / "images" / "val").iterdir())]


@pytest.fixture(scope="module")
def floating(tiny_model: Path) -> tuple[Path, DetectorSpec]:
    return tiny_model, describe(load_graph(tiny_model), tiny_model)


@pytest.fixture(scope="module")
def golden(floating: tuple[Path, DetectorSpec], images: list[np.ndarray]) -> GoldenSet:
    graph, spec = floating
    return golden_set(graph, None, spec, images)


def drifts(graph: Path, golden: GoldenSet, spec: DetectorSpec) -> tuple[float, float]:
    """The largest errors of boxes and of scores that a graph has."""
    size = spec.preprocess.height, spec.preprocess.width
    with ONNXRUNTIME_CPU.load(graph, threads=1) as session:
        found = [
            output_error(session.run(to_tensor(golden.canvas(index, *size), spec.preprocess)), golden, index, spec.head)
            for index in range(len(golden.frames))
        ]
    return max(each.boxes for each in found), max(each.scores for each in found)


def test_the_graph_itself_is_within_float16(floating: tuple[Path, DetectorSpec], golden: GoldenSet) -> None:
    boxes, scores = drifts(floating[0], golden, floating[1])
    assert boxes < 1e-3
    assert scores < 1e-3
    assert golden.tolerance == MIN_TOLERANCE
    assert golden.precision == "float"


def test_it_is_the_same_each_time_and_comes_back_from_its_file(
    floating: tuple[Path, DetectorSpec], images: list[np.ndarray], golden: GoldenSet
) -> None:
    graph, spec = floating
    data = to_bytes(golden)
    assert to_bytes(golden_set(graph, None, spec, iter(images))) == data == to_bytes(from_bytes(data))


def test_frames_are_those_in_which_most_is_found(
    floating: tuple[Path, DetectorSpec], images: list[np.ndarray], golden: GoldenSet
) -> None:
    graph, spec = floating
    assert golden.frames.shape == (FRAMES, 64, 64, 3), "an input that is small already is stored as it is"
    assert golden.zoom == 1
    dark = [np.zeros_like(images[0])] * 3
    again = golden_set(graph, None, spec, [*dark, *images])
    assert np.array_equal(again.frames, golden.frames)


def test_the_surest_candidates_are_compared_and_others_too(
    floating: tuple[Path, DetectorSpec], golden: GoldenSet
) -> None:
    graph, spec = floating
    assert golden.places.shape == (FRAMES, BEST + SPREAD)
    assert golden.values.shape == (FRAMES, BEST + SPREAD, 6)
    with ONNXRUNTIME_CPU.load(graph, threads=1) as session:
        rows = candidate_rows(session.run(to_tensor(golden.canvas(0, 64, 64), spec.preprocess)), spec.head)
    surest = set(np.argsort(-candidate_confidence(rows, spec.head), kind="stable")[:BEST].tolist())
    assert surest < set(golden.places[0].tolist())
    assert np.array_equal(golden.values[0], rows[golden.places[0]].astype(np.float16))


def test_a_quantized_graph_may_drift_twice_as_far_as_its_float_self(
    floating: tuple[Path, DetectorSpec], images: list[np.ndarray], tiny_build: Built, tmp_path: Path
) -> None:
    coarse = onnx.load(tiny_build.out / "graph.onnx")
    kernel = next(each for each in coarse.graph.initializer if len(each.dims) == 4)
    # Coarser than INT8 has to be, so that there is something to see.
    kernel.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(kernel) // 16 * 16, kernel.name))
    onnx.save(coarse, tmp_path / "coarse.onnx")
    graph, spec = floating
    golden = golden_set(tmp_path / "coarse.onnx", graph, spec, images)
    assert golden.precision == "int8"
    drifted = drifts(graph, golden, spec)
    assert golden.tolerance == pytest.approx([max(2 * drifted[0], 0.01), max(2 * drifted[1], 0.03)], abs=1e-4)
    assert golden.tolerance[1] > MIN_TOLERANCE[1]


def test_large_inputs_are_stored_small(
    floating: tuple[Path, DetectorSpec], images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekd.deploy.golden_set.SIDE", 20)
    graph, spec = floating
    golden = golden_set(graph, None, spec, images)
    assert golden.frames.shape == (FRAMES, 16, 16, 3)
    assert golden.zoom == 4
    whole = letterbox(images[0], replace(spec.preprocess, color="bgr", scale=1.0))[0][0].transpose(1, 2, 0)
    stored = golden_set(graph, None, spec, images[:1]).canvas(0, 64, 64)
    assert np.abs(stored.astype(float) - whole).mean() < 20, "the picture is still there"


def test_an_output_beyond_float16_is_refused(
    floating: tuple[Path, DetectorSpec], images: list[np.ndarray], tmp_path: Path
) -> None:
    graph, spec = floating
    model = onnx.load(graph)
    boxes = next(each for each in model.graph.initializer if each.name == "boxes")
    boxes.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(boxes) * np.float32(1e6), "boxes"))
    onnx.save(model, tmp_path / "huge.onnx")
    with pytest.raises(CompressError, match="finite in float16"):
        golden_set(tmp_path / "huge.onnx", None, spec, images)
