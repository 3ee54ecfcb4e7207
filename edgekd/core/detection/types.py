"""Types of a detector: preprocessing, head, and detections.

Shared with the device: Python 3.8, standard library and NumPy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edgekd.core.documents import OPTIONAL

if TYPE_CHECKING:
    from edgekd.core.detection.masks import InstanceMasks

HEADS = ("yolo", "yolox", "end2end")
InputFormat = Literal["float32", "uint8", "nv12"]
"""Formats in which a network takes a frame, as `Preprocess` describes them."""
Task = Literal["detect", "pose", "obb", "segment"]
"""Kinds of detectors, by Ultralytics' names: of boxes alone, with keypoints, of rotated boxes, with masks."""
NO_GRID = (1,)
"""Strides of a head whose candidates belong to no grid of cells."""


@dataclass(frozen=True)
class Preprocess:
    """Preprocessing of a frame for the network; part of the manifest.

    A frame uint8 [h, w, 3] BGR is resized with its aspect ratio kept to fit `height` x `width`, the rest is filled with
    `pad_value` (around the frame when `center`, else right and below), channels are put in `color` order, and
    every value becomes `(value * scale - mean) / std`, giving float32 [1, 3, height, width]. With `stretch` the frame
    is resized to exactly `height` x `width`, and nothing is filled.

    A network of another `input` than `float32` takes the resized and filled frame itself: it puts channels in order and
    computes values. `uint8`: [1, height, width, 3], channels blue, green, red. `nv12`: [1, height * 3 / 2, width], a
    plane of luma, and below it blue and red chroma in turn, of 2 x 2 pixels each (`core/detection/nv12.py`).

    Args:
        height, width: Size of the input in pixels; even for `nv12`.
        color: Order of the channels.
        scale: Factor of every value.
        mean: Subtracted from each scaled channel.
        std: Divisor of each channel after that.
        pad_value: Grey level of what is filled.
        center: True where the frame is in the middle, else at the top left.
        upscale: True where smaller frames are enlarged.
        stretch: True where the aspect ratio is not kept; `pad_value`, `center` and `upscale` then have no meaning.
        input: Format of the network's input.
        float_bytes: True where the bytes of `uint8` and `nv12` are passed as float32, from 0 to 255: TensorRT before
            8.5 takes no 8-bit input.
    """

    height: int
    width: int
    color: Literal["rgb", "bgr"] = "rgb"
    scale: float = 1 / 255
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    pad_value: int = 114
    center: bool = True
    upscale: bool = True
    stretch: bool = field(default=False, metadata=OPTIONAL)
    input: InputFormat = field(default="float32", metadata=OPTIONAL)
    float_bytes: bool = field(default=False, metadata=OPTIONAL)


@dataclass(frozen=True)
class Keypoints:
    """Keypoints of an object, in the last columns of the output: x, y in input pixels of each.

    Args:
        sigmas: For each keypoint the standard deviation of labelled places relative to the object's size, by which OKS
            scores it.
        dimensions: 2, or 3 where the probability that it is visible follows x, y.
    """

    sigmas: tuple[float, ...]
    dimensions: int = 3


@dataclass(frozen=True)
class Masks:
    """Masks of objects: coefficients in the last columns of the output, and prototypes that they weigh.

    The output has the prototypes' pixels behind all candidates, row by row: the value of each prototype in the columns
    of coefficients, and zeros in those of boxes and scores.

    Args:
        coefficients: Number of coefficients of an object, and of prototypes.
        height, width: Size of a prototype, which covers the whole input.
    """

    coefficients: int
    height: int
    width: int


@dataclass(frozen=True)
class Head:
    """Format of the network's single output.

    Args:
        kind: `yolo`: float32 [1, 4 + classes, n], boxes cx, cy, w, h in input pixels, then a probability per class;
            `yolox`: float32 [1, n, 5 + classes], undecoded cx, cy, log w, log h per grid cell, objectness and class
            probabilities, over `strides`; `end2end`: float32 [1, n, 6], x1, y1, x2, y2 in input pixels, score, class.
        nms: True where decoding ends with non-maximum suppression.
        strides: Pixels of a grid cell at each level; 1 for candidates that belong to no grid.
        keypoints: Further columns of the output; null for a detector of boxes alone, and then not written.
        rotated: True where boxes, cx, cy, w, h for every kind, turn by the angle in a last column: radians from the x
            axis to the width. Else not written.
        masks: Further columns and rows of an output `yolo`; null for a detector without masks, and then not written.
    """

    kind: Literal["yolo", "yolox", "end2end"]
    nms: bool = True
    strides: tuple[int, ...] = (8, 16, 32)
    keypoints: Keypoints | None = field(default=None, metadata=OPTIONAL)
    rotated: bool = field(default=False, metadata=OPTIONAL)
    masks: Masks | None = field(default=None, metadata=OPTIONAL)

    @property
    def task(self) -> Task:
        """Kind of the detector."""
        if self.rotated or self.masks:
            return "obb" if self.rotated else "segment"
        return "pose" if self.keypoints else "detect"

    @property
    def beside_boxes(self) -> str:
        """Text on what objects have beside boxes: `17 keypoints`, `rotated boxes` or `masks`; empty for boxes alone."""
        if self.rotated or self.masks:
            return "rotated boxes" if self.rotated else "masks"
        return f"{len(self.keypoints.sigmas)} keypoints" if self.keypoints else ""

    @property
    def extra(self) -> int:
        """Number of columns of the output behind boxes, scores and classes."""
        points = len(self.keypoints.sigmas) * self.keypoints.dimensions if self.keypoints else 0
        return points + self.rotated + (self.masks.coefficients if self.masks else 0)


@dataclass(frozen=True)
class DetectorSpec:
    """Contract of a graph: its classes, its input and its output.

    Args:
        classes: Names of the classes.
        batch: Most frames of one run. If it is more than 1, the first side of input and output is dynamic.
    """

    classes: tuple[str, ...]
    preprocess: Preprocess
    head: Head
    batch: int = field(default=1, metadata=OPTIONAL)


@dataclass(frozen=True)
class Detections:
    """Detections in one frame, best first.

    boxes float32 [n, 4] x1, y1, x2, y2 in pixels of the frame; scores float32 [n]; classes int64 [n];
    keypoints float32 [n, k, 2 or 3] x, y in pixels of the frame, and the probability that each is visible;
    rotated float32 [n, 5] centre x, y, width, height in pixels of the frame, and the angle in radians from the x axis
    to the width, of which `boxes` are the enclosing boxes, clipped to the frame; masks of n objects, which are computed
    when they are read. Each is None for other detectors.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    keypoints: np.ndarray | None = None
    rotated: np.ndarray | None = None
    masks: InstanceMasks | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def only(self, mask: np.ndarray) -> Detections:
        """Return the detections selected by bool [n]."""
        parts = (self.boxes, self.scores, self.classes, self.keypoints, self.rotated, self.masks)
        return Detections(*(None if part is None else part[mask] for part in parts))  # type: ignore[arg-type]


def spec_from_json(value: Mapping[str, Any]) -> DetectorSpec:
    """Return the spec from its plain JSON types."""
    preprocess, head = dict(value["preprocess"]), value["head"]
    keypoints, masks = head.get("keypoints"), head.get("masks")
    return DetectorSpec(
        classes=tuple(value["classes"]),
        preprocess=Preprocess(**{**preprocess, "mean": tuple(preprocess["mean"]), "std": tuple(preprocess["std"])}),
        head=Head(
            head["kind"],
            head["nms"],
            tuple(head["strides"]),
            None if keypoints is None else Keypoints(tuple(keypoints["sigmas"]), keypoints["dimensions"]),
            head.get("rotated", False),
            None if masks is None else Masks(**masks),
        ),
        batch=value.get("batch", 1),
    )
