"""The description of a detector's head and input: a TOML file of the user, or one shipped with edgekd.

For a graph with one output of a kind in `core/detection/types.py`, at most `kind` is needed. Other heads are described
by the roles of their outputs and the coding of boxes; `completion.py` infers omitted keys from the graph.
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
"""Folder of the descriptions for `--head NAME`."""
_PREPROCESS = ("color", "scale", "mean", "std", "pad_value", "center", "upscale", "stretch")
MAX_BINS = 64
"""Largest number of bins of a distance's distribution; detectors have 8 to 33."""
MAX_STRIDES = 16
"""Largest number of levels of a head, the same as in the manifest."""


@dataclass(frozen=True)
class HeadDescription:
    """Description of a detector's head and of the frames that it expects; None or (): to be inferred from the graph.

    Args:
        kind: Kind of a graph's only output, if the agent can decode it.
        boxes, scores, objectness: Names of the outputs with boxes, scores of classes, and objectness: one per level, in
            the order of `strides`, or one for all.
        labels: Name of the output with the class number of each box, for a graph that returns finished detections.
        predictions: Names of the outputs with all parts of a box in the order of `columns`, one per level.
        columns: Parts in `predictions`.
        coding: Numbers of a box. `cxcywh`, `xyxy`: a box. `ltrb`: distances from a cell's point to the sides. `grid`:
            centre relative to the cell's corner, and logarithms of width and height (YOLOX). `anchors`: centre, and
            factors of the sizes in `anchors`, by sigmoids (YOLOv5, YOLOv7). `priors`: shift of the centre in units of
            the anchor's sides, and logarithms of width and height relative to them (SSD, RetinaNet); all anchors of a
            cell are adjacent.
        unit: Unit of boxes and distances: pixels of the input, fractions of its width and height, or cells of the
            level.
        bins: If above 1, each distance is the mean of a distribution over 0 to `bins - 1` cells.
        activation: Function that computes scores from the outputs; `softmax` includes the background.
        background: Position of the background in the columns of scores.
        class_columns: Columns of scores that are classes, counted without the background: for networks with unused
            class numbers, such as COCO's 91 with 80 classes.
        cell_offset: Point of a cell that distances start from, or centre of its priors, in cells from its corner.
        anchors: Alternating widths and heights in pixels, for each level.
        variances: Factors of shifts and of logarithms of `priors`.
        strides: Pixels per cell at each level; integers except for `priors`.
        constants: Values of inputs other than the image, by name, such as the size of the frame.
        nms: Whether decoding ends with non-maximum suppression.
        keypoints: Only with `kind`: number of keypoints in the last columns of the output, and of values per keypoint.
        keypoint_sigmas: Standard deviation of the labels of each keypoint, for OKS; COCO's for 17.
        rotated: Only with `kind`: whether boxes are rotated by an angle in the last column of the output.
        masks: Whether a second output has prototypes of masks, and the last columns of the first their coefficients.
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
        """Return `usual` with the described values replaced."""
        described = {key: getattr(self, key) for key in _PREPROCESS}
        return replace(usual, **{key: value for key, value in described.items() if value is not None})

    def with_spec(self, spec: DetectorSpec) -> HeadDescription:
        """Return the description with the classes and the preprocessing of a detector's contract."""
        used: dict[str, Any] = {key: getattr(spec.preprocess, key) for key in _PREPROCESS}
        return replace(self, classes=spec.classes, **used)


def read_description(head: str | None) -> HeadDescription:
    """Return the description that `--head` names: a kind, a shipped description, or a TOML file; empty for None.

    Raises SpecError for an unknown name, and for an invalid file.
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
