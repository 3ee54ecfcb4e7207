"""Pictures of what changed: which, and where in them the boxes are."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from edgekd.core.detection.types import Detections, Preprocess
from edgekd.data.labels import Truth
from edgekd.data.types import Sample
from edgekd.evaluation.analysis import crops
from edgekd.evaluation.analysis.attention import WIDTH, heatmap
from edgekd.evaluation.analysis.crops import changes_in, crops_of, kinds_of, window, worth_showing
from edgekd.evaluation.analysis.matching import Findings, Frame, compare

CLASSES = ("person", "dog")


@pytest.fixture
def seen(tmp_path: Path) -> tuple[Findings, list[Sample]]:
    """Two frames of 640 x 480: in each an object is lost, another gained, one confused, and a false alarm is new."""
    boxes = np.array([[10, 10, 40, 60], [300, 200, 420, 400], [500, 20, 560, 90]], np.float32)
    truth = Truth(boxes, np.array([0, 1, 0]), np.zeros(3, bool))
    stray = np.array([[100, 300, 160, 360]], np.float32)
    before = Detections(boxes[[0, 2]], np.array([0.9, 0.8], np.float32), np.array([0, 0]))
    every = np.concatenate([boxes, stray])[[2, 1, 3, 0]]
    after = Detections(every, np.array([0.8, 0.7, 0.6, 0.2], np.float32), np.array([1, 1, 0, 0]))
    samples = []
    for at in range(2):
        path = tmp_path / f"{at}.png"
        image = np.full((480, 640, 3), 60, np.uint8)
        for x1, y1, x2, y2 in boxes.astype(int):
            image[y1:y2, x1:x2] = 230
        cv2.imwrite(str(path), image)
        samples.append(Sample(path, truth))
    return compare([Frame(truth, before, after)] * 2, (0.5, 0.5)), samples


def test_changes_are_told_with_their_reason_and_scores(seen: tuple[Findings, list[Sample]]) -> None:
    findings, samples = seen
    assert kinds_of(findings) == {"lost": 4, "gained": 2, "alarm": 4, "settled": 0}
    found = crops_of(findings, samples, CLASSES, (0.5, 0.5))
    told = {(crop.kind, crop.class_name, crop.size, crop.reason) for crop in found}
    assert told == {
        ("lost", "person", "medium", "now below the threshold"),
        ("lost", "person", "medium", "now taken for dog"),
        ("gained", "dog", "large", "before not seen"),
        ("alarm", "person", "medium", "nothing labelled there"),
        ("alarm", "dog", "medium", "labelled as person"),
    }
    assert [crop.kind for crop in found] == ["lost"] * 4 + ["gained"] * 2 + ["alarm"] * 4


def test_boxes_are_where_the_object_is_in_the_picture(seen: tuple[Findings, list[Sample]]) -> None:
    findings, samples = seen
    for crop in crops_of(findings, samples, CLASSES, (0.5, 0.5)):
        image = cv2.imdecode(np.frombuffer(crop.jpeg, np.uint8), cv2.IMREAD_GRAYSCALE)
        assert image.shape == (crop.height, crop.width)
        assert max(image.shape) == crops.SIDE
        if crop.truth is not None:
            x1, y1, x2, y2 = (round(side) for side in crop.truth)
            assert image[y1 + 4 : y2 - 4, x1 + 4 : x2 - 4].min() > 180
            assert image[:, : max(x1 - 6, 0)].max(initial=0) < 110


def test_no_more_than_fit_and_some_of_every_kind_class_and_size(
    seen: tuple[Findings, list[Sample]], monkeypatch: pytest.MonkeyPatch
) -> None:
    findings, samples = seen
    first = worth_showing(list(changes_in(findings)), 3)
    assert [change.kind for change in first] == ["lost", "gained", "alarm"]
    sizes = [len(crop.jpeg) for crop in crops_of(findings, samples, CLASSES, (0.5, 0.5))]
    monkeypatch.setattr(crops, "MAX_BYTES", sum(sizes) // 2)
    fewer = crops_of(findings, samples, CLASSES, (0.5, 0.5))
    assert 0 < len(fewer) < len(sizes)
    assert sum(len(crop.jpeg) for crop in fewer) <= sum(sizes) // 2


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((300, 200, 320, 220), (274, 174, 72)),  # small: some pixels around it
        ((0, 0, 100, 50), (0, 0, 260)),  # at a corner: moved inside
        ((540, 380, 640, 480), (380, 220, 260)),
        ((0, 0, 640, 480), (0, 0, 640)),  # all of it
    ],
)
def test_the_window_lies_in_the_frame(box: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert window({"truth": box}, 640, 480) == expected


def test_a_map_lies_on_the_frame_where_the_network_has_looked() -> None:
    shade = np.zeros((20, 20), np.uint8)
    shade[9:11, 15:] = 255  # right of the middle of a frame that is letterboxed above and below
    drawn = heatmap(np.full((240, 480, 3), 128, np.uint8), shade, Preprocess(640, 640))
    assert drawn.shape == (WIDTH // 2, WIDTH, 3)
    ys, xs = np.nonzero(drawn[:, :, 2] > drawn[:, :, 0].astype(int) + 40)  # yellow
    assert xs.min() == pytest.approx(0.75 * WIDTH, abs=6)
    assert ys.mean() == pytest.approx(WIDTH / 4, abs=3)
