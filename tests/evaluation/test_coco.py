"""Scoring: what perfect, empty, shuffled and crowded detections are worth."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from edgekd.core.detection.types import Detections
from edgekd.core.documents import to_plain
from edgekd.core.errors import DataError
from edgekd.data.labels import Truth
from edgekd.evaluation.coco import ClassScore, TailScore, score, tail_score

CLASSES = ("cat", "dog", "cow")
WIDTH, HEIGHT = 640, 480
Labelled = tuple[Truth, int, int]


def truth(boxes: list[list[float]], classes: list[int], crowd: list[bool] | None = None) -> Labelled:
    """Boxes x1, y1, x2, y2 in pixels, as the ground truth of a frame of WIDTH x HEIGHT."""
    shares = np.array(boxes, np.float32).reshape(-1, 4) / np.array([WIDTH, HEIGHT, WIDTH, HEIGHT], np.float32)
    flags = np.array(crowd if crowd is not None else [False] * len(classes), bool)
    return Truth(shares.astype(np.float32), np.array(classes, np.int64), flags), WIDTH, HEIGHT


def found(boxes: list[list[float]], classes: list[int], scores: list[float] | None = None) -> Detections:
    values = scores if scores is not None else [0.9 - 0.01 * index for index in range(len(classes))]
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4), np.array(values, np.float32), np.array(classes, np.int64)
    )


SMALL, MEDIUM, LARGE = [10.0, 10.0, 30.0, 30.0], [100.0, 100.0, 150.0, 150.0], [200.0, 50.0, 500.0, 400.0]


def random_scene(seed: int, images: int = 30) -> tuple[list[Detections], list[Labelled]]:
    """Ground truth, and detections that find some of it imprecisely, with distinct scores."""
    rng = np.random.default_rng(seed)
    detections, truths = [], []
    for _ in range(images):
        count = int(rng.integers(1, 8))
        corner = rng.uniform(0, 300, (count, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(10, 150, (count, 2))], axis=1)
        classes = rng.integers(0, 2, count)
        truths.append(truth(boxes.tolist(), classes.tolist()))
        guess = boxes + rng.normal(0, 4, boxes.shape)
        detections.append(found(guess.tolist(), classes.tolist(), rng.uniform(0.01, 1, count).tolist()))
    return detections, truths


def test_perfect_detections_score_one() -> None:
    boxes, classes = [SMALL, MEDIUM, LARGE], [0, 1, 0]
    result = score([found(boxes, classes)], [truth(boxes, classes)], CLASSES)
    assert (result.map50_95, result.map50) == pytest.approx((1, 1))
    assert dict(result.by_size) == pytest.approx({"small": 1, "medium": 1, "large": 1})
    assert result.per_class["cat"] == ClassScore(
        map50_95=pytest.approx(1), map50=pytest.approx(1), confidence=0.879, images=1, instances=2
    )
    assert result.images == 1


def test_no_detections_score_zero() -> None:
    result = score([found([], []), found([], [])], [truth([LARGE], [0]), truth([], [])], CLASSES)
    assert (result.map50_95, result.map50, result.images) == (0, 0, 2)


def test_class_without_objects_has_no_score_and_does_not_lower_the_mean() -> None:
    result = score([found([LARGE, SMALL], [0, 2])], [truth([LARGE], [0])], CLASSES)
    assert result.map50_95 == pytest.approx(1)
    assert result.per_class["cow"] == ClassScore(None, None, None, images=0, instances=0)
    assert result.by_size["small"] is None


def test_overlap_decides_which_thresholds_are_met() -> None:
    shifted = [200.0, 50.0, 500.0, 295.0]  # 0.7 of LARGE
    result = score([found([shifted], [0])], [truth([LARGE], [0])], CLASSES)
    assert result.map50 == pytest.approx(1)
    assert result.map50_95 == pytest.approx(0.5)  # met at 0.50, 0.55, 0.60, 0.65, 0.70


def test_false_alarm_above_the_object_halves_precision() -> None:
    result = score([found([SMALL, LARGE], [0, 0], [0.9, 0.8])], [truth([LARGE], [0])], CLASSES)
    assert result.map50 == pytest.approx(0.5)


def test_boxes_scale_with_each_frame() -> None:
    half = Truth(np.array([[0, 0, 0.5, 0.5]], np.float32), np.zeros(1, np.int64), np.zeros(1, bool))
    detections = [found([[0, 0, 100, 50]], [0]), found([[0, 0, 320, 240]], [0])]
    assert score(detections, [(half, 200, 100), (half, 640, 480)], CLASSES).map50_95 == pytest.approx(1)


def test_order_of_images_and_of_detections_does_not_matter() -> None:
    detections, truths = random_scene(seed=1)
    expected = score(detections, truths, CLASSES)
    assert 0.2 < expected.map50_95 < 0.95
    order = np.random.default_rng(2).permutation(len(truths))
    flipped = [Detections(d.boxes[::-1], d.scores[::-1], d.classes[::-1]) for d in detections]
    shuffled = score([flipped[i] for i in order], [truths[i] for i in order], CLASSES)
    assert shuffled == expected


def test_detections_in_a_crowd_are_neither_right_nor_wrong() -> None:
    labelled = truth([LARGE, [0, 0, 190, 480]], [0, 0], [False, True])
    inside = [[20.0 * i, 20.0, 20.0 * i + 15, 60.0] for i in range(8)]
    scores = [0.99] * 8 + [0.5]
    result = score([found([*inside, LARGE], [0] * 9, scores)], [labelled], CLASSES)
    assert result.map50_95 == pytest.approx(1)
    assert result.per_class["cat"].instances == 1
    without_crowd = score([found([*inside, LARGE], [0] * 9, scores)], [truth([LARGE], [0])], CLASSES)
    assert without_crowd.map50 < 0.2


def test_only_the_best_hundred_per_image_and_class_count() -> None:
    clutter = [[float(i), 0.0, float(i) + 5, 5.0] for i in range(100)]
    late = found([*clutter, LARGE], [0] * 101, [0.9] * 100 + [0.1])
    assert score([late], [truth([LARGE], [0])], CLASSES).map50 == 0
    assert score([found([*clutter[1:], LARGE], [0] * 100)], [truth([LARGE], [0])], CLASSES).map50 > 0


def test_scoring_agrees_with_the_reference_evaluator() -> None:
    pycocotools = pytest.importorskip("pycocotools.coco")
    from pycocotools.cocoeval import COCOeval

    detections, truths = random_scene(seed=3)
    reference = pycocotools.COCO()
    reference.dataset = {
        "images": [{"id": i + 1} for i in range(len(truths))],
        "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES)],
        "annotations": [],
    }
    for i, (labelled, w, h) in enumerate(truths):
        for box, label in zip(labelled.boxes * np.array([w, h, w, h]), labelled.classes, strict=True):
            xywh = [float(v) for v in (*box[:2], *(box[2:] - box[:2]))]
            entry = {
                "image_id": i + 1,
                "category_id": int(label),
                "bbox": xywh,
                "area": xywh[2] * xywh[3],
                "iscrowd": 0,
            }
            reference.dataset["annotations"].append({"id": len(reference.dataset["annotations"]) + 1, **entry})
    reference.createIndex()
    rows = [
        [i + 1, *map(float, box[:2]), *map(float, box[2:] - box[:2]), float(confidence), int(label)]
        for i, d in enumerate(detections)
        for box, confidence, label in zip(d.boxes, d.scores, d.classes, strict=True)
    ]
    evaluator = COCOeval(reference, reference.loadRes(np.array(rows)), "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    result = score(detections, truths, CLASSES)
    ours = (result.map50_95, result.map50, *result.by_size.values())
    assert ours == pytest.approx(tuple(evaluator.stats[[0, 1, 3, 4, 5]]), abs=1e-9)


def test_the_confidence_of_a_class_leaves_out_what_is_wrong_and_keeps_what_is_right() -> None:
    boxes, away = [SMALL, LARGE], [[300.0, 10.0, 320.0, 40.0], [10.0, 300.0, 60.0, 320.0]]
    truths = [truth([*boxes, MEDIUM], [0, 0, 1])]
    detections = [found([*boxes, *away, MEDIUM], [0, 0, 0, 0, 1], [0.9, 0.6, 0.3, 0.2, 0.4])]
    result = score(detections, truths, CLASSES).per_class
    assert [result[name].confidence for name in CLASSES] == [0.599, 0.399, None]
    nothing = score([found(away, [0, 0])], [truth(boxes, [0, 0])], CLASSES).per_class
    assert nothing["cat"].confidence is None, "no threshold makes it right"


@pytest.mark.parametrize("seed", range(3))
def test_no_other_confidence_is_much_better(seed: int) -> None:
    """Against F1 counted anew above every threshold. COCO's curve has 101 points, so the best may lie between."""
    detections, truths = random_scene(seed)
    told = score(detections, truths, CLASSES).per_class["cat"].confidence
    assert told is not None
    values = [f1_above(threshold, detections, truths) for threshold in np.linspace(0, 0.99, 100)]
    assert f1_above(told, detections, truths) > max(values) - 0.02
    assert f1_above(told, detections, truths) > min(values) + 0.1


def f1_above(threshold: float, detections: list[Detections], truths: list[Labelled]) -> float:
    """F1 of the class cat: each detection above a threshold, best first, takes the free object it overlaps most."""
    right = wrong = missed = 0
    for given, (labelled, width, height) in zip(detections, truths, strict=True):
        free = [box * [width, height, width, height] for box in labelled.boxes[labelled.classes == 0]]
        kept = (given.classes == 0) & (given.scores > threshold)
        for at in np.argsort(-given.scores[kept], kind="stable"):
            overlaps = [overlap(given.boxes[kept][at], box) for box in free]
            if overlaps and max(overlaps) >= 0.5:
                free.pop(int(np.argmax(overlaps)))
                right += 1
            else:
                wrong += 1
        missed += len(free)
    return 2 * right / max(2 * right + wrong + missed, 1)


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    common = float(np.prod(np.maximum(sides, 0)))
    return common / float(np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2]) - common)


def test_the_tail_is_the_mean_of_the_rare_classes_that_were_there() -> None:
    rows = {
        name: ClassScore(map50_95=value, map50=value, confidence=None, images=0, instances=0)
        for name, value in (("cat", 0.9), ("dog", 0.1), ("cow", 0.3), ("elk", None))
    }
    found = tail_score(rows, ("dog", "cow", "elk"), 0.1)
    assert found == TailScore(0.1, ("dog", "cow", "elk"), pytest.approx(0.2), pytest.approx(0.2))
    assert tail_score(rows, ("elk",), 0.1).map50_95 is None
    assert tail_score(rows, (), 0.1).map50 is None


def test_score_is_frozen_and_becomes_json() -> None:
    result = score([found([LARGE], [0])], [truth([LARGE], [0])], CLASSES)
    document = json.loads(json.dumps(to_plain(result)))
    assert set(document) == {"map50_95", "map50", "per_class", "by_size", "images", "boxes"}
    assert document["per_class"]["dog"]["map50"] is None
    with pytest.raises(FrozenInstanceError):
        result.map50 = 1.0  # type: ignore[misc]


@pytest.mark.parametrize("labelled", [truth([], []), truth([LARGE], [0], [True])])
def test_nothing_to_find_is_an_error(labelled: Labelled) -> None:
    with pytest.raises(DataError, match="at least one labelled object"):
        score([found([LARGE], [0])], [labelled], CLASSES)


def test_detector_with_other_classes_is_an_error() -> None:
    with pytest.raises(DataError, match="expected classes 0 to 2; found class 3"):
        score([found([LARGE], [3])], [truth([LARGE], [0])], CLASSES)


def test_detections_must_match_the_images() -> None:
    with pytest.raises(ValueError, match="0 detections for 1 images"):
        score([], [truth([LARGE], [0])], CLASSES)
