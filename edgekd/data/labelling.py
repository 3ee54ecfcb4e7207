"""A teacher labels frames that nobody labelled. The rules are in `data/pseudo_labels.py`; here frames are read.

`find` is any detector: `evaluate.finder` makes one of a graph, `detectors.teacher.as_transformer` one of an RT-DETR,
`detectors.ultralytics_open.open_vocabulary` one of words.
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
"""What is in a frame uint8 [h, w, 3] BGR, boxes in its pixels."""


def teacher_bands(
    find: Find,
    split: Split,
    classes: Sequence[str],
    keep: float = 0.9,
    ignore: float = 0.5,
    progress: Progress = SILENT,
) -> Bands:
    """How sure a teacher has to be of each class, from a labelled split of its classes in its order.

    Raises SpecError unless 0 < ignore <= keep <= 1, DataError where too many images are unreadable.
    """
    found: list[Detections] = []
    truths: list[tuple[Truth, int, int]] = []
    for sample, image in ReadableImages(split.samples, progress, label="find thresholds"):
        found.append(find(image))
        truths.append((sample.truth, image.shape[1], image.shape[0]))
    return find_bands(found, truths, len(classes), keep, ignore)


def label(find: Find, split: Split, bands: Bands, progress: Progress = SILENT) -> Split:
    """The readable frames of a split with what a teacher is sure to see in them; what they were labelled with is lost.

    Raises DataError where too many frames are unreadable.
    """
    samples = [
        Sample(sample.image, pseudo_truth(find(image), bands, image.shape[1], image.shape[0]))
        for sample, image in ReadableImages(split.samples, progress, label="label")
    ]
    return Split(split.name, tuple(samples))
