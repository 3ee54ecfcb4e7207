"""Stage `recover`: a pruned or factorized detector trained to predict as the original one does."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from edgekd.builds.stage_store import Stage, StageKind, StageResult
from edgekd.builds.stages.base import GraphStage, StageContext, shared_file
from edgekd.builds.stages.train import Epochs, rounded, training_summary
from edgekd.compress.distillation.prediction_cache import SUFFIX
from edgekd.compress.steps import Recover
from edgekd.data.types import Dataset
from edgekd.detectors.family import require_family


@dataclass(frozen=True)
class RecoverResult(StageResult):
    """A trained detector, in the file `recovered_file(detector)`.

    Args:
        bytes: Length of the file.
        updates: Number of weight updates.
        losses: Mean losses of each epoch.
    """

    bytes: int
    epochs: int
    updates: int
    losses: Epochs

    @property
    def summary(self) -> str:
        """The first and the last loss, and the length of the training."""
        return training_summary(self.epochs, self.updates, self.losses)


RECOVER = StageKind("recover", 2, RecoverResult, ("numpy", "opencv-python-headless", "torch", "ultralytics"))


def run(
    context: StageContext,
    step: Recover,
    checkpoint: Path,
    teacher: Path,
    graph: GraphStage,
    dataset: Dataset,
    *,
    trust: bool = False,
    device: str | None = None,
) -> Stage[RecoverResult]:
    """Train a checkpoint beside the predictions of a teacher, which stay in the store for other trainings.

    A killed training run is resumed by the next call.

    Args:
        graph: The checkpoint's float graph.
        device: Where it is trained, which is no input.
    """
    preprocess = graph.result.spec.preprocess
    libraries = require_family(checkpoint).libraries
    predicted = {
        "teacher": context.sha256(teacher),
        "train": context.fingerprint(dataset.split("train")),
        "images": step.images,
        "size": step.image_size or [preprocess.height, preprocess.width],
    }
    settings = {name: value for name, value in asdict(step).items() if name != "cache_size"}
    inputs = {**predicted, "model": context.sha256(checkpoint), "step": settings}
    cache = shared_file(context, RECOVER, libraries, predicted, f"teacher-*{SUFFIX}")
    state = shared_file(context, RECOVER, libraries, inputs, "recover-*.training")

    def work(folder: Path) -> RecoverResult:
        out = folder / recovered_file(checkpoint)
        train = require_family(checkpoint).capability("recover")
        done = train(checkpoint, teacher, out, dataset.source, step, cache, state, trust, device, context.progress)
        return RecoverResult(out.stat().st_size, done.epochs, done.updates, rounded(done.losses))

    stage = context.run(RECOVER, inputs, work, libraries=libraries)
    state.unlink(missing_ok=True)
    return stage


def recovered_file(checkpoint: Path) -> str:
    """Return the name of the file of a trained detector."""
    return f"recovered{require_family(checkpoint).suffix}"
