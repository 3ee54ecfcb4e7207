"""Ultralytics checkpoints of rotated boxes: exported and decoded as Ultralytics does; not trained."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from random_heads import CONFIDENCE, IOU, exported, lively, saved

from edgekd.compress.quantization.placement import place as place_quantizers
from edgekd.core.detection.types import Head
from edgekd.core.errors import SpecError
from edgekd.detectors.export import TOLERANCE
from edgekd.detectors.ultralytics.detector import UltralyticsDetector

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
    compared = exported(network, tmp_path)
    found, graph, ours = compared.result, compared.graph, compared.decoded
    assert found.error <= TOLERANCE
    assert found.spec.head == Head("yolo", nms=not end2end, rotated=True)
    last = {node.name for node in graph.nodes if node.op_type == "Conv" and re.search(r"cv4\.\d\.2/", node.name)}
    assert len(last) == 3  # one for each level
    assert last.isdisjoint(place_quantizers(graph).layers)
    theirs = non_max_suppression(compared.raw, CONFIDENCE, IOU, nc=CLASSES, end2end=end2end, rotated=True)[0].numpy()
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
