"""Training of a compressed detector on cached outputs of the original, the same for every family."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from edgekd.compress.distillation.loss_terms import DetectorFeatures
from edgekd.compress.distillation.recovery import Recovery
from edgekd.compress.steps import QuantAwareDistill, Recover
from edgekd.core.errors import SpecError
from edgekd.core.progress import Listener, Progress
from edgekd.data.dataset import load_dataset
from edgekd.detectors.cached_teacher import cached_predictions, evenly_chosen
from edgekd.detectors.family import load_teacher
from edgekd.detectors.results import TrainingRun
from edgekd.detectors.teacher import Teacher
from edgekd.detectors.torch_support import (
    fitting_batches,
    in_bfloat16,
    read_state,
    require_finite,
    require_finite_weights,
    write_content,
)

REMEDY = "lower learning_rate"


@dataclass(frozen=True)
class CompressedDetector:
    """A detector to recover, on the device for its training.

    network: its module, whose parameters with gradients are trained; outputs: returns its outputs for a batch, as
    `Predict`; strides: of its head in pixels; size: height and width of its frames in pixels.
    """

    network: torch.nn.Module
    outputs: Callable[[torch.Tensor], DetectorFeatures]
    classes: tuple[str, ...]
    strides: tuple[float, ...]
    size: tuple[int, int]


def recover(
    student: CompressedDetector,
    teacher: Path,
    data: Path,
    step: Recover | QuantAwareDistill,
    cache: Path,
    state: Path,
    progress: Progress,
    *,
    trust: bool,
) -> TrainingRun:
    """Train a detector in place to reproduce the predictions of the detector in the file `teacher`.

    cache, state, trust: as for `Family.recover`. Raises SpecError for a teacher whose classes or strides differ from
    the student's, CompressError if the training diverges or needs too much memory.
    """
    began = time.monotonic()
    place = next(student.network.parameters()).device
    original = load_teacher(teacher, trust).to(place)
    _require_comparable(student, original, step.kind)
    samples = evenly_chosen(load_dataset(data).split("train").samples, step.images)

    def predict(frames: torch.Tensor) -> DetectorFeatures:
        with in_bfloat16(place):
            return student.outputs(frames)

    with fitting_batches():
        records = cached_predictions(original, samples, student.size, cache, step.max_cache_bytes, progress)
        training = Recovery(student.network, predict, records, step)
        if (kept := read_state(state, place)) is not None:
            training.restore(kept)

        def finish() -> None:
            epoch, losses = len(training.losses) - 1, training.losses[-1]
            require_finite(epoch, losses, training.last_loss, REMEDY)
            require_finite_weights(epoch, student.network, REMEDY)
            write_content(training.state(), state)
            if isinstance(progress, Listener):
                progress.epoch(step.kind, epoch, losses)

        training.run(finish, progress)
    return TrainingRun(step.epochs, training.updates, tuple(training.losses), time.monotonic() - began)


def _require_comparable(student: CompressedDetector, teacher: Teacher, step: str) -> None:
    """Raise SpecError for a teacher with other classes or strides than the student."""
    for what, ours, theirs in (
        ("classes", student.classes, tuple(teacher.classes)),
        ("strides", student.strides, tuple(map(float, teacher.strides))),
    ):
        if ours != theirs:
            fix = "train it by a step distill"
            raise SpecError(f"{step}: {what} of the teacher", expected=str(ours), found=str(theirs), fix=fix)
