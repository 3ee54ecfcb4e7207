"""Accuracy of a network in the form that a device chose, judged by the limit that its bundle was built to."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
from edgekd.deploy.engine_result import TunedAccuracy
from edgekd.evaluation.evaluate import evaluate

SCORED = "val"
"""The split that builds score."""


def scored_split(data: Path, manifest: Manifest, progress: Progress) -> Split:
    """Return the split that a bundle was scored on. Raises DataError where `data` has another."""
    split = load_dataset(data).split(SCORED)
    if fingerprint(split, file_sha256, progress) != manifest.lineage.data_sha256:
        raise DataError(
            f"{data}: not what the bundle was scored on",
            expected="the same images and labels",
            found="others",
            fix="pass the data set of the build, or leave --data out",
        )
    return split


def accuracy(
    packed: Path, manifest: Manifest, form: Mapping[str, Any], split: Split, progress: Progress
) -> TunedAccuracy:
    """Score a network in a form, `source` and `float_layers`, as edgekd scores graphs. Raises DataError, DeviceError.

    packed: its graph as it is in the bundle.
    """
    with tempfile.TemporaryDirectory(prefix="edgekd-") as scratch:
        graph = QdqGraph(expanded(packed, Path(scratch, "shipped.onnx")).read_bytes())
        written = graph.without_qdq() if form["source"] == FLOAT else graph.form(form["float_layers"])
        path = Path(scratch, "tuned.onnx")
        path.write_bytes(written.content())
        score = evaluate(path, spec_from_json(manifest.detector), split, progress, "score tuned").score
    before = manifest.evidence.before.map50_95
    retention = score.map50_95 / before if before else None
    return TunedAccuracy(score.images, score.map50_95, retention, manifest.limits.min_retention)


def require_accuracy(found: TunedAccuracy, device: str) -> None:
    """Raise EngineRefusedError where less is kept than the bundle was built to keep."""
    retention, limit = found.retention, found.min_retention
    if limit is not None and retention is not None and retention < limit:
        raise EngineRefusedError(
            f"{device}: tune: the chosen form is too inaccurate",
            expected=f"at least {limit:.1%} of the mAP50-95 before compression",
            found=f"{retention:.1%}",
            fix="the engine as shipped is used again; see what the layers in float change",
        )
