"""Decoding gives what the head means, and suppression keeps one box per object."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgekd.core.detection.decode import MAX_CANDIDATES, Thresholds, decode, suppress
from edgekd.core.detection.preprocess import Placement, place
from edgekd.core.detection.types import Detections, DetectorSpec, Head, Keypoints, Preprocess

SIDE = 64
WHOLE = Placement(0, 0, SIDE, SIDE, SIDE, SIDE)
IOUS = st.sampled_from([0.1, 0.45, 0.7, 1.0])


def spec_of(kind: str, classes: int = 2, nms: bool = True, strides: tuple[int, ...] = (8, 16, 32)) -> DetectorSpec:
    names = tuple(f"class{index}" for index in range(classes))
    return DetectorSpec(names, Preprocess(SIDE, SIDE), Head(kind, nms, strides))


def yolo_output(*rows: tuple[float, ...]) -> np.ndarray:
    """Rows (cx, cy, w, h, score per class...) as float32 [1, 4 + classes, n]."""
    return np.array(rows, np.float32).T[None]


def overlaps(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of box [4] with boxes [n, 4], in float64; 0 for two boxes without area."""
    one, others = one.astype(float), others.astype(float)
    sides = np.minimum(one[2:], others[:, 2:]) - np.maximum(one[:2], others[:, :2])
    common = np.maximum(sides, 0).prod(axis=1)
    union = (one[2:] - one[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(axis=1) - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


@st.composite
def candidates(draw: st.DrawFn, most: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Boxes with whole coordinates, so that many touch, coincide or have no area, and a class for each."""
    count = draw(st.integers(0, most))
    corners = draw(arrays.arrays(np.int64, (count, 2), elements=st.integers(-5, 12)))
    sides = draw(arrays.arrays(np.int64, (count, 2), elements=st.integers(0, 9)))
    classes = draw(arrays.arrays(np.int64, count, elements=st.integers(0, 2)))
    return np.concatenate([corners, corners + sides], axis=1).astype(np.float32), classes


@settings(deadline=None)
@given(candidates(), IOUS)
def test_kept_boxes_of_one_class_overlap_at_most_as_told(found: tuple[np.ndarray, np.ndarray], iou: float) -> None:
    boxes, classes = found
    kept = suppress(boxes, classes, iou, max_boxes=100)
    for index, box in enumerate(kept):
        others = np.delete(kept, index)
        same = others[classes[others] == classes[box]]
        assert (overlaps(boxes[box], boxes[same]) <= iou + 1e-6).all()


@settings(deadline=None)
@given(candidates(), IOUS)
def test_every_suppressed_box_has_a_better_one_of_its_class(found: tuple[np.ndarray, np.ndarray], iou: float) -> None:
    boxes, classes = found
    kept = suppress(boxes, classes, iou, max_boxes=100)
    assert (np.diff(kept) > 0).all()  # the order is that of the scores
    for box in set(range(len(boxes))) - set(kept.tolist()):
        better = kept[(kept < box) & (classes[kept] == classes[box])]
        assert (overlaps(boxes[box], boxes[better]) >= iou - 1e-6).any()


@settings(deadline=None)
@given(candidates(), IOUS, st.integers(1, 10))
def test_at_most_so_many_boxes_stay_and_they_are_the_best(
    found: tuple[np.ndarray, np.ndarray], iou: float, most: int
) -> None:
    boxes, classes = found
    assert suppress(boxes, classes, iou, most).tolist() == suppress(boxes, classes, iou, 100)[:most].tolist()


def test_boxes_far_outside_the_frame_do_not_blur_the_others() -> None:
    near = np.array([[0, 0, 1, 1], [0.4, 0, 1.4, 1]], np.float32)
    boxes = np.concatenate([near, near, [[-1e7, 0, 1e7, 1]]]).astype(np.float32)
    classes = np.array([0, 79, 79, 0, 5])
    assert suppress(boxes, classes, 0.3, 10).tolist() == [0, 1, 4]


@pytest.mark.parametrize("seed", range(8))
def test_suppression_equals_torchvisions(seed: int) -> None:
    torch = pytest.importorskip("torch")
    ops = pytest.importorskip("torchvision.ops")
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 300, (2000, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(1, 90, (2000, 2))], axis=1).astype(np.float32)
    classes = rng.integers(0, 1 + seed, 2000)
    falling = torch.arange(2000, 0, -1).float()
    expected = ops.batched_nms(torch.from_numpy(boxes), falling, torch.from_numpy(classes), 0.6)
    assert np.array_equal(suppress(boxes, classes, 0.6, 2000), expected.numpy())


def test_a_yolo_head_gives_corners_scores_and_classes() -> None:
    found = decode(yolo_output((20, 30, 10, 20, 0.1, 0.6), (40, 40, 4, 4, 0.9, 0.2)), spec_of("yolo"), WHOLE)
    np.testing.assert_allclose(found.boxes, [[38, 38, 42, 42], [15, 20, 25, 40]])
    np.testing.assert_allclose(found.scores, [0.9, 0.6])
    assert found.classes.tolist() == [0, 1]
    assert (found.boxes.dtype, found.scores.dtype, found.classes.dtype) == (np.float32, np.float32, np.int64)


def test_a_yolox_head_is_decoded_over_its_grid() -> None:
    cells = 64 + 16 + 4
    output = np.zeros((1, cells, 7), np.float32)
    output[0, 64 + 5] = [0.5, 0.25, np.log(2), np.log(3), 0.8, 0.1, 0.5]  # stride 16: column 1, row 1
    output[0, 0] = [0, 0, 0, 0, 0.9, 0.2, 0.3]  # objectness alone does not make a detection: 0.9 * 0.3 = 0.27
    found = decode(output, spec_of("yolox"), WHOLE, Thresholds(confidence=0.3))
    np.testing.assert_allclose(found.boxes, [[24 - 16, 20 - 24, 24 + 16, 20 + 24]] * np.array([1, 0, 1, 1]), atol=1e-4)
    np.testing.assert_allclose(found.scores, [0.4], rtol=1e-6)
    assert found.classes.tolist() == [1]


def test_yolox_cells_of_an_oblong_input_run_row_by_row() -> None:
    spec = DetectorSpec(("a",), Preprocess(32, 64), Head("yolox", strides=(16,)))
    output = np.zeros((1, 8, 6), np.float32)
    output[0, 6] = [0, 0, 0, 0, 1, 1]  # four columns: row 1, column 2
    found = decode(output, spec, place(64, 32, spec.preprocess))
    np.testing.assert_allclose(found.boxes, [[32 - 8, 16 - 8, 32 + 8, 16 + 8]])


def test_an_end_to_end_head_is_taken_as_it_is_but_sorted() -> None:
    rows = [[1, 2, 3, 4, 0.5, 1], [5, 6, 7, 8, 0.9, 0], [1, 2, 3, 4, 0.4, 1], [0, 0, 0, 0, 0.0, 0]]
    found = decode(np.array([rows], np.float32), spec_of("end2end", nms=False), WHOLE)
    assert found.boxes.tolist() == [[5, 6, 7, 8], [1, 2, 3, 4], [1, 2, 3, 4]]
    assert found.classes.tolist() == [0, 1, 1]


def test_boxes_come_back_in_pixels_of_the_frame() -> None:
    at = place(128, 64, Preprocess(SIDE, SIDE))
    found = decode(yolo_output((32, 32, 64, 32, 0.9, 0)), spec_of("yolo"), at)
    assert found.boxes.tolist() == [[0, 0, 128, 64]]


def test_one_box_may_carry_several_classes_only_for_scoring() -> None:
    output = yolo_output((20, 20, 10, 10, 0.6, 0.7))
    both = decode(output, spec_of("yolo"), WHOLE, Thresholds(multi_label=True))
    best = decode(output, spec_of("yolo"), WHOLE)
    assert both.classes.tolist() == [1, 0]
    assert best.classes.tolist() == [1]


def test_without_nms_boxes_may_coincide_up_to_the_limit() -> None:
    output = yolo_output(*[(20, 20, 10, 10, 0.5 + index / 100, 0) for index in range(6)])
    spec = spec_of("yolo", nms=False)
    assert len(decode(output, spec, WHOLE)) == 6
    limited = decode(output, spec, WHOLE, Thresholds(max_detections=2))
    np.testing.assert_allclose(limited.scores, [0.55, 0.54])
    assert len(decode(output, spec_of("yolo"), WHOLE)) == 1


def empty(found: Detections) -> bool:
    return (found.boxes.shape, found.scores.shape, found.classes.shape) == ((0, 4), (0,), (0,))


@pytest.mark.parametrize("multi_label", [True, False])
@pytest.mark.parametrize("kind", ["yolo", "yolox", "end2end"])
@pytest.mark.parametrize("value", [0.0, np.nan])
def test_nothing_found_is_no_detections(kind: str, multi_label: bool, value: float) -> None:
    shape = {"yolo": (1, 6, 84), "yolox": (1, 84, 7), "end2end": (1, 300, 6)}[kind]
    output = np.full(shape, value, np.float32)
    assert empty(decode(output, spec_of(kind), WHOLE, Thresholds(multi_label=multi_label)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_box_that_is_no_box_does_not_take_the_others_with_it(bad: float) -> None:
    output = yolo_output((bad, 20, 10, 10, 0.9, 0), (20, 20, 10, 10, 0.5, 0), (50, 50, bad, 10, 0.8, 0))
    found = decode(output, spec_of("yolo"), WHOLE)
    assert found.boxes.tolist() == [[15, 15, 25, 25]]


def test_a_yolox_box_without_limits_is_dropped_silently() -> None:
    output = np.zeros((1, 84, 7), np.float32)
    output[0, 3] = [0, 0, 1000, 0, 1, 1, 0]
    with np.errstate(all="raise"):
        assert empty(decode(output, spec_of("yolox"), WHOLE))


def test_a_frame_full_of_noise_is_bounded() -> None:
    rng = np.random.default_rng(0)
    output = rng.uniform(0, SIDE, (1, 6, MAX_CANDIDATES + 5000)).astype(np.float32)
    found = decode(output, spec_of("yolo"), WHOLE, Thresholds(confidence=0.001, multi_label=True))
    assert 0 < len(found) <= 300
    assert (np.diff(found.scores) <= 0).all()


POSED = Keypoints((0.1, 0.1))
"""Two keypoints of three numbers."""
POSES = ((4.0, 8.0, 0.9, 20.0, 24.0, 0.1), (0.0, 0.0, 0.5, 64.0, 64.0, 0.5), (1.0, 2.0, 0.3, 3.0, 4.0, 0.4))
CENTRES = ((10.0, 10.0, 8.0, 8.0), (40.0, 40.0, 8.0, 8.0), (41.0, 41.0, 8.0, 8.0))


@pytest.mark.parametrize("kind", ["yolo", "end2end"])
@pytest.mark.parametrize("multi_label", [False, True])
def test_keypoints_stay_with_their_boxes_in_pixels_of_the_frame(kind: str, multi_label: bool) -> None:
    scores = ((0.3, 0.0), (0.0, 0.9), (0.0, 0.8))  # the last is suppressed by the one before it
    rows = [(*box, *score, *pose) for box, score, pose in zip(CENTRES, scores, POSES, strict=True)]
    output = yolo_output(*rows)
    if kind == "end2end":
        corners = [(x - 4, y - 4, x + 4, y + 4) for x, y, _, _ in CENTRES]
        classes = ((0.3, 0.0), (0.9, 1.0), (0.8, 1.0))
        output = yolo_output(*((*b, *c, *p) for b, c, p in zip(corners, classes, POSES, strict=True))).transpose(
            0, 2, 1
        )
    spec = DetectorSpec(("a", "b"), Preprocess(SIDE, SIDE), Head(kind, keypoints=POSED))
    placement = Placement(left=8, top=0, across=32, down=64, width=64, height=128)
    found = decode(output, spec, placement, Thresholds(0.1, 0.5, multi_label=multi_label))
    np.testing.assert_allclose(found.scores, [0.9, 0.3])
    expected = [[[0, 0, 0.5], [64, 128, 0.5]], [[0, 16, 0.9], [24, 48, 0.1]]]  # clipped to the frame
    np.testing.assert_allclose(found.keypoints, expected, rtol=1e-6)
    assert found.only(found.scores < 0.5).keypoints.tolist() == found.keypoints[1:].tolist()


def test_a_candidate_whose_keypoints_are_not_finite_is_dropped() -> None:
    rows = [(*box, 0.9, *pose) for box, pose in zip(CENTRES[:2], (POSES[0], (np.nan, *POSES[1][1:])), strict=True)]
    spec = DetectorSpec(("a",), Preprocess(SIDE, SIDE), Head("yolo", keypoints=POSED))
    assert decode(yolo_output(*rows), spec, WHOLE).boxes.tolist() == [[6, 6, 14, 14]]


def test_without_a_detection_there_are_no_keypoints() -> None:
    spec = DetectorSpec(("a",), Preprocess(SIDE, SIDE), Head("yolo", keypoints=Keypoints((0.1,) * 5, 2)))
    found = decode(np.zeros((1, 15, 84), np.float32), spec, WHOLE)
    assert found.keypoints is not None
    assert found.keypoints.shape == (0, 5, 2)
