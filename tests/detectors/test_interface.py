"""A graph takes raw frames exactly as the host prepares them, and selects the candidates that the host would keep."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgekd.core.detection.decode import SCORING, Thresholds, decode
from edgekd.core.detection.preprocess import Placement, letterbox, normalised
from edgekd.core.detection.types import NO_GRID, Detections, DetectorSpec, Head, Masks, Preprocess
from edgekd.core.errors import SpecError
from edgekd.data.demo import DETECTOR
from edgekd.detectors.interface import Interface, with_interface
from edgekd.detectors.onnx import describe
from edgekd.graph.model_file import read_model
from edgekd.graph.runtimes.tensorrt_rtx import TENSORRT_RTX, compile_ahead
from edgekd.graph.session import cpu_session
from edgekd.graph.view import inputs_of
from edgekd.hardware.compatibility import check_graph
from edgekd.hardware.target import load_target, takes_bytes, target_names

SIZE = (32, 64)
STRIDES = (1, 2, 4)  # 2048 + 512 + 128 cells of SIZE
CELLS = 2688
CLASSES = ("red", "green", "blue")
NORMALISED = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
FORMATS = st.sampled_from([{}, {"color": "bgr", "scale": 1.0}, NORMALISED, {"center": False}, {"stretch": True}])


def identity(shape: tuple[int, ...], opset: int = 17) -> Any:
    """A network whose output is its input."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("images", "output")]
    nodes = [helper.make_node("Identity", ["images"], ["output"])]
    graph = helper.make_graph(nodes, "identity", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def values_of(preprocess: Preprocess, batch: np.ndarray) -> np.ndarray:
    """The values that a network computes from its input, in a graph of this format."""
    model = identity((1, 3, preprocess.height, preprocess.width))
    plain = replace(preprocess, input="float32", float_bytes=False)
    interface = Interface(preprocess.input, "host", preprocess.float_bytes)
    spec = with_interface(model, DetectorSpec(CLASSES, plain, Head("yolo")), interface, "identity")
    assert spec.preprocess == preprocess
    onnx.checker.check_model(model, full_check=True)
    return run(model, batch)


def run(model: Any, batch: np.ndarray) -> np.ndarray:
    output: np.ndarray = cpu_session(model).run(None, {inputs_of(model)[0].name: batch})[0]
    return output


def frame_of(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), np.uint8)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 90), st.integers(1, 90), FORMATS, st.booleans())
def test_bytes_become_the_very_values_of_the_host(
    height: int, width: int, options: dict[str, Any], float_bytes: bool
) -> None:
    frame, host = frame_of(height, width), Preprocess(*SIZE, **options)
    raw = replace(host, input="uint8", float_bytes=float_bytes)
    expected, placement = letterbox(frame, host)
    batch, same = letterbox(frame, raw)
    assert (batch.dtype, batch.shape) == (np.float32 if float_bytes else np.uint8, (1, *SIZE, 3))
    assert same == placement
    assert np.array_equal(values_of(raw, batch), expected)
    assert np.array_equal(normalised(batch, raw), expected)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 45), st.integers(1, 45), FORMATS, st.booleans())
def test_nv12_becomes_the_colours_of_opencv_up_to_its_rounding(
    rows: int, columns: int, options: dict[str, Any], float_bytes: bool
) -> None:
    preprocess = Preprocess(*SIZE, input="nv12", float_bytes=float_bytes, **options)
    frame = np.random.default_rng(rows * 100 + columns).integers(0, 256, (3 * rows, 2 * columns), np.uint8)
    batch, placement = letterbox(frame, preprocess)
    assert batch.shape == (1, 48, 64)
    assert not {side % 2 for side in (placement.left, placement.top, placement.across, placement.down)} - {0}
    values = values_of(preprocess, batch)
    level = preprocess.scale / min(preprocess.std)
    np.testing.assert_allclose(values, normalised(batch, preprocess), atol=1e-3 * level)
    host = replace(preprocess, input="float32", float_bytes=False)
    bgr = cv2.cvtColor(batch[0].astype(np.uint8), cv2.COLOR_YUV2BGR_NV12)
    assert np.abs(values - letterbox(bgr, host)[0]).max() <= 0.51 * level


def test_a_frame_and_its_nv12_become_nearly_the_same_input() -> None:
    frame = cv2.resize(frame_of(6, 8), (160, 120), interpolation=cv2.INTER_CUBIC)
    planes = cv2.cvtColor(frame, cv2.COLOR_BGR2YUV_I420)
    chroma = planes[120:].reshape(2, 60, 80).transpose(1, 2, 0).reshape(60, 160)
    preprocess = Preprocess(64, 64, input="nv12")
    (converted, placement), (given_nv12, same) = (
        letterbox(each, preprocess) for each in (frame, np.concatenate([planes[:120], chroma]))
    )
    assert same == placement == Placement(0, 8, 64, 48, 160, 120)
    assert np.abs(converted.astype(int) - given_nv12).mean() < 2
    assert np.array_equal(converted[0, :8], np.full((8, 64), 114))


def test_odd_sides_have_no_nv12() -> None:
    spec = DetectorSpec(CLASSES, Preprocess(33, 64), Head("yolo"))
    with pytest.raises(SpecError, match="expected an input of even sides; found 33 x 64"):
        with_interface(identity((1, 3, 33, 64)), spec, Interface("nv12"), "identity")


def yolo(seed: int, confident: int) -> np.ndarray:
    """An output with as many candidates above a score of 0.5."""
    rng = np.random.default_rng(seed)
    output = rng.uniform(0, 0.5, (1, 4 + len(CLASSES), CELLS)).astype(np.float32)
    output[0, 4, rng.permutation(CELLS)[:confident]] += 0.5
    output[0, :4] *= 60
    return output


def selected(output: np.ndarray, head: Head, opset: int = 17) -> tuple[np.ndarray, DetectorSpec]:
    """The output after the selection in a graph, and its contract."""
    model, spec = identity(output.shape, opset), DetectorSpec(CLASSES, Preprocess(*SIZE), head)
    spec = with_interface(model, spec, Interface(postprocess="graph"), "identity")
    onnx.checker.check_model(model, full_check=True)
    return run(model, output), spec


def detections(output: np.ndarray, spec: DetectorSpec, thresholds: Thresholds) -> Detections:
    return decode(output, spec, Placement(0, 0, *SIZE[::-1], *SIZE[::-1]), thresholds)


def assert_same(found: Detections, expected: Detections) -> None:
    assert len(expected)
    assert np.array_equal(found.boxes, expected.boxes)
    assert np.array_equal(found.scores, expected.scores)
    assert np.array_equal(found.classes, expected.classes)


@pytest.mark.parametrize("opset", [13, 17, 18])
def test_detections_are_those_of_the_host_while_the_selection_has_them_all(opset: int) -> None:
    output, head = yolo(0, confident=900), Head("yolo", strides=STRIDES)
    found, spec = selected(output, head, opset)
    assert found.shape == (1, 7, 1000)
    assert spec.head == replace(head, strides=NO_GRID)
    thresholds = Thresholds(0.5, multi_label=True)
    host = DetectorSpec(CLASSES, spec.preprocess, head)
    assert_same(detections(found, spec, thresholds), detections(output, host, thresholds))


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 1000), st.integers(0, CELLS))
def test_without_suppression_the_selection_loses_nothing(seed: int, confident: int) -> None:
    output, head = yolo(seed, confident), Head("yolo", nms=False, strides=STRIDES)
    found, spec = selected(output, head)
    assert_same(
        detections(found, spec, SCORING), detections(output, DetectorSpec(CLASSES, spec.preprocess, head), SCORING)
    )


def test_prototypes_of_masks_stay_behind_the_selected_candidates() -> None:
    masks, rng = Masks(coefficients=2, height=4, width=8), np.random.default_rng(0)
    output = np.concatenate([yolo(0, confident=50), rng.normal(size=(1, 2, CELLS)).astype(np.float32)], axis=1)
    prototypes = np.zeros((1, 9, 32), np.float32)
    prototypes[:, 7:] = 100 + np.arange(64).reshape(1, 2, 32)
    output, head = np.concatenate([output, prototypes], axis=2), Head("yolo", strides=STRIDES, masks=masks)
    found, spec = selected(output, head)
    assert found.shape == (1, 9, 1032)
    assert np.array_equal(found[:, :, 1000:], prototypes)
    host = DetectorSpec(CLASSES, spec.preprocess, head)
    mine, expected = (detections(*each, Thresholds(0.5)) for each in ((found, spec), (output, host)))
    assert_same(mine, expected)
    assert mine.masks is not None
    assert expected.masks is not None
    assert np.array_equal(mine.masks.coefficients, expected.masks.coefficients)


def test_yolox_is_decoded_in_the_graph() -> None:
    rng = np.random.default_rng(0)
    output = rng.uniform(0, 1, (1, CELLS, 5 + len(CLASSES))).astype(np.float32)
    head, thresholds = Head("yolox", strides=STRIDES), Thresholds(0.8)
    found, spec = selected(output, head)
    assert (found.shape, spec.head.kind) == ((1, 7, 1000), "yolo")
    expected = detections(output, DetectorSpec(CLASSES, spec.preprocess, head), thresholds)
    mine = detections(found, spec, thresholds)
    assert 0 < len(expected) == len(mine)
    np.testing.assert_allclose(mine.boxes, expected.boxes, atol=1e-4)
    np.testing.assert_allclose(mine.scores, expected.scores, rtol=1e-6)


def test_few_candidates_and_finished_detections_stay_as_they_are() -> None:
    few, _ = selected(yolo(0, 5)[:, :, :1000], Head("yolo"))
    assert np.array_equal(few, yolo(0, 5)[:, :, :1000])
    finished = np.random.default_rng(0).random((1, 400, 6), np.float32)
    found, spec = selected(finished, Head("end2end", nms=False))
    assert np.array_equal(found, finished)
    assert spec.head == Head("end2end", nms=False)


@pytest.mark.parametrize("input_format", ["uint8", "nv12"])
def test_every_target_takes_the_graphs_that_are_made_for_it(input_format: Any) -> None:
    for target in map(load_target, target_names()):
        model = identity((1, 3, *SIZE), opset=13)
        spec = DetectorSpec(CLASSES, Preprocess(*SIZE), Head("yolo", strides=STRIDES))
        with_interface(model, spec, Interface(input_format, "host", not takes_bytes(target)), "identity")
        assert [each for each in check_graph(model, target) if each.level == "impossible"] == []


@pytest.mark.slow
@pytest.mark.parametrize("input_format", ["uint8", "nv12"])
def test_tensorrt_builds_engines_of_these_graphs(input_format: Any, tmp_path: Path) -> None:
    if not TENSORRT_RTX.available().usable:
        pytest.skip("TensorRT for RTX is not here")
    graph, model = tmp_path / "graph.onnx", read_model(DETECTOR)
    spec = with_interface(model, describe(model, DETECTOR), Interface(input_format, "graph"), "demo")
    onnx.save(model, graph)
    assert spec.head.strides == NO_GRID
    assert compile_ahead(graph, ["SM86"], tmp_path / "engine.rtx").bytes
