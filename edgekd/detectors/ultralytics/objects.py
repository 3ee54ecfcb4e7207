"""A teacher's cached objects stored in the labels of images, so that augmentation moves both alike.

Their class numbers follow those of the classes and of boxes around crowds: 2 * classes + object number.
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
    """Return labels of images in Ultralytics' format, with the teacher's objects appended to each image's labels.

    records: of `object_record_type`, with the index of their image; classes: number of classes of the data.
    """
    mixed = [dict(label) for label in labels]
    for place, (index, count) in enumerate(zip(records["index"], records["count"], strict=True)):
        label = mixed[index]
        numbers = 2 * classes + place * MAX_OBJECTS + np.arange(count, dtype=np.float64)  # exact, unlike in float32
        label["cls"] = np.concatenate([label["cls"], numbers[:, None]])
        label["bboxes"] = np.concatenate([label["bboxes"], records["boxes"][place, :count]])
    return mixed


def split_objects(batch: Mapping[str, Any], records: NDArray[Any], classes: int) -> tuple[dict[str, Any], Predictions]:
    """Split an augmented batch into one without the teacher's objects, and the objects, as from a head without anchors.

    records, classes: as for `labels_with_objects`.
    """
    numbers = batch["cls"].flatten()
    taught = numbers >= 2 * classes
    boxes, images = batch["bboxes"][taught], batch["batch_idx"][taught].long()
    objects = batch_objects(records, numbers[taught].long() - 2 * classes, boxes, images, len(batch["img"]))
    own = {name: batch[name][~taught].float() for name in ("cls", "bboxes", "batch_idx")}
    return {**batch, **own}, objects
