"""Step `resize`: another size of the detector's input."""

from __future__ import annotations

from edgekd.builds.compression import with_detector
from edgekd.builds.run import BuildRecord
from edgekd.builds.stages import resize
from edgekd.builds.stages.base import StageContext
from edgekd.builds.step_kinds import StepKind
from edgekd.compress.steps import Resize
from edgekd.data.types import Dataset


def apply(step: Resize, record: BuildRecord, dataset: Dataset, context: StageContext) -> BuildRecord:
    """Write the detector for another size, and continue with that."""
    request = record.request
    stage = resize.run(context, step, request.model, trust=request.trust_checkpoint)
    return with_detector(stage.path / resize.resized_file(request.model), record, dataset, context)


STEP = StepKind(
    settings=Resize,
    order=10,
    effect="resizes the input",
    apply=apply,
    stages=(resize.RESIZE,),
    capability="resize",
    fix="pass the checkpoint, or export the model at that size",
)
