"""`edgekd distill`: train a smaller detector on labels and on the outputs of a larger one, and score both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from edgekd.builds.recipe import refuse_recipe
from edgekd.builds.run_progress import recorded
from edgekd.builds.stage_store import StageSummary, summaries
from edgekd.builds.stages import export, score, train
from edgekd.builds.stages.base import GraphStage, StageContext
from edgekd.builds.stages.label import same_classes
from edgekd.builds.stages.score import SCORED
from edgekd.builds.stages.train import Epochs
from edgekd.commands.arguments import path_or_none, recipe_of, short_name
from edgekd.commands.options import Data, RecipeName, Trust
from edgekd.commands.parameter import Argument, Option
from edgekd.commands.results import write_result
from edgekd.compress.steps import Distill
from edgekd.core.documents import Result
from edgekd.core.progress import SILENT, Progress
from edgekd.data.dataset import load_dataset
from edgekd.data.types import Dataset, Split
from edgekd.detectors import load
from edgekd.detectors.family import detector_file
from edgekd.evaluation.coco import Score
from edgekd.hardware.budget import Budget
from edgekd.hardware.target import EXPORT_OPSET

RESULT = "distill.json"
NOT_SCORED: tuple[None, None] = (None, None)
Maps = tuple[float, float] | tuple[None, None]
"""COCO's mAP50-95 and mAP50; None without a score."""


@dataclass(frozen=True)
class ScoredDetector:
    """A detector with its score.

    Args:
        parameters: Number of parameters.
        map50_95, map50: COCO's mAP on the split `val`; null without that split, or where the teacher has other classes.
    """

    parameters: int
    map50_95: float | None
    map50: float | None


@dataclass(frozen=True)
class Distilled(Result):
    """A student and its teacher. Pairs: the teacher, then the student.

    Args:
        teacher: File name of the teacher.
        student: Name of the student's checkpoint or model.
        recipe: Name of the recipe.
        checkpoint: Path of the trained student: `.pt`, or `.tv.pt` for torchvision's.
        kept: mAP50-95 of the student / that of the teacher; null where one is null, or the teacher's is 0.
        before: The teacher.
        after: The student.
        epochs: Number of epochs that were trained.
        updates: Number of weight updates.
        losses: Mean of each loss in each epoch, by name, before weighting.
        weights: Mean weight of each loss in each epoch, by name, and mean of the values that weights are computed from.
        stages: The stages, in the order in which they ran.
    """

    teacher: str
    student: str
    recipe: str
    checkpoint: Path
    kept: float | None
    before: ScoredDetector
    after: ScoredDetector
    epochs: int
    updates: int
    losses: Epochs
    weights: Epochs
    stages: tuple[StageSummary, ...]

    @property
    def map50_95(self) -> tuple[float | None, float | None]:
        """COCO's mAP at IoU 0.50 to 0.95 of both, 0 to 1; None where there is no split to score."""
        return self.before.map50_95, self.after.map50_95

    @property
    def parameters(self) -> tuple[int, int]:
        """Numbers of parameters."""
        return self.before.parameters, self.after.parameters


def _teachers_scores(
    teacher: Path, step: Distill, dataset: Dataset, scored: Split | None, context: StageContext, trust_checkpoint: bool
) -> Maps:
    """Return the scores of the teacher; None without a split to score, or if its classes are not those of the data."""
    if scored is None:
        return NOT_SCORED
    graph = _graph(teacher, dataset, context, trust_checkpoint)
    alike = same_classes(dataset.classes, graph.result.spec.classes, step.same_classes)
    return _scores(graph, scored, context) if alike else NOT_SCORED


def _graph(checkpoint: Path, dataset: Dataset, context: StageContext, trust_checkpoint: bool) -> GraphStage:
    detector = load(checkpoint, trust_checkpoint=trust_checkpoint)
    return export.run(context, detector, None, dataset.classes, EXPORT_OPSET)


def _scores(graph: GraphStage, scored: Split, context: StageContext) -> Maps:
    return _maps(score.run(context, graph, scored, context.fingerprint(scored), "fp32").result)


def _maps(found: Score) -> Maps:
    return found.map50_95, found.map50


def distill(
    teacher: Annotated[str | Path, Argument("Trained .pt, or a folder by transformers.")],
    student: Annotated[str | Path, Argument("A .pt, yolo11n.yaml, or torchvision/NAME.", parse=str)],
    data: Data,
    *,
    recipe: RecipeName = "distill",
    out: Annotated[
        str | Path | None, Option("Result folder. Default: runs/STUDENT-from-TEACHER.", group="Output")
    ] = None,
    width: Annotated[
        float | None, Option("Factor of the model's channels, such as 0.14.", group="Training and search")
    ] = None,
    epochs: Annotated[int | None, Option("Passes over the training split.", group="Training and search")] = None,
    time: Annotated[
        float | None, Option("Minutes to train for, in place of a number of epochs.", group="Training and search")
    ] = None,
    unlabelled: Annotated[str | Path | None, Option("Folder of frames that TEACHER labels.", group="Input")] = None,
    device: Annotated[str | None, Option("cpu, 0, or 0,1 for two GPUs. Default: a GPU if any.", group="Device")] = None,
    fresh: Annotated[bool, Option("Go on where it stopped, or begin anew.", inverse="--resume")] = False,
    trust_checkpoint: Trust = False,
    progress: Progress = SILENT,
) -> Distilled:
    """Train a smaller detector on labels and on the outputs of a larger one; score both on the split `val`.

    The student is a checkpoint to start from, or a description of a network.

    An interrupted training resumes after its last complete epoch, unless `fresh`. Raises SpecError, DataError or
    CompressError, and leaves no partial files. The command: `edgekd distill`. The method, with the source of each
    loss: docs/concepts/distillation.md.
    """
    settings: dict[str, Any] = {"student": str(student), "width": width, "epochs": epochs, "minutes": time}
    settings["unlabelled"] = None if unlabelled is None else str(unlabelled)
    folder = path_or_none(out) or Path("runs") / f"{short_name(student)}-from-{short_name(teacher)}"
    given, teacher = Path(teacher), detector_file(Path(teacher))
    steps = recipe_of(recipe or "distill").with_settings(Distill, **settings)
    step = steps.only(Distill)
    refuse_recipe(steps, Budget(), teacher)
    load(teacher)  # raises for a wrong path before the data is hashed
    dataset = load_dataset(Path(data))
    with recorded(folder, "distill", Path(str(step.student)).name, None, progress) as progress:
        context = StageContext.within(folder, fresh, progress)
        scored = dataset.split(SCORED) if SCORED in dataset.splits else None
        if scored:
            context.refuse_shared(dataset.split("train"), scored)
        stage = train.distill(context, step, teacher, dataset, trust=trust_checkpoint, device=device)
        before = _teachers_scores(teacher, step, dataset, scored, context, trust_checkpoint)
        file = train.student_file(step)
        after: Maps = NOT_SCORED
        if scored:
            after = _scores(_graph(stage.path / file, dataset, context, trust_checkpoint), scored, context)
        trained = stage.result
        result = Distilled(
            teacher=given.name,
            student=Path(str(step.student)).name,
            recipe=steps.name,
            checkpoint=folder / file,
            kept=after[0] / before[0] if after[0] is not None and before[0] else None,
            before=ScoredDetector(trained.teacher_parameters, *before),
            after=ScoredDetector(trained.parameters, *after),
            epochs=trained.epochs,
            updates=trained.updates,
            losses=trained.losses,
            weights=trained.weights,
            stages=summaries(context.done),
        )
        write_result(folder, RESULT, result, {file: stage.path / file})
        return result
