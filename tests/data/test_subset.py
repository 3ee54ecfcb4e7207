"""Parts of data sets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from edgekd.core.errors import DataError
from edgekd.data.dataset import load_dataset
from edgekd.data.subset import SplitPart, write_subset


def test_a_subset_has_the_samples_of_the_whole(tiny_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "part.yaml"
    path.parent.mkdir()
    write_subset(path, tiny_data, {"train": SplitPart("train", without=(0, 5)), "val": SplitPart("train", only=(5, 0))})
    whole, part = load_dataset(tiny_data), load_dataset(path)
    samples = whole.split("train").samples
    assert (part.classes, part.source, set(part.splits)) == (whole.classes, path, {"train", "val"})
    assert [s.image for s in part.split("val").samples] == [samples[5].image, samples[0].image]
    assert part.split("val").name == "val"
    assert len(part.split("train")) == len(samples) - 2
    assert np.array_equal(part.split("val").samples[0].truth.boxes, samples[5].truth.boxes)


def test_a_subset_of_coco_files(tmp_path: Path, tiny_data: Path) -> None:
    image = next((tiny_data / "images" / "train").iterdir()).name
    told = {
        "images": [{"id": at, "file_name": image, "width": 64, "height": 64} for at in range(3)],
        "annotations": [{"id": 1, "image_id": 2, "category_id": 7, "bbox": [0, 0, 32, 32]}],
        "categories": [{"id": 7, "name": "red"}],
    }
    (tmp_path / "whole" / "annotations").mkdir(parents=True)
    (tmp_path / "whole" / "annotations" / "instances_train.json").write_text(json.dumps(told), "utf-8")
    (tmp_path / "whole" / "train").symlink_to(tiny_data / "images" / "train")
    write_subset(tmp_path / "part.yaml", tmp_path / "whole", {"val": SplitPart("train", only=(2,))})
    (sample,) = load_dataset(tmp_path / "part.yaml").split("val").samples
    assert sample.truth.boxes.tolist() == [[0, 0, 0.5, 0.5]]


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"subset_of": 3, "splits": {}}, "no subset"),
        ({"subset_of": "DATA"}, "no subset"),
        ({"subset_of": "DATA", "splits": {"val": "train"}}, "val is 'train'"),
        ({"subset_of": "DATA", "splits": {"val": {"of": "train", "odd": 1}}}, "of: a split"),
        ({"subset_of": "DATA", "splits": {"val": {"of": "train", "only": [1.5]}}}, "a list of numbers"),
        ({"subset_of": "DATA", "splits": {"val": {"of": "train", "only": [99]}}}, "no image number 99"),
        ({"subset_of": "DATA", "splits": {"val": {"of": "nowhere"}}}, "no split 'nowhere'"),
        ({"subset_of": "DATA/none", "splits": {}}, "no data set"),
    ],
)
def test_what_is_no_subset_is_refused(told: dict, words: str, tiny_data: Path, tmp_path: Path) -> None:
    text = yaml.safe_dump(told).replace("DATA", str(tiny_data))
    (tmp_path / "part.yaml").write_text(text, "utf-8")
    with pytest.raises(DataError, match=words):
        load_dataset(tmp_path / "part.yaml").split("val")


def test_a_subset_in_the_folder_of_the_whole_is_refused(tmp_path: Path) -> None:
    write_subset(tmp_path / "part.yaml", tmp_path, {"val": SplitPart("train", only=(0,))})
    for place in (tmp_path, tmp_path / "part.yaml"):
        with pytest.raises(DataError, match="in the folder of its data set"):
            load_dataset(place)
