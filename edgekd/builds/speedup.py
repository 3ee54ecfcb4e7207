"""A detector and a lighter one derived from it: their results side by side."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgekd.builds.run_progress import Command, recorded
from edgekd.builds.stages import export, score
from edgekd.builds.stages.base import GraphStage, StageContext
from edgekd.builds.stages.derived import DerivedDetector
from edgekd.builds.stages.latency import LatencySource, Measured, latency_on
from edgekd.core.benchmark import TimingSummary
from edgekd.core.documents import Result
from edgekd.core.host_facts import HostFacts
from edgekd.core.progress import Progress
from edgekd.data.dataset import load_dataset, require_classes
from edgekd.data.types import Dataset
from edgekd.deploy.devices.local import local_device
from edgekd.detectors import load
from edgekd.hardware.budget import Basis
from edgekd.hardware.target import EXPORT_OPSET, Target

SCORED = "val"
"""The split that is scored and timed on, if the data set has it; it influences no choice."""


@dataclass(frozen=True)
class Start:
    """The given detector, before a lighter one is derived from it.

    Args:
        before: Its float graph.
        target: Target whose latency decides; None for this machine.
        measured: Measurement on this machine.
        latency: Source of the latencies that decide.
        trust: Allow code that is pickled in a checkpoint to run.
    """

    context: StageContext
    dataset: Dataset
    before: GraphStage
    target: Target | None
    measured: Measured
    latency: LatencySource
    trust: bool

    def export(self, checkpoint: Path) -> GraphStage:
        """Return the float graph of a derived checkpoint."""
        detector = load(checkpoint, trust_checkpoint=self.trust)
        return export.run(self.context, detector, None, self.dataset.classes, EXPORT_OPSET)


@contextmanager
def started(
    command: Command,
    model: Path,
    data: Path,
    folder: Path,
    *,
    target: Target | None,
    device: str,
    trust_checkpoint: bool,
    uses_training_images: bool,
    fresh: bool,
    progress: Progress,
) -> Iterator[Start]:
    """Export a detector, and choose the source of latencies. Raises SpecError, DataError.

    Args:
        command: Command whose progress is kept in `folder` until the end of the context.
        folder: Result folder of the command.
        target: Target whose latency decides; None for this machine.
        device: Device for measurements, `local` or `local:ENGINE`.
        uses_training_images: The result depends on them, so none of them may be in the split `val`.
    """
    with recorded(folder, command, model.name, target.name if target else None, progress) as progress:
        context = StageContext.within(folder, fresh, progress)
        detector, dataset = load(model, trust_checkpoint=trust_checkpoint), load_dataset(data)
        split = dataset.split(SCORED if SCORED in dataset.splits else "train")
        if split.name == SCORED and uses_training_images:
            context.refuse_shared(dataset.split("train"), split)
        before = export.run(context, detector, None, dataset.classes, EXPORT_OPSET)
        require_classes(before.result.spec, dataset)
        measured = Measured(context, split, context.fingerprint(split), local_device(device))
        yield Start(context, dataset, before, target, measured, latency_on(target, measured), trust_checkpoint)


@dataclass(frozen=True)
class DetectorFigures:
    """A detector, measured on this machine.

    Args:
        parameters: Number of parameters.
        multiply_adds: Multiply-adds of one frame, over all convolutions.
        map50_95, map50: COCO's mAP on the split `val`; null without that split.
        latency_ms: Median milliseconds from frame to detections.
        fps: Frames per second, one after the other; null where the run was too short or too noisy.
    """

    parameters: int
    multiply_adds: int
    map50_95: float | None
    map50: float | None
    latency_ms: float
    fps: float | None


@dataclass(frozen=True)
class TargetLatency:
    """The latencies by which the detectors were compared.

    Args:
        name: Name of the target.
        basis: `measured`, `stand-in` for this machine in place of the target, or `predicted`.
        where: Machine or target, for people.
        before_ms, after_ms: Milliseconds of a frame.
    """

    name: str
    basis: Basis
    where: str
    before_ms: float
    after_ms: float


@dataclass(frozen=True)
class Lightened(Result):
    """A detector and a lighter one derived from it, which should be trained next.

    Args:
        model: File name of the detector.
        recipe: Name of the recipe.
        checkpoint: Path of the lighter detector, a checkpoint of its family.
        before: The given detector.
        after: The lighter detector.
        target: The latencies by which they were compared; null where they are those of `before` and `after`.
    """

    model: str
    recipe: str
    checkpoint: Path
    before: DetectorFigures
    after: DetectorFigures
    target: TargetLatency | None
    host: HostFacts

    @property
    def map50_95(self) -> tuple[float | None, float | None]:
        """COCO's mAP at IoU 0.50 to 0.95 of both float detectors, 0 to 1; None where there is no split to score."""
        return self.before.map50_95, self.after.map50_95

    @property
    def parameters(self) -> tuple[int, int]:
        """Numbers of parameters."""
        return self.before.parameters, self.after.parameters

    @property
    def multiply_adds(self) -> tuple[int, int]:
        """Multiply-adds of one frame."""
        return self.before.multiply_adds, self.after.multiply_adds

    @property
    def latency_ms(self) -> tuple[float, float]:
        """Median milliseconds from a frame to its detections, both measured here, interleaved."""
        return self.before.latency_ms, self.after.latency_ms


def lightened(begun: Start, model: Path, recipe: str, derived: DerivedDetector, checkpoint: Path) -> Lightened:
    """Return both detectors side by side."""
    timing = begun.measured.timed(begun.before, derived.graph)
    target = None
    if begun.target is not None:
        target = TargetLatency(begun.target.name, begun.latency.basis, begun.latency.where, *derived.latency_ms)
    return Lightened(
        model=model.name,
        recipe=recipe,
        checkpoint=checkpoint,
        before=_figures(begun, derived, 0, begun.before, timing.before),
        after=_figures(begun, derived, 1, derived.graph, timing.after),
        target=target,
        host=timing.host,
    )


def _figures(
    begun: Start, derived: DerivedDetector, index: int, graph: GraphStage, timing: TimingSummary
) -> DetectorFigures:
    """Return the figures of the given detector, index 0, or of the derived one, index 1."""
    measured, scores = begun.measured, None
    if measured.split.name == SCORED:
        scores = score.run(measured.context, graph, measured.split, measured.data, "fp32").result
    return DetectorFigures(
        parameters=derived.parameters[index],
        multiply_adds=derived.multiply_adds[index],
        map50_95=scores.map50_95 if scores else None,
        map50=scores.map50 if scores else None,
        latency_ms=timing.total_ms.p50,
        fps=timing.fps,
    )
