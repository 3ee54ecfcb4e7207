"""The data of the report of a build.

"Before" is the given detector, "after" the shipped graph. `None` is a missing number, shown as "–".
Accuracies are shares from 0 to 1, sizes are bytes, times are in the unit that their name ends with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from edgekd.core.benchmark import TimingSummary
from edgekd.core.detection.types import Detections, Task
from edgekd.evaluation.analysis.types import Analysis, LayerAnalysis
from edgekd.evaluation.bench_result import ArtifactResult
from edgekd.evaluation.search_result import SearchResult
from edgekd.hardware.budget import Basis

Moment = Literal["before", "after"]


@dataclass(frozen=True)
class BeforeAfter:
    """One number before and after the build.

    Args:
        before, after: The number; null where it is missing.
    """

    before: float | None
    after: float | None

    @property
    def difference(self) -> float | None:
        """Return after - before, or None when either is missing."""
        return None if self.before is None or self.after is None else self.after - self.before

    @property
    def share(self) -> float | None:
        """Return after / before, or None when either is missing or `before` is 0."""
        return None if self.after is None or not self.before else self.after / self.before


@dataclass(frozen=True)
class StageRow:
    """One stage of the build: its time, and size and accuracy of its result. cached: Reused from an earlier build."""

    name: str
    seconds: float | None
    bytes: int | None
    map50_95: float | None
    map50: float | None
    cached: bool = False
    note: str = ""


@dataclass(frozen=True)
class ClassRow:
    """mAP50-95 of one class. instances: number of scored labelled objects; rare: few objects in the training split."""

    name: str
    instances: int | None
    before: float | None
    after: float | None
    rare: bool = False

    @property
    def change(self) -> BeforeAfter:
        """Return both numbers together."""
        return BeforeAfter(self.before, self.after)


@dataclass(frozen=True)
class SizeRow:
    """mAP50-95 of the objects of one size, as COCO counts them.

    Args:
        name: `small`, `medium` or `large`.
        before, after: mAP50-95; null without objects.
    """

    name: str
    before: float | None
    after: float | None

    @property
    def change(self) -> BeforeAfter:
        """Return both numbers together."""
        return BeforeAfter(self.before, self.after)


@dataclass(frozen=True)
class LayerRow:
    """One layer that holds weights, in graph order.

    precision: format of the weights, such as "int8"; error_share: its share of the estimated error of quantization,
    0 to 1; snr_db: signal-to-noise ratio in dB at its output, if its weights or inputs are quantized; output: tensor
    that it writes; options: error of each format that was measured for a plan, relative to the outputs' signal.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    precision: str
    bytes_before: int | None
    bytes_after: int | None
    error_share: float | None = None
    snr_db: float | None = None
    output: str = ""
    options: Mapping[str, float] = field(default_factory=dict)

    @property
    def bits(self) -> float | None:
        """Return the stored bits per weight, scales included."""
        weights = math.prod(self.shape)
        return None if self.bytes_after is None or not weights else 8 * self.bytes_after / weights

    @property
    def largest_bytes(self) -> int:
        """Return the stored bytes, the larger of before and after."""
        return max(self.bytes_before or 0, self.bytes_after or 0)


@dataclass(frozen=True)
class FrameLatency:
    """Time from frame to detections of one graph on one runtime.

    samples_ms: The total of every timed frame, empty for a prediction. preprocess_ms, inference_ms, postprocess_ms:
    medians of the parts.
    """

    label: Moment
    engine: str
    basis: Basis
    samples_ms: Sequence[float]
    preprocess_ms: float | None
    inference_ms: float | None
    postprocess_ms: float | None
    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    fps: float | None


def latency_of(
    label: Moment, engine: str, summary: TimingSummary | ArtifactResult, samples_ms: Sequence[float]
) -> FrameLatency:
    """Return the row of a graph that was timed."""
    total = summary.total_ms
    return FrameLatency(
        label=label,
        engine=engine,
        basis=summary.basis,
        samples_ms=samples_ms,
        preprocess_ms=summary.preprocess_ms.p50,
        inference_ms=summary.inference_ms.p50,
        postprocess_ms=summary.postprocess_ms.p50,
        p50_ms=total.p50,
        p90_ms=total.p90,
        p99_ms=total.p99,
        mean_ms=total.mean,
        fps=summary.fps,
    )


@dataclass(frozen=True)
class SamplePicture:
    """One scored frame. image uint8 [h, w, 3] BGR; truth float32 [n, 4] x1, y1, x2, y2 in pixels of the frame."""

    title: str
    image: np.ndarray
    truth: np.ndarray
    before: Detections
    after: Detections


@dataclass(frozen=True)
class Column:
    """A number that a training logged, by epoch; None where it did not. kind: `loss` or `weight`."""

    key: str
    kind: str
    values: tuple[float | None, ...]

    @property
    def heading(self) -> str:
        """Return its name in a table."""
        return f"{self.key}, {self.kind}"


@dataclass(frozen=True)
class Training:
    """Means of the losses, and of their weights, that a step logged in each epoch, by name."""

    name: str
    losses: tuple[Mapping[str, float], ...]
    weights: tuple[Mapping[str, float], ...] = ()

    @property
    def columns(self) -> list[Column]:
        """Return each loss and each weight over the epochs."""
        logged = (("loss", self.losses), ("weight", self.weights))
        return [
            Column(key, kind, tuple(row.get(key) for row in rows))
            for kind, rows in logged
            for key in dict.fromkeys(key for row in rows for key in row)
        ]


@dataclass(frozen=True)
class BudgetRow:
    """One limit and the value that the build reached, both as text with units.

    met: None when it was not checked; timed: the value is a time or a rate, which depends on the machine.
    """

    name: str
    limit: str
    value: str | None
    met: bool | None
    basis: Basis | None
    timed: bool = False


@dataclass(frozen=True)
class Report:
    """The content of the page.

    The headline shows the first "before" and the first "after" of `latencies`. task: task of the detector, which
    decides what its accuracy compares; boxes: mAP50-95 of the boxes alone, for a detector with keypoints or masks;
    class_names: by the class indices of the detections in `pictures`; analysis: of detections; inside: analysis of
    layers; where they are None, `missing` has the reason.
    """

    title: str
    model: str
    target: str
    recipe: str
    map50_95: BeforeAfter
    map50: BeforeAfter
    bytes: BeforeAfter
    bundle_bytes: int | None = None
    bundle_limit: int | None = None
    images: int | None = None
    task: Task = "detect"
    boxes: BeforeAfter | None = None
    stages: tuple[StageRow, ...] = ()
    budget: tuple[BudgetRow, ...] = ()
    classes: tuple[ClassRow, ...] = ()
    sizes: tuple[SizeRow, ...] = ()
    layers: tuple[LayerRow, ...] = ()
    latencies: tuple[FrameLatency, ...] = ()
    class_names: tuple[str, ...] = ()
    pictures: tuple[SamplePicture, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    search: SearchResult | None = None
    training: tuple[Training, ...] = ()
    analysis: Analysis | None = None
    inside: LayerAnalysis | None = None
    missing: tuple[str, ...] = ()


def for_bundle(report: Report) -> Report:
    """Return the report that a bundle contains: the same inputs give the same on every machine and in every run.

    It has no times (they depend on the building host), no search for the recipe, no training log, no analysis (a camera
    has no room for it), not the size of the bundle itself, and not which stages were reused.
    """
    return replace(
        report,
        bundle_bytes=None,
        stages=tuple(replace(row, seconds=None, cached=False) for row in report.stages),
        budget=tuple(row for row in report.budget if not row.timed),
        latencies=(),
        search=None,
        training=(),
        analysis=None,
        inside=None,
        missing=(),
    )
