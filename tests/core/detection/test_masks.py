"""Masks of objects: prototypes weighed, cropped to boxes, and interpolated to the frame."""

from __future__ import annotations

import numpy as np
import pytest

from edgekd.core.detection.decode import Thresholds, candidate_rows, decode
from edgekd.core.detection.masks import InstanceMasks
from edgekd.core.detection.parity import parts
from edgekd.core.detection.preprocess import place
from edgekd.core.detection.types import DetectorSpec, Head, Masks, Preprocess

SIDE = 64
PIXELS = SIDE // 4
HEAD = Head("yolo", masks=Masks(2, PIXELS, PIXELS))
SPEC = DetectorSpec(("a", "b"), Preprocess(SIDE, SIDE), HEAD)


def smooth(count: int, height: int, width: int) -> np.ndarray:
    """Prototypes float32 [k, h, w] with zero crossings a few pixels apart."""
    rng = np.random.default_rng(0)
    speed, phase = rng.uniform(0.3, 1, (count, 2, 1, 1)), rng.uniform(0, 6, (count, 2, 1, 1))
    return np.sin(speed * np.mgrid[:height, :width] + phase).prod(axis=1).astype(np.float32)


def masks_in(width: int, height: int, side: int = 128) -> InstanceMasks:
    """Masks of five objects in a frame; the first box is the whole frame, the second is empty."""
    rng = np.random.default_rng(1)
    corners = np.sort(rng.uniform(0, 1, (5, 2, 2)), axis=1).reshape(5, 4) * [width, height, width, height]
    corners[0], corners[1] = (0, 0, width, height), (5, 5, 5, 5)
    placed = place(width, height, Preprocess(side, side))
    area = (placed.top / 4, placed.left / 4, placed.down / 4, placed.across / 4)
    coefficients, prototypes = rng.normal(size=(5, 6)).astype(np.float32), smooth(6, side // 4, side // 4)
    return InstanceMasks(coefficients, prototypes, corners.astype(np.float32), (height, width), area)


def in_frame(masks: InstanceMasks, index: int) -> np.ndarray:
    left, top, mask = masks.crop(index)
    whole = np.zeros(masks.frame, bool)
    whole[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    return whole


@pytest.mark.parametrize(("width", "height", "most"), [(128, 128, 0), (160, 90, 0), (300, 200, 0.02), (71, 100, 0.02)])
def test_masks_are_those_of_ultralytics(width: int, height: int, most: float) -> None:
    """Equal where the padding is whole pixels of a prototype; else Ultralytics interpolates twice."""
    torch, ops = pytest.importorskip("torch"), pytest.importorskip("ultralytics.utils.ops")
    masks = masks_in(width, height)
    arrays = (torch.from_numpy(each) for each in (masks.prototypes, masks.coefficients, masks.boxes))
    theirs = ops.process_mask_native(*arrays, (height, width)).numpy().astype(bool)
    ours = np.stack([in_frame(masks, index) for index in range(len(masks))])
    assert ours.any(axis=(1, 2)).tolist() == [True, False, True, True, True]
    assert (ours != theirs).sum() <= most * theirs.sum()
    if width == height:
        arrays = (torch.from_numpy(each) for each in (masks.prototypes, masks.coefficients, masks.boxes))
        np.testing.assert_array_equal(ours, ops.process_mask(*arrays, (128, 128), upsample=True).numpy().astype(bool))


def test_run_lengths_are_those_of_coco() -> None:
    coco = pytest.importorskip("faster_coco_eval.core.mask")
    masks = masks_in(71, 100)
    ones = np.ones((1, 32, 32), np.float32)
    full = InstanceMasks(ones[0, :1, :1], ones, masks.boxes[:1], masks.frame, masks.area)
    for each, index in [*((masks, index) for index in range(5)), (full, 0)]:
        code = each.rle(index)
        assert sum(code["counts"]) == 71 * 100
        assert 0 not in code["counts"][1:]
        expected = coco.encode(np.asfortranarray(in_frame(each, index).astype(np.uint8)))
        assert coco.frPyObjects(code, 100, 71) == expected
    assert full.rle(0) == {"size": [100, 71], "counts": [0, 7100]}
    assert masks.rle(1)["counts"] == [7100]


def output() -> np.ndarray:
    """Two candidates of class b, the second suppressed, one of class a, and prototypes: left half, and all."""
    found = np.array([[32, 32, 32, 32, 0.1, 0.9, 1, 0], [33, 32, 32, 32, 0, 0.8, 0, 0], [8, 8, 8, 8, 0.6, 0, 0, 1]]).T
    halves = np.stack([np.where(np.arange(PIXELS) < 8, 1, -1) * np.ones((PIXELS, 1)), np.ones((PIXELS, PIXELS))])
    pixels = np.concatenate([np.zeros((6, PIXELS * PIXELS)), halves.reshape(2, -1)])
    return np.concatenate([found, pixels], axis=1)[None].astype(np.float32)


def test_a_decoded_object_has_its_mask_in_pixels_of_the_frame() -> None:
    written = output()
    found = decode(written, SPEC, place(128, 128, SPEC.preprocess), Thresholds(0.25, 0.5))
    written[:] = np.nan  # a runtime may write the next output to the same place
    assert found.masks is not None
    assert (found.scores.tolist(), len(found.masks)) == (pytest.approx([0.9, 0.6]), 2)
    left, top, mask = found.masks.crop(0)
    assert (left, top, mask.shape) == (32, 32, (64, 64))
    np.testing.assert_array_equal(mask, np.arange(32, 96) < 64 + np.zeros((64, 1)))
    only = found.only(found.classes == 0).masks
    assert only is not None
    assert (len(only), only.crop(0)[2].all()) == (1, True)


def test_without_a_detection_there_are_no_masks() -> None:
    found = decode(output(), SPEC, place(128, 128, SPEC.preprocess), Thresholds(0.95))
    assert found.masks is not None
    assert len(found.masks) == 0


def test_prototypes_count_in_self_tests() -> None:
    rows = candidate_rows(output(), HEAD)
    assert rows.shape == (3 + PIXELS * PIXELS, 8)
    columns, weights = parts(rows, HEAD)["scores"]
    assert np.arange(8)[columns].tolist() == [4, 5, 6, 7]
    np.testing.assert_allclose(weights[:3], [[1, 1, s, s] for s in np.sqrt([0.45, 0.4, 0.3])], rtol=1e-6)
    pixels = weights[3:, 2:]
    assert np.square(pixels).sum() == pytest.approx(32)  # of all pixels, as of 32 sure candidates
