"""`edgekd predict`: how long a model would take on a target that is not at hand, and how sure that is."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekd.deploy.artifact import PACKED_SUFFIX, expanded, opened
from edgekd.hardware.predict.device import require_precision
from edgekd.hardware.predict.result import Predicted, predict_graph
from edgekd.hardware.predict.table import TableFile, load_table
from edgekd.hardware.target import Target


@dataclass(frozen=True)
class PredictJob:
    """Which model on which target. precision: that of the graph if None. table: measurements of the target itself."""

    model: Path
    target: Target
    precision: str | None = None
    table: Path | None = None
    head: str | None = None
    trust_checkpoint: bool = False


def run(job: PredictJob) -> Mapping[str, Any]:
    """The documented result of `edgekd predict --json`. Raises SpecError, also where the target has no figures."""
    return predict(job).document


def predict(job: PredictJob) -> Predicted:
    """The result, and the layers under the roof of the target. Raises SpecError as `run` does."""
    if job.precision is not None:
        require_precision(job.target, job.precision)
    file = TableFile(job.table, load_table(job.table, job.target)) if job.table else None
    with _graph(job) as graph:
        return predict_graph(graph, job.target, job.precision, file, job.model.name)


@contextmanager
def _graph(job: PredictJob) -> Iterator[Path]:
    """The model as an ONNX file; what its outputs mean does not matter here."""
    if job.model.suffix == ".onnx":
        yield job.model
    elif job.model.suffix == PACKED_SUFFIX:
        with tempfile.TemporaryDirectory(prefix="edgekd-") as scratch:
            yield expanded(job.model, Path(scratch) / "graph.onnx")
    else:
        with opened(job.model, job.head, (), job.trust_checkpoint) as (graph, _):
            yield graph
