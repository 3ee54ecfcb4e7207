"""COCO scoring of detections against labelled boxes or keypoints: mAP, per class and by object size.

The arithmetic is faster-coco-eval's. Means go over the classes that occur in the scored images: a class without an
object there has no score (None), rather than zero.

Keypoints are compared by their similarity (OKS) in place of the overlap of boxes. The area that scales distances is
0.53 times that of the labelled box, as in Ultralytics' validation, because label files have no area of the object.

Rotated boxes are compared by their exact intersection over union. The labelled one is the smallest rectangle around the
label's polygon. Masks are compared by the intersection over union of their pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.core.detection.types import Detections, Head, Task
from edgekd.core.errors import DataError
from edgekd.data.labels import Truth
from edgekd.evaluation.masks import Code, labelled_masks, with_masks
from edgekd.evaluation.rotated import found_boxes, labelled_boxes, rotated_evaluator, with_rotated

MAX_DETECTIONS = 100  # per image and class, as in the COCO benchmark
MAX_POSES = 20
"""Detections per image and class whose keypoints are scored, as in COCO's keypoint benchmark."""
SIZES = ("small", "medium", "large")  # box areas below 32² and 96² pixels of the frame, and above
AREAS = ((0, 1e10), (0, 32**2), (32**2, 96**2), (96**2, 1e10))
"""Areas of boxes in square pixels of the frame: of all, then of each of SIZES."""

_COMPARED: Mapping[Task, str] = {"detect": "bbox", "obb": "bbox", "pose": "keypoints", "segment": "segm"}
"""faster-coco-eval's `iouType` for each task."""


@dataclass(frozen=True)
class ClassScore:
    """Scores of one class, 0 to 1, with the numbers of images and objects that they are based on.

    Args:
        map50_95, map50: Null where the split has no object of the class.
        confidence: Detections above this score have the best F1 at IoU 0.50; null where none is right.
        images: Number of images with an object of the class.
        instances: Number of objects of the class.
    """

    map50_95: float | None
    map50: float | None
    confidence: float | None
    images: int
    instances: int


@dataclass(frozen=True)
class TailScore:
    """Scores of the rare classes.

    Args:
        share: A class with less than this share of the training split's objects is rare.
        classes: The rare classes, in the order of the data set.
        map50_95, map50: Mean over the rare classes that occur in the scored images; null where none does.
    """

    share: float
    classes: tuple[str, ...]
    map50_95: float | None
    map50: float | None


@dataclass(frozen=True)
class BoxScore:
    """Scores of the boxes of a detector with keypoints or masks, 0 to 1.

    Args:
        map50_95, map50: As in a `Score` of boxes.
    """

    map50_95: float
    map50: float


@dataclass(frozen=True)
class Score:
    """Accuracy of detections, 0 to 1. For a detector with keypoints, rotated boxes or masks, all scores but `boxes`
    compare these, keypoints by OKS.

    Args:
        map50_95: Mean over the classes and over IoU 0.50, 0.55 ... 0.95 of the average precision.
        map50: The same at IoU 0.50.
        per_class: Scores by class name, for every class of the detector.
        by_size: mAP50-95 of `small` (below 32² pixels of the image), `medium` (below 96²) and `large` objects; null
            where the split has none.
        images: Number of scored images.
        boxes: Scores of the boxes by IoU; null for a detector without keypoints and masks.
    """

    map50_95: float
    map50: float
    per_class: Mapping[str, ClassScore]
    by_size: Mapping[str, float | None]
    images: int
    boxes: BoxScore | None = field(default=None, kw_only=True)


def score(
    detections: Sequence[Detections],
    truths: Sequence[tuple[Truth, int, int]],
    classes: Sequence[str],
    head: Head | None = None,
    masks: Sequence[Sequence[Code]] = (),
) -> Score:
    """Score the detections of each image, in pixels, against (truth, width, height in pixels) of that image.

    head: of a detector whose keypoints, rotated boxes or masks are scored; masks: of the detections of each image, in
    their order.

    Raises DataError when a detection's class is not in `classes`, or when there is no object to find.
    """
    if head is not None and head.rotated:
        return _score(detections, truths, classes, head)
    boxes = _score(detections, truths, classes, None)
    if head is None or head.task == "detect":
        return boxes
    if head.keypoints:
        detections = [_best(image, MAX_POSES) for image in detections]
    objects = _score(detections, truths, classes, head, [code for image in masks for code in image])
    return replace(objects, boxes=BoxScore(boxes.map50_95, boxes.map50))


def _score(
    detections: Sequence[Detections],
    truths: Sequence[tuple[Truth, int, int]],
    classes: Sequence[str],
    head: Head | None,
    masks: Sequence[Code] = (),
) -> Score:
    """Score the keypoints, rotated boxes or masks of a head; boxes if it is None."""
    if len(detections) != len(truths):
        raise ValueError(f"{len(detections)} detections for {len(truths)} images")
    expected, actual = _truth_rows(truths), _detection_rows(detections, len(classes))
    keypoints = head.keypoints if head else None
    poses = None if keypoints is None else _poses(truths, len(keypoints.sigmas))
    objects = expected[(expected[:, 6] == 0) & (True if poses is None else (poses[:, :, 2] > 0).any(axis=1))]
    if not len(objects):
        raise DataError("there is nothing to score against", expected="at least one labelled object in the split")
    labelled, found = _annotations(expected, "iscrowd"), _annotations(actual, "score")
    if poses is not None:
        labelled, found = _with_keypoints(labelled, poses), _with_keypoints(found, _found_poses(detections))
    if head and head.rotated:
        labelled, found = with_rotated(labelled, labelled_boxes(truths)), with_rotated(found, found_boxes(detections))
    if head and head.masks:
        labelled, found = with_masks(labelled, labelled_masks(truths)), with_masks(found, masks)
    precision, scores = _precision(labelled, found, truths, classes, head)
    return Score(
        map50_95=_mean(precision[:, :, :, 0]) or 0.0,
        map50=_mean(precision[0, :, :, 0]) or 0.0,
        per_class=_per_class(precision[..., 0], scores[0, :, :, 0], objects[:, :2].astype(np.int64), classes),
        by_size={size: _mean(precision[..., 1 + index]) for index, size in enumerate(SIZES)},
        images=len(truths),
    )


def _precision(
    labelled: list[dict[str, Any]],
    found: list[dict[str, Any]],
    truths: Sequence[tuple[Truth, int, int]],
    classes: Sequence[str],
    head: Head | None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return precision and scores [IoU or OKS thresholds, recalls, classes, sizes with "all" first].

    Both are -1 if there is no object.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    frame: dict[str, Any] = {
        "images": [{"id": index, "width": w, "height": h} for index, (_, w, h) in enumerate(truths, start=1)],
        "categories": [{"id": index, "name": name} for index, name in enumerate(classes)],
    }
    keypoints = head.keypoints if head else None
    evaluation = (rotated_evaluator() if head and head.rotated else COCOeval_faster)(
        COCO({**frame, "annotations": labelled}),
        COCO({**frame, "annotations": found}),
        iouType=_COMPARED[head.task if head else "detect"],
        kpt_oks_sigmas=None if keypoints is None else list(keypoints.sigmas),
        use_area=False,  # distances are scaled by 0.53 of the box: label files have no area of the object
    )
    evaluation.params.maxDets = [MAX_DETECTIONS if keypoints is None else MAX_POSES]
    # The same for all tasks: the defaults leave out small objects, and classes without an object.
    evaluation.params.areaRng = [list(area) for area in AREAS]
    evaluation.params.catIds = list(range(len(classes)))
    evaluation.evaluate()
    evaluation.accumulate()
    precision, scores = (np.asarray(evaluation.eval[name])[..., -1] for name in ("precision", "scores"))
    return precision, scores


def tail_score(per_class: Mapping[str, ClassScore], rare: Sequence[str], share: float) -> TailScore:
    """Return the mean scores of the rare classes that have a score; None where none has."""
    rows = [per_class[name] for name in rare]
    return TailScore(
        share=share,
        classes=tuple(rare),
        map50_95=mean_known([row.map50_95 for row in rows]),
        map50=mean_known([row.map50 for row in rows]),
    )


def mean_known(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that are not None; None where all are."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _truth_rows(truths: Sequence[tuple[Truth, int, int]]) -> NDArray[np.float64]:
    """Return [n, 7]: image, class, x, y, width, height in pixels, crowd."""
    counts = [len(truth) for truth, _, _ in truths]
    shapes = np.array([(w, h, w, h) for _, w, h in truths], np.float64).reshape(-1, 4)
    boxes = _stack([truth.boxes for truth, _, _ in truths], 4) * np.repeat(shapes, counts, axis=0)
    labels = _stack([truth.classes for truth, _, _ in truths], 1)
    return _rows(counts, labels, boxes, _stack([truth.crowd for truth, _, _ in truths], 1))


def _detection_rows(detections: Sequence[Detections], class_count: int) -> NDArray[np.float64]:
    """Return [n, 7]: image, class, x, y, width, height in pixels, score."""
    labels = _stack([image.classes for image in detections], 1)
    if len(labels) and not 0 <= labels.min() <= labels.max() < class_count:
        raise DataError(
            "the detector's classes are not the data set's",
            expected=f"classes 0 to {class_count - 1}",
            found=f"class {int(labels.max() if labels.min() >= 0 else labels.min())}",
            fix="score on a data set with the classes that the detector was trained on",
        )
    boxes = _stack([image.boxes for image in detections], 4)
    return _rows([len(image) for image in detections], labels, boxes, _stack([image.scores for image in detections], 1))


def _rows(
    counts: Sequence[int], labels: NDArray[np.float64], boxes: NDArray[np.float64], last: NDArray[np.float64]
) -> NDArray[np.float64]:
    images = np.repeat(np.arange(1.0, len(counts) + 1), counts)[:, None]
    return np.concatenate([images, labels, boxes[:, :2], boxes[:, 2:] - boxes[:, :2], last], axis=1)


def _stack(parts: Sequence[NDArray[Any]], columns: int) -> NDArray[np.float64]:
    return np.concatenate([np.zeros(0), *(part.ravel() for part in parts)]).reshape(-1, columns)


def _annotations(rows: NDArray[np.float64], last: str) -> list[dict[str, Any]]:
    """Return rows as COCO annotations. Ids start at 1: 0 means "unmatched" to the evaluator."""
    images, labels = rows[:, 0].astype(int).tolist(), rows[:, 1].astype(int).tolist()
    boxes, areas = rows[:, 2:6].tolist(), (rows[:, 4] * rows[:, 5]).tolist()
    ends = rows[:, 6].astype(int).tolist() if last == "iscrowd" else rows[:, 6].tolist()
    return [
        {"id": index, "image_id": image, "category_id": label, "bbox": box, "area": area, "iscrowd": 0, last: end}
        for index, (image, label, box, area, end) in enumerate(
            zip(images, labels, boxes, areas, ends, strict=True), start=1
        )
    ]


def _best(image: Detections, most: int) -> Detections:
    """Return the first `most` detections of each class in an image, which are its best."""
    order = np.argsort(image.classes, kind="stable")
    ordered = image.classes[order]
    kept = np.zeros(len(image), bool)
    kept[order] = np.arange(len(ordered)) - np.searchsorted(ordered, ordered) < most
    return image.only(kept)


def _poses(truths: Sequence[tuple[Truth, int, int]], count: int) -> NDArray[np.float64]:
    """Return the labelled keypoints [n, k, 3] x, y in pixels, visibility. Raises DataError for labels without."""
    poses = [np.zeros((0, count, 3))]
    for truth, width, height in truths:
        if truth.keypoints is None or truth.keypoints.shape[1] != count:
            raise DataError("labels without the detector's keypoints", expected=f"{count} for each object")
        poses.append(truth.keypoints * np.array([width, height, 1.0]))
    return np.concatenate(poses)


def _found_poses(detections: Sequence[Detections]) -> NDArray[np.float64]:
    """Return the detected keypoints [n, k, 3], with a visibility of 1, which OKS does not read."""
    places = np.concatenate([image.keypoints[:, :, :2] for image in detections if image.keypoints is not None])
    return np.concatenate([places, np.ones((*places.shape[:2], 1))], axis=2)


def _with_keypoints(annotations: list[dict[str, Any]], poses: NDArray[np.float64]) -> list[dict[str, Any]]:
    """Return COCO annotations with keypoints [n, k, 3]."""
    counts = (poses[:, :, 2] > 0).sum(axis=1).tolist()
    rows = zip(annotations, poses.reshape(len(poses), -1).tolist(), counts, strict=True)
    return [{**each, "keypoints": row, "num_keypoints": count} for each, row, count in rows]


def _per_class(
    precision: NDArray[np.float64],
    scores: NDArray[np.float64],
    objects: NDArray[np.int64],
    classes: Sequence[str],
) -> dict[str, ClassScore]:
    """Return the scores of each class; objects: [n, 2], image and class of each labelled object."""
    instances = np.bincount(objects[:, 1], minlength=len(classes))
    images = np.bincount(np.unique(objects, axis=0)[:, 1], minlength=len(classes))
    return {
        name: ClassScore(
            map50_95=_mean(precision[:, :, index]),
            map50=_mean(precision[0, :, index]),
            confidence=_best_confidence(precision[0, :, index], scores[:, index]),
            images=int(images[index]),
            instances=int(instances[index]),
        )
        for index, name in enumerate(classes)
    }


def _best_confidence(precision: NDArray[np.float64], scores: NDArray[np.float64]) -> float | None:
    """Return the score above which F1 is best, in steps of 0.001, on COCO's curve of precision over 101 recalls."""
    recall = np.linspace(0, 1, len(precision))
    harmonic = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
    best = int(harmonic.argmax())
    # A score of 0.6 in float32 is slightly above 0.6, but not above it in a float32 comparison.
    return max((math.ceil(float(scores[best]) * 1000 - 0.001) - 1) / 1000, 0.0) if harmonic[best] > 0 else None


def _mean(precision: NDArray[np.float64]) -> float | None:
    valid = precision[precision > -1]
    return float(valid.mean()) if valid.size else None
