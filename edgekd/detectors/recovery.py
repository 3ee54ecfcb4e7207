"""Recovery in every family: what can be compared, and a training that resumes after a kill."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekd.compress.distillation.recovery import Recovery
from edgekd.core.errors import SpecError
from edgekd.core.progress import Listener, Progress
from edgekd.detectors.teacher import Teacher
from edgekd.detectors.torch_support import read_state, require_finite, write_content

REMEDY = "lower learning_rate"


def run_recovery(training: Recovery, state: Path, device: Any, progress: Progress) -> None:
    """Train until the epochs are over, from the state that an interrupted training has left; write it after each epoch.

    Raises CompressError where the training diverges.
    """
    if (kept := read_state(state, device)) is not None:
        training.restore(kept)

    def finish() -> None:
        epoch, losses = len(training.losses) - 1, training.losses[-1]
        require_finite(epoch, losses, training.last_loss, REMEDY)
        write_content(training.state(), state)
        if isinstance(progress, Listener):
            progress.epoch("recover", epoch, losses)

    training.run(finish, progress)


def require_comparable(classes: Sequence[str], strides: Sequence[float], teacher: Teacher) -> None:
    """Raise SpecError for a teacher with other classes or strides than a detector."""
    for what, ours, theirs in (
        ("classes", tuple(classes), teacher.classes),
        ("strides", tuple(map(float, strides)), tuple(map(float, teacher.strides))),
    ):
        if ours != theirs:
            fix = "train it by a step distill"
            raise SpecError(f"recover: {what} of the teacher", expected=str(ours), found=str(theirs), fix=fix)
