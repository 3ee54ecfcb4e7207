"""The numbers of a report, as `edgekd report --json` prints them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekd.core.documents import Result
from edgekd.evaluation.analysis.counts import Confusion, DetectionCounts, ScoreShift
from edgekd.evaluation.analysis.matching import IOU
from edgekd.evaluation.analysis.times import LayerTimes
from edgekd.evaluation.analysis.types import Analysis, ChangeKind, LayerAnalysis
from edgekd.evaluation.report.types import BeforeAfter, LayerRow, Report, SizeRow
from edgekd.hardware.budget import Basis


@dataclass(frozen=True)
class ReportedClass:
    """mAP50-95 of a class.

    Args:
        name: Name of the class.
        objects: Number of labelled objects that were scored.
        before, after: mAP50-95; null without objects.
    """

    name: str
    objects: int | None
    before: float | None
    after: float | None


@dataclass(frozen=True)
class ReportedConfusion:
    """Objects of one class that are detected as another.

    Args:
        labelled: Class of the object; null for a false alarm.
        taken_for: Class of the detection; null for a missed object.
        before, after: Number of such objects.
    """

    labelled: str | None
    taken_for: str | None
    before: int
    after: int


@dataclass(frozen=True)
class ReportedDetections:
    """Objects lost and gained, of all scored images.

    Args:
        images: Number of images.
        iou: Minimum IoU of a detection and the object that it matches.
        thresholds: Minimum score by class: the shipped thresholds, before and after alike.
        total: Counts of all objects and false alarms.
        classes: Counts of every class.
        sizes: Counts of small, medium and large objects.
        reasons: Number of lost objects that are `unsure` (a box that fits is below the threshold), `confused` (it has
            another class), `misplaced` (the box does not fit) and `unseen`.
        confusions: Confusions of classes, those that changed most first.
        shift: Change of the scores of objects that both find; null without any.
        changes: Number of changes of each kind: objects `lost` and `gained`, new false alarms (`alarm`), and those that
            are gone (`settled`).
        pictures: Number of changes that the page shows.
    """

    images: int
    iou: float
    thresholds: Mapping[str, float]
    total: DetectionCounts
    classes: tuple[DetectionCounts, ...]
    sizes: tuple[DetectionCounts, ...]
    reasons: Mapping[str, int]
    confusions: tuple[ReportedConfusion, ...]
    shift: ReportedShift | None
    changes: Mapping[ChangeKind, int]
    pictures: int


@dataclass(frozen=True)
class ReportedShift:
    """Change of the scores of objects that both networks find: score after minus score before.

    Args:
        count: Number of objects.
        mean: Mean change.
        p10, p50, p90: Percentile.
    """

    count: int
    mean: float
    p10: float
    p50: float
    p90: float


@dataclass(frozen=True)
class ReportedLayer:
    """A layer with weights.

    Args:
        name: Name of its node.
        op: Operator of ONNX.
        precision: Format of its weights.
        bits: Stored bits of a weight, scales included.
        bytes_before: Bytes of its weights in the given detector.
        bytes_after: Bytes of its weights in the shipped graph.
        error_share: Its share of the estimated cost of quantization; null where that was not estimated.
        snr_db: Signal-to-noise ratio in dB at its own output in INT8; null for others.
        shape: Shape of its weights.
        options: Measured error of each format that a plan could choose for it; empty without a plan.
        us_before: Microseconds in the given detector; null where they are not known.
        us_after: Microseconds in the shipped graph; null where they are not known.
        cka: Similarity in each comparison of `inside.compared`; null where it has no counterpart.
    """

    name: str
    op: str
    precision: str
    bits: float | None
    bytes_before: int | None
    bytes_after: int | None
    error_share: float | None
    snr_db: float | None
    shape: tuple[int, ...]
    options: Mapping[str, float]
    us_before: float | None
    us_after: float | None
    cka: tuple[float | None, ...]


@dataclass(frozen=True)
class ComparedGraphs:
    """Two graphs whose layers were compared.

    Args:
        reference: `given` or `float`.
        other: `float`, `untrained` or `shipped`.
    """

    reference: str
    other: str


@dataclass(frozen=True)
class TimesSource:
    """The source of the times of the layers of a graph.

    Args:
        basis: Predicted for the target, measured on it, or on another machine.
        where: Device and runtime.
        other_us: Microseconds of kernels that belong to no layer.
    """

    basis: Basis
    where: str
    other_us: float


@dataclass(frozen=True)
class TimesSources:
    """The sources of the times of layers.

    Args:
        before: The graph of the given detector.
        after: The shipped graph.
    """

    before: TimesSource
    after: TimesSource


@dataclass(frozen=True)
class ReportedAttention:
    """A pair of attention maps.

    Args:
        frame: File name of the image.
        layer: Tensor that the layer writes.
        agreement: Correlation of both maps; null where one is flat or missing.
    """

    frame: str
    layer: str
    agreement: float | None


@dataclass(frozen=True)
class ReportedInside:
    """The analysis inside the networks.

    Args:
        frames: Number of scored images that layers were compared on.
        compared: Pairs of graphs.
        attention: Attention maps.
    """

    frames: int
    compared: tuple[ComparedGraphs, ...]
    times: TimesSources
    attention: tuple[ReportedAttention, ...]


@dataclass(frozen=True)
class ReportedTraining:
    """The log of a training.

    Args:
        step: Name of the stage.
        losses: Mean losses in each epoch, by name.
        weights: Mean weights in each epoch, by name; empty where there are none.
    """

    step: str
    losses: tuple[Mapping[str, float], ...]
    weights: tuple[Mapping[str, float], ...]


@dataclass(frozen=True)
class Analysed(Result):
    """Analysis of the accuracy that a build lost. Counts are null where the scored data was not at hand.

    Args:
        run: Result folder of the build.
        report: Path of the page.
        model: File name of the given detector.
        target: Title of the target.
        recipe: Name of the recipe.
        images: Number of scored images.
        map50_95: COCO's mAP50-95.
        missing: Parts that are not in the report, and why.
        classes, sizes: mAP50-95 of every class, and by size of the objects.
        detections: Objects lost and gained; null where the scored data is not at hand.
        layers: Layers with weights, in the order of the graph.
        inside: The analysis inside the networks; null where it was not possible.
        training: The log of each training.
    """

    run: Path
    report: Path
    model: str
    target: str
    recipe: str
    images: int | None
    map50_95: BeforeAfter
    missing: tuple[str, ...]
    classes: tuple[ReportedClass, ...]
    sizes: tuple[SizeRow, ...]
    detections: ReportedDetections | None
    layers: tuple[ReportedLayer, ...]
    inside: ReportedInside | None
    training: tuple[ReportedTraining, ...]

    @property
    def lost(self) -> int | None:
        """Number of objects that were found before, and are not found by the shipped graph."""
        return self.detections.total.lost if self.detections else None

    @property
    def gained(self) -> int | None:
        """Number of objects that only the shipped graph finds."""
        return self.detections.total.gained if self.detections else None


def numbers_of(report: Report, run: Path, page: Path) -> Analysed:
    """Return the numbers of a report; run: the build's folder; page: the file with the report."""
    return Analysed(
        run=run,
        report=page,
        model=report.model,
        target=report.target,
        recipe=report.recipe,
        images=report.images,
        map50_95=report.map50_95,
        missing=tuple(report.missing),
        classes=tuple(ReportedClass(row.name, row.instances, row.before, row.after) for row in report.classes),
        sizes=report.sizes,
        detections=None if report.analysis is None else _detections(report.analysis),
        layers=tuple(_layer(row, report.inside) for row in report.layers),
        inside=None if report.inside is None else _inside(report.inside),
        training=tuple(ReportedTraining(each.name, each.losses, each.weights) for each in report.training),
    )


def _detections(analysis: Analysis) -> ReportedDetections:
    return ReportedDetections(
        images=analysis.images,
        iou=IOU,
        thresholds=dict(zip(analysis.class_names, analysis.thresholds, strict=True)),
        total=analysis.total,
        classes=analysis.classes,
        sizes=analysis.sizes,
        reasons=analysis.reasons,
        confusions=tuple(_confusion(each, analysis.class_names) for each in analysis.confusions),
        shift=_shift(analysis.shift),
        changes=analysis.changes,
        pictures=len(analysis.crops),
    )


def _shift(shift: ScoreShift | None) -> ReportedShift | None:
    return None if shift is None else ReportedShift(shift.count, shift.mean, shift.p10, shift.p50, shift.p90)


def _confusion(confusion: Confusion, classes: Sequence[str]) -> ReportedConfusion:
    labelled, taken_for = (None if at is None else classes[at] for at in (confusion.truth, confusion.taken_for))
    return ReportedConfusion(labelled, taken_for, confusion.before, confusion.after)


def _layer(row: LayerRow, inside: LayerAnalysis | None) -> ReportedLayer:
    return ReportedLayer(
        name=row.name,
        op=row.op,
        precision=row.precision,
        bits=row.bits,
        bytes_before=row.bytes_before,
        bytes_after=row.bytes_after,
        error_share=row.error_share,
        snr_db=row.snr_db,
        shape=row.shape,
        options=row.options,
        us_before=inside.times[0].us.get(row.name) if inside else None,
        us_after=inside.times[1].us.get(row.name) if inside else None,
        cka=tuple(each.values.get(row.output) for each in inside.compared) if inside else (),
    )


def _inside(inside: LayerAnalysis) -> ReportedInside:
    return ReportedInside(
        frames=inside.frames,
        compared=tuple(ComparedGraphs(each.reference, each.other) for each in inside.compared),
        times=TimesSources(*map(_source, inside.times)),
        attention=tuple(
            ReportedAttention(each.frame, shown.layer, shown.agreement)
            for each in inside.attention
            for shown in each.layers
        ),
    )


def _source(times: LayerTimes) -> TimesSource:
    return TimesSource(times.basis, times.where, times.other_us)
