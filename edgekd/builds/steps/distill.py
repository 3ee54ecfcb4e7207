"""Step `distill`: a student trained beside the given detector."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgekd.builds.compression import input_size, with_detector
from edgekd.builds.recipe import Recipe, require_capability
from edgekd.builds.run import BuildRecord
from edgekd.builds.stages import label, train
from edgekd.builds.stages.base import StageContext
from edgekd.builds.step_kinds import StepKind
from edgekd.compress.steps import Distill
from edgekd.core.errors import SpecError
from edgekd.data.types import Dataset
from edgekd.detectors.family import family_of
from edgekd.hardware.budget import Budget


def apply(step: Distill, record: BuildRecord, dataset: Dataset, context: StageContext) -> BuildRecord:
    """Train the student that the step names, or the detector that the steps before have left."""
    request = record.request
    student, image_size = step.student or str(record.detector.path), input_size(record) or step.image_size
    step = replace(step, student=student, image_size=image_size)
    trust, device = request.trust_checkpoint, request.train_on
    stage = train.distill(context, step, request.model, dataset, trust=trust, device=device)
    return with_detector(stage.path / train.student_file(step), record, dataset, context)


def _refuse(step: Distill, recipe: Recipe, budget: Budget, model: Path) -> None:
    """Raise SpecError for a step that would train the given detector beside itself, or a model that cannot teach."""
    if step.student is None and recipe.steps[0] is step:
        raise SpecError(
            f"recipe {recipe.name} trains a student and names none",
            fix='add student = "yolo11n.yaml" or a .pt checkpoint to its step distill, or prune or factorize before it',
        )
    require_capability(recipe, "trains a student", "teacher", family_of(model), model.name, expected="a teacher")


STEP = StepKind(
    settings=Distill,
    order=40,
    effect="trains a student",
    apply=apply,
    stages=(label.LABEL, train.DISTILL),
    trains=True,
    capability="distill",
    refuse=_refuse,
    command="distill",
)
