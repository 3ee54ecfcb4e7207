"""Ultralytics checkpoints and exports with masks: read and decoded as Ultralytics does; not trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from random_heads import CONFIDENCE, IOU, SIDE, exported, lively, saved

from edgekd.compress.quantization.placement import place as place_quantizers
from edgekd.core.detection.types import Head, Masks
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
    [("yolo11n-seg.yaml", False), pytest.param("yolo26n-seg.yaml", True, marks=pytest.mark.slow)],
)
def test_the_export_finds_what_ultralytics_finds(config: str, end2end: bool, tmp_path: Path) -> None:
    from ultralytics.utils.nms import non_max_suppression
    from ultralytics.utils.ops import process_mask

    torch.manual_seed(0)
    network = lively(tasks.SegmentationModel(config, nc=CLASSES, verbose=False))
    network.end2end = end2end
    compared = exported(network, tmp_path)
    found, graph, ours = compared.result, compared.graph, compared.decoded
    raw, prototypes = compared.raw
    assert found.error <= TOLERANCE
    assert found.spec.head == Head("yolo", nms=not end2end, masks=Masks(32, SIDE // 4, SIDE // 4))
    last = {node.name for node in graph.nodes if node.op_type == "Conv" and graph.shapes[node.output[0]][1] == 32}
    last = {name for name in last if "/proto/cv3/" in name or (name.startswith("/model") and ".2/Conv" in name)}
    assert len(last) == 4  # coefficients of three levels, and prototypes
    assert last.isdisjoint(place_quantizers(graph).layers)
    theirs = non_max_suppression(raw, CONFIDENCE, IOU, nc=CLASSES, end2end=end2end)[0]
    assert len(ours) == len(theirs) > 5
    assert ours.masks is not None
    # Random scores are equal more often than real ones, and then any order is right: rows are matched.
    differences = np.abs(ours.masks.coefficients[:, None] - theirs[:, 6:].numpy()).max(axis=2)
    same = differences < 1e-3 * float(theirs[:, 6:].abs().max())
    row, matched = np.nonzero(same & (ours.classes[:, None] == theirs[:, 5].numpy()))
    assert len(set(row)) == len(set(matched)) == len(row) >= len(ours) - 2
    theirs = theirs[matched]
    np.testing.assert_allclose(ours.scores[row], theirs[:, 4], atol=1e-4)
    np.testing.assert_allclose(ours.boxes[row], theirs[:, :4].clip(0, SIDE), atol=0.02)
    masks = process_mask(prototypes[0], theirs[:, 6:], theirs[:, :4].clip(0, SIDE), (SIDE, SIDE), upsample=True)
    wrong = 0
    for index, expected in zip(row, masks.numpy(), strict=True):
        left, top, part = ours.masks.crop(index)
        mask = np.zeros((SIDE, SIDE), bool)
        mask[top : top + part.shape[0], left : left + part.shape[1]] = part
        wrong += int((mask != expected).sum())
    assert wrong <= 0.001 * int(masks.sum())


def test_it_is_not_trained(tmp_path: Path) -> None:
    path = saved(tasks.SegmentationModel("yolo11n-seg.yaml", nc=1, verbose=False), tmp_path)
    with pytest.raises(SpecError, match=r"not a box detector; expected .* found SegmentationModel with Segment; fix"):
        UltralyticsDetector(path).network()  # every training begins with it
