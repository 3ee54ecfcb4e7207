"""Nothing is exported that computes something else than its source."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from real_graphs import real_graph, swept

from edgekd.core.detection.parity import largest_error
from edgekd.core.detection.types import DetectorSpec, Head, Preprocess
from edgekd.core.errors import ParityError
from edgekd.detectors.export import export, probe
from edgekd.detectors.onnx import OnnxDetector, describe


@dataclass(frozen=True)
class Drifting:
    """A detector whose export adds `drift` to what it computes itself."""

    inner: OnnxDetector
    drift: float
    family: str = "onnx"

    @property
    def path(self) -> Path:
        return self.inner.path

    def export(self, graph: Path, opset: int) -> DetectorSpec:
        return self.inner.export(graph, opset)

    def reference(self, batch: np.ndarray) -> np.ndarray:
        return self.inner.reference(batch) + np.float32(self.drift)


def test_the_graph_describes_itself_and_has_lost_nothing(tiny_model: Path, tmp_path: Path) -> None:
    done = export(OnnxDetector(tiny_model), tmp_path / "graph.onnx", 17)
    assert done.error < 1e-6
    assert done.opset == 13
    model = onnx.load(tmp_path / "graph.onnx")
    assert describe(model, tmp_path) == done.spec
    assert done.spec.classes == ("red", "green")
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["names"] == "{0: 'red', 1: 'green'}"
    assert metadata["imgsz"] == "[64, 64]"


def test_the_same_detector_gives_the_same_bytes(tiny_model: Path, tmp_path: Path) -> None:
    graphs = [tmp_path / "one.onnx", tmp_path / "two.onnx"]
    for graph in graphs:
        export(OnnxDetector(tiny_model), graph, 17)
    assert graphs[0].read_bytes() == graphs[1].read_bytes()


@pytest.mark.parametrize("drift", [0.5, float("nan")])
def test_a_graph_that_computes_something_else_is_refused(drift: float, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ParityError, match=r"tiny\.onnx"):
        export(Drifting(OnnxDetector(tiny_model), drift), tmp_path / "graph.onnx", 17)


def test_each_row_is_measured_by_its_own_size() -> None:
    expected = np.array([[[600.0, 300.0], [0.5, 0.25]]])
    assert largest_error(expected, expected) == 0
    assert largest_error(expected + np.array([[0.6], [0.0]]), expected) == pytest.approx(0.001, rel=0.01)
    assert largest_error(expected + np.array([[0.0], [0.005]]), expected) == pytest.approx(0.01, rel=0.01)
    assert largest_error(expected[:, :1], expected) == float("inf")
    assert not largest_error(expected * np.nan, expected) <= 1


@pytest.mark.parametrize("scale", [1 / 255, 1.0])
def test_the_probe_is_a_frame_in_the_networks_range(scale: float) -> None:
    spec = DetectorSpec(("a",), Preprocess(96, 160, scale=scale), Head("yolo"))
    frame = probe(spec)
    assert (frame.shape, frame.dtype) == ((1, 3, 96, 160), np.float32)
    assert 0.8 < frame.max() / (255 * scale) <= 1
    assert np.array_equal(frame, probe(spec))


@pytest.mark.parametrize("name", swept("yolo11n.pt", "yolo26n.pt", "yolox_nano.onnx"))
def test_real_detectors_export_within_the_tolerance(
    name: str, shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    graph = real_graph(name, shared, tmp_path_factory)
    assert graph.exported.error < 1e-3
    model = onnx.load(graph.path)
    onnx.checker.check_model(model, full_check=True)
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    assert "Constant" not in {node.op_type for node in model.graph.node}
    assert [axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim][:2] == [1, 3]


@pytest.mark.slow
def test_a_graph_with_its_own_selection_of_the_best_passes_too(
    shared: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Rows of equal score may come in another order; that is no drift."""
    source = real_graph("yolo26n.pt", shared, tmp_path_factory)
    model = onnx.load(source.path)
    names = with_selection(model)
    onnx.save(model, tmp_path / "end2end.onnx")
    done = export(OnnxDetector(tmp_path / "end2end.onnx", classes=names), tmp_path / "graph.onnx", 17)
    assert done.spec.head == Head("end2end", nms=False)


def with_selection(model: onnx.ModelProto) -> tuple[str, ...]:
    """Append TopK to a dense graph, so that it gives [1, 300, 6]; return its class names."""
    from onnx import TensorProto, helper, numpy_helper

    spec = describe(model, Path("graph.onnx"))
    constants = {"k": [300], "four": [0, 1, 2, 3], "ends": [4, 84], "axis": [1], "from": [4], "to": [84], "last": [2]}
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), f"sel/{name}"))
    dense = model.graph.output[0].name
    model.graph.node.extend(
        [
            helper.make_node("Transpose", [dense], ["sel/rows"], perm=[0, 2, 1]),
            helper.make_node("Gather", ["sel/rows", "sel/four"], ["sel/boxes"], axis=2),
            helper.make_node("Slice", ["sel/rows", "sel/from", "sel/to", "sel/last"], ["sel/scores"]),
            helper.make_node("ReduceMax", ["sel/scores"], ["sel/best"], axes=[2], keepdims=0),
            helper.make_node("ArgMax", ["sel/scores"], ["sel/class64"], axis=2, keepdims=1),
            helper.make_node("Cast", ["sel/class64"], ["sel/class"], to=TensorProto.FLOAT),
            helper.make_node("TopK", ["sel/best", "sel/k"], ["sel/score", "sel/index"], axis=1),
            helper.make_node("Unsqueeze", ["sel/best", "sel/last"], ["sel/column"]),
            helper.make_node("Concat", ["sel/boxes", "sel/column", "sel/class"], ["sel/all"], axis=2),
            helper.make_node("Squeeze", ["sel/index", "sel/zero"], ["sel/flat"]),
            helper.make_node("Gather", ["sel/all", "sel/flat"], ["selected"], axis=1),
        ]
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "sel/zero"))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("selected", TensorProto.FLOAT, [1, 300, 6]))
    del model.metadata_props[:]
    return spec.classes
