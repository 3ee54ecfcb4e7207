"""Stage `distill`: a student trained on labels and its teacher's outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgekd.builds.stage_store import Stage, StageKind, StageResult
from edgekd.builds.stages import label
from edgekd.builds.stages.base import StageContext, shared_file
from edgekd.compress.distillation.prediction_cache import SUFFIX
from edgekd.compress.steps import Distill
from edgekd.data.types import Dataset, Split
from edgekd.detectors.family import files_beside, require_family, student_family

Epochs = tuple[Mapping[str, float], ...]
"""Values of each epoch by name."""


def training_summary(epochs: int, updates: int, losses: Epochs) -> str:
    """Return the first and the last loss, and the length of the training, as text."""
    first, last = (sum(losses[index].values()) for index in (0, -1))
    return f"loss {first:.4g} in the first epoch, {last:.4g} in the last; epochs: {epochs}, weight updates: {updates}"


@dataclass(frozen=True)
class DistillResult(StageResult):
    """A student, in the file `student_file(step)`.

    Args:
        bytes: Length of the file.
        epochs: Number of epochs.
        updates: Number of weight updates.
        losses: Mean losses of each epoch.
        weights: Weights of the losses in each epoch.
        parameters: Number of parameters of the student.
        teacher_parameters: Number of parameters of the teacher.
    """

    bytes: int
    epochs: int
    updates: int
    losses: Epochs
    weights: Epochs
    parameters: int
    teacher_parameters: int

    @property
    def summary(self) -> str:
        """The sizes of student and teacher, and the length of the training."""
        ours, theirs = self.parameters / 1e6, self.teacher_parameters / 1e6
        sizes = f"a student of {ours:.2f} M parameters beside a teacher of {theirs:.2f} M"
        return f"{sizes}; epochs: {self.epochs}, weight updates: {self.updates}"


DISTILL = StageKind("distill", 8, DistillResult, ("numpy", "scipy", "torch", "torchvision", "ultralytics"))


def student_file(step: Distill) -> str:
    """Return the name of the file that a distillation writes."""
    return f"student{student_family(step.student).suffix}"


def distill(
    context: StageContext,
    step: Distill,
    teacher: Path,
    dataset: Dataset,
    *,
    trust: bool = False,
    device: str | None = None,
) -> Stage[DistillResult]:
    """Train a student. The next call resumes a killed training.

    Args:
        trust: Allow code that is pickled in checkpoints to run.
        device: GPUs to train on, such as `0,1`; not part of the stage's key.
    """
    frames = label.run(context, step, teacher, dataset, trust=trust) if step.unlabelled else ()
    predicted: dict[str, Any] = {
        "teacher": context.sha256(teacher),
        "train": context.fingerprint(dataset.split("train")),
        "unlabelled": context.fingerprint(Split("unlabelled", frames)) if frames else None,
    }
    if beside := {path.name: context.sha256(path) for path in files_beside(teacher)}:
        predicted["beside"] = beside
    elsewhere = ("student", "unlabelled", "labeller", "cache_size")
    inputs = {
        **predicted,
        "student": step.student and context.identity_of(step.student),
        "classes": list(dataset.classes),
        "step": {name: value for name, value in asdict(step).items() if name not in elsewhere},
    }
    libraries = student_family(step.student).libraries
    cache = shared_file(context, DISTILL, require_family(teacher).libraries, predicted, f"teacher-*{SUFFIX}")
    state = shared_file(context, DISTILL, libraries, inputs, "distill-*.training")

    def work(folder: Path) -> DistillResult:
        out = folder / student_file(step)
        distill_student = student_family(step.student).capability("distill")
        done = distill_student(
            teacher, out, dataset.source, step, state, trust, device, context.progress, frames, cache
        )
        return DistillResult(
            bytes=out.stat().st_size,
            epochs=done.epochs,
            updates=done.updates,
            losses=rounded(done.losses),
            weights=rounded(done.weights),
            parameters=done.parameters,
            teacher_parameters=done.teacher_parameters,
        )

    stage = context.run(DISTILL, inputs, work, libraries=libraries)
    state.unlink(missing_ok=True)
    return stage


def rounded(epochs: Iterable[Mapping[str, float]]) -> Epochs:
    """Return the values of each epoch, rounded to six significant digits."""
    return tuple({name: float(f"{value:.6g}") for name, value in epoch.items()} for epoch in epochs)
