"""Rare classes: detection, loss weights, and repeat factors of their images. Pure rules.

From a training loop, with the samples of the training split::

    counts = instances((sample.truth for sample in samples), len(classes))
    weights = torch.tensor(class_weights(counts), dtype=torch.float32)  # [classes], times a loss [b, classes, anchors]
    factors = repeat_factors([sample.truth for sample in samples], len(classes), threshold=0.5)
    for epoch in range(epochs):
        order = epoch_order(factors, seed, epoch)  # indices of samples, some repeated

`edgekd distill` uses them for recipes with `class_power` or `repeat`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from edgekd.core.errors import SpecError
from edgekd.data.labels import Truth
from edgekd.data.types import Split

TAIL = 0.05
"""Default share of all objects below which a class is rare."""


def instances(truths: Iterable[Truth], classes: int) -> NDArray[np.int64]:
    """Count the objects of each class, int64 [classes], without crowd boxes."""
    counts = np.zeros(classes, np.int64)
    for truth in truths:
        counts += np.bincount(truth.classes[~truth.crowd], minlength=classes)
    return counts


def tail_classes(counts: NDArray[np.int64], share: float = TAIL) -> tuple[int, ...]:
    """Return the classes with fewer than `share` of all objects, including empty ones; counts: int64 [classes]."""
    return tuple(np.flatnonzero(counts < share * counts.sum()).tolist())


def rare_classes(split: Split, classes: Sequence[str], share: float = TAIL) -> tuple[str, ...]:
    """Return the names of the rare classes of a split."""
    counts = instances((sample.truth for sample in split.samples), len(classes))
    return tuple(classes[label] for label in tail_classes(counts, share))


def class_weights(counts: NDArray[np.int64], power: float = 0.5) -> NDArray[np.float64]:
    """Return loss weights w_c = (f_ref / f_c)^power, float64 [classes], from counts int64 [classes].

    f_ref makes the mean weight over all objects 1, which keeps the scale of the loss. Power 0 weighs all objects
    equally, power 1 all classes equally, 0.5 is a compromise (Mahajan et al., ECCV 2018, arXiv 1805.00932, for
    sampling). A class without objects gets the weight of the rarest class that has some.
    Raises SpecError if there is no object at all.
    """
    present = counts > 0
    if not present.any():
        raise SpecError("class weights: there is no object to count", expected="at least one labelled object")
    raw = np.maximum(counts, counts[present].min()).astype(np.float64) ** -power
    return np.asarray(raw * (counts.sum() / (counts * raw).sum()))


def repeat_factors(truths: Sequence[Truth], classes: int, threshold: float) -> NDArray[np.float64]:
    """Return the mean number of repeats of each image in an epoch, float64 [images], at least 1.

    r_i = max over the classes c in image i of max(1, sqrt(threshold / f_c)), where f_c is the share of images with an
    object of class c (Gupta et al., LVIS, CVPR 2019, arXiv 1908.03195, section 5.1): classes in at least `threshold` of
    the images are not repeated. LVIS uses 0.001 for 1203 classes; a few classes need about 0.5.
    """
    inside = np.zeros((len(truths), classes), bool)
    for row, truth in zip(inside, truths, strict=True):
        row[truth.classes[~truth.crowd]] = True
    frequency = np.maximum(inside.sum(axis=0), 1) / max(len(truths), 1)
    factors = np.maximum(np.sqrt(threshold / frequency), 1)
    return np.asarray(np.where(inside, factors, 1.0).max(axis=1, initial=1.0))


def epoch_order(factors: NDArray[np.float64], seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the images of one epoch in random order, int64 [n] indices; deterministic for a seed and epoch.

    An image with factor r is repeated floor(r) times, and once more with probability r - floor(r).
    """
    draw = np.random.default_rng([seed, epoch])
    times = np.floor(factors + draw.random(len(factors))).astype(np.int64)
    return draw.permutation(np.repeat(np.arange(len(factors)), times))
