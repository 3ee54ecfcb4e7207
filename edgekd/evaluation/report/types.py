"""What one `edgekd build` run hands to the HTML report.

"Before" is the detector as it was given, "after" is the graph that ships. `None` stands for a number that nobody has,
shown as "–". Accuracies are shares from 0 to 1, sizes are bytes, times are in the unit that their name ends with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from edgekd.core.detection.types import Detections
from edgekd.evaluation.analysis.types import Analysis, Inside

Basis = Literal["measured", "stand-in", "predicted"]
Moment = Literal["before", "after"]


@dataclass(frozen=True)
class Change:
    """One number before and after the build."""

    before: float | None
    after: float | None

    @property
    def difference(self) -> float | None:
        """after - before, or None when either is missing."""
        if self.before is None or self.after is None:
            return None
        return self.after - self.before

    @property
    def share(self) -> float | None:
        """after / before, or None when either is missing or `before` is 0."""
        if self.after is None or not self.before:
            return None
        return self.after / self.before


@dataclass(frozen=True)
class StageRow:
    """One stage of the build: what it took and what came out of it. `cached`: reused from an earlier build."""

    name: str
    seconds: float | None
    bytes: int | None
    map50_95: float | None
    map50: float | None
    cached: bool = False
    note: str = ""


@dataclass(frozen=True)
class ClassRow:
    """mAP50-95 of one class; `instances` is how many labelled objects of it were scored, `rare` how it was trained."""

    name: str
    instances: int | None
    before: float | None
    after: float | None
    rare: bool = False

    @property
    def change(self) -> Change:
        """Both numbers together."""
        return Change(self.before, self.after)


@dataclass(frozen=True)
class SizeRow:
    """mAP50-95 of the objects of one size: small, medium or large, as COCO counts them."""

    name: str
    before: float | None
    after: float | None

    @property
    def change(self) -> Change:
        """Both numbers together."""
        return Change(self.before, self.after)


@dataclass(frozen=True)
class LayerRow:
    """One layer that holds weights, in graph order.

    precision: what the weights are stored as, such as "int8"; error_share: its part of what quantizing is thought to
    cost, 0 to 1, None where that was not estimated; snr_db: signal by noise at its own output, where its weights or
    inputs are quantized. output: the tensor that it writes. options: what each format that a plan may give it was
    measured to cost: its error (relative to the outputs' signal), by the name of the format.
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
        """Stored bits per weight, scales included."""
        weights = math.prod(self.shape)
        return None if self.bytes_after is None or not weights else 8 * self.bytes_after / weights


@dataclass(frozen=True)
class Latency:
    """Time from frame to detections of one graph on one engine.

    samples_ms: the total of every timed frame; may be empty, as it is for a prediction.
    preprocess_ms, inference_ms, postprocess_ms: medians of the parts.
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


def latency_of(label: Moment, engine: str, summary: Mapping[str, Any], samples_ms: Sequence[float]) -> Latency:
    """The row of a graph whose timing was summarized, as `Timing.summary` does it."""
    total = summary["total_ms"]
    return Latency(
        label=label,
        engine=engine,
        basis=summary["basis"],
        samples_ms=samples_ms,
        preprocess_ms=summary["preprocess_ms"]["p50"],
        inference_ms=summary["inference_ms"]["p50"],
        postprocess_ms=summary["postprocess_ms"]["p50"],
        p50_ms=total["p50"],
        p90_ms=total["p90"],
        p99_ms=total["p99"],
        mean_ms=total["mean"],
        fps=summary["fps"],
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
class Training:
    """What a step that trained has logged: the means of losses, and of weights, in each epoch, by name."""

    name: str
    losses: tuple[Mapping[str, float], ...]
    weights: tuple[Mapping[str, float], ...] = ()


@dataclass(frozen=True)
class BudgetRow:
    """One limit and what the build reached, both as text with units. `met` is None when it was not checked.

    timed: the value is a time or a rate, and so belongs to the machine it was taken on.
    """

    name: str
    limit: str
    value: str | None
    met: bool | None
    basis: Basis | None
    timed: bool = False


@dataclass(frozen=True)
class Report:
    """Everything the page says.

    Of `latencies`, the first "before" and the first "after" are the headline. `class_names` names the class indices of
    the detections in `pictures`. `provenance` is shown in its own order. `search` is how the recipe was found, as
    search.json has it. `analysis` is of detections, `inside` of layers; where they are None, `missing` says why.
    """

    title: str
    model: str
    target: str
    recipe: str
    map50_95: Change
    map50: Change
    bytes: Change
    bundle_bytes: int | None = None
    bundle_limit: int | None = None
    images: int | None = None
    stages: tuple[StageRow, ...] = ()
    budget: tuple[BudgetRow, ...] = ()
    classes: tuple[ClassRow, ...] = ()
    sizes: tuple[SizeRow, ...] = ()
    layers: tuple[LayerRow, ...] = ()
    latencies: tuple[Latency, ...] = ()
    class_names: tuple[str, ...] = ()
    pictures: tuple[SamplePicture, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    search: Mapping[str, Any] | None = None
    training: tuple[Training, ...] = ()
    analysis: Analysis | None = None
    inside: Inside | None = None
    missing: tuple[str, ...] = ()


def for_bundle(report: Report) -> Report:
    """The report as it travels inside the bundle: what the same inputs give on every machine and on every run.

    Left out are all times (they belong to the building host, not to the camera), which stages were reused, how the
    recipe was found, the analysis, for which a camera has no room, and the size of the bundle itself. Provenance and
    notes are kept as they are.
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
