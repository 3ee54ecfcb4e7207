"""Results of the analysis of a build, for the report and `edgekd report --json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgekd.evaluation.analysis.counts import Confusion, DetectionCounts, ScoreShift
from edgekd.evaluation.analysis.times import LayerTimes

ChangeKind = Literal["lost", "gained", "alarm", "settled"]
"""An object detected before only, or after only; a false alarm after only, or before only."""


@dataclass(frozen=True)
class Crop:
    """A change with its surroundings as a JPEG of `width` x `height` pixels.

    class_name, size: of the object or false alarm; frame: name of the image file; truth, before, after: boxes x1, y1,
    x2, y2 in pixels of the JPEG, or None; scores: of both networks, None without a detection; reason: why one network
    does not detect it.
    """

    kind: ChangeKind
    class_name: str
    size: str
    frame: str
    jpeg: bytes
    width: int
    height: int
    truth: tuple[float, ...] | None
    before: tuple[float, ...] | None
    after: tuple[float, ...] | None
    scores: tuple[float | None, float | None]
    threshold: float
    reason: str


@dataclass(frozen=True, eq=False)
class Analysis:
    """Detections of the scored images before and after, at the shipped thresholds.

    thresholds: minimum score of each class, before and after alike; images: number of scored images; reasons: number of
    lost objects by reason; tables: confusion, as in `matching.Findings`; changes: number of each kind, some of which
    `crops` shows.
    """

    class_names: tuple[str, ...]
    thresholds: tuple[float, ...]
    images: int
    total: DetectionCounts
    classes: tuple[DetectionCounts, ...]
    sizes: tuple[DetectionCounts, ...]
    reasons: Mapping[str, int]
    confusions: tuple[Confusion, ...]
    tables: tuple[np.ndarray, np.ndarray]
    shift: ScoreShift | None
    changes: Mapping[ChangeKind, int]
    crops: tuple[Crop, ...]


@dataclass(frozen=True)
class GraphSimilarity:
    """The CKA of the layers of two graphs, by the tensor that each writes. reference, other: Names of the graphs."""

    reference: str
    other: str
    values: Mapping[str, float | None]

    @property
    def name(self) -> str:
        """Both names, as a heading."""
        return f"{self.reference} → {self.other}"


@dataclass(frozen=True, eq=False)
class LayerAttention:
    """Attention maps of one layer over a frame, uint8 [h, w, 3] BGR. after: None without such a layer."""

    layer: str
    before: np.ndarray
    after: np.ndarray | None
    agreement: float | None


@dataclass(frozen=True, eq=False)
class FrameAttention:
    """A frame, uint8 [h, w, 3] BGR, and attention maps of some layers. frame: Name of the image file."""

    frame: str
    image: np.ndarray
    layers: tuple[LayerAttention, ...]


@dataclass(frozen=True, eq=False)
class LayerAnalysis:
    """Similarity of layers on `frames` scored images, their times before and after, and attention maps."""

    frames: int
    compared: tuple[GraphSimilarity, ...]
    times: tuple[LayerTimes, LayerTimes]
    attention: tuple[FrameAttention, ...]
