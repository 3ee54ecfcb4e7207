"""Data sets: the layouts that are accepted, and what is said about the ones that are not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgekd.core.errors import DataError
from edgekd.core.progress import SILENT
from edgekd.data.dataset import load_dataset
from edgekd.data.images import fingerprint
from edgekd.data.labels import read_labels


def make_yolo(root: Path, labels: Mapping[str, str | None], split: str = "train", yaml: str | None = None) -> Path:
    """A YOLO folder with one (empty) image file per label file; None writes no label file."""
    for kind in ("images", "labels"):
        (root / kind / split).mkdir(parents=True, exist_ok=True)
    for stem, text in labels.items():
        (root / "images" / split / f"{stem}.jpg").touch()
        if text is not None:
            (root / "labels" / split / f"{stem}.txt").write_text(text)
    (root / "data.yaml").write_text(yaml or f"path: .\n{split}: images/{split}\nnames: [cat, dog]\n")
    return root


def make_coco(**changes: Any) -> dict[str, Any]:
    image = {"id": 7, "file_name": "a.jpg", "width": 200, "height": 100}
    box = {"id": 1, "image_id": 7, "category_id": 90, "bbox": [20, 10, 100, 50], "iscrowd": 0}
    crowd = {"id": 2, "image_id": 7, "category_id": 3, "bbox": [0, 0, 200, 100], "iscrowd": 1}
    background = {"id": 4, "file_name": "b.jpg", "width": 10, "height": 10}
    document = {
        "images": [image, background],
        "annotations": [box, crowd],
        "categories": [{"id": 90, "name": "dog"}, {"id": 3, "name": "cat"}],
    }
    return {**document, **changes}


def write_coco(folder: Path, file: str, images: str, document: dict[str, Any]) -> Path:
    for name in ("a.jpg", "b.jpg"):
        (folder / images).mkdir(parents=True, exist_ok=True)
        (folder / images / name).touch()
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text(json.dumps(document))
    return folder / file


# ---------------------------------------------------------------------------------------------------------- YOLO


def test_yolo_rows_become_corners_per_image(tmp_path: Path) -> None:
    root = make_yolo(tmp_path, {"b": "1 0.5 0.5 0.2 0.4\n\n0 0.1 0.1 0.2 0.2\n", "a": "", "c": None})
    dataset = load_dataset(root)
    samples = dataset.split("train").samples
    assert dataset.classes == ("cat", "dog")
    assert [sample.image.name for sample in samples] == ["a.jpg", "b.jpg", "c.jpg"]
    assert [len(sample.truth) for sample in samples] == [0, 2, 0]
    truth = samples[1].truth
    np.testing.assert_allclose(truth.boxes, [[0.4, 0.3, 0.6, 0.7], [0, 0, 0.2, 0.2]], atol=1e-6)
    assert (truth.boxes.dtype, truth.classes.dtype, truth.crowd.dtype) == (np.float32, np.int64, np.bool_)
    assert truth.classes.tolist() == [1, 0]


def test_polygon_becomes_its_box(tmp_path: Path) -> None:
    root = make_yolo(tmp_path, {"a": "0 0.2 0.1 0.6 0.3 0.4 0.9\n1 0.5 0.5 0.5 0.5\n"})
    boxes = load_dataset(root).split("train").samples[0].truth.boxes
    np.testing.assert_allclose(boxes, [[0.2, 0.1, 0.6, 0.9], [0.25, 0.25, 0.75, 0.75]], atol=1e-6)


def test_polygons_are_kept_where_every_label_is_one(tmp_path: Path) -> None:
    rows = {"a": "0 0.2 0.1 0.6 0.3 0.4 0.9\n", "b": "1 0 0 1.0005 0 1 1 0 1\n0 0.2 0.1 0.6 0.3 0.4 0.9\n"}
    dataset = load_dataset(make_yolo(tmp_path, rows))
    assert [each.truth.polygons for each in dataset.split("train", "pose").samples] == [None, None]
    first, second = (each.truth.polygons for each in dataset.split("train", "segment").samples)
    assert first is not None
    assert second is not None
    np.testing.assert_allclose(first, [[[[0.2, 0.1], [0.6, 0.3], [0.4, 0.9]]]], atol=1e-6)
    assert second[0][0].tolist() == [[0, 0], [1, 0], [1, 1], [0, 1]]
    rows["b"] += "1 0.5 0.5 0.5 0.5\n"
    mixed = load_dataset(make_yolo(tmp_path / "mixed", rows)).split("train", "segment").samples
    assert [each.truth.polygons for each in mixed] == [None, None]


def test_other_polygons_with_the_same_box_have_another_fingerprint_where_they_are_scored(tmp_path: Path) -> None:
    rows = ("0 0.2 0.1 0.6 0.3 0.4 0.9\n", "0 0.2 0.1 0.6 0.4 0.4 0.9\n")
    sets = [load_dataset(make_yolo(tmp_path / str(index), {"a": row})) for index, row in enumerate(rows)]
    assert len({fingerprint(each.split("train"), lambda _: "image", SILENT) for each in sets}) == 1
    assert len({fingerprint(each.split("train", "obb"), lambda _: "image", SILENT) for each in sets}) == 2


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("2 0.5 0.5 0.1 0.1", "class from 0 to 1"),
        ("-1 0.5 0.5 0.1 0.1", "class from 0 to 1"),
        ("0.5 0.5 0.5 0.1 0.1", "class from 0 to 1"),
        ("0 0.5 1.002 0.1 0.1", "between 0 and 1"),
        ("0 0.5 0.5 -0.1 0.1", "between 0 and 1"),
        ("0 320 240 64 64", "between 0 and 1"),
        ("0 0.5 0.5 0.1", "found 4 columns"),
        ("0 0.5 0.5 0.1 0.1 0.9", "found a sixth: a confidence"),
        ("0 0.5 0.5 0.1 wide", "found 'wide'"),
        ("cat 0.5 0.5 0.1 0.1", "found 'cat'"),
        ("0 0.5 nan 0.1 0.1", "finite numbers"),
        ("0 0.5 inf 0.1 0.1", "finite numbers"),
        ("0 0.2 0.1 0.6 0.3 0.4 1.9", "between 0 and 1"),
        ("0 0.2 0.1 0.6 0.3 0.4 nan", "between 0 and 1"),
        ("0 0.2 0.1 0.6 0.3 0.4 x", "found 'x'"),
    ],
)
def test_bad_label_names_file_and_line(tmp_path: Path, row: str, said: str) -> None:
    root = make_yolo(tmp_path, {"a": "0 0.5 0.5 0.1 0.1\n", "b": f"0 0.5 0.5 0.1 0.1\n\n{row}\n"})
    with pytest.raises(DataError, match=r"labels/train/b\.txt line 3;") as caught:
        load_dataset(root).split("train")
    assert said in str(caught.value)


def test_rounding_outside_the_image_is_clipped(tmp_path: Path) -> None:
    root = make_yolo(tmp_path, {"a": "0 0.5 0.5 1.0009 1.0\n0 -0.0005 0.5 0.1 0.1\n"})
    boxes = load_dataset(root).split("train").samples[0].truth.boxes
    assert boxes.min() >= 0
    assert boxes.max() <= 1


def test_a_polygon_that_is_a_little_outside_on_both_sides_is_clipped(tmp_path: Path) -> None:
    root = make_yolo(tmp_path, {"a": "0 -0.0008 0.2 1.0008 0.2 1.0008 0.9\n"})
    boxes = load_dataset(root).split("train").samples[0].truth.boxes
    np.testing.assert_allclose(boxes, [[0, 0.2, 1, 0.9]], atol=1e-6)


@given(
    table=arrays(np.float64, st.tuples(st.integers(0, 20), st.just(4)), elements=st.floats(0, 1)),
    counts=st.lists(st.integers(0, 5), min_size=1, max_size=8),
)
def test_what_is_written_is_what_is_read(
    tmp_path_factory: pytest.TempPathFactory, table: np.ndarray, counts: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("labels")
    table = np.resize(table, (sum(counts), 4)) if len(table) else np.zeros((sum(counts), 4))
    files, start = [], 0
    for index, count in enumerate(counts):
        files.append(folder / f"{index}.txt")
        rows = table[start : start + count]
        files[-1].write_text(
            "".join(f"{i} {cx!r} {cy!r} {w!r} {h!r}\n" for i, (cx, cy, w, h) in enumerate(rows.tolist()))
        )
        start += count
    truths = read_labels(files, 5)
    assert [len(truth) for truth in truths] == counts
    boxes = np.concatenate([truth.boxes for truth in truths])
    want = np.concatenate([table[:, :2] - table[:, 2:] / 2, table[:, :2] + table[:, 2:] / 2], axis=1).clip(0, 1)
    np.testing.assert_allclose(boxes, want, atol=1e-6)
    assert all(truth.classes.tolist() == list(range(count)) for truth, count in zip(truths, counts, strict=True))


def test_only_the_split_asked_for_is_read(tmp_path: Path) -> None:
    yaml = "train: images/train\nval: images/val\ntest:\nnames: {0: cat, 1: dog}\n"
    make_yolo(tmp_path, {"a": "not a label"}, "train", yaml)
    make_yolo(tmp_path, {"b": "1 0.5 0.5 0.1 0.1"}, "val", yaml)
    dataset = load_dataset(tmp_path)
    assert list(dataset.splits) == ["train", "val"]
    assert "train" in dataset.splits
    assert len(dataset.split("val")) == 1
    assert dataset.split("val") is dataset.split("val")
    with pytest.raises(DataError, match="line 1"):
        dataset.split("train")


def test_split_may_be_a_list_of_folders_or_of_files(tmp_path: Path) -> None:
    make_yolo(tmp_path, {"a": "0 0.5 0.5 0.1 0.1"}, "day")
    yaml = "path: ..\ntrain: [images/day, images/night]\nval: val.txt\nnames: [cat, dog]\n"
    make_yolo(tmp_path, {"b": "1 0.5 0.5 0.1 0.1"}, "night")
    (tmp_path / "val.txt").write_text("./images/night/b.jpg\n\nimages/day/a.jpg\n")
    (tmp_path / "cfg").mkdir()
    (tmp_path / "cfg" / "cats.yaml").write_text(yaml)
    dataset = load_dataset(tmp_path / "cfg" / "cats.yaml")
    assert [sample.image.name for sample in dataset.split("train").samples] == ["a.jpg", "b.jpg"]
    assert [sample.truth.classes.tolist() for sample in dataset.split("val").samples] == [[1], [0]]


def test_listed_image_that_is_missing_is_named_with_its_line(tmp_path: Path) -> None:
    make_yolo(tmp_path, {"a": ""}, yaml="val: val.txt\nnames: [cat]\n")
    (tmp_path / "val.txt").write_text("images/train/a.jpg\nimages/train/gone.jpg\n")
    with pytest.raises(DataError, match=r"val\.txt line 2: no image images/train/gone\.jpg"):
        load_dataset(tmp_path).split("val")


def test_labels_may_lie_beside_the_images(tmp_path: Path) -> None:
    (tmp_path / "valid").mkdir()
    (tmp_path / "valid" / "a.PNG").touch()
    (tmp_path / "valid" / "a.txt").write_text("0 0.5 0.5 0.1 0.1")
    (tmp_path / "any.yaml").write_text("val: ../valid\nnames: [cat]\n")  # as Roboflow writes it
    assert len(load_dataset(tmp_path).split("val").samples[0].truth) == 1


def test_symlinked_images_keep_the_labels_of_their_folder(tmp_path: Path) -> None:
    make_yolo(tmp_path / "set", {"a": None})
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / "set" / "images" / "train").rename(elsewhere)
    (tmp_path / "set" / "images" / "train").symlink_to(elsewhere)
    (tmp_path / "set" / "labels" / "train" / "a.txt").write_text("1 0.5 0.5 0.1 0.1")
    assert load_dataset(tmp_path / "set").split("train").samples[0].truth.classes.tolist() == [1]


def test_split_without_any_label_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of 2 images has a label file.*labels/train/a\.txt"):
        load_dataset(make_yolo(tmp_path, {"a": None, "b": None})).split("train")


def test_missing_and_empty_splits_are_named(tmp_path: Path) -> None:
    dataset = load_dataset(make_yolo(tmp_path, {}))
    with pytest.raises(DataError, match=r"no split 'val'.*one of: train"):
        dataset.split("val")
    with pytest.raises(DataError, match=r"'train'.*is empty"):
        dataset.split("train")


@pytest.mark.parametrize(
    ("yaml", "said"),
    [
        ("train: images/train\n", "does not name the classes"),
        ("train: images/train\nnames: {0: cat, 2: dog}\n", "not contiguous"),
        ("train: images/train\nnames: [cat, no]\n", "put the name in quotes"),
        ("train: images/train\nnames: [cat, cat]\n", "'cat' twice"),
        ("names: [cat]\n", "names no split"),
        ("train: 3\nnames: [cat]\n", "train is 3"),
        ("train: [a\nnames: [cat]\n", "line"),
        ("- train\n", "found list"),
    ],
)
def test_bad_yaml_is_explained(tmp_path: Path, yaml: str, said: str) -> None:
    with pytest.raises(DataError, match=r"data\.yaml") as caught:
        load_dataset(make_yolo(tmp_path, {"a": ""}, yaml=yaml))
    assert said in str(caught.value)


def test_split_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    dataset = load_dataset(make_yolo(tmp_path, {"a": ""}, yaml="val: images/gone\nnames: [cat]\n"))
    with pytest.raises(DataError, match=r"no images at .*images/gone"):
        dataset.split("val")


def test_folder_without_yaml_needs_a_classes_txt(tmp_path: Path) -> None:
    make_yolo(tmp_path, {"a": "1 0.5 0.5 0.1 0.1"})
    (tmp_path / "data.yaml").unlink()
    with pytest.raises(DataError, match="no class names"):
        load_dataset(tmp_path)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert load_dataset(tmp_path).split("train").samples[0].truth.classes.tolist() == [1]


def test_several_yaml_files_are_ambiguous(tmp_path: Path) -> None:
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text("train: x\nnames: [cat]\n")
    with pytest.raises(DataError, match=r"several YAML files.*a\.yaml, b\.yaml"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("name", ["gone", "notes.md", ""])
def test_what_is_no_data_set_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.md").touch()
    with pytest.raises(DataError, match="no data set"):
        load_dataset(tmp_path / name)


def test_real_yolo_set_is_read_whole(shared: Path) -> None:
    dataset = load_dataset(shared / "data" / "coco256")
    assert len(dataset.classes) == 80
    splits = {name: dataset.split(name) for name in dataset.splits}
    assert {name: len(split) for name, split in splits.items()} == {"train": 128, "val": 128}
    for name, split in splits.items():
        stems = {sample.image.stem for sample in split.samples}
        files = (shared / "data" / "coco256" / "labels" / f"{name}2017").glob("*.txt")
        rows = sum(len(file.read_text().splitlines()) for file in files if file.stem in stems)
        assert sum(len(sample.truth) for sample in split.samples) == rows > 800


# ---------------------------------------------------------------------------------------------------------- COCO


@pytest.mark.parametrize(
    ("file", "images"),
    [
        ("annotations/instances_val2017.json", "val2017"),
        ("annotations/instances_val2017.json", "images/val2017"),
        ("annotations/instances_val.json", "images"),
        ("valid/_annotations.coco.json", "valid"),
        ("labels.json", "data"),
        ("validation/labels.json", "validation/data"),
    ],
)
def test_coco_layouts_are_found(tmp_path: Path, file: str, images: str) -> None:
    write_coco(tmp_path, file, images, make_coco())
    dataset = load_dataset(tmp_path)
    first, second = dataset.split("val").samples
    assert dataset.classes == ("cat", "dog")
    assert first.image == tmp_path / images / "a.jpg"
    np.testing.assert_allclose(first.truth.boxes, [[0.1, 0.1, 0.6, 0.6], [0, 0, 1, 1]], atol=1e-6)
    assert first.truth.classes.tolist() == [1, 0]
    assert first.truth.crowd.tolist() == [False, True]
    assert len(second.truth) == 0


def test_single_coco_file_is_the_split_val(tmp_path: Path) -> None:
    file = write_coco(tmp_path, "cats.json", "images", make_coco())
    assert list(load_dataset(file).splits) == ["val"]
    assert len(load_dataset(file).split("val")) == 2


def test_coco_splits_must_share_categories(tmp_path: Path) -> None:
    write_coco(tmp_path, "annotations/instances_train.json", "images", make_coco())
    other = make_coco(categories=[{"id": 90, "name": "dog"}, {"id": 3, "name": "a much longer name"}])
    write_coco(tmp_path, "annotations/instances_val.json", "images", other)
    dataset = load_dataset(tmp_path)
    assert len(dataset.split("train")) == 2
    with pytest.raises(DataError, match=r"instances_val\.json has other categories"):
        dataset.split("val")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"category_id": 5}, "annotation 1; .*no 5"),
        ({"image_id": 5}, "annotation 1; .*no 5"),
        ({"bbox": [1, 2, 3]}, r"annotation 1; .*\[1, 2, 3\]"),
        ({"bbox": [1, 2, 3, "x"]}, "annotation 1; .*4 numbers"),
        ({"bbox": [1, 2, 3, float("nan")]}, "annotation 1; .*inside the image of 200x100"),
        ({"bbox": [150, 10, 60, 10]}, "annotation 1; .*inside the image of 200x100"),
        ({"bbox": [150, 10, -10, 10]}, "annotation 1; .*inside the image of 200x100"),
    ],
)
def test_bad_coco_annotation_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    document = make_coco()
    document["annotations"][0].update(change)
    file = write_coco(tmp_path, "cats.json", ".", document)
    with pytest.raises(DataError, match=said):
        load_dataset(file).split("val")


def test_an_annotation_that_leaves_crowd_open_is_of_one_object(tmp_path: Path) -> None:
    document = make_coco()
    document["annotations"][0]["iscrowd"] = None
    truth = load_dataset(write_coco(tmp_path, "cats.json", ".", document)).split("val").samples[0].truth
    assert truth.crowd.tolist() == [False, True]


def test_coco_images_with_one_id_are_refused(tmp_path: Path) -> None:
    document = make_coco()
    document["images"][1]["id"] = 7
    file = write_coco(tmp_path, "cats.json", ".", document)
    with pytest.raises(DataError, match=r"cats\.json: two images have the id 7"):
        load_dataset(file).split("val")


def test_missing_coco_image_is_named(tmp_path: Path) -> None:
    file = write_coco(tmp_path, "cats.json", "images", make_coco())
    (tmp_path / "images" / "b.jpg").unlink()
    with pytest.raises(DataError, match=r"an image is missing.*images/b\.jpg"):
        load_dataset(file).split("val")
    (tmp_path / "images" / "a.jpg").unlink()
    with pytest.raises(DataError, match=r"no image a\.jpg; expected it in one of"):
        load_dataset(file).split("val")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"images": [],\n "annotations"', r"cats\.json line 2 is no valid JSON"),
        ("[]", "expected a list of images"),
        (json.dumps(make_coco(categories=[{"id": 1}])), "a category is incomplete"),
        (json.dumps(make_coco(images=[{"id": 7, "file_name": "a.jpg"}])), "an image is incomplete"),
        (json.dumps(make_coco(images=[{"id": 7, "file_name": "a.jpg", "width": 0, "height": 9}])), "a width and"),
    ],
)
def test_bad_coco_file_is_explained(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "cats.json"
    file.write_text(text)
    with pytest.raises(DataError, match=said):
        load_dataset(file).split("val")


# --------------------------------------------------------------------------------------- as Roboflow and FiftyOne write


def write_split(folder: Path, images: str, labels: str, name: str = "a_jpg.rf.0f3d") -> None:
    for place, file in ((images, f"{name}.jpg"), (labels, f"{name}.txt")):
        (folder / place).mkdir(parents=True, exist_ok=True)
        (folder / place / file).write_text("1 0.5 0.5 0.2 0.4\n" if file.endswith("txt") else "")


def splits_of(folder: Path) -> dict[str, list[str]]:
    dataset = load_dataset(folder)
    assert dataset.classes == ("cat", "dog")
    read = {name: dataset.split(name).samples for name in dataset.splits if name != "test"}
    assert all(sample.truth.classes.tolist() == [1] for samples in read.values() for sample in samples)
    return {name: [str(sample.image.relative_to(folder)) for sample in samples] for name, samples in read.items()}


@pytest.mark.parametrize("prefix", ["../", "Street-3/", "/content/Street-3/", ""])
def test_a_yolo_export_of_roboflows_loads_as_it_comes(tmp_path: Path, prefix: str) -> None:
    for split in ("train", "valid"):
        write_split(tmp_path / "any", f"{split}/images", f"{split}/labels")
    (tmp_path / "any" / "README.roboflow.txt").write_text("Street - v3\n")
    # `test` is named even where the project has none.
    lines = [
        f"{key}: {prefix}{folder}/images" for key, folder in (("train", "train"), ("val", "valid"), ("test", "test"))
    ]
    lines += ["", "nc: 2", "names: ['cat', 'dog']", "", "roboflow:", "  workspace: w", "  version: 3"]
    (tmp_path / "any" / "data.yaml").write_text("\n".join(lines))
    found = splits_of(tmp_path / "any")
    assert found == {"train": ["train/images/a_jpg.rf.0f3d.jpg"], "val": ["valid/images/a_jpg.rf.0f3d.jpg"]}


@pytest.mark.parametrize("path", ["path: /home/somebody/export\n", "path: {folder}\n", ""])
@pytest.mark.parametrize("key", ["val", "validation"])
def test_a_yolo_export_of_fiftyones_loads_as_it_comes(tmp_path: Path, path: str, key: str) -> None:
    for split in ("train", key):
        write_split(tmp_path, f"images/{split}", f"labels/{split}", "000001")
    text = f"names:\n  0: cat\n  1: dog\n{path.format(folder=tmp_path)}train: ./images/train/\n{key}: ./images/{key}/\n"
    (tmp_path / "dataset.yaml").write_text(text)
    found = splits_of(tmp_path)
    assert found == {"train": ["images/train/000001.jpg"], "val": [f"images/{key}/000001.jpg"]}


def test_what_a_model_found_is_not_taken_for_labels(tmp_path: Path) -> None:
    make_yolo(tmp_path, {"a": "0 0.5 0.5 0.2 0.4 0.87\n"})
    with pytest.raises(DataError, match=r"a\.txt line 1; .*found a sixth: a confidence; fix: export the labels"):
        load_dataset(tmp_path).split("train")


def test_a_place_that_is_nowhere_is_named_as_the_yaml_has_it(tmp_path: Path) -> None:
    make_yolo(tmp_path, {"a": None}, yaml="path: /nowhere\ntrain: pictures/first\nnames: [cat]\n")
    with pytest.raises(DataError, match="no images at /nowhere/pictures/first"):
        load_dataset(tmp_path).split("train")


def test_the_project_that_roboflow_puts_above_all_categories_is_no_class(tmp_path: Path) -> None:
    above = {"id": 0, "name": "animals", "supercategory": "none"}
    own = [{"id": 1, "name": "cat", "supercategory": "animals"}, {"id": 2, "name": "dog", "supercategory": "animals"}]
    box = {
        "id": 0,
        "image_id": 7,
        "category_id": 2,
        "bbox": [20, 10, 100, 50],
        "area": 5000,
        "segmentation": [],
        "iscrowd": 0,
    }
    document = make_coco(categories=[above, *own], annotations=[box], info={"version": "3"}, licenses=[])
    for split in ("train", "valid"):
        write_coco(tmp_path, f"{split}/_annotations.coco.json", split, document)
    dataset = load_dataset(tmp_path)
    assert dataset.classes == ("cat", "dog")
    assert [dataset.split(name).samples[0].truth.classes.tolist() for name in ("train", "val")] == [[1], [1]]
    # The project may be called as its only class; and what only looks alike is a class.
    same = [{**above, "name": "cat"}, {**own[0], "supercategory": "cat"}]
    for categories, classes in (
        (same, ("cat",)),
        ([above], ("animals",)),
        ([{**above, "supercategory": ""}, *own], None),
    ):
        write_coco(tmp_path / "other", "labels.json", "data", make_coco(categories=categories, annotations=[]))
        assert load_dataset(tmp_path / "other").classes == (classes or ("animals", "cat", "dog"))


def test_a_coco_export_of_fiftyones_loads_as_it_comes(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_coco(tmp_path, f"{split}/labels.json", f"{split}/data", make_coco(info={"year": ""}, licenses=[]))
    dataset = load_dataset(tmp_path)
    assert [dataset.split(name).samples[0].image for name in ("train", "val")] == [
        tmp_path / name / "data" / "a.jpg" for name in ("train", "val")
    ]
    assert list(load_dataset(tmp_path / "train").splits) == ["val"], "one export by itself is scored"
