"""`edgekd predict`: latency and energy of a model on a target that is not at hand, with an interval."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from edgekd.commands.arguments import path_or_none, target_of
from edgekd.commands.options import Artifact, Head, TargetName, Trust
from edgekd.commands.parameter import Option
from edgekd.core.errors import SpecError
from edgekd.deploy.artifact import PACKED_SUFFIX, expanded, opened
from edgekd.evaluation.report.bench_files import require_place, write_prediction
from edgekd.hardware.predict.device import require_precision
from edgekd.hardware.predict.result import PredictedRun, PredictResult, predict_graph
from edgekd.hardware.predict.table import TableFile, load_table


def predict_latency(
    model: Artifact,
    *,
    target: TargetName = "xavier",
    precision: Annotated[str | None, Option("fp16, int8 or fp32. Default: the graph's own.")] = None,
    batch: Annotated[int, Option("Frames at once.", minimum=1)] = 1,
    cuda_graph: Annotated[bool, Option("Launch kernels by a CUDA graph, as trtexec can.")] = False,
    dla: Annotated[bool, Option("Predict for one core of the DLA, in INT8.")] = False,
    sparse: Annotated[bool, Option("Assume 2:4 sparsity of weights, on the DLA.")] = False,
    table: Annotated[str | Path | None, Option("A .toml of times measured on the target itself.")] = None,
    report: Annotated[str | Path | None, Option("Page with the roofline to write (.html).", group="Output")] = None,
    head: Head = None,
    trust_checkpoint: Trust = False,
) -> PredictResult:
    """Predict latency and energy of a model on a target that is not at hand, with their uncertainty.

    Milliseconds are per `batch` of frames, millijoules per frame; nine of ten measurements should be in the interval. A
    `table` corrects predictions for the GPU. Nothing here is a measurement.

    Raises SpecError, also if the target has no figures for it, and BundleError. The command: `edgekd predict`. The
    model, and the published measurements that it is fitted to: docs/concepts/prediction.md.
    """
    path, page, measured = Path(model), path_or_none(report), path_or_none(table)
    require_place(page)
    chosen = target_of(target)
    if precision is not None:
        require_precision(chosen, precision)
    if sparse and not dla:
        raise SpecError("2:4 sparsity was not measured on a GPU", fix="add --dla, or leave out --sparse")
    if dla and (measured or cuda_graph):
        raise SpecError("tables and CUDA graphs are for the GPU", fix="leave out --dla, or --table and --cuda-graph")
    file = TableFile(measured, load_table(measured, chosen)) if measured else None
    run = PredictedRun(precision, batch, cuda_graph=cuda_graph, dla=dla, sparse=sparse)
    with _graph(path, head, trust_checkpoint) as graph:
        prediction = predict_graph(graph, chosen, run, file, path.name)
    if page:
        write_prediction(page, prediction)
    return prediction


@contextmanager
def _graph(model: Path, head: str | None, trust_checkpoint: bool) -> Iterator[Path]:
    """Yield the path of the model as an ONNX file, whose outputs need not be understood."""
    if model.suffix == ".onnx":
        yield model
    elif model.suffix == PACKED_SUFFIX:
        with tempfile.TemporaryDirectory(prefix="edgekd-") as scratch:
            yield expanded(model, Path(scratch) / "graph.onnx")
    else:
        with opened(model, head, (), trust_checkpoint) as (graph, _):
            yield graph
