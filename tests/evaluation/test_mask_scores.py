"""Scores of masks: COCO's average precision, with the overlap of pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd.core.detection.types import Detections, Head, Masks, Task
from edgekd.core.errors import DataError
from edgekd.data.dataset import load_dataset
from edgekd.data.labels import Truth
from edgekd.data.subset import SplitPart, write_subset
from edgekd.evaluation.coco import BoxScore, score

WIDTH, HEIGHT = 200, 100
HEAD = Head("yolo", masks=Masks(4, 16, 16))
BOX = np.array([[20, 10, 120, 60]], np.float32)
THRESHOLDS = np.linspace(0.5, 0.95, 10)
SIZE = np.array([WIDTH, HEIGHT], np.float32)


def truth(*parts: list[tuple[float, float]]) -> tuple[Truth, int, int]:
    """An image with one object in BOX."""
    polygons = (tuple((np.array(part) / SIZE).astype(np.float32) for part in parts),)
    return Truth(BOX / np.tile(SIZE, 2), np.array([0]), np.zeros(1, bool), polygons=polygons), WIDTH, HEIGHT


def found(columns: slice) -> tuple[Detections, list[dict[str, Any]]]:
    """A detection in BOX whose mask has these columns of it."""
    from faster_coco_eval.core import mask

    pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
    pixels[10:60, columns] = 1
    return Detections(BOX, np.array([0.9], np.float32), np.array([0])), [mask.encode(np.asfortranarray(pixels))]


def test_masks_score_by_their_overlap() -> None:
    left = truth([(20, 10), (70, 10), (70, 60), (20, 60)])
    detections, masks = found(slice(20, 85))
    result = score([detections], [left], ("cat",), HEAD, [masks])
    assert result.map50_95 == pytest.approx((THRESHOLDS <= 50 / 65).mean())
    assert result.boxes == BoxScore(pytest.approx(1), pytest.approx(1))


def test_an_outline_may_have_several_parts_and_sizes_are_those_of_masks() -> None:
    ends = truth([(20, 10), (30, 10), (30, 60), (20, 60)], [(110, 10), (120, 10), (120, 60), (110, 60)])
    detections, masks = found(slice(20, 30))
    result = score([detections], [ends], ("cat",), HEAD, [masks])
    assert result.map50_95 == pytest.approx(0.1)  # an overlap of one half
    assert result.by_size == {"small": pytest.approx(0.1), "medium": None, "large": None}  # 1000 pixels in a large box


def test_labels_without_polygons_are_refused() -> None:
    labels = Truth(BOX / np.tile(SIZE, 2), np.array([0]), np.zeros(1, bool))
    detections, masks = found(slice(20, 30))
    with pytest.raises(DataError, match="labels without masks"):
        score([detections], [(labels, WIDTH, HEIGHT)], ("cat",), HEAD, [masks])


def write_coco(folder: Path, *segmentations: object) -> Path:
    box = {"image_id": 7, "category_id": 1, "bbox": [20, 10, 100, 50]}
    document = {
        "images": [{"id": 7, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT}],
        "annotations": [
            {**box, "id": index, "segmentation": each, "iscrowd": int(isinstance(each, dict))}
            for index, each in enumerate(segmentations)
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }
    folder.mkdir(exist_ok=True)
    (folder / "a.jpg").touch()
    (folder / "labels.json").write_text(json.dumps(document))
    return folder / "labels.json"


def polygons(path: Path, task: Task = "segment") -> Any:
    return load_dataset(path).split("val", task).samples[0].truth.polygons


def test_cocos_polygons_are_read_and_crowds_are_their_boxes(tmp_path: Path) -> None:
    triangle, other = [20, 10, 120, 10, 70, 60], [30, 20, 40, 20, 40, 30]
    crowd = {"size": [HEIGHT, WIDTH], "counts": [0, 20000]}
    first, second = polygons(write_coco(tmp_path, [triangle, other], crowd))
    np.testing.assert_allclose(first[0], np.array(triangle).reshape(3, 2) / SIZE, atol=1e-6)
    np.testing.assert_allclose(first[1], np.array(other).reshape(3, 2) / SIZE, atol=1e-6)
    np.testing.assert_allclose(second[0], [[0.1, 0.1], [0.6, 0.1], [0.6, 0.6], [0.1, 0.6]], atol=1e-6)


def test_polygons_are_read_for_tasks_that_are_scored_by_them_alone(tmp_path: Path) -> None:
    file = write_coco(tmp_path, [[20, 10, 120, 10, 70, 60]])
    write_subset(tmp_path / "part.yaml", file, {"val": SplitPart("val", only=(0,))})
    for path in (file, tmp_path / "part.yaml"):
        assert [polygons(path, task) is None for task in ("detect", "pose", "obb", "segment")] == [1, 1, 0, 0]


@pytest.mark.parametrize("other", [None, [], [[1, 2, 3]], [[1, 2, 3, 4]], "none", [["a"] * 6], [[float("nan")] * 6], 3])
def test_a_set_with_an_object_without_polygons_has_boxes_alone(other: object, tmp_path: Path) -> None:
    assert polygons(write_coco(tmp_path, [[20, 10, 120, 10, 70, 60]], other)) is None
