"""Letterboxing puts a frame where Ultralytics puts it, and boxes find their way back into the frame."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.core.detection import resize
from edgekd.core.detection.preprocess import letterbox, place, to_frame, to_input, to_tensor
from edgekd.core.detection.resize import resize_into
from edgekd.core.detection.types import Preprocess

SIDES = st.integers(1, 2000)
YOLOX = {"color": "bgr", "scale": 1.0, "center": False}


def frame_of(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 10_000 + width).integers(0, 256, (height, width, 3), np.uint8)


def content(tensor: np.ndarray) -> tuple[int, int, int, int]:
    """Top, left, bottom, right of what is white."""
    seen = (tensor[0] > 0.99).any(axis=0)
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    return rows[0], columns[0], rows[-1] + 1, columns[-1] + 1


def test_a_wide_frame_is_centred_between_grey_bars() -> None:
    white = np.full((200, 400, 3), 255, np.uint8)
    tensor, at = letterbox(white, Preprocess(64, 64))
    assert tensor.shape == (1, 3, 64, 64)
    assert tensor.dtype == np.float32
    assert content(tensor) == (16, 0, 48, 64)
    assert (at.left, at.top, at.across, at.down) == (0, 16, 64, 32)
    assert np.allclose(tensor[0, :, 16:48], 1)
    assert np.allclose(tensor[0, :, :16], 114 / 255)


def test_a_frame_of_the_inputs_size_is_only_normalised() -> None:
    frame = frame_of(64, 96)
    tensor, _ = letterbox(frame, Preprocess(64, 96))
    np.testing.assert_allclose(tensor[0], frame[:, :, ::-1].transpose(2, 0, 1) / 255, rtol=1e-6)


def test_yolox_wants_bgr_up_to_255_in_the_upper_left_corner() -> None:
    frame = frame_of(32, 64)
    tensor, at = letterbox(frame, Preprocess(64, 64, **YOLOX))
    assert np.array_equal(tensor[0, :, :32], frame.transpose(2, 0, 1))
    assert (tensor[0, :, 32:] == 114).all()
    assert (at.left, at.top) == (0, 0)


def test_small_frames_grow_only_where_that_is_wanted() -> None:
    frame = np.full((16, 16, 3), 255, np.uint8)
    grown, _ = letterbox(frame, Preprocess(64, 64))
    kept, at = letterbox(frame, Preprocess(64, 64, upscale=False))
    assert content(grown) == (0, 0, 64, 64)
    assert content(kept) == (24, 24, 40, 40)
    assert (at.across, at.down) == (16, 16)


def test_mean_and_deviation_belong_to_the_channel_order_of_the_network() -> None:
    blue = np.zeros((1, 1, 3), np.uint8)
    blue[..., 0] = 255
    how = Preprocess(1, 1, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0))
    np.testing.assert_allclose(to_tensor(blue, how).ravel(), [-0.1, -0.1, 0.175], rtol=1e-6)


@settings(deadline=None)
@given(SIDES, SIDES, st.integers(1, 40), st.integers(1, 40), st.booleans(), st.booleans())
def test_a_frame_of_any_size_lies_inside_the_input(
    height: int, width: int, rows: int, columns: int, center: bool, upscale: bool
) -> None:
    how = Preprocess(32 * rows, 32 * columns, center=center, upscale=upscale)
    at = place(width, height, how)
    assert at.left >= 0
    assert at.top >= 0
    assert at.left + at.across <= how.width
    assert at.top + at.down <= how.height
    assert upscale <= (at.across == how.width or at.down == how.height)


@settings(deadline=None)
@given(SIDES, SIDES, st.booleans(), st.lists(st.tuples(*[st.floats(0, 1)] * 4), max_size=5))
def test_boxes_come_back_to_where_they_were(
    height: int, width: int, center: bool, relative: list[tuple[float, ...]]
) -> None:
    at = place(width, height, Preprocess(384, 640, center=center))
    fractions = np.array(relative, np.float32).reshape(-1, 4)
    boxes = fractions * [width, height, width, height]
    inside = fractions * [at.across, at.down, at.across, at.down] + [at.left, at.top, at.left, at.top]
    np.testing.assert_allclose(to_input(fractions, at), inside, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(
        to_frame(inside.astype(np.float32), at), boxes, atol=1e-6 * max(width, height) * 640 / min(at.across, at.down)
    )


def test_boxes_are_clipped_to_the_frame() -> None:
    at = place(200, 100, Preprocess(640, 640))
    found = to_frame(np.array([[-50, -50, 700, 700]], np.float32), at)
    assert found.tolist() == [[0, 0, 200, 100]]


@pytest.mark.parametrize("size", [(640, 640), (384, 640), (640, 384)])
@pytest.mark.parametrize("frame", [(480, 640), (427, 640), (641, 333), (1080, 1920), (97, 201), (333, 333), (640, 640)])
def test_geometry_and_pixels_are_those_of_ultralytics(size: tuple[int, int], frame: tuple[int, int]) -> None:
    augment = pytest.importorskip("ultralytics.data.augment")
    image = frame_of(*frame)
    expected = augment.LetterBox(new_shape=size, auto=False, scaleup=True)(image=image)
    found, _ = letterbox(image, Preprocess(*size))
    assert found.shape[2:] == size
    difference = np.abs(found[0] * 255 - expected[:, :, ::-1].transpose(2, 0, 1))
    assert difference.max() < 1e-3


@pytest.mark.parametrize("frame", [(480, 640), (641, 333), (1080, 1920), (97, 201)])
def test_boxes_come_back_as_in_ultralytics(frame: tuple[int, int]) -> None:
    ops = pytest.importorskip("ultralytics.utils.ops")
    boxes = np.random.default_rng(1).uniform(0, 640, (50, 4)).astype(np.float32)
    at = place(frame[1], frame[0], Preprocess(640, 640))
    np.testing.assert_allclose(to_frame(boxes, at), ops.scale_boxes((640, 640), boxes.copy(), frame), atol=1e-3)


def test_a_stretched_frame_fills_the_input_and_boxes_come_back() -> None:
    preprocess = Preprocess(64, 96, stretch=True)
    frame = np.full((30, 90, 3), 200, np.uint8)
    batch, placement = letterbox(frame, preprocess)
    np.testing.assert_allclose(batch, 200 / 255, rtol=1e-6)
    boxes = np.array([[9, 3, 45, 30]], np.float32)
    inside = to_input(boxes / np.array([90, 30, 90, 30], np.float32), placement)
    np.testing.assert_allclose(inside, [[9.6, 6.4, 48, 64]], rtol=1e-6)
    np.testing.assert_allclose(to_frame(inside, placement), boxes, rtol=1e-6)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 80), st.integers(1, 80), st.integers(1, 80), st.integers(1, 80), st.sampled_from([(), (2,), (3,)])
)
def test_without_opencv_a_frame_is_resized_to_the_same_values(
    height: int, width: int, down: int, across: int, channels: tuple[int, ...]
) -> None:
    frame = np.random.default_rng(height * width).integers(0, 256, (height, width, *channels), np.uint8)
    expected, found = (np.zeros((down, across, *channels), np.uint8) for _ in range(2))
    resize_into(frame, expected)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resize, "opencv", lambda: None)
        resize_into(frame, found)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("factors", [(3, 3), (1, 3), (5, 1), (7, 5), (2, 3), (4, 4)])
@pytest.mark.parametrize("channels", [(), (2,), (3,)])
def test_a_frame_some_times_larger_is_resized_as_by_opencv(factors: tuple[int, int], channels: tuple[int, ...]) -> None:
    cv2 = pytest.importorskip("cv2")
    down, across = 18, 32
    frame = np.random.default_rng(0).integers(0, 256, (down * factors[0], across * factors[1], *channels), np.uint8)
    found = np.zeros((down, across, *channels), np.uint8)
    resize_into(frame, found)
    np.testing.assert_array_equal(found, cv2.resize(frame, (across, down), interpolation=cv2.INTER_LINEAR))


def test_without_opencv_the_input_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    frame, preprocess = frame_of(90, 160), Preprocess(64, 64)
    expected, placement = letterbox(frame, preprocess)
    for module in (resize, sys.modules[letterbox.__module__]):
        monkeypatch.setattr(module, "opencv", lambda: None)
    found, same = letterbox(frame, preprocess)
    assert same == placement
    assert np.array_equal(found, expected)
    assert found.any()


def test_opencv_is_found_while_another_thread_imports_it(monkeypatch: pytest.MonkeyPatch) -> None:
    half = types.ModuleType("cv2")  # as OpenCV's loader leaves it for a moment: without __spec__
    monkeypatch.setitem(sys.modules, "cv2", half)
    assert resize.opencv.__wrapped__() is half


def test_where_opencv_is_not_installed_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert resize.opencv.__wrapped__() is None
