"""Keypoints of data sets: rows of label files and COCO's annotations become fractions and visibility."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd.core.detection.types import DetectorSpec, Head, Keypoints, Preprocess
from edgekd.core.errors import DataError
from edgekd.core.progress import SILENT
from edgekd.data.dataset import load_dataset, require_classes
from edgekd.data.images import fingerprint
from edgekd.data.subset import SplitPart, write_subset
from edgekd.data.types import Dataset


def write_yolo(folder: Path, row: str, shape: str = "[2, 3]") -> Path:
    """A data set of one image whose label file has one row."""
    for kind, name, text in (("images", "a.jpg", ""), ("labels", "a.txt", row)):
        (folder / kind / "val").mkdir(parents=True, exist_ok=True)
        (folder / kind / "val" / name).write_text(text)
    (folder / "data.yaml").write_text(f"path: .\nval: images/val\nnames: [cat]\nkpt_shape: {shape}\n")
    return folder


def write_coco(folder: Path, **changes: Any) -> Path:
    """A COCO file of one image of 200 x 100 pixels with two objects, the second without keypoints."""
    box = {"id": 1, "image_id": 7, "category_id": 1, "bbox": [20, 10, 100, 50], "keypoints": [20, 10, 2, 0, 0, 0]}
    document = {
        "images": [{"id": 7, "file_name": "a.jpg", "width": 200, "height": 100}],
        "annotations": [{**box, **changes}, {**box, "id": 2, "keypoints": None}],
        "categories": [{"id": 1, "name": "cat", "keypoints": ["ear", "tail"]}],
    }
    (folder / "annotations").mkdir()
    (folder / "images").mkdir()
    (folder / "images" / "a.jpg").touch()
    (folder / "annotations" / "person_keypoints_val2017.json").write_text(json.dumps(document))
    return folder


def keypoints(dataset: Dataset) -> Any:
    found = dataset.split("val").samples[0].truth.keypoints
    assert found is not None
    return found


def test_a_row_has_a_box_and_its_keypoints(tmp_path: Path) -> None:
    dataset = load_dataset(write_yolo(tmp_path, "0 0.5 0.5 0.2 0.4 0.4 0.3 2 0.9 0.9 0\n"))
    assert dataset.keypoints == 2
    np.testing.assert_allclose(keypoints(dataset), [[[0.4, 0.3, 2], [0, 0, 0]]], atol=1e-6)
    np.testing.assert_allclose(dataset.split("val").samples[0].truth.boxes, [[0.4, 0.3, 0.6, 0.7]], atol=1e-6)


def test_keypoints_of_two_numbers_are_visible_unless_negative(tmp_path: Path) -> None:
    dataset = load_dataset(write_yolo(tmp_path, "0 0.5 0.5 0.2 0.4 0.4 0.3 -0.001 -0.001\n", "[2, 2]"))
    np.testing.assert_allclose(keypoints(dataset), [[[0.4, 0.3, 2], [0, 0, 0]]], atol=1e-6)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("0 0.5 0.5 0.2 0.4", "a.txt line 1; expected 11 columns .*found 5"),
        ("0 0.5 0.5 0.2 0.4 0.4 0.3 2 0.5 0.5 3", "a.txt line 1; .*visibility of 0 to 2; found keypoint 1"),
        ("0 0.5 0.5 0.2 0.4 0.4 1.3 1 0.5 0.5 1", "a.txt line 1; expected keypoints inside .*found keypoint 0"),
        ("0 0.5 0.5 0.2 0.4 0.4 nan 0 0.5 0.5 1", "a.txt line 1; expected keypoints inside .*found keypoint 0"),
        ("0 0.5 0.5 0.2 0.4 0.4 0.3 two 0.5 0.5 1", "a.txt line 1; expected numbers; found 'two'"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_dataset(write_yolo(tmp_path, row)).split("val")


@pytest.mark.parametrize("shape", ["17", "[17]", "[0, 3]", "[17, 4]", "[1.5, 3]", "[1001, 3]"])
def test_a_bad_shape_is_refused(tmp_path: Path, shape: str) -> None:
    with pytest.raises(DataError, match=r"data.yaml: kpt_shape; expected a number of keypoints"):
        load_dataset(write_yolo(tmp_path, "", shape))


def test_rows_with_keypoints_need_their_shape_in_the_yaml(tmp_path: Path) -> None:
    write_yolo(tmp_path, "0 0.5 0.5 0.2 0.4 0.4 0.3 2 0.5 0.5 2\n", "null")
    with pytest.raises(DataError, match=r"a.txt line 1; .*fix: for rows with keypoints, state kpt_shape"):
        load_dataset(tmp_path).split("val")


def test_cocos_keypoints_are_read_where_they_are_labelled(tmp_path: Path) -> None:
    dataset = load_dataset(write_coco(tmp_path))
    assert dataset.keypoints == 2
    np.testing.assert_allclose(keypoints(dataset), [[[0.1, 0.1, 2], [0, 0, 0]], np.zeros((2, 3))], atol=1e-6)


@pytest.mark.parametrize("points", [[20, 10, 2], "none", [[20, 10, 2], [1, 1]], {"x": 1}])
def test_bad_keypoints_of_coco_are_named(tmp_path: Path, points: object) -> None:
    with pytest.raises(DataError, match="annotation 1; expected keypoints: 2 times x, y, visibility"):
        load_dataset(write_coco(tmp_path, keypoints=points)).split("val")


def test_a_keypoint_outside_of_its_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="annotation 1; expected keypoints inside the image"):
        load_dataset(write_coco(tmp_path, keypoints=[300, 10, 2, 0, 0, 0])).split("val")


def test_labels_with_other_keypoints_have_another_fingerprint(tmp_path: Path) -> None:
    rows = ("0 0.5 0.5 0.2 0.4 0.4 0.3 2 0.5 0.5 2", "0 0.5 0.5 0.2 0.4 0.4 0.3 2 0.5 0.6 2")
    splits = [load_dataset(write_yolo(tmp_path / str(index), row)).split("val") for index, row in enumerate(rows)]
    prints = {fingerprint(split, lambda _: "image", SILENT) for split in splits}
    assert len(prints) == 2


def test_a_detector_needs_data_with_its_keypoints(tmp_path: Path) -> None:
    write_subset(tmp_path / "part.yaml", write_yolo(tmp_path / "whole", ""), {"val": SplitPart("val")})
    for count, fits in ((2, True), (17, False)):
        spec = DetectorSpec(("cat",), Preprocess(64, 64), Head("yolo", keypoints=Keypoints((0.1,) * count)))
        if fits:
            require_classes(spec, load_dataset(tmp_path / "part.yaml"))
            continue
        with pytest.raises(DataError, match="expected 17 keypoints for each object; found 2; fix"):
            require_classes(spec, load_dataset(tmp_path / "part.yaml"))
