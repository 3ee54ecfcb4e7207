"""Sample frames with the detections drawn on them, as JPEG data URIs."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Sequence

import numpy as np

from edgekd.core.detection.types import Detections

LONGEST_SIDE = 640
"""Longer side of a picture in pixels."""
SHOWN_SCORE = 0.25
"""Minimum score of a detection that is drawn."""
QUALITIES = (80, 65, 50, 35)
"""JPEG qualities that are tried until a picture has at most MAX_JPEG_BYTES."""
MAX_JPEG_BYTES = 130_000
# BGR, light enough for black letters.
COLORS = ((180, 229, 255), (120, 220, 130), (255, 190, 110), (80, 190, 255), (230, 170, 240), (240, 235, 120))
WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def shown(detections: Detections) -> Detections:
    """Return the detections of at least SHOWN_SCORE."""
    return detections.only(detections.scores >= SHOWN_SCORE)


def label(classes: Sequence[str], index: int) -> str:
    """Return a class's name where OpenCV can draw it (ASCII only), else its number."""
    name = classes[index] if index < len(classes) else ""
    return name if name.isascii() and name.isprintable() and name else f"class {index}"


def summary(detections: Detections, classes: Sequence[str]) -> str:
    """Return the number of drawn detections by class as text: "2 person, 1 helmet"."""
    names = (classes[index] if index < len(classes) else f"class {index}" for index in shown(detections).classes)
    return ", ".join(f"{times} {name}" for name, times in Counter(names).most_common()) or "nothing found"


def draw(image: np.ndarray, truth: np.ndarray, detections: Detections, classes: Sequence[str]) -> np.ndarray:
    """Draw detections on a frame, resized to LONGEST_SIDE so that letters have one size; uint8 [h, w, 3] BGR.

    Labelled objects (`truth` [n, 4]) get corner marks in white; detections a box with class and score, best on top.
    """
    import cv2

    scale = LONGEST_SIDE / max(image.shape[:2])
    width, height = (max(round(side * scale), 1) for side in image.shape[1::-1])
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    canvas = np.ascontiguousarray(cv2.resize(image, (width, height), interpolation=method))
    for box in truth:
        _draw_corners(canvas, *(round(float(value) * scale) for value in box))
    found = shown(detections)
    for index in reversed(range(len(found))):
        x1, y1, x2, y2 = (round(float(value) * scale) for value in found.boxes[index])
        kind = int(found.classes[index])
        color = COLORS[kind % len(COLORS)]
        cv2.rectangle(canvas, (x1, y1), (x2, y2), BLACK, 3)
        cv2.rectangle(canvas, (x1, y1), (x2, y2), color, 2)
        _draw_label(canvas, f"{label(classes, kind)} {found.scores[index]:.2f}", x1, y1, color)
    return canvas


def data_uri(image: np.ndarray) -> str:
    """Return the picture as `data:image/jpeg;base64,...`, in the best of QUALITIES that stays under MAX_JPEG_BYTES."""
    import cv2

    for quality in QUALITIES:
        jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
        if len(jpeg) <= MAX_JPEG_BYTES:
            break
    return jpeg_uri(jpeg)


def jpeg_uri(jpeg: bytes) -> str:
    """Return a JPEG as `data:image/jpeg;base64,...`."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")


def _draw_corners(canvas: np.ndarray, x1: int, y1: int, x2: int, y2: int) -> None:
    import cv2

    arm = max(min(x2 - x1, y2 - y1) // 4, 4)
    for x, y, right, down in ((x1, y1, 1, 1), (x2, y1, -1, 1), (x1, y2, 1, -1), (x2, y2, -1, -1)):
        corner = np.array([[x + right * arm, y], [x, y], [x, y + down * arm]], np.int32)
        cv2.polylines(canvas, [corner], isClosed=False, color=BLACK, thickness=4, lineType=cv2.LINE_AA)
        cv2.polylines(canvas, [corner], isClosed=False, color=WHITE, thickness=2, lineType=cv2.LINE_AA)


def _draw_label(canvas: np.ndarray, text: str, x: int, y: int, color: tuple[int, int, int]) -> None:
    """Draw a filled tag above the box's top left corner, moved inside the frame where it would leave it."""
    import cv2

    font, size = cv2.FONT_HERSHEY_SIMPLEX, 0.55
    (width, height), below = cv2.getTextSize(text, font, size, 1)
    left = int(np.clip(x - 1, 0, max(canvas.shape[1] - width - 8, 0)))
    bottom = y if y >= height + below + 4 else min(y + height + below + 4, canvas.shape[0])
    cv2.rectangle(canvas, (left, bottom - height - below - 4), (left + width + 8, bottom), color, cv2.FILLED)
    cv2.putText(canvas, text, (left + 4, bottom - below), font, size, BLACK, 1, cv2.LINE_AA)
