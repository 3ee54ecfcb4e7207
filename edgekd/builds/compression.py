"""The compression of a build: the steps of its recipe, each of which returns a new record of the build."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgekd.builds.run import BuildRecord
from edgekd.builds.stage_store import Stage
from edgekd.builds.stages import encode, export
from edgekd.builds.stages.base import GraphStage, StageContext
from edgekd.builds.stages.export import ExportResult
from edgekd.builds.stages.latency import LatencySource, Measured, latency_on
from edgekd.builds.step_kinds import kind_of
from edgekd.compress.steps import Resize
from edgekd.data.types import Dataset
from edgekd.deploy.devices.local import local_device
from edgekd.detectors import Detector, load
from edgekd.hardware.target import opset_for


def compress(record: BuildRecord, dataset: Dataset, context: StageContext) -> BuildRecord:
    """Run the steps of the recipe and return the record after them.

    Raises DataError if a step trains on scored images, and what its stages raise.
    """
    for step in record.request.recipe.steps:
        kind, done = kind_of(step), len(context.done)
        if kind.trains:
            context.refuse_shared(dataset.split("train"), record.scored)
        record = kind.apply(step, record, dataset, context)
        record = replace(record, steps=(*record.steps, *context.done[done:]))
    return record


def with_detector(
    checkpoint: Path, record: BuildRecord, dataset: Dataset, context: StageContext, *, weakened: bool = False
) -> BuildRecord:
    """Return the record with the detector of a checkpoint. weakened: it lost channels or rank and needs training."""
    record = with_graph(exported(checkpoint, record, dataset, context), record, context)
    return replace(record, detector=_load(checkpoint, record), weakened=weakened)


def with_graph(graph: GraphStage, record: BuildRecord, context: StageContext) -> BuildRecord:
    """Return the record with another float graph, encoded."""
    return replace(record, floating=graph, after=graph, encoded=encode.run(context, graph, "fp32"))


def exported(checkpoint: Path, record: BuildRecord, dataset: Dataset, context: StageContext) -> Stage[ExportResult]:
    """Return the float graph of a checkpoint that this build wrote."""
    return export.run(context, _load(checkpoint, record), None, dataset.classes, opset_for(record.request.target))


def _load(checkpoint: Path, record: BuildRecord) -> Detector:
    """Load a checkpoint that this build wrote. It contains modules of the given one, so it needs the same trust."""
    return load(checkpoint, trust_checkpoint=record.request.trust_checkpoint)


def latency_of(record: BuildRecord, context: StageContext) -> LatencySource:
    """Return the source of latencies for the results of a step: predicted for the target if possible, else measured."""
    measured = Measured(context, record.scored, record.data_sha256, local_device(record.request.device))
    return latency_on(record.request.target, measured)


def input_size(record: BuildRecord) -> int | None:
    """Return the input side in pixels that the recipe sets; None if it keeps that of the detector."""
    resize = record.request.recipe.first(Resize)
    return None if resize is None else resize.image_size
