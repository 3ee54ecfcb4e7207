"""Accuracy of a network in the form that a device chose, compared with the limit of its bundle."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from edgekd.agent.engines.records import Form
from edgekd.agent.runtimes.types import FLOAT
from edgekd.core.bundle.manifest import Manifest
from edgekd.core.canonical import file_sha256
from edgekd.core.detection.types import spec_from_json
from edgekd.core.errors import DataError, EngineRefusedError
from edgekd.core.formats.qdq_graph import QdqGraph
from edgekd.core.progress import Progress
from edgekd.data.dataset import load_dataset
from edgekd.data.images import fingerprint
from edgekd.data.types import Split
from edgekd.deploy.artifact import expanded
from edgekd.evaluation.evaluate import evaluate

SCORED = "val"
"""The split that builds score."""


@dataclass(frozen=True)
class TunedAccuracy:
    """Accuracy of a tuned network.

    Args:
        images: Number of scored images.
        map50_95: COCO mAP50-95, 0 to 1.
        retention: mAP50-95 relative to that before compression; null where that is 0.
        min_retention: Limit of the bundle; null if it has none.
    """

    images: int
    map50_95: float
    retention: float | None
    min_retention: float | None


def scored_split(data: Path, manifest: Manifest, progress: Progress) -> Split:
    """Return the split that a bundle was scored on. Raises DataError if that of `data` differs."""
    split = load_dataset(data).split(SCORED, spec_from_json(manifest.detector).head.task)
    if fingerprint(split, file_sha256, progress) != manifest.lineage.data_sha256:
        raise DataError(
            f"{data}: not the data set that the bundle was scored on",
            expected="the same images and labels",
            found="others",
            fix="pass the data set of the build, or leave --data out",
        )
    return split


def accuracy(packed: Path, manifest: Manifest, form: Form, split: Split, progress: Progress) -> TunedAccuracy:
    """Score the packed graph of a bundle in a form. Raises DataError, DeviceError."""
    with tempfile.TemporaryDirectory(prefix="edgekd-") as scratch:
        graph = QdqGraph(expanded(packed, Path(scratch, "shipped.onnx")).read_bytes())
        file = graph.without_qdq() if form.source == FLOAT else graph.form(form.float_layers)
        path = Path(scratch, "tuned.onnx")
        path.write_bytes(file.content())
        score = evaluate(path, spec_from_json(manifest.detector), split, progress, "score tuned").score
    before = manifest.evidence.before.map50_95
    retention = score.map50_95 / before if before else None
    return TunedAccuracy(score.images, score.map50_95, retention, manifest.limits.min_retention)


def require_accuracy(found: TunedAccuracy, device: str) -> None:
    """Raise EngineRefusedError if the retention is below the limit of the bundle."""
    retention, limit = found.retention, found.min_retention
    if limit is not None and retention is not None and retention < limit:
        raise EngineRefusedError(
            f"{device}: tune: the chosen form is too inaccurate",
            expected=f"at least {limit:.1%} of the mAP50-95 before compression",
            found=f"{retention:.1%}",
            fix="the engine as shipped is used again; compare the layers in float",
        )
