"""What a camera's record of statistics is made of: training images, as a graph sees them and what it finds in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgekd.core.bundle.manifest import Thresholds
from edgekd.core.detection.decode import decode_by_class
from edgekd.core.detection.preprocess import letterbox
from edgekd.core.detection.types import DetectorSpec
from edgekd.core.drift import STATISTICS, statistics_of
from edgekd.core.progress import SILENT, Progress
from edgekd.data.images import ReadableImages
from edgekd.data.types import Split
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU

FRAMES = 128
"""Images that are looked at, drawn from the split by chance: a calibration set is wider than what a camera sees."""
_SEED = 0


def statistics(
    graph: Path,
    spec: DetectorSpec,
    thresholds: Thresholds,
    split: Split,
    progress: Progress = SILENT,
    label: str = "training images",
) -> np.ndarray:
    """The STATISTICS float64 [n, k] of images of a split, n at most FRAMES. Raises DataError, DeviceError."""
    order = np.random.default_rng(_SEED).permutation(len(split.samples))[:FRAMES]
    samples = [split.samples[at] for at in sorted(order.tolist())]
    images = ReadableImages(samples, progress, label=f"drift: {label}", max_bad_share=0.5)
    found = []
    with ONNXRUNTIME_CPU.load(graph) as session:
        for _, image in images:
            batch, at = letterbox(image, spec.preprocess)
            seen = decode_by_class(session.run(batch), spec, at, thresholds)
            found.append(statistics_of(batch, at, spec.preprocess, seen))
    return np.array(found).reshape(-1, len(STATISTICS)).round(6)
