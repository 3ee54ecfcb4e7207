"""Frames for measurements: compressed ones of a folder or a video, or raw synthetic ones.

OpenCV is imported when the first frame is decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.core.errors import DataError
from edgekd.core.input_files import read_input
from edgekd.data.dataset import IMAGE_SUFFIXES
from edgekd.data.images import MAX_IMAGE_BYTES, decode_image

MAX_FRAMES = 64  # of a folder or video; they repeat

Open = Callable[[Any], np.ndarray]


@dataclass(frozen=True)
class FrameFacts:
    """The frames of a measurement.

    Args:
        source: Their origin.
        count: Number of frames; they repeat.
        compressed: True where they are decoded, which is then a part of the time.
        shapes: Width and height of those that differ.
    """

    source: str
    count: int
    compressed: bool
    shapes: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class FrameSource:
    """Frames before decoding. what: their origin, in words; items: raw frames, or compressed ones.

    opener: returns a function that decodes items, one for each thread; None where items are raw frames.
    shapes: (width, height) of the frames that differ, in order.
    """

    what: str
    items: Sequence[Any]
    opener: Callable[[], Open] | None
    shapes: tuple[tuple[int, int], ...]

    def frames(self, count: int) -> list[np.ndarray]:
        """Decode the first frames."""
        opened = self.opener() if self.opener else lambda item: item
        return [opened(item) for item in self.items[:count]]

    @property
    def facts(self) -> FrameFacts:
        """Return a description of the frames."""
        return FrameFacts(self.what, len(self.items), self.opener is not None, self.shapes)


def load_frames(path: Path) -> FrameSource:
    """Load frames of a folder of images or of a video file. Raises DataError where there are none."""
    return _images(path) if path.is_dir() else _video(path)


def raw_frames(frames: Sequence[np.ndarray], what: str) -> FrameSource:
    """Wrap decoded frames uint8 [h, w, 3] BGR."""
    return FrameSource(what, frames, None, _shapes(frames))


def _images(folder: Path) -> FrameSource:
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)[:MAX_FRAMES]
    if not files:
        raise DataError(
            f"{folder} has no frames",
            expected=f"images: {', '.join(sorted(IMAGE_SUFFIXES))}",
            fix="name the folder that has the images in it",
        )
    items = [(read_input(file, MAX_IMAGE_BYTES), file) for file in files]
    shapes = _shapes(decode_image(*item) for item in items)
    return FrameSource(f"images of {folder}", items, lambda: lambda item: decode_image(*item), shapes)


def _video(file: Path) -> FrameSource:
    opened = _Video(file)
    frames: list[np.ndarray] = []
    while len(frames) < MAX_FRAMES and (frame := opened.next()) is not None:
        frames.append(frame)
    if not frames:
        raise DataError(f"{file} has no frames", expected="a folder of images, or a video", fix="check the path")
    shapes, count = _shapes(frames), len(frames)
    return FrameSource(f"video {file}", list(range(count)), lambda: _Video(file, count), shapes)


class _Video:
    """Decodes frames in order, the first `count` of them in a loop."""

    def __init__(self, file: Path, count: int | None = None) -> None:
        import cv2

        self._file, self._count, self._index = file, count, 0
        self._capture: Any = cv2.VideoCapture(str(file))

    def __call__(self, item: int) -> np.ndarray:
        """Return the next frame; `item` is ignored, as a stream is decoded in its order."""
        import cv2

        if self._index == self._count:
            self._index = 0
            self._capture.set(cv2.CAP_PROP_POS_FRAMES, 0)
        frame = self.next()
        if frame is None:
            raise DataError(f"{self._file} breaks off", expected=f"{self._count} frames", found=str(self._index))
        return frame

    def next(self) -> np.ndarray | None:
        """Return the next frame; None after the last."""
        decoded, frame = self._capture.read()
        self._index += 1
        return np.asarray(frame) if decoded else None


def _shapes(frames: Iterable[np.ndarray]) -> tuple[tuple[int, int], ...]:
    return tuple(sorted({(frame.shape[1], frame.shape[0]) for frame in frames}))
