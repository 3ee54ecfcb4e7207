"""A teacher's detections on unlabelled frames as labels: what is kept, what is ignored, how both kinds mix. Pure.

How sure a teacher has to be differs from class to class, so each has thresholds of its own, found where the truth is
known. A detection is judged as in COCO's benchmark: per image and class, best first, each takes the free object that
it overlaps most, with an IoU of at least 0.5; what lies in a crowd is not judged. Then

- `keep` is the lowest score s such that of the class's detections with score >= s a wanted share is right;
- `ignore` is the same for a lower share. Between the two a detection may be an object or not: it becomes a box around a
  crowd (`Truth.crowd`), which counts neither as an object nor as background;
- below `ignore` there is background.

So a class that the teacher never finds surely enough gets no labels, and its doubtful places are not held against it.
`ignore` is only raised over the least score that is looked at where detections below it were seen to be wrong.
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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.core.detection.decode import Thresholds
from edgekd.core.detection.types import Detections
from edgekd.core.errors import SpecError
from edgekd.data.labels import Truth

LABELLING = Thresholds(confidence=0.05)
"""What of a teacher's detections is looked at: one class per box, and no noise."""
_MATCH = 0.5
"""Least IoU with an object, or share of a detection that lies in a crowd."""


@dataclass(frozen=True)
class Bands:
    """Least scores of each class for a detection to be an object, and to be ignored rather than background.

    Both have one number per class, and ignore <= keep; infinite where no score is sure enough.
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
    """The bands at which the shares `keep` and `ignore` of a teacher's detections are right.

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
    """[n, 3]: class, score, and whether right, of the detections in one image that can be judged."""
    inside, width, height = truth
    boxes = inside.boxes * np.array([width, height, width, height])
    rows: list[tuple[int, float, bool]] = []
    for label in range(classes):
        mine, theirs = np.flatnonzero(found.classes == label), inside.classes == label
        overlap, cover = _overlaps(found.boxes[mine], boxes[theirs])
        crowd, free = inside.crowd[theirs], ~inside.crowd[theirs]
        for index, at in enumerate(mine.tolist()):
            best = int(np.where(free, overlap[index], -1).argmax()) if free.any() else -1
            right = best >= 0 and overlap[index, best] >= _MATCH
            if right:
                free[best] = False
            elif (cover[index, crowd] >= _MATCH).any():
                continue
            rows.append((label, float(found.scores[at]), right))
    return np.array(rows, np.float64).reshape(-1, 3)


def _overlaps(boxes: NDArray[Any], others: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of boxes [n, 4] and others [m, 4], x1, y1, x2, y2: IoU, and what share of each box the other covers, [n, m]."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    common = np.prod(np.maximum(high - low, 0), axis=2, dtype=np.float64)
    area, other = (np.prod(each[:, 2:] - each[:, :2], axis=1, dtype=np.float64) for each in (boxes, others))
    tiny = np.finfo(np.float64).tiny
    return common / np.maximum(area[:, None] + other - common, tiny), common / np.maximum(area[:, None], tiny)


def _threshold(rows: NDArray[np.float64], share: float) -> float:
    """The lowest score of rows [n, 2] (score, right) such that this share of those with at least it is right."""
    scores, right = rows[np.argsort(-rows[:, 0], kind="stable")].T
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    last = np.append(scores[1:] < scores[:-1], True)[: len(scores)]  # equal scores are kept together or not at all
    enough = np.flatnonzero(last & (precision >= share))
    return float(scores[enough[-1]]) if enough.size else float("inf")


def _doubtful(rows: NDArray[np.float64], share: float) -> float:
    """The same, but `LABELLING.confidence` where none or all is enough: then no score is known to be too low."""
    score = _threshold(rows, share)
    lower = rows[:, 0] < score
    return score if lower.any() and not lower.all() else LABELLING.confidence


def pseudo_truth(found: Detections, bands: Bands, width: int, height: int) -> Truth:
    """A teacher's detections in a frame of this size in pixels as labels, the doubtful ones as boxes around crowds."""
    keep, ignore = (np.array(scores)[found.classes] for scores in (bands.keep, bands.ignore))
    used = found.scores >= ignore
    boxes = found.boxes[used] / np.array([width, height, width, height], np.float32)
    return Truth(boxes.astype(np.float32), found.classes[used], (found.scores < keep)[used])


def mixed_order(
    labelled: NDArray[np.int64], unlabelled: NDArray[np.int64], batch: int, share: float, seed: int, epoch: int
) -> NDArray[np.int64]:
    """The batches of one epoch, int64 [batches, batch]: of each, the last round(share * batch) are unlabelled.

    labelled: the epoch's labelled samples in their order, as `long_tail.epoch_order` gives them; each comes once, and
    so many again from the start that the last batch is full. unlabelled: all the unlabelled samples; they are gone
    through in random orders without an end, each epoch from where the one before ended (if that was as long). The same
    arguments give the same batches.
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
