"""Ultralytics checkpoints of rotated boxes: exported and decoded as Ultralytics does; not trained."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from random_heads import SIDE, lively, saved

from edgekd.compress.quantization.placement import place as place_quantizers
from edgekd.core.detection.decode import Thresholds, decode
from edgekd.core.detection.preprocess import place
from edgekd.core.detection.types import Head
from edgekd.core.errors import SpecError
from edgekd.detectors.export import TOLERANCE, export
from edgekd.detectors.ultralytics.detector import UltralyticsDetector
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU
from edgekd.graph.view import Graph, load_graph

torch = pytest.importorskip("torch")
tasks = pytest.importorskip("ultralytics.nn.tasks")

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning"
)  # PyTorch's and Ultralytics' own
CLASSES = 2


@pytest.mark.parametrize(
    ("config", "end2end"),
    [("yolo11n-obb.yaml", False), pytest.param("yolo26n-obb.yaml", True, marks=pytest.mark.slow)],
)
def test_the_export_finds_what_ultralytics_finds(config: str, end2end: bool, tmp_path: Path) -> None:
    from ultralytics.utils.nms import non_max_suppression

    torch.manual_seed(0)
    network = lively(tasks.OBBModel(config, nc=CLASSES, verbose=False))
    network.end2end = end2end
    frame = np.random.default_rng(3).uniform(0, 1, (1, 3, SIDE, SIDE)).astype(np.float32)
    with torch.no_grad():
        raw = network(torch.from_numpy(frame))[0]
    found = export(UltralyticsDetector(saved(network, tmp_path)), tmp_path / "graph.onnx", 13)
    assert found.error <= TOLERANCE
    assert found.spec.head == Head("yolo", nms=not end2end, rotated=True)
    graph = Graph(load_graph(tmp_path / "graph.onnx"))
    last = {node.name for node in graph.nodes if node.op_type == "Conv" and re.search(r"cv4\.\d\.2/", node.name)}
    assert len(last) == 3  # one for each level
    assert last.isdisjoint(place_quantizers(graph).layers)
    with ONNXRUNTIME_CPU.load(tmp_path / "graph.onnx") as session:
        output = session.run(frame)
    # Ultralytics selects a box for each of its classes where a branch needs no NMS.
    thresholds = Thresholds(0.05, 0.7, multi_label=end2end)
    ours = decode(output, found.spec, place(SIDE, SIDE, found.spec.preprocess), thresholds)
    theirs = non_max_suppression(raw, 0.05, 0.7, nc=CLASSES, end2end=end2end, rotated=True)[0].numpy()
    assert len(ours) == len(theirs) > 5
    assert ours.rotated is not None
    np.testing.assert_allclose(ours.scores, theirs[:, 4], atol=1e-4)
    np.testing.assert_array_equal(ours.classes, theirs[:, 5])
    np.testing.assert_allclose(ours.rotated[:, :4], theirs[:, :4], atol=0.02)
    np.testing.assert_allclose(ours.rotated[:, 4], theirs[:, 6], atol=1e-3)


def test_it_is_not_trained(tmp_path: Path) -> None:
    path = saved(tasks.OBBModel("yolo11n-obb.yaml", nc=1, verbose=False), tmp_path)
    with pytest.raises(SpecError, match=r"not a box detector; expected .* found OBBModel with OBB; fix"):
        UltralyticsDetector(path).network()  # every training begins with it
