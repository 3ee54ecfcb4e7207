"""Pseudo-labels: a teacher's detections on unlabelled frames as labels, and batches of labelled and unlabelled frames.

Each class has its own score thresholds, chosen on labelled images. Detections are matched as in COCO's benchmark: per
image and class, in descending order of score, each is matched to the free object of highest IoU, at least 0.5; a
detection in a crowd is ignored.

- `keep` is the lowest score at which the precision of the class reaches a given value;
- `ignore` is the same for a lower precision. A detection between the two becomes a crowd box (`Truth.crowd`), which is
  neither an object nor background;
- detections below `ignore` are background.

A class that never reaches the precision of `keep` gets no labels, and its detections above `ignore` are ignored.
`ignore` exceeds the lowest score considered only if detections below it were false positives.
Per-class thresholds: AMROD, arXiv 2406.16439; ignored regions: the COCO and LVIS benchmarks.

The teacher `find` is any detector, such as that of a graph (`evaluate.finder`). From a training loop::

    with finder(graph, spec, LABELLING) as find:
        thresholds = teacher_thresholds(find, dataset.split("train"), dataset.classes)
        frames = label(find, unlabelled(folder), thresholds)
    samples = [*train.samples, *frames.samples]
    for epoch in range(epochs):
        for batch in mixed_order(labelled, unlabelled, batch_size, share, seed, epoch):
            ...  # the area of crowd boxes is excluded from the class loss: `compress.boxes.ignored`
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekd.core.detection.decode import Thresholds
from edgekd.core.detection.types import Detections
from edgekd.core.errors import SpecError
from edgekd.core.progress import SILENT, Progress
from edgekd.data.boxes import overlaps
from edgekd.data.images import Image, ReadableImages
from edgekd.data.labels import Truth
from edgekd.data.types import Sample, Split

Find = Callable[[Image], Detections]
"""Returns the detections in a frame uint8 [h, w, 3] BGR, boxes in its pixels."""
LABELLING = Thresholds(confidence=0.05)
"""Thresholds of the teacher's detections: one class per box, and no scores that are mostly noise."""
MIN_OVERLAP = 0.5  # IoU with an object, or share of a detection that lies in a crowd


@dataclass(frozen=True)
class ClassThresholds:
    """Lowest scores per class for a detection to be an object (`keep`), and to be ignored rather than background.

    ignore <= keep; `keep` is infinite if no score suffices.
    """

    keep: tuple[float, ...]
    ignore: tuple[float, ...]


def find_thresholds(
    detections: Sequence[Detections],
    truths: Sequence[tuple[Truth, int, int]],
    classes: int,
    keep: float = 0.9,
    ignore: float = 0.5,
) -> ClassThresholds:
    """Return the thresholds at which the precision of a teacher reaches `keep` and `ignore`.

    detections: the teacher's, in each labelled image; truths: (truth, width, height in pixels) of the same images. Use
    images that the teacher was not trained on: on its training images, its precision is higher than on new frames.
    Raises SpecError unless 0 < ignore <= keep <= 1.
    """
    if not 0 < ignore <= keep <= 1:
        raise SpecError("pseudo-labels", expected="0 < ignore <= keep <= 1", found=f"ignore {ignore}, keep {keep}")
    matched = [match(*pair, classes) for pair in zip(detections, truths, strict=True)]
    rows = np.concatenate([np.zeros((0, 3)), *matched])
    per_class = [rows[rows[:, 0] == label, 1:] for label in range(classes)]
    return ClassThresholds(
        keep=tuple(_threshold(rows, keep) for rows in per_class),
        ignore=tuple(_ignore_threshold(rows, ignore) for rows in per_class),
    )


def match(detections: Detections, truth: tuple[Truth, int, int], classes: int) -> NDArray[np.float64]:
    """Match the detections of one image, except those in crowds: float64 [n, 3] class, score, 1 for a true positive."""
    labels, width, height = truth
    boxes = labels.boxes * np.array([width, height, width, height])
    rows: list[tuple[int, float, bool]] = []
    for label in range(classes):
        detected, labelled = np.flatnonzero(detections.classes == label), labels.classes == label
        overlap, cover = overlaps(detections.boxes[detected], boxes[labelled])
        crowd, free = labels.crowd[labelled], ~labels.crowd[labelled]
        for index, detection in enumerate(detected.tolist()):
            best = int(np.where(free, overlap[index], -1).argmax()) if free.any() else -1
            true_positive = best >= 0 and overlap[index, best] >= MIN_OVERLAP
            if true_positive:
                free[best] = False
            elif (cover[index, crowd] >= MIN_OVERLAP).any():
                continue
            rows.append((label, float(detections.scores[detection]), true_positive))
    return np.array(rows, np.float64).reshape(-1, 3)


def _threshold(rows: NDArray[np.float64], min_precision: float) -> float:
    """Return the lowest score of rows [n, 2] (score, true positive) at which the precision is high enough."""
    scores, true_positive = rows[np.argsort(-rows[:, 0], kind="stable")].T
    precision = np.cumsum(true_positive) / np.arange(1, len(scores) + 1)
    last = np.append(scores[1:] < scores[:-1], True)[: len(scores)]  # equal scores are kept together or not at all
    enough = np.flatnonzero(last & (precision >= min_precision))
    return float(scores[enough[-1]]) if enough.size else float("inf")


def _ignore_threshold(rows: NDArray[np.float64], min_precision: float) -> float:
    """Return `_threshold` of the rows, but `LABELLING.confidence` if no score or every score has that precision."""
    score = _threshold(rows, min_precision)
    lower = rows[:, 0] < score
    return score if lower.any() and not lower.all() else LABELLING.confidence


def pseudo_truth(detections: Detections, thresholds: ClassThresholds, width: int, height: int) -> Truth:
    """Return detections in a frame of this size in pixels as labels, those below `keep` as crowd boxes."""
    keep, ignore = (np.array(scores)[detections.classes] for scores in (thresholds.keep, thresholds.ignore))
    used = detections.scores >= ignore
    boxes = detections.boxes[used] / np.array([width, height, width, height], np.float32)
    return Truth(boxes.astype(np.float32), detections.classes[used], (detections.scores < keep)[used])


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


def mixed_order(
    labelled: NDArray[np.int64], unlabelled: NDArray[np.int64], batch: int, share: float, seed: int, epoch: int
) -> NDArray[np.int64]:
    """Return the batches of one epoch, int64 [batches, batch]; the last round(share * batch) of each are unlabelled.

    labelled: indices of samples in the order of the epoch, such as from `long_tail.epoch_order`; each is used once, and
    the first ones again to fill the last batch. unlabelled: indices of samples, drawn from an endless series of
    permutations, which epochs of equal length continue. Deterministic.
    Raises SpecError if a batch would have no labelled sample, or no unlabelled one.
    """
    count = round(share * batch)
    if not 0 < count < batch or not len(labelled) or not len(unlabelled):
        raise SpecError(
            "mixing labelled and unlabelled frames: a batch needs both",
            expected=f"a share of {0.5 / batch:.3g} to {1 - 0.5 / batch:.3g} of {batch}, and frames of both kinds",
            found=f"a share of {share:g} of {len(labelled)} labelled and {len(unlabelled)} unlabelled frames",
            fix="use another share, or a larger batch",
        )
    batches = -(-len(labelled) // (batch - count))
    first = epoch * batches * count
    rounds = range(first // len(unlabelled), (first + batches * count - 1) // len(unlabelled) + 1)
    stream = np.concatenate([np.random.default_rng([seed, each]).permutation(unlabelled) for each in rounds])
    start = first - rounds[0] * len(unlabelled)
    drawn = stream[start : start + batches * count].reshape(batches, count)
    return np.concatenate([np.resize(labelled, (batches, batch - count)), drawn], axis=1)
