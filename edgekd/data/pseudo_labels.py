"""Pseudo labels: a teacher's detections on unlabelled frames as labels, and batches of both kinds. Pure rules.

Each class has thresholds of its own, chosen on labelled images. A detection is judged as in COCO's benchmark: per
image and class, best first, each takes the free object that it overlaps most, with an IoU of at least 0.5; a detection
in a crowd is not judged. Then

- `keep` is the lowest score s such that of the class's detections with score >= s a wanted share is right;
- `ignore` is the same for a lower share. Between the two a detection may be an object or not: it becomes a box around a
  crowd (`Truth.crowd`), which counts neither as an object nor as background;
- below `ignore` there is background.

So a class that the teacher never finds with enough precision gets no labels, and its doubtful detections are ignored.
`ignore` is above the least score that is considered only where detections below it were wrong.
Per-class thresholds: AMROD, arXiv 2406.16439; ignored regions: the COCO and LVIS benchmarks.

From a training loop (`edgekd/data/labelling.py` runs the teacher)::

    with finder(graph, spec, LABELLING) as find:
        bands = teacher_bands(find, dataset.split("train"), dataset.classes)
        frames = label(find, unlabelled(folder), bands)
    samples = [*train.samples, *frames.samples]
    for epoch in range(epochs):
        for batch in mixed_order(labelled, unlabelled, batch_size, share, seed, epoch):
            ...  # what boxes around crowds cover stays out of the class loss: `compress.boxes.ignored`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekd.core.detection.decode import Thresholds
from edgekd.core.detection.types import Detections
from edgekd.core.errors import SpecError
from edgekd.data.boxes import overlaps
from edgekd.data.labels import Truth

LABELLING = Thresholds(confidence=0.05)
"""The teacher's detections that are considered: one class per box, without noise."""
MIN_OVERLAP = 0.5  # IoU with an object, or share of a detection that lies in a crowd


@dataclass(frozen=True)
class Bands:
    """Least scores of each class for a detection to be an object, and to be ignored rather than background.

    Both have one number per class, and ignore <= keep; infinite where no score suffices.
    """

    keep: tuple[float, ...]
    ignore: tuple[float, ...]


def find_bands(
    found: Sequence[Detections],
    truths: Sequence[tuple[Truth, int, int]],
    classes: int,
    keep: float = 0.9,
    ignore: float = 0.5,
) -> Bands:
    """Return the bands at which the shares `keep` and `ignore` of a teacher's detections are right.

    found, truths: the detections of each labelled image, and its (truth, width, height in pixels). Better
    of images that the teacher was not trained on: there it is right less often, as on new frames.
    Raises SpecError unless 0 < ignore <= keep <= 1.
    """
    if not 0 < ignore <= keep <= 1:
        raise SpecError("pseudo-labels", expected="0 < ignore <= keep <= 1", found=f"ignore {ignore}, keep {keep}")
    every = np.concatenate([np.zeros((0, 3)), *(judged(*pair, classes) for pair in zip(found, truths, strict=True))])
    rows = [every[every[:, 0] == label, 1:] for label in range(classes)]
    return Bands(tuple(_threshold(row, keep) for row in rows), tuple(_doubtful(row, ignore) for row in rows))


def judged(found: Detections, truth: tuple[Truth, int, int], classes: int) -> NDArray[np.float64]:
    """Match the detections of one image: [n, 3], class, score, and 1 where right, of those that can be judged."""
    inside, width, height = truth
    boxes = inside.boxes * np.array([width, height, width, height])
    rows: list[tuple[int, float, bool]] = []
    for label in range(classes):
        detected, labelled = np.flatnonzero(found.classes == label), inside.classes == label
        overlap, cover = overlaps(found.boxes[detected], boxes[labelled])
        crowd, free = inside.crowd[labelled], ~inside.crowd[labelled]
        for index, detection in enumerate(detected.tolist()):
            best = int(np.where(free, overlap[index], -1).argmax()) if free.any() else -1
            right = best >= 0 and overlap[index, best] >= MIN_OVERLAP
            if right:
                free[best] = False
            elif (cover[index, crowd] >= MIN_OVERLAP).any():
                continue
            rows.append((label, float(found.scores[detection]), right))
    return np.array(rows, np.float64).reshape(-1, 3)


def _threshold(rows: NDArray[np.float64], share: float) -> float:
    """Return the lowest score of rows [n, 2] (score, right) from which on this share is right."""
    scores, right = rows[np.argsort(-rows[:, 0], kind="stable")].T
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    last = np.append(scores[1:] < scores[:-1], True)[: len(scores)]  # equal scores are kept together or not at all
    enough = np.flatnonzero(last & (precision >= share))
    return float(scores[enough[-1]]) if enough.size else float("inf")


def _doubtful(rows: NDArray[np.float64], share: float) -> float:
    """Return the same, but `LABELLING.confidence` where none or all suffice: then no score is known to be too low."""
    score = _threshold(rows, share)
    lower = rows[:, 0] < score
    return score if lower.any() and not lower.all() else LABELLING.confidence


def pseudo_truth(found: Detections, bands: Bands, width: int, height: int) -> Truth:
    """Return detections in a frame of this size in pixels as labels, doubtful ones as boxes around crowds."""
    keep, ignore = (np.array(scores)[found.classes] for scores in (bands.keep, bands.ignore))
    used = found.scores >= ignore
    boxes = found.boxes[used] / np.array([width, height, width, height], np.float32)
    return Truth(boxes.astype(np.float32), found.classes[used], (found.scores < keep)[used])


def mixed_order(
    labelled: NDArray[np.int64], unlabelled: NDArray[np.int64], batch: int, share: float, seed: int, epoch: int
) -> NDArray[np.int64]:
    """Return the batches of one epoch, int64 [batches, batch]; the last round(share * batch) of each are unlabelled.

    labelled: the epoch's labelled samples in their order, as `long_tail.epoch_order` gives them; each comes once, and
    so many again from the start that the last batch is full. unlabelled: all the unlabelled samples, in an endless
    series of permutations; each epoch goes on where the one before ended, if that was as long. The same arguments give
    the same batches.
    Raises SpecError where a batch would have no labelled sample, or no unlabelled one.
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
