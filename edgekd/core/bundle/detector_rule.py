"""The rule for a detector's description: part of the manifest's. No I/O.

`core/detection/checked_spec.py` applies it on the host to every description that comes in.

Shared with the device: Python 3.8, standard library only.
"""

from __future__ import annotations

from edgekd.core.bundle.rules import flag, integer, list_of, number, object_of, one_of, text

MAX_SIDE = 65536
"""Largest height, width or stride in pixels."""
MAX_KEYPOINTS = 1000
"""Keypoints of an object; the whole body has 133."""
MAX_COEFFICIENTS = 1024
"""Coefficients of a mask; detectors have 32."""
MAX_BATCH = 64
"""Frames of one run; beyond, a frame waits longer than a camera's next one takes."""

_SIDE = integer(1, MAX_SIDE)
_FIGURE = number(-1e9, 1e9)
DETECTOR = object_of(
    dict,
    ("batch",),
    classes=list_of(text, 1),
    preprocess=object_of(
        dict,
        ("stretch", "input", "float_bytes"),
        height=_SIDE,
        width=_SIDE,
        color=one_of("rgb", "bgr"),
        scale=number(1e-9, 1e9),
        mean=list_of(_FIGURE, 3, 3),
        std=list_of(number(1e-9, 1e9), 3, 3),
        pad_value=integer(0, 255),
        center=flag,
        upscale=flag,
        stretch=flag,
        input=one_of("float32", "uint8", "nv12"),
        float_bytes=flag,
    ),
    head=object_of(
        dict,
        ("keypoints", "rotated", "masks"),
        kind=one_of("yolo", "yolox", "end2end"),
        nms=flag,
        strides=list_of(_SIDE, 0, 16),
        keypoints=object_of(dict, sigmas=list_of(number(1e-9, 1e9), 1, MAX_KEYPOINTS), dimensions=integer(2, 3)),
        rotated=flag,
        masks=object_of(dict, coefficients=integer(1, MAX_COEFFICIENTS), height=_SIDE, width=_SIDE),
    ),
    batch=integer(1, MAX_BATCH),
)
