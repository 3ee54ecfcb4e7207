"""What a detector is, to everything that runs or scores one.

Shared with the device: Python 3.8, standard library and NumPy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

HEADS = ("yolo", "yolox", "end2end")


@dataclass(frozen=True)
class Preprocess:
    """How a frame becomes the network's input; travels in the manifest.

    A frame uint8 [h, w, 3] BGR is resized with its aspect ratio kept to fit `height` x `width`, the rest is filled with
    `pad_value` (around the frame when `center`, else right and below), channels are put in `color` order, and
    every value becomes `(value * scale - mean) / std`, giving float32 [1, 3, height, width].
    """

    height: int
    width: int
    color: str = "rgb"
    scale: float = 1 / 255
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    pad_value: int = 114
    center: bool = True
    upscale: bool = True


@dataclass(frozen=True)
class Head:
    """What the network's single output means.

    kind:
        `yolo`     float32 [1, 4 + classes, n]: boxes cx, cy, w, h in input pixels, then a probability per class.
        `yolox`    float32 [1, n, 5 + classes]: undecoded cx, cy, log w, log h per grid cell, objectness and class
                   probabilities, over `strides`.
        `end2end`  float32 [1, n, 6]: x1, y1, x2, y2 in input pixels, score, class; needs no NMS.
    nms: whether overlapping boxes of one class are to be suppressed after decoding.
    """

    kind: str
    nms: bool = True
    strides: tuple[int, ...] = (8, 16, 32)


@dataclass(frozen=True)
class DetectorSpec:
    """The contract between a graph and whoever feeds it frames."""

    classes: tuple[str, ...]
    preprocess: Preprocess
    head: Head


@dataclass(frozen=True)
class Detections:
    """What was found in one frame, best first.

    boxes float32 [n, 4] x1, y1, x2, y2 in pixels of the frame; scores float32 [n]; classes int64 [n].
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    def only(self, kept: np.ndarray) -> Detections:
        """Those that bool [n] says."""
        return Detections(self.boxes[kept], self.scores[kept], self.classes[kept])


def spec_from_json(value: Mapping[str, Any]) -> DetectorSpec:
    """The spec whose `dataclasses.asdict` went through JSON."""
    how = dict(value["preprocess"])
    head = value["head"]
    return DetectorSpec(
        classes=tuple(value["classes"]),
        preprocess=Preprocess(**{**how, "mean": tuple(how["mean"]), "std": tuple(how["std"])}),
        head=Head(head["kind"], head["nms"], tuple(head["strides"])),
    )
