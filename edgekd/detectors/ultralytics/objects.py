"""A cached teacher's objects among the labels of images: augmentation moves both alike.

Their class numbers lie after those of the classes and of boxes around crowds: 2 * classes + object.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.compress.distillation.loss_terms import Predictions
from edgekd.compress.distillation.prediction_cache import MAX_OBJECTS
from edgekd.compress.distillation.teacher_objects import batch_objects


def labels_with_objects(
    labels: Sequence[Mapping[str, Any]], records: NDArray[Any], classes: int
) -> list[dict[str, Any]]:
    """Return the labels of images, of Ultralytics' form, with the teacher's objects of each after its own.

    records: of `object_record_type`, with the index of their image; classes: number of those in the data.
    """
    mixed = [dict(label) for label in labels]
    for place, (index, count) in enumerate(zip(records["index"], records["count"], strict=True)):
        label = mixed[index]
        numbers = 2 * classes + place * MAX_OBJECTS + np.arange(count, dtype=np.float64)  # exact, unlike in float32
        label["cls"] = np.concatenate([label["cls"], numbers[:, None]])
        label["bboxes"] = np.concatenate([label["bboxes"], records["boxes"][place, :count]])
    return mixed


def split_objects(batch: Mapping[str, Any], records: NDArray[Any], classes: int) -> tuple[dict[str, Any], Predictions]:
    """Return an augmented batch without the teacher's objects, and these, as a head without anchors predicts them."""
    numbers = batch["cls"].flatten()
    taught = numbers >= 2 * classes
    boxes, images = batch["bboxes"][taught], batch["batch_idx"][taught].long()
    objects = batch_objects(records, numbers[taught].long() - 2 * classes, boxes, images, len(batch["img"]))
    own = {name: batch[name][~taught].float() for name in ("cls", "bboxes", "batch_idx")}
    return {**batch, **own}, objects
