"""The Q/DQ graph is what TensorRT expects, computes what the float graph computes, and is the same every time."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from real_graphs import real_graph
from small_graph import frames, small_model, write

from edgekd.compress.calibrate import observe
from edgekd.compress.graph import Graph
from edgekd.compress.placement import float_head
from edgekd.compress.quantize import Quantized, quantize
from edgekd.detectors.decode import Thresholds, decode
from edgekd.detectors.preprocess import letterbox
from edgekd.detectors.types import Detections
from edgekd.engines.onnxruntime import ONNXRUNTIME_CPU
from edgekd.engines.tensorrt_rtx import TENSORRT_RTX, compile_ahead
from edgekd.errors import CompressError

NO_LIMIT = -1000.0


def quantized(model: Any, folder: Path, ranges: str = "mse", **options: Any) -> tuple[Any, Quantized]:
    """A small model's Q/DQ version, and what was said of it."""
    source = write(model, folder)
    done = quantize(source, folder / "int8.onnx", frames(4), ranges, **{"min_snr_db": NO_LIMIT, **options})
    return onnx.load(folder / "int8.onnx"), done


def require_tensorrt_rules(model: Any) -> int:
    """Check everything that TensorRT asks of explicit quantization; return how many convolutions run in INT8."""
    graph = Graph(model)
    head = float_head(graph)
    pairs = [node for node in graph.nodes if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    convolutions = 0
    for node in pairs:
        zero = graph.constant(node.input[2])
        assert zero is not None
        assert zero.dtype == np.int8
        assert not zero.any()
        assert (graph.constant(node.input[1]) > 0).all()
        assert (
            node.op_type == "DequantizeLinear"
            or graph.producer(node.input[0]) is None
            or (graph.producer(node.input[0]).name not in head)
        )
    for node in graph.nodes:
        weights = graph.producer(node.input[1]) if node.op_type == "Conv" else None
        if weights is None:
            continue
        convolutions += 1
        codes, scales = graph.constant(weights.input[0]), graph.constant(weights.input[1])
        assert codes.dtype == np.int8
        assert codes.min() >= -127
        assert len(scales) == len(codes)
        assert [(entry.name, entry.i) for entry in weights.attribute] == [("axis", 0)]
        assert graph.producer(node.input[0]).op_type == "DequantizeLinear"
    return convolutions


def run(graph: Path, batch: np.ndarray) -> np.ndarray:
    with ONNXRUNTIME_CPU.load(graph, threads=1) as session:
        return session.run(batch)


def test_the_graph_keeps_tensorrts_rules(tmp_path: Path) -> None:
    model, done = quantized(small_model(), tmp_path)
    assert require_tensorrt_rules(model) == 3
    assert done.int8 == ("stem", "body", "neck")
    assert done.convolutions == 6
    onnx.checker.check_model(model, full_check=True)


def test_weights_are_stored_as_int8_and_as_nothing_else(tmp_path: Path) -> None:
    model, _ = quantized(small_model(), tmp_path)
    types = {constant.name: constant.data_type for constant in model.graph.initializer}
    for name in ("stem", "body", "neck"):
        assert types[f"{name}.weight/{name}/int8"] == TensorProto.INT8
        assert f"{name}.weight" not in types
    assert types["boxes.weight"] == TensorProto.FLOAT


def test_tensors_that_are_joined_have_one_scale(tmp_path: Path) -> None:
    model, done = quantized(small_model(), tmp_path)
    assert done.scales["joined"] == done.scales["sum"] == done.scales["stem.relu"] == done.scales["pool"]
    constants = {constant.name: numpy_helper.to_array(constant) for constant in model.graph.initializer}
    assert constants["joined/scale"] == constants["stem.relu/scale"] == np.float32(done.scales["joined"])


@pytest.mark.parametrize("ranges", ["mse", "max", "entropy"])
def test_the_frame_is_not_clipped(ranges: str, tmp_path: Path) -> None:
    _, done = quantized(small_model(), tmp_path, ranges)
    assert done.scales["images"] == pytest.approx(max(frame.max() for frame in frames(4)) / 127)


@pytest.mark.parametrize("ranges", ["mse", "max", "entropy"])
def test_the_output_is_close_to_the_float_one(ranges: str, tmp_path: Path) -> None:
    quantized(small_model(), tmp_path, ranges)
    for frame in frames(3, seed=9):
        expected, found = (run(tmp_path / name, frame) for name in ("small.onnx", "int8.onnx"))
        assert 0 < np.abs(expected - found).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("seed", ["0", "1"])
def test_the_same_input_gives_the_same_bytes_in_any_process(seed: str, tmp_path: Path) -> None:
    """The order of a set differs between processes."""
    _, done = quantized(small_model(), tmp_path)
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; from small_graph import frames\n"
        "from edgekd.compress.quantize import quantize\n"
        "folder = Path(sys.argv[2])\n"
        f"done = quantize(folder / 'small.onnx', folder / 'again.onnx', frames(4), 'mse', {NO_LIMIT})\n"
        "print(list(done.scales.items()))"
    )
    command = [sys.executable, "-c", script, str(Path(__file__).parent), str(tmp_path)]
    again = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": seed}
    )
    assert again.stdout.strip() == str(list(done.scales.items()))
    one, two = ((tmp_path / name).read_bytes() for name in ("int8.onnx", "again.onnx"))
    assert hashlib.sha256(one).digest() == hashlib.sha256(two).digest()


def test_nodes_without_names_are_no_obstacle(tmp_path: Path) -> None:
    model = small_model()
    for node in model.graph.node:
        node.name = ""
    found, _ = quantized(model, tmp_path)
    assert require_tensorrt_rules(found) == 3


def test_a_convolution_that_would_be_too_noisy_stays_float(tmp_path: Path) -> None:
    _, done = quantized(small_model(), tmp_path)
    noisiest = min(done.snr_db, key=done.snr_db.__getitem__)
    limit = sorted(done.snr_db.values())[0] + 1e-6
    model, kept = quantized(small_model(), tmp_path, min_snr_db=limit)
    assert set(kept.int8) == set(done.int8) - {noisiest}
    assert require_tensorrt_rules(model) == 2


def test_where_all_would_be_too_noisy_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(CompressError, match="too noisy"):
        quantized(small_model(), tmp_path, min_snr_db=1000)
    assert not (tmp_path / "int8.onnx").exists()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_by_the_name_of_their_layer(bad: float, tmp_path: Path) -> None:
    model = small_model()
    weight = next(constant for constant in model.graph.initializer if constant.name == "body.weight")
    values = numpy_helper.to_array(weight).copy()
    values[0, 0, 0, 0] = bad
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    with pytest.raises(CompressError, match="layer body"):
        quantized(model, tmp_path)
    assert not (tmp_path / "int8.onnx").exists()


def test_computed_weights_are_refused_by_the_name_of_their_layer(tmp_path: Path) -> None:
    model = small_model()
    model.graph.node.insert(0, onnx.helper.make_node("Relu", ["neck.weight"], ["computed"], "computed"))
    next(node for node in model.graph.node if node.name == "neck").input[1] = "computed"
    with pytest.raises(CompressError, match="layer neck"):
        quantized(model, tmp_path)


def test_a_frame_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    source = write(small_model(), tmp_path)
    with pytest.raises(CompressError, match="finite"):
        quantize(source, tmp_path / "int8.onnx", [frames(1)[0] * np.float32(np.nan)])


def test_without_frames_there_is_nothing_to_calibrate_with(tmp_path: Path) -> None:
    with pytest.raises(CompressError, match="frame"):
        quantize(write(small_model(), tmp_path), tmp_path / "int8.onnx", [])


def test_a_graph_of_a_head_alone_has_nothing_to_quantize(tmp_path: Path) -> None:
    model = small_model()
    keep = [node for node in model.graph.node if node.name == "stem"]
    del model.graph.node[:]
    model.graph.node.extend(keep)
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("stem", TensorProto.FLOAT, [1, 8, 16, 16]))
    with pytest.raises(CompressError, match="nothing to quantize"):
        quantized(model, tmp_path)


@pytest.mark.slow
def test_calibration_memory_does_not_grow_with_the_frames(
    shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The first frames fill the allocators; after them the process must not grow by as much as one frame's tensors."""
    graph = real_graph("yolox_nano.onnx", shared, tmp_path_factory)
    size = graph.exported.spec.preprocess
    resident: list[int] = []

    def counted() -> Iterator[np.ndarray]:
        rng = np.random.default_rng(0)
        for _ in range(40):
            yield rng.uniform(0, 255, (1, 3, size.height, size.width)).astype(np.float32)
            pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
            resident.append(pages * os.sysconf("SC_PAGE_SIZE"))

    model = Graph(onnx.load(graph.path))
    tensors = [node.input[0] for node in model.nodes if node.op_type == "Conv"]
    observe(graph.path, list(dict.fromkeys(tensors)), counted())
    assert max(resident[10:]) - max(resident[:10]) < 16 << 20


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolo11n.pt", "yolox_nano.onnx"])
def test_real_detectors_still_find_what_they_were_sure_of(
    name: str, shared: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    import cv2

    graph = real_graph(name, shared, tmp_path_factory)
    spec = graph.exported.spec
    pictures = sorted((shared / "data" / "coco256" / "images" / "train2017").iterdir())[:8]
    placed = [letterbox(cv2.imread(str(path)), spec.preprocess) for path in pictures]
    out = tmp_path / "int8.onnx"
    done = quantize(graph.path, out, [batch for batch, _ in placed[:4]])
    assert require_tensorrt_rules(onnx.load(out)) == len(done.int8) > 0.8 * done.convolutions
    assert out.stat().st_size < 0.35 * graph.path.stat().st_size
    kept = total = 0
    for batch, at in placed[4:]:
        sure = decode(run(graph.path, batch), spec, at, Thresholds(confidence=0.4))
        found = decode(run(out, batch), spec, at, Thresholds(confidence=0.2))
        total += len(sure)
        kept += sum(_finds(found, box, label) for box, label in zip(sure.boxes, sure.classes, strict=True))
    assert total > 5
    assert kept >= 0.85 * total
    if TENSORRT_RTX.available().usable:
        assert compile_ahead(out, ("SM86",), tmp_path / "engine").bytes > 100_000


def _finds(found: Detections, box: np.ndarray, label: int) -> bool:
    """Whether an object is among the detections, in its class and at an IoU of 0.6 or more."""
    sides = np.minimum(box[2:], found.boxes[:, 2:]) - np.maximum(box[:2], found.boxes[:, :2])
    common = np.maximum(sides, 0).prod(axis=1)
    areas = (found.boxes[:, 2:] - found.boxes[:, :2]).prod(axis=1)
    union = (box[2:] - box[:2]).prod() + areas - common
    return bool(((common > 0.6 * union) & (found.classes == label)).any())
