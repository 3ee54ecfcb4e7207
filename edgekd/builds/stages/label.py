"""Stage `label`: frames without labels, labelled by a detector for the training of a student."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.builds.stage_store import StageKind, StageResult
from edgekd.builds.stages import export
from edgekd.builds.stages.base import GRAPH, StageContext
from edgekd.compress.steps import Distill
from edgekd.core.canonical import canonical_json
from edgekd.core.errors import SpecError
from edgekd.data.dataset import unlabelled
from edgekd.data.labels import Truth
from edgekd.data.pseudo_labels import LABELLING, Find, label, teacher_thresholds
from edgekd.data.types import Dataset, Sample
from edgekd.detectors import load
from edgekd.evaluation.evaluate import finder
from edgekd.hardware.target import EXPORT_OPSET

LABELS = "labels.json"


@dataclass(frozen=True)
class LabelResult(StageResult):
    """The labels, in the file LABELS.

    Args:
        frames: Number of readable frames.
        objects: Number of objects that count as labels.
        keep: Minimum score of a label for each class; None where no score is reliable enough.
        ignore: Minimum score for each class of detections whose area is left out of the loss.
    """

    frames: int
    objects: int
    keep: tuple[float | None, ...]
    ignore: tuple[float | None, ...]


LABEL = StageKind("label", 1, LabelResult, ("numpy", "onnxruntime", "opencv-python-headless"))


def run(
    context: StageContext, step: Distill, teacher: Path, dataset: Dataset, *, trust: bool = False
) -> tuple[Sample, ...]:
    """Return the readable frames of `step.unlabelled` with detections as labels, uncertain boxes as crowds.

    The detector is `step.labeller`, by default the teacher. Minimum scores are chosen on the training split. Raises
    SpecError for a detector with other classes, DataError if a frame is also scored.
    """
    frames, train = unlabelled(Path(str(step.unlabelled))), dataset.split("train")
    for name in dataset.splits:
        if name != "train":
            context.refuse_shared(frames, dataset.split(name))
    source, classes, opened = _opened(context, Path(step.labeller or teacher), dataset, trust)
    _require_same_classes(dataset.classes, classes, step.same_classes)

    def work(folder: Path) -> LabelResult:
        with opened as find:
            thresholds = teacher_thresholds(find, train, dataset.classes, step.keep, progress=context.progress)
            truths = {one.image: one.truth for one in label(find, frames, thresholds, context.progress).samples}
        samples = enumerate(frames.samples)
        rows = [[index, _to_json(truths[sample.image])] for index, sample in samples if sample.image in truths]
        (folder / LABELS).write_bytes(canonical_json(rows))
        objects = sum(int((~truth.crowd).sum()) for truth in truths.values())
        return LabelResult(len(rows), objects, _finite(thresholds.keep), _finite(thresholds.ignore))

    inputs = {"train": context.fingerprint(train), "frames": context.fingerprint(frames), "keep": step.keep}
    stage = context.run(LABEL, {**source, **inputs}, work)
    rows = json.loads((stage.path / LABELS).read_bytes())
    return tuple(Sample(frames.samples[index].image, _from_json(*truth)) for index, truth in rows)


def _opened(
    context: StageContext, path: Path, dataset: Dataset, trust: bool
) -> tuple[dict[str, str], tuple[str, ...], AbstractContextManager[Find]]:
    """Return a detector's identity, its classes, and a context manager of a function that finds objects in a frame."""
    detector = load(path, trust_checkpoint=trust)
    graph = export.run(context, detector, None, dataset.classes, EXPORT_OPSET)
    spec = graph.result.spec
    return {"graph": graph.sha256}, spec.classes, finder(graph.path / GRAPH, spec, LABELLING)


def same_classes(ours: Sequence[str], theirs: Sequence[str], same: Sequence[str]) -> bool:
    """Return whether a teacher has the classes of the data, in the same order.

    same: equal classes of different names, see `shared_classes`, whose SpecError is raised.
    """
    from edgekd.compress.distillation.loss_terms import shared_classes

    return shared_classes(ours, theirs, same) == tuple((at, at) for at in range(max(len(ours), len(theirs))))


def _require_same_classes(ours: Sequence[str], theirs: Sequence[str], same: Sequence[str]) -> None:
    """Raise SpecError if classes differ: one that only the data has would count as absent from every frame."""
    if not same_classes(ours, theirs, same):
        raise SpecError(
            "unlabelled frames: the classes of what labels them are not those of the data",
            expected=", ".join(ours),
            found=", ".join(theirs),
            fix="pass a teacher or labeller of these classes in this order, or leave out unlabelled",
        )


def _finite(scores: Sequence[float]) -> tuple[float | None, ...]:
    return tuple(score if math.isfinite(score) else None for score in scores)


def _to_json(truth: Truth) -> list[Any]:
    return [truth.boxes.tolist(), truth.classes.tolist(), truth.crowd.tolist()]


def _from_json(boxes: Any, classes: Any, crowd: Any) -> Truth:
    return Truth(np.array(boxes, np.float32).reshape(-1, 4), np.array(classes, np.int64), np.array(crowd, bool))
