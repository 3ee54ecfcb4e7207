"""The description of a detector's head and input: a TOML file of a user, or one that edgekd ships.

A graph that has one output of a kind of `core/detection/types.py` needs `kind` at most. Any other head is described by
the roles of its outputs and the coding of its boxes; `completion.py` finds in the graph what is left out.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from edgekd.core.detection.types import HEADS, DetectorSpec, Preprocess
from edgekd.core.errors import SpecError, did_you_mean
from edgekd.core.toml import parse_table, read_toml

Coding = Literal["cxcywh", "xyxy", "ltrb", "grid", "anchors", "priors"]
Unit = Literal["pixels", "fraction", "cells"]
Part = Literal["boxes", "objectness", "scores"]

SHIPPED = Path(__file__).with_name("shipped")
"""Folder of the descriptions that `--head NAME` finds."""
_PREPROCESS = ("color", "scale", "mean", "std", "pad_value", "center", "upscale", "stretch")
MAX_BINS = 64
"""Bins of a distance's distribution; detectors have 8 to 33."""
MAX_STRIDES = 16
"""Levels of a head; the manifest has the same limit."""


@dataclass(frozen=True)
class HeadDescription:
    """Description of a detector's head and of the frames that it expects; None or () for what the graph tells.

    Args:
        kind: Format of a graph's only output, which the agent decodes as it is.
        boxes, scores, objectness: Names of the outputs with boxes, scores of classes, and objectness: one for each
            level, in the order of `strides`, or one for all.
        labels: Name of the output with the class number of each box, where a graph ends with finished detections.
        predictions: Names of the outputs that hold all parts of a box in the order of `columns`, one for each level.
        columns: Parts in `predictions`.
        coding: Numbers of a box. `cxcywh`, `xyxy`: a box. `ltrb`: distances from a cell's point to the sides. `grid`:
            centre from the cell's corner, and logarithms of width and height (YOLOX). `anchors`: the same by sigmoids,
            beside the sizes in `anchors` (YOLOv5, YOLOv7). `priors`: shift of the centre by sides of the anchor, and
            logarithms of width and height relative to it (SSD, RetinaNet); the anchors of a cell follow each other.
        unit: Of boxes and distances: pixels of the input, fractions of its width and height, or cells of the level.
        bins: Above 1, each distance is the mean of a distribution over 0 to `bins - 1` cells.
        activation: From outputs to scores; `softmax` includes the background.
        background: Place of the background among the columns of scores.
        class_columns: Columns of scores that are classes, without the background: for networks with unused class
            numbers, such as COCO's 91 of which 80 exist.
        cell_offset: Point of a cell that distances are from, or the centre of its priors, in cells from its corner.
        anchors: For each level widths and heights in pixels in turn.
        variances: Factors of shifts and of logarithms of `priors`.
        strides: Pixels of a cell at each level; whole numbers but for `priors`.
        constants: Values of inputs other than the image, by name, such as the size of the frame.
        nms: True where decoding ends with non-maximum suppression.
        keypoints: Beside `kind`: number of keypoints in the last columns of the output, and of numbers for each.
        keypoint_sigmas: For each keypoint the deviation of its labels by which OKS scores it; COCO's for 17.
        rotated: Beside `kind`: True where boxes turn by an angle in the last column of the output.
        masks: True where a second output has prototypes of masks, and the last columns of the first their coefficients.
        classes: Names of the classes.
        color, scale, mean, std, pad_value, center, upscale, stretch: As in `Preprocess`.
    """

    kind: Literal["yolo", "yolox", "end2end"] | None = None
    boxes: tuple[str, ...] = ()
    scores: tuple[str, ...] = ()
    objectness: tuple[str, ...] = ()
    labels: str | None = None
    predictions: tuple[str, ...] = ()
    columns: tuple[Part, ...] = ()
    coding: Coding | None = None
    unit: Unit | None = None
    bins: int | None = None
    activation: Literal["sigmoid", "softmax", "none"] | None = None
    background: Literal["first", "last", "none"] | None = None
    class_columns: tuple[int, ...] = ()
    cell_offset: float | None = None
    anchors: tuple[tuple[float, ...], ...] = ()
    variances: tuple[float, float] | None = None
    strides: tuple[float, ...] = ()
    constants: dict[str, tuple[float, ...]] | None = None
    nms: bool | None = None
    keypoints: tuple[int, int] | None = None
    keypoint_sigmas: tuple[float, ...] = ()
    rotated: bool | None = None
    masks: bool | None = None
    classes: tuple[str, ...] = ()
    color: Literal["rgb", "bgr"] | None = None
    scale: float | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    pad_value: int | None = None
    center: bool | None = None
    upscale: bool | None = None
    stretch: bool | None = None

    def preprocess(self, usual: Preprocess) -> Preprocess:
        """Return the usual preprocessing with what is described."""
        described = {key: getattr(self, key) for key in _PREPROCESS}
        return replace(usual, **{key: value for key, value in described.items() if value is not None})

    def with_spec(self, spec: DetectorSpec) -> HeadDescription:
        """Return the description with the classes and the preprocessing of a detector."""
        used: dict[str, Any] = {key: getattr(spec.preprocess, key) for key in _PREPROCESS}
        return replace(self, classes=spec.classes, **used)


def read_description(head: str | None) -> HeadDescription:
    """Return the description that `--head` names: a kind, a shipped description, or a TOML file; empty for None.

    Raises SpecError for an unknown name, and for a file with a mistake.
    """
    if head is None:
        return HeadDescription()
    if head in HEADS:
        return parse_table(HeadDescription, {"kind": head}, head)
    path = Path(head) if head.endswith(".toml") else SHIPPED / f"{head}.toml"
    if path.parent == SHIPPED and head not in shipped():
        known = [*HEADS, *shipped()]
        fix = did_you_mean(head, known)
        raise SpecError("--head", expected=", ".join(known) + " or a .toml file", found=head, fix=fix)
    described = parse_table(HeadDescription, read_toml(path), str(path))
    _require_ranges(described, str(path))
    return described


def shipped() -> list[str]:
    """Return the names of the descriptions that edgekd ships."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def _require_ranges(described: HeadDescription, where: str) -> None:
    for key, values, low, high in (
        ("strides", described.strides, 1, math.inf),
        ("std", described.std or (), sys.float_info.min, math.inf),
        ("pad_value", (described.pad_value or 0,), 0, 255),
        ("bins", (described.bins or 1,), 1, MAX_BINS),
        ("class_columns", described.class_columns, 0, math.inf),
        ("anchors", [side for level in described.anchors for side in level], sys.float_info.min, math.inf),
        ("cell_offset", (described.cell_offset or 0,), 0, 1),
    ):
        if not all(low <= value <= high for value in values):
            raise SpecError(f"{where}: {key}", expected=f"{low:g} to {high:g}", found=str(values))
    if described.coding != "priors" and any(stride % 1 for stride in described.strides):
        raise SpecError(f"{where}: strides", expected="whole numbers", found=str(list(described.strides)))
    if len(described.strides) > MAX_STRIDES:
        raise SpecError(f"{where}: strides", expected=f"at most {MAX_STRIDES}", found=str(len(described.strides)))
    by_parts = (described.boxes, described.scores, described.predictions, described.labels)
    if described.kind and any(by_parts):
        expected = "`kind` for one output that is decoded as it is, or the roles of outputs"
        raise SpecError(f"{where}: kind", expected=expected, found="both", fix="remove `kind`")
    for key, value in (("keypoints", described.keypoints), ("rotated", described.rotated)):
        if value and not described.kind:
            raise SpecError(f"{where}: {key}", expected="beside `kind`", found="no `kind`")
    if described.predictions and described.boxes:
        expected = "`predictions` and `columns`, or `boxes` and `scores`"
        raise SpecError(f"{where}: predictions", expected=expected, found="both")
