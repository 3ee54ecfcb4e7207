"""Load labelled data sets in YOLO layout (folder or YAML) or COCO JSON.

A split is read on first use, so that scoring `val` never parses the labels of a large `train`.
Every error about a label names its file and line (for COCO JSON: the id of the annotation).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from edgekd.core.detection.checked_spec import MAX_CLASSES
from edgekd.core.errors import DataError
from edgekd.core.input_files import is_file, is_folder, shown_path
from edgekd.data.keypoints import annotated_keypoints, category_keypoints, keypoint_shape
from edgekd.data.labels import TOLERANCE, Truth, read_labels, truths_per_image
from edgekd.data.outlines import annotated_outlines
from edgekd.data.source_files import (
    files_below,
    places_by_id,
    read_json,
    read_text,
    read_yaml,
    require_inside,
    require_names,
    require_relative,
    shown,
)
from edgekd.data.subset import WHOLE, read_subset
from edgekd.data.types import OUTLINED, Dataset, Sample, Split

if TYPE_CHECKING:
    from edgekd.core.detection.types import DetectorSpec, Task

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
SPLITS = ("train", "val", "test")
_TASKS = ("instances_", "person_keypoints_")
"""Prefixes of the names of COCO's files, in the order of search: a folder with both is loaded as a set of boxes."""
MAX_SUBSETS = 8
"""Maximum depth of nested subsets: a subset may name itself."""
MAX_IMAGE_SIDE = 1 << 20
"""Maximum width or height of an image in a COCO file, in pixels."""


def load_dataset(path: Path) -> Dataset:
    """Open a data set: a folder, a YAML file in YOLO layout, or a COCO JSON file (which becomes the split `val`).

    Splits are read later, by `Dataset.split`. Raises DataError for anything else, or if class names are missing.
    """
    try:
        return _load(path, path.absolute(), 0)
    except OSError as error:  # a folder that may not be read, a name longer than the file system allows
        raise DataError(f"cannot read {shown_path(path)}: {error.strerror}") from error


def _load(path: Path, source: Path, depth: int) -> Dataset:
    """Open a data set. path: for errors; depth: number of subsets that contain it."""
    if is_folder(source):
        return _load_folder(source, depth)
    if not is_file(source):
        what = f"no data set at {shown_path(path)}"
        raise DataError(what, expected="a folder, a .yaml or a .json", fix="check the path")
    if source.suffix.lower() in {".yaml", ".yml"}:
        return _load_yaml(source, source, depth)
    if source.suffix.lower() == ".json":
        return _load_coco(source, {"val": source})
    raise DataError(f"{path} is no data set", expected="a folder, a .yaml or a .json")


def unlabelled(place: Path) -> Split:
    """Return the images in a folder, or listed in a `.txt`, without labels. Raises DataError if there are none."""
    images = _images_at(place)
    if not images:
        raise DataError(f"no image in {place}", expected="at least one of: " + ", ".join(sorted(IMAGE_SUFFIXES)))
    no_labels = Truth(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool))
    return Split("unlabelled", tuple(Sample(image, no_labels) for image in images))


def _load_folder(folder: Path, depth: int) -> Dataset:
    yaml_file = _yaml_in(folder)
    if yaml_file:
        return _load_yaml(folder, yaml_file, depth)
    coco_files = _coco_files_in(folder)
    if coco_files:
        return _load_coco(folder, coco_files)
    image_folders = _yolo_folders_in(folder)
    if not image_folders:
        raise DataError(
            f"{folder} is no data set",
            expected="a data.yaml, annotations/instances_*.json, labels.json, */_annotations.coco.json, or images/ and "
            "classes.txt",
        )
    names = folder / "classes.txt"
    if not names.is_file():
        raise DataError(
            f"{folder} has images but no class names",
            expected="a data.yaml or a classes.txt",
            fix="write a data.yaml with train, val and names",
        )
    classes = _class_names(read_text(names).splitlines(), names)
    return Dataset(folder, classes, {name: _yolo_split(name, (path,), classes) for name, path in image_folders.items()})


# ---------------------------------------------------------------------------------------------------------- YOLO


def _yaml_in(folder: Path) -> Path | None:
    for name in ("data.yaml", "dataset.yaml"):
        if (folder / name).is_file():
            return folder / name
    found = sorted(file for file in folder.iterdir() if file.suffix.lower() in {".yaml", ".yml"})
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise DataError(f"{folder} has several YAML files", expected="one", found=names, fix="pass the file itself")
    return found[0] if found else None


def _yolo_folders_in(folder: Path) -> dict[str, Path]:
    candidates = [*sorted(folder.glob("images/*")), *(path / "images" for path in sorted(folder.iterdir()))]
    folders: dict[str, Path] = {}
    for path in candidates:
        name = _split_name(path.parent.name if path.name == "images" else path.name)
        if name in SPLITS and path.is_dir():
            folders.setdefault(name, path)
    return folders


def _load_yaml(source: Path, file: Path, depth: int) -> Dataset:
    settings = read_yaml(file)
    if WHOLE in settings:
        subset = read_subset(file, settings)
        if depth == MAX_SUBSETS:
            raise DataError(f"{file}: a subset of a subset, and so on", expected=f"at most {MAX_SUBSETS} of them")
        return subset.select(_load(subset.whole, subset.whole.absolute(), depth + 1))
    root = file.parent / str(settings.get("path") or ".")
    classes, keypoints = _class_names(settings.get("names"), file), keypoint_shape(settings, file)
    readers: dict[str, Callable[[Task], Split]] = {}
    for name in SPLITS:
        key = name if name in settings else next((key for key in settings if _split_name(str(key)) == name), name)
        setting = settings.get(key)
        if not setting:
            continue
        entries = setting if isinstance(setting, list) else [setting]
        if not all(isinstance(entry, str) for entry in entries):
            what = f"{file}: {str(key)[:80]} is {shown(setting)}"
            raise DataError(what, expected="a folder, a list of folders, or a .txt")
        places = tuple(_place(root, entry, file.parent) for entry in entries)
        readers[name] = _yolo_split(name, places, classes, keypoints)
    if not readers:
        raise DataError(f"{file} names no split", expected="train, val or test")
    return Dataset(source, classes, readers, keypoints[0] if keypoints else None)


def _place(root: Path, entry: str, beside: Path) -> Path:
    """Return the folder of a split as given in the YAML, or if that does not exist, beside the YAML.

    Roboflow writes ../train/images into a data.yaml beside train/, its Python package Project-1/train/images into one
    in Project-1/; FiftyOne writes an absolute `path`, which is stale once the folder has moved.
    """
    parts = Path(entry).parts
    moved = [root / entry[3:]] if entry.startswith("../") else []
    moved += [beside.joinpath(*parts[-last:]) for last in (3, 2, 1) if len(parts) >= last and ".." not in parts[-last:]]
    found = next((place for place in (root / entry, *moved) if is_file(place) or is_folder(place)), root / entry)
    return Path(os.path.normpath(found))


def _class_names(names: object, file: Path) -> tuple[str, ...]:
    """Return class names in id order, from a list or from a mapping of ids 0..n-1."""
    if isinstance(names, (dict, list)) and len(names) > MAX_CLASSES:
        raise DataError(f"{file} names too many classes", expected=f"at most {MAX_CLASSES}", found=str(len(names)))
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise DataError(f"{file}: class ids are not contiguous", expected=f"names from 0 to {len(names) - 1}")
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DataError(f"{file} does not name the classes", expected="names: a list, or a mapping of ids from 0")
    for name in names:
        # YAML parses an unquoted no, yes or null as a boolean or None.
        if name is None or isinstance(name, (bool, list, dict, set, bytes)) or not str(name).strip():
            raise DataError(f"{file}: a class is named {shown(name)}", expected="text", fix="put the name in quotes")
    classes = tuple(str(name).strip() for name in names)
    if len(set(classes)) < len(classes):
        duplicate = next(name for name in classes if classes.count(name) > 1)
        raise DataError(f"{file} names the class {shown(duplicate)} twice", expected="one id per name")
    return require_names(classes, file)


def _yolo_split(
    name: str, places: Sequence[Path], classes: tuple[str, ...], keypoints: tuple[int, int] | None = None
) -> Callable[[Task], Split]:
    return cache(partial(_read_yolo_split, name, places, classes, keypoints))


def _read_yolo_split(
    name: str, places: Sequence[Path], classes: tuple[str, ...], keypoints: tuple[int, int] | None, task: Task
) -> Split:
    images = tuple(dict.fromkeys(image for place in places for image in _images_at(place)))
    label_folders = {folder: _label_folder(folder) for folder in {image.parent for image in images}}
    files = [label_folders[image.parent] / f"{image.stem}.txt" for image in images]
    truths = read_labels(files, len(classes), keypoints, polygons=task in OUTLINED)
    return Split(name, tuple(map(Sample, images, truths)))


def _images_at(place: Path) -> list[Path]:
    if place.suffix.lower() == ".txt" and is_file(place):
        return _images_listed(place)
    if not is_folder(place):
        raise DataError(
            f"no images at {shown_path(place)}",
            expected="a folder, or a .txt with one image path a line",
            fix="correct the split, or path:, in the data set's YAML (a relative path starts from the YAML's folder)",
        )
    return sorted((file for file in files_below(place, IMAGE_SUFFIXES) if not file.name.startswith(".")), key=str)


def _images_listed(file: Path) -> list[Path]:
    images = []
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        if not line.strip():
            continue
        image = Path(os.path.normpath(file.parent / line.strip()))
        if not is_file(image):
            what = f"{file} line {number}: no image {shown_path(line.strip())}"
            raise DataError(what, expected=f"a file at {shown_path(image)}")
        images.append(image)
    return images


def _label_folder(images: Path) -> Path:
    """Return the label folder of an image folder: its path with `labels` for the last `images`; itself without one."""
    parts = images.parts
    if "images" in parts:
        index = len(parts) - 1 - parts[::-1].index("images")
        labels = Path(*parts[:index], "labels", *parts[index + 1 :])
        if labels.is_dir():
            return labels
    return images


# ---------------------------------------------------------------------------------------------------------- COCO


def _split_name(text: str) -> str:
    """Normalise the name of a split: `val2017`, `valid` and `validation` become `val`."""
    name = re.sub(r"[_-]?\d+$", "", text.lower())
    return "val" if name in {"valid", "validation"} else name


def _coco_files_in(folder: Path) -> dict[str, Path]:
    by_task = (
        {file.stem.removeprefix(tag): file for file in folder.glob(f"annotations/{tag}*.json")} for tag in _TASKS
    )
    files = next(filter(None, by_task), {})
    # File names of Roboflow, and of FiftyOne with one folder per split.
    for name in ("_annotations.coco.json", "labels.json"):
        files |= {file.parent.name: file for file in sorted(folder.glob(f"*/{name}"))}
    if not files and (folder / "labels.json").is_file():
        return {"val": folder / "labels.json"}
    normalised = [_split_name(name) for name in files]
    # Names that normalise to the same one, such as val2014 and val2017, stay as they are.
    return {
        short if normalised.count(short) == 1 else name: files[name]
        for name, short in zip(files, normalised, strict=True)
    }


def _load_coco(source: Path, files: Mapping[str, Path]) -> Dataset:
    # Every file has the classes; the smallest is parsed for them, and kept until its split is read.
    smallest = min(files.values(), key=lambda file: (file.stat().st_size, file))
    documents = {smallest: _read_coco(smallest)}
    categories = _categories(documents[smallest], smallest)
    classes = _class_names(list(categories.values()), smallest)
    keypoints = category_keypoints(documents[smallest]["categories"])

    def read(name: str, file: Path, task: Task) -> Split:
        document = documents.pop(file, None) or _read_coco(file)
        if _categories(document, file) != categories:
            raise DataError(f"{file} has other categories than {smallest}", expected="the same in all splits")
        return _read_coco_split(name, file, document, list(categories), keypoints, task)

    readers = {name: cache(partial(read, name, file)) for name, file in files.items()}
    return Dataset(source, classes, readers, keypoints)


def _read_coco(file: Path) -> dict[str, Any]:
    document = read_json(file)
    for key in ("images", "annotations", "categories"):
        if not isinstance(document, dict) or not isinstance(document.get(key), list):
            raise DataError(f"{file} is no COCO JSON of boxes", expected=f"a list of {key}")
    return dict(document)


def _categories(document: Mapping[str, Any], file: Path) -> dict[int, str]:
    """Return class names by category id, in id order: COCO's ids may have gaps."""
    entries = document["categories"]
    if len(entries) > MAX_CLASSES:
        raise DataError(f"{file} has too many categories", expected=f"at most {MAX_CLASSES}", found=str(len(entries)))
    try:
        names = {int(entry["id"]): _name(entry["name"]) for entry in entries if not _is_root(entry, entries)}
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:  # the last: an infinite id
        raise DataError(f"{file}: a category is incomplete", expected="an id and a name in each") from error
    return dict(sorted(names.items()))


def _is_root(entry: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a category is Roboflow's root, named like the project: the supercategory of all classes."""
    if entry.get("supercategory") != "none" or len(entries) < 2:
        return False
    return all(other.get("supercategory") == entry["name"] for other in entries if other is not entry)


def _name(value: object) -> str:
    """Return a name, which may be written as a number. Raises TypeError for anything else."""
    if not isinstance(value, (str, int, float)):
        raise TypeError("a name that is no text")
    return str(value)


def _read_coco_split(
    name: str, file: Path, document: Mapping[str, Any], category_ids: Sequence[int], keypoints: int | None, task: Task
) -> Split:
    images, annotations = document["images"], document["annotations"]
    try:
        shapes = np.array([(image["width"], image["height"]) for image in images], np.float64).reshape(-1, 2)
        owners = places_by_id(images, file)
        names = [_name(image["file_name"]) for image in images]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{file}: an image is incomplete", expected="id, file_name, width and height") from error
    good = ((shapes >= 1) & (shapes <= MAX_IMAGE_SIDE)).all(axis=1)
    if not good.all():
        bad, expected = int((~good).argmax()), f"a width and a height, at most {MAX_IMAGE_SIDE}"
        raise DataError(f"{file}: image {shown(names[bad])}", expected=expected, found=f"{shapes[bad].tolist()}")
    class_ids = {category: index for index, category in enumerate(category_ids)}
    try:
        rows = [_coco_row(entry, owners, class_ids) for entry in annotations]
        table = np.array(rows, np.float64).reshape(-1, 7)
    except (KeyError, TypeError, ValueError, OverflowError):
        _refuse_annotation(file, annotations, owners, class_ids)
    owner = table[:, 0].astype(np.int64)

    def where(row: int) -> str:
        return _annotation(file, annotations[row], row)

    boxes = _coco_boxes(table[:, 2:6], shapes[owner], where)
    points = None if keypoints is None else annotated_keypoints(annotations, keypoints, shapes[owner], where)
    outlines = annotated_outlines(annotations, boxes, shapes[owner]) if task in OUTLINED else None
    truths = truths_per_image(owner, len(images), boxes, table[:, 1], table[:, 6] != 0, points, outlines)
    return Split(name, tuple(map(Sample, _coco_images(file, names), truths)))


def _coco_row(entry: Mapping[str, Any], owners: Mapping[Any, int], class_ids: Mapping[Any, int]) -> tuple[Any, ...]:
    x, y, width, height = entry["bbox"]
    return owners[entry["image_id"]], class_ids[entry["category_id"]], x, y, width, height, entry.get("iscrowd") or 0


def _refuse_annotation(
    file: Path, annotations: Sequence[Any], owners: Mapping[Any, int], class_ids: Mapping[Any, int]
) -> NoReturn:
    """Raise DataError for the first malformed annotation."""
    for index, entry in enumerate(annotations):
        where = _annotation(file, entry, index)
        try:
            np.array(_coco_row(entry, owners, class_ids), np.float64)
        except KeyError as error:
            expected = "image_id of an image, category_id of a category, and bbox"
            raise DataError(where, expected=expected, found=f"no {str(error)[:80]}") from None
        except (TypeError, ValueError, OverflowError) as error:
            found = shown(entry.get("bbox") if isinstance(entry, dict) else entry)
            raise DataError(where, expected="bbox: 4 numbers x, y, width, height", found=found[:80]) from error
    raise DataError(f"{file}: the annotations are malformed")


def _annotation(file: Path, entry: Any, index: int) -> str:
    """Return the name of an annotation for errors: its id, else its index in the list."""
    number = entry.get("id", index) if isinstance(entry, dict) else index
    return f"{file}: annotation {number if isinstance(number, (int, str)) else index}"[:300]


def _coco_boxes(
    xywh: NDArray[np.float64], shapes: NDArray[np.float64], where: Callable[[int], str]
) -> NDArray[np.float64]:
    """Convert boxes x, y, width, height in pixels to corners as fractions of the image; shapes: [n, 2] image sizes."""
    low, high = xywh[:, :2], xywh[:, :2] + xywh[:, 2:]
    # Labelling tools disagree on whether the last pixel is included: one pixel outside counts as rounding.
    slack = 1 + TOLERANCE * shapes
    invalid = ~np.isfinite(xywh).all(axis=1) | (xywh[:, 2:] < 0).any(axis=1)
    invalid |= ((low < -slack) | (high > shapes + slack)).any(axis=1)
    if invalid.any():
        row = int(invalid.argmax())
        width, height = shapes[row].astype(int).tolist()
        expected = f"a box inside the image of {width}x{height} pixels"
        raise DataError(where(row), expected=expected, found=f"bbox {xywh[row].tolist()}")
    return np.concatenate([low / shapes, high / shapes], axis=1)


def _coco_images(file: Path, names: Sequence[str]) -> list[Path]:
    require_relative(names, file)
    tag = file.stem.removeprefix(_TASKS[0]).removeprefix(_TASKS[1])
    base = file.parent.parent if file.parent.name == "annotations" else file.parent
    places = [file.parent, base / tag, base / "images" / tag, base / "images", base / "data", base]
    folders = list(dict.fromkeys(places))
    # Several images are tried: one missing image must not look like a wrong folder.
    folder = next((folder for folder in folders if any(is_file(folder / name) for name in names[:16])), None)
    if names and folder is None:
        raise DataError(
            f"{file}: no image {shown_path(names[0])}", expected=f"it in one of: {', '.join(map(str, folders))}"
        )
    images = [(folder or base) / name for name in names]
    missing = next((image for image in images if not is_file(image)), None)
    if missing is not None:
        expected, fix = f"a file at {shown_path(missing)}", "restore it or its entry"
        raise DataError(f"{file}: an image is missing", expected=expected, fix=fix)
    require_inside(names, folder or base, base, file)
    return images


def require_classes(spec: DetectorSpec, dataset: Dataset) -> None:
    """Raise DataError unless data set and detector have the same classes in the same order, and the same keypoints."""
    ours, theirs = spec.classes, dataset.classes
    if len(ours) != len(theirs):
        raise DataError(
            f"{dataset.source}: its classes are not the detector's",
            expected=f"{len(ours)} classes ({', '.join(ours[:4])}, ...)",
            found=f"{len(theirs)} ({', '.join(theirs[:4])}, ...)",
            fix="pass the data set that the detector was trained on",
        )
    if ours != theirs and sorted(ours) == sorted(theirs):
        first = next(index for index, name in enumerate(ours) if name != theirs[index])
        raise DataError(
            f"{dataset.source}: its classes are in another order than the detector's",
            expected=f"class {first} to be {ours[first]}",
            found=theirs[first],
            fix="reorder `names` and the labels",
        )
    keypoints = spec.head.keypoints
    if keypoints is not None and len(keypoints.sigmas) != dataset.keypoints:
        raise DataError(
            f"{dataset.source}: its keypoints are not the detector's",
            expected=f"{len(keypoints.sigmas)} keypoints for each object",
            found=str(dataset.keypoints or "none"),
            fix="pass the data set that the detector was trained on; a YAML states them as kpt_shape, such as [17, 3]",
        )
