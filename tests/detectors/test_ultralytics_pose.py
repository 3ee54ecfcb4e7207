"""Ultralytics checkpoints with keypoints: exported and decoded as Ultralytics does; not trained."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_heads import CONFIDENCE, IOU, SIDE, exported, lively, saved

from edgekd.compress.quantization.placement import place as place_quantizers
from edgekd.core.detection.types import Keypoints
from edgekd.core.errors import SpecError
from edgekd.detectors.export import TOLERANCE
from edgekd.detectors.keypoints import COCO_SIGMAS
from edgekd.detectors.ultralytics.detector import UltralyticsDetector

torch = pytest.importorskip("torch")
tasks = pytest.importorskip("ultralytics.nn.tasks")

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning"
)  # PyTorch's and Ultralytics' own
_LAST = r"cv4\.\d/cv4\.\d\.2/|cv4_kpts"
"""Names of the last convolutions before keypoints."""
CLASSES = 2


def pose_network(config: str, shape: tuple[int, int]) -> Any:
    """A network with random weights whose scores differ from box to box, by one step of batch statistics."""
    torch.manual_seed(0)
    network = tasks.PoseModel(config, nc=CLASSES, data_kpt_shape=shape, verbose=False)
    return lively(network)


@pytest.mark.parametrize(
    ("config", "shape", "end2end"),
    [
        ("yolo11n-pose.yaml", (5, 2), False),
        pytest.param("yolo26n-pose.yaml", (17, 3), False, marks=pytest.mark.slow),
        pytest.param("yolo26n-pose.yaml", (17, 3), True, marks=pytest.mark.slow),
    ],
)
def test_the_export_finds_what_ultralytics_finds(
    config: str, shape: tuple[int, int], end2end: bool, tmp_path: Path
) -> None:
    from ultralytics.utils.nms import non_max_suppression

    network = pose_network(config, shape)
    network.end2end = end2end
    compared = exported(network, tmp_path)
    found, graph, ours = compared.result, compared.graph, compared.decoded
    assert found.error <= TOLERANCE
    sigmas = COCO_SIGMAS if shape == (17, 3) else (1 / shape[0],) * shape[0]
    assert found.spec.head.keypoints == Keypoints(sigmas, shape[1])
    last = {node.name for node in graph.nodes if node.op_type == "Conv" and re.search(_LAST, node.name)}
    assert len(last) == 3  # one for each level
    assert last.isdisjoint(place_quantizers(graph).layers)
    theirs = non_max_suppression(compared.raw, CONFIDENCE, IOU, nc=CLASSES, end2end=end2end)[0].numpy()
    assert len(ours) == len(theirs) > 5
    assert ours.keypoints is not None
    np.testing.assert_allclose(ours.scores, theirs[:, 4], atol=1e-4)
    np.testing.assert_array_equal(ours.classes, theirs[:, 5])
    np.testing.assert_allclose(ours.boxes, theirs[:, :4].clip(0, SIDE), atol=0.02)
    expected = theirs[:, 6:].reshape(-1, *shape)
    np.testing.assert_allclose(ours.keypoints[:, :, :2], expected[:, :, :2].clip(0, SIDE), atol=0.02)
    np.testing.assert_allclose(ours.keypoints[:, :, 2:], expected[:, :, 2:], atol=1e-4)


def test_sigmas_are_those_of_the_training(tmp_path: Path) -> None:
    network = tasks.PoseModel("yolo11n-pose.yaml", nc=1, data_kpt_shape=(2, 3), verbose=False)
    network.kpt_oks_sigmas = [0.25, 0.5]
    spec = UltralyticsDetector(saved(network, tmp_path)).export(tmp_path / "graph.onnx", 13)
    assert spec.head.keypoints == Keypoints((0.25, 0.5), 3)
    with pytest.raises(SpecError, match=r"not a box detector; expected .* found PoseModel with Pose; fix"):
        UltralyticsDetector(tmp_path / "model.pt").network()  # every training begins with it
