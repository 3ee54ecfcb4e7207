"""Pseudo-label image files with a teacher, by the rules of `data/pseudo_labels.py`.

`find` is any detector: from a graph (`evaluate.finder`), an RT-DETR (`detectors.family.direct_detector`), or prompts
(`detectors.ultralytics.open_vocabulary.open_vocabulary`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgekd.core.detection.types import Detections
from edgekd.core.progress import SILENT, Progress
from edgekd.data.images import Image, ReadableImages
from edgekd.data.labels import Truth
from edgekd.data.pseudo_labels import ClassThresholds, find_thresholds, pseudo_truth
from edgekd.data.types import Sample, Split

Find = Callable[[Image], Detections]
"""Returns the detections in a frame uint8 [h, w, 3] BGR, boxes in its pixels."""


def teacher_thresholds(
    find: Find,
    split: Split,
    classes: Sequence[str],
    keep: float = 0.9,
    ignore: float = 0.5,
    progress: Progress = SILENT,
) -> ClassThresholds:
    """Return a teacher's thresholds for each class, chosen on a labelled split with the same classes in order.

    Raises SpecError unless 0 < ignore <= keep <= 1, DataError if too many images are unreadable.
    """
    detections: list[Detections] = []
    truths: list[tuple[Truth, int, int]] = []
    for sample, image in ReadableImages(split.samples, progress, label="find thresholds"):
        detections.append(find(image))
        truths.append((sample.truth, image.shape[1], image.shape[0]))
    return find_thresholds(detections, truths, len(classes), keep, ignore)


def label(find: Find, split: Split, thresholds: ClassThresholds, progress: Progress = SILENT) -> Split:
    """Return the readable frames of a split with a teacher's detections in place of their labels.

    Raises DataError if too many frames are unreadable.
    """
    samples = [
        Sample(sample.image, pseudo_truth(find(image), thresholds, image.shape[1], image.shape[0]))
        for sample, image in ReadableImages(split.samples, progress, label="label")
    ]
    return Split(split.name, tuple(samples))
