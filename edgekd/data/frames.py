"""Frames for measurements: compressed, from a folder or a video, or raw.

OpenCV is imported when the first frame is decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.core.errors import DataError
from edgekd.core.input_files import is_folder, read_input, regular_file
from edgekd.data.dataset import IMAGE_SUFFIXES
from edgekd.data.images import MAX_IMAGE_BYTES, decode_image

MAX_FRAMES = 64  # frames that are read from a folder or video; measurements repeat them
MAX_VIDEO_BYTES = 1 << 40
"""Maximum bytes of a video; only its first frames are read."""

Decode = Callable[[Any], np.ndarray]


@dataclass(frozen=True)
class FrameFacts:
    """The frames of a measurement.

    Args:
        source: Origin of the frames.
        count: Number of frames; they repeat.
        compressed: True if frames are decoded, as part of the measured time.
        shapes: Distinct widths and heights of the frames.
    """

    source: str
    count: int
    compressed: bool
    shapes: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class FrameSource:
    """Frames before decoding. description: their origin; items: raw or compressed frames.

    make_decoder: returns a decoder of items for one thread; None where items are raw frames.
    shapes: distinct (width, height) of the frames, sorted.
    """

    description: str
    items: Sequence[Any]
    make_decoder: Callable[[], Decode] | None
    shapes: tuple[tuple[int, int], ...]

    def frames(self, count: int) -> list[np.ndarray]:
        """Decode the first frames."""
        decode = self.make_decoder() if self.make_decoder else lambda item: item
        return [decode(item) for item in self.items[:count]]

    @property
    def facts(self) -> FrameFacts:
        """Description of the frames."""
        return FrameFacts(self.description, len(self.items), self.make_decoder is not None, self.shapes)


def load_frames(path: Path) -> FrameSource:
    """Load the frames of an image folder or a video file. Raises DataError if there are none."""
    return _images(path) if is_folder(path) else _video(path)


def raw_frames(frames: Sequence[np.ndarray], description: str) -> FrameSource:
    """Wrap decoded frames uint8 [h, w, 3] BGR."""
    return FrameSource(description, frames, None, _shapes(frames))


def _images(folder: Path) -> FrameSource:
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)[:MAX_FRAMES]
    if not files:
        raise DataError(
            f"{folder} has no frames",
            expected=f"images: {', '.join(sorted(IMAGE_SUFFIXES))}",
            fix="pass the folder that directly contains the images",
        )
    items = [(read_input(file, MAX_IMAGE_BYTES), file) for file in files]
    shapes = _shapes(decode_image(*item) for item in items)
    return FrameSource(f"images of {folder}", items, lambda: lambda item: decode_image(*item), shapes)


def _video(file: Path) -> FrameSource:
    regular_file(file, MAX_VIDEO_BYTES)
    video = _Video(file)
    frames: list[np.ndarray] = []
    while len(frames) < MAX_FRAMES and (frame := video.next()) is not None:
        frames.append(frame)
    if not frames:
        raise DataError(f"{file} has no frames", expected="a folder of images, or a video", fix="check the path")
    shapes, count = _shapes(frames), len(frames)
    return FrameSource(f"video {file}", list(range(count)), lambda: _Video(file, count), shapes)


class _Video:
    """Decodes the first `count` frames in order, in an endless loop."""

    def __init__(self, file: Path, count: int | None = None) -> None:
        import cv2

        self._file, self._count, self._index = file, count, 0
        self._capture: Any = cv2.VideoCapture(str(file))

    def __call__(self, item: int) -> np.ndarray:
        """Return the next frame; `item` is ignored: a video is decoded in order."""
        import cv2

        if self._index == self._count:
            self._index = 0
            self._capture.set(cv2.CAP_PROP_POS_FRAMES, 0)
        frame = self.next()
        if frame is None:
            raise DataError(f"{self._file} ends early", expected=f"{self._count} frames", found=str(self._index))
        return frame

    def next(self) -> np.ndarray | None:
        """Return the next frame; None after the last."""
        decoded, frame = self._capture.read()
        self._index += 1
        return np.asarray(frame) if decoded else None


def _shapes(frames: Iterable[np.ndarray]) -> tuple[tuple[int, int], ...]:
    return tuple(sorted({(frame.shape[1], frame.shape[0]) for frame in frames}))
