"""Sources of frames: image folders, video files, V4L2 devices, network streams, GStreamer pipelines, YUV4MPEG.

OpenCV is imported when a source that needs it is opened; a source with `!` is a GStreamer pipeline that ends in
`appsink`, which not every OpenCV can open.
"""

from __future__ import annotations

import itertools
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, BinaryIO, Callable  # noqa: UP035 collections.abc.Callable[...] is Python 3.9

import numpy as np

from edgekd.agent.cameras.scheduling import Pacer
from edgekd.core.errors import DeviceError, SpecError

IMAGES = {".jpg", ".jpeg", ".png", ".bmp"}
"""Endings of the files that are read in a folder."""
MAX_FPS = 60.0
"""Frames a second that are read of a camera: a flood takes no more of the processor."""
MAX_SIDE = 8192
"""Pixels of a side of a frame."""

_PICTURES = 4  # of a synthetic source
_NAMED = re.compile(r"([A-Za-z0-9_-]+)=(.+)", re.DOTALL)
_SYNTHETIC = re.compile(r"synthetic:(\d{1,5})x(\d{1,5})@(\d{1,4}(?:\.\d+)?)")
_CREDENTIALS = re.compile(r"//[^/@\s]*@")

Frames = Callable[[], "Iterator[Any]"]


@dataclass(frozen=True)
class CameraSource:
    """Source of one camera.

    open: returns an iterator over frames uint8 [h, w, 3] BGR, which may raise anything, and yield anything of frames
    that are damaged. live: frames come whether they are wanted or not, so that old ones are dropped, and an end is a
    failure; else reading waits for the service. max_fps: frames that are read in a second.
    """

    name: str
    open: Frames
    live: bool = True
    max_fps: float = MAX_FPS
    nv12: bool = False


def parse_source(text: str, name: str, fps: float | None = None) -> CameraSource:
    """Return the source for `[NAME=]SOURCE`. fps: plays a file at this rate, as if it were a live camera.

    SOURCE is a folder of images, a video file, `/dev/videoN`, a URL such as `rtsp://...`, a GStreamer pipeline,
    `synthetic:WIDTHxHEIGHT@FPS`, or `-` for YUV4MPEG on stdin. Raises SpecError.
    """
    named = _NAMED.fullmatch(text)
    if named:
        name, text = named[1], named[2]
    if text.startswith("synthetic:"):
        return CameraSource(name, _synthetic(text), max_fps=float("inf"))
    if "!" in text or "://" in text or text.startswith("/dev/"):
        return CameraSource(name, partial(video_frames, text), nv12="format=NV12" in text)
    read: Frames = partial(video_frames, text)
    if text == "-":
        read = partial(y4m_frames, sys.stdin.buffer)
    elif Path(text).is_dir():
        read = partial(folder_frames, Path(text))
    return CameraSource(name, read, live=fps is not None, max_fps=fps or float("inf"))


def without_credentials(text: str) -> str:
    """Return a text whose URLs name no user and password."""
    return _CREDENTIALS.sub("//", text)


def frame_problem(frame: Any, *, nv12: bool = False) -> str | None:
    """Return why something is no frame uint8 [h, w, 3], or NV12 frame uint8 [h * 3 / 2, w]; None where it is one."""
    if not isinstance(frame, np.ndarray):
        return "not a picture"
    expected = "[h * 3 / 2, w] of even sides" if nv12 else "[h, w, 3]"
    is_shaped = frame.ndim == 2 and frame.shape[0] % 3 == frame.shape[1] % 2 == 0 if nv12 else frame.shape[2:] == (3,)
    if frame.dtype != np.uint8 or not is_shaped:
        return f"expected uint8 {expected}, found {frame.dtype} {list(frame.shape)}"
    if not 1 <= min(frame.shape) <= max(frame.shape) <= MAX_SIDE:
        return f"expected sides of 1 to {MAX_SIDE} pixels, found {frame.shape[1]} x {frame.shape[0]}"
    return None


def video_frames(source: str) -> Iterator[np.ndarray]:
    """Yield the frames of a video file, a device, a URL or a pipeline. Raises DeviceError where it cannot be opened."""
    import cv2

    capture = cv2.VideoCapture(source, cv2.CAP_GSTREAMER) if "!" in source else cv2.VideoCapture(source)
    try:
        if not capture.isOpened():
            raise DeviceError(
                f"{without_credentials(source)}: cannot be opened",
                expected="a folder, a video, a device, a URL or a pipeline that this OpenCV can read",
            )
        while True:
            is_read, frame = capture.read()
            if not is_read:
                return
            yield frame
    finally:
        capture.release()


def folder_frames(folder: Path) -> Iterator[Any]:
    """Yield the images of a folder by name; None for one that cannot be read."""
    import cv2

    for file in sorted(folder.iterdir()):
        if file.suffix.lower() in IMAGES:
            yield cv2.imread(str(file))


def y4m_frames(stream: BinaryIO) -> Iterator[np.ndarray]:
    """Yield the frames of a YUV4MPEG stream with planes of 4:2:0. Raises DeviceError."""
    import cv2

    words = stream.readline(1024).decode("ascii", "replace").split()
    settings = {word[0]: word[1:] for word in words[1:]}
    chroma = settings.get("C", "420")
    sides = settings.get("W", ""), settings.get("H", "")
    if words[:1] != ["YUV4MPEG2"] or not chroma.startswith("420") or chroma.startswith("420p"):
        raise DeviceError(
            "stdin: not the stream that it should be",
            expected="YUV4MPEG in 4:2:0 with 8 bits",
            fix="put format=I420 and y4menc into the pipeline",
        )
    width, height = (int(side) if side.isascii() and side.isdecimal() else 0 for side in sides)
    if not 2 <= min(width, height) <= max(width, height) <= MAX_SIDE or width % 2 or height % 2:
        raise DeviceError("stdin: wrong size of frames", expected="an even width and height", found="x".join(sides))
    while stream.readline(1024).startswith(b"FRAME"):
        planes = stream.read(width * height * 3 // 2)
        if len(planes) < width * height * 3 // 2:
            return  # cut in the middle of a frame
        yield cv2.cvtColor(np.frombuffer(planes, np.uint8).reshape(-1, width), cv2.COLOR_YUV2BGR_I420)


def synthetic_frames(width: int, height: int, fps: float) -> Iterator[np.ndarray]:
    """Yield frames without end at a steady rate: a square that moves over a grey gradient, the same few pictures."""
    pacer = Pacer(fps)
    for picture in itertools.cycle(_pictures(width, height)):
        time.sleep(pacer.delay_s(time.monotonic()))
        yield picture


@lru_cache(maxsize=1)
def _pictures(width: int, height: int) -> list[np.ndarray]:
    """Return a few frames, which all cameras of that size share."""
    side, pictures = max(min(width, height) // 8, 1), []
    for number in range(_PICTURES):
        picture = np.empty((height, width, 3), np.uint8)
        picture[:] = np.linspace(32, 160, width).astype(np.uint8)[None, :, None]
        left = number * (width - side) // _PICTURES
        picture[:side, left : left + side] = (64, 128, 255)
        pictures.append(picture)
    return pictures


def _synthetic(text: str) -> Frames:
    match = _SYNTHETIC.fullmatch(text)
    width, height, fps = (int(match[1]), int(match[2]), float(match[3])) if match else (0, 0, 0.0)
    if not 1 <= min(width, height) <= max(width, height) <= MAX_SIDE or fps <= 0:
        raise SpecError(f"source {text}", expected="synthetic:WIDTHxHEIGHT@FPS", fix="synthetic:1920x1080@15")
    return partial(synthetic_frames, width, height, fps)
