"""Pseudo labels of frames by a teacher: reads the frames; the rules are in `data/pseudo_labels.py`.

`find` is any detector: `evaluate.finder` makes one of a graph, `detectors.family.direct_detector` one of an RT-DETR,
`detectors.ultralytics.open_vocabulary.open_vocabulary` one of words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgekd.core.detection.types import Detections
from edgekd.core.progress import SILENT, Progress
from edgekd.data.images import Image, ReadableImages
from edgekd.data.labels import Truth
from edgekd.data.pseudo_labels import Bands, find_bands, pseudo_truth
from edgekd.data.types import Sample, Split

Find = Callable[[Image], Detections]
"""Returns the detections in a frame uint8 [h, w, 3] BGR, boxes in its pixels."""


def teacher_bands(
    find: Find,
    split: Split,
    classes: Sequence[str],
    keep: float = 0.9,
    ignore: float = 0.5,
    progress: Progress = SILENT,
) -> Bands:
    """Return a teacher's thresholds for each class, chosen on a labelled split with its classes in its order.

    Raises SpecError unless 0 < ignore <= keep <= 1, DataError where too many images are unreadable.
    """
    found: list[Detections] = []
    truths: list[tuple[Truth, int, int]] = []
    for sample, image in ReadableImages(split.samples, progress, label="find thresholds"):
        found.append(find(image))
        truths.append((sample.truth, image.shape[1], image.shape[0]))
    return find_bands(found, truths, len(classes), keep, ignore)


def label(find: Find, split: Split, bands: Bands, progress: Progress = SILENT) -> Split:
    """Return the readable frames of a split with a teacher's detections as labels, in place of their own.

    Raises DataError where too many frames are unreadable.
    """
    samples = [
        Sample(sample.image, pseudo_truth(find(image), bands, image.shape[1], image.shape[0]))
        for sample, image in ReadableImages(split.samples, progress, label="label")
    ]
    return Split(split.name, tuple(samples))
