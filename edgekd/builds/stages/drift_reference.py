"""Stage `drift`: the reference for drift detection, statistics of training images and of the detections in them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from edgekd.builds.stage_store import Stage, StageKind, StageResult
from edgekd.builds.stages.base import GRAPH, GraphStage, StageContext
from edgekd.core import drift
from edgekd.core.bundle.manifest import DetectionThresholds
from edgekd.core.detection.decode import decode_by_class
from edgekd.core.detection.preprocess import letterbox
from edgekd.core.detection.types import DetectorSpec
from edgekd.core.progress import SILENT, Progress
from edgekd.data.images import ReadableImages
from edgekd.data.types import Split
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU

DRIFT = "drift.json"
FRAMES = 128
"""Number of images, drawn at random from the split, because a calibration set varies more than a camera's images."""
_SEED = 0


@dataclass(frozen=True)
class DriftResult(StageResult):
    """The number of images; their distribution is in the file DRIFT if there are enough."""

    frames: int

    @property
    def summary(self) -> str:
        """The number of images, and whether they suffice."""
        few = "" if self.frames >= drift.MIN_FRAMES else ", too few to notice drift by"
        return f"{self.frames} training images{few}"


REFERENCE = StageKind("drift", 1, DriftResult, ("numpy", "onnxruntime", "opencv-python-headless"))


def run(context: StageContext, graph: GraphStage, train: Split, thresholds: DetectionThresholds) -> Stage[DriftResult]:
    """Record the distribution of statistics of training images. Raises DataError, DeviceError."""

    def work(folder: Path) -> DriftResult:
        found = statistics(graph.path / GRAPH, graph.result.spec, thresholds, train, context.progress)
        if len(found) >= drift.MIN_FRAMES:
            (folder / DRIFT).write_bytes(drift.to_json(drift.record_of(found)))
        return DriftResult(len(found))

    inputs = {"graph": graph.files[GRAPH].sha256, "train": context.fingerprint(train)}
    return context.run(REFERENCE, {**inputs, "thresholds": asdict(thresholds)}, work)


def statistics(
    graph: Path,
    spec: DetectorSpec,
    thresholds: DetectionThresholds,
    split: Split,
    progress: Progress = SILENT,
    label: str = "training images",
) -> np.ndarray:
    """Return the STATISTICS float64 [n, k] of images of a split, n at most FRAMES. Raises DataError, DeviceError."""
    order = np.random.default_rng(_SEED).permutation(len(split.samples))[:FRAMES]
    samples = [split.samples[at] for at in sorted(order.tolist())]
    images = ReadableImages(samples, progress, label=f"drift: {label}", max_bad_share=0.5)
    found = []
    with ONNXRUNTIME_CPU.load(graph) as session:
        for _, image in images:
            batch, placement = letterbox(image, spec.preprocess)
            detections = decode_by_class(session.run(batch), spec, placement, thresholds)
            found.append(drift.statistics_of(batch, placement, spec.preprocess, detections))
    return np.array(found).reshape(-1, len(drift.STATISTICS)).round(6)
