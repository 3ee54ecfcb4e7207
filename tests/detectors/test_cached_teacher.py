"""Frames for a cached teacher are prepared as it was trained, and its boxes come back to the image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgekd.core.detection.preprocess import letterbox, place, to_frame
from edgekd.core.detection.types import Preprocess
from edgekd.core.progress import SILENT
from edgekd.data.labels import Truth
from edgekd.data.types import Sample
from edgekd.detectors.heads.description import read_description

torch = pytest.importorskip("torch")

from edgekd.detectors.cached_teacher import cached_objects  # noqa: E402
from edgekd.detectors.described import DescribedTeacher  # noqa: E402

SIDE = 64
BOX = np.array([0.5, 0.375, 0.25, 0.125], np.float32)
"""Middle, width and height of the only object, as shares of the network's frame."""
SCORES = [2.0, -3.0]
"""Its logits."""
QUERIES = 7
IMAGENET = Preprocess(SIDE, SIDE, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


class OneObject(torch.nn.Module):
    """A network whose first query finds the same object in every frame; it notes what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.frames: list[np.ndarray] = []

    def forward(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.frames += list(frames.numpy())
        scores = torch.tensor([[-9.0, -9.0]] * QUERIES)
        scores[0] = torch.tensor(SCORES)
        return scores.expand(len(frames), -1, -1), torch.from_numpy(BOX).expand(len(frames), QUERIES, 4)


@pytest.mark.parametrize(
    "preprocess",
    [
        replace(IMAGENET, stretch=True),
        IMAGENET,
        replace(IMAGENET, color="bgr", scale=1.0, pad_value=0, center=False, upscale=False),
    ],
    ids=["stretched", "letterboxed", "as YOLOX"],
)
def test_boxes_in_a_wide_image_come_back_right(preprocess: Preprocess, tmp_path: Path) -> None:
    coarse = np.random.default_rng(0).integers(0, 256, (4, 12, 3), np.uint8)
    image = np.kron(coarse, np.ones((8, 8, 1), np.uint8))
    cv2.imwrite(str(tmp_path / "wide.png"), image)
    empty = Truth(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool))
    named = {"scores": ("scores",), "boxes": ("boxes",), "background": "none", "classes": ("red", "green")}
    network = OneObject()
    teacher = DescribedTeacher(network, replace(read_description("rf-detr"), **named), preprocess)

    (record,) = cached_objects(
        teacher, [Sample(tmp_path / "wide.png", empty)], tmp_path / "a.predictions", 1 << 20, SILENT
    )
    np.testing.assert_allclose(network.frames[-1], letterbox(image, preprocess)[0][0], atol=1e-3)
    corners = np.concatenate([BOX[:2] - BOX[2:] / 2, BOX[:2] + BOX[2:] / 2]) * SIDE
    height, width = image.shape[:2]
    expected = to_frame(corners, place(width, height, preprocess)) / np.array([width, height] * 2)
    low, high = expected[:2], expected[2:]
    assert record["count"] == 1
    np.testing.assert_allclose(record["boxes"][0], np.concatenate([(low + high) / 2, high - low]), atol=1e-5)
    np.testing.assert_allclose(record["scores"][0], SCORES, atol=1e-2)
    if preprocess.stretch:
        np.testing.assert_allclose(record["boxes"][0], BOX, atol=1e-5)
