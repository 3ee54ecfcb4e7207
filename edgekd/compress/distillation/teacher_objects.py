"""Objects that a teacher detects in an image: selected from its predictions, and read from a cache for a batch.

An object has a box and the logits of all classes. Augmentation moves these boxes like those of labels, so the teacher
needs to run only once on each image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgekd.compress.distillation.anchors import corners
from edgekd.compress.distillation.distill import expected_distances
from edgekd.compress.distillation.loss_terms import MIN_PROBABILITY, DetectorFeatures, Predictions
from edgekd.compress.distillation.prediction_cache import MAX_OBJECTS
from edgekd.core.detection.decode import suppress

MIN_OBJECT_PROBABILITY = 0.05
"""Smallest probability of an object's best class: targets of less certain objects hardly differ from background."""
MAX_OBJECT_IOU = 0.7
"""IoU above which two boxes with the same best class are one object, the same as in the scoring of detections."""


def predicted_boxes(features: DetectorFeatures) -> Predictions:
    """Return class logits [b, classes, n] and boxes [b, 4, n], x1, y1, x2, y2 in pixels of the frame, of a batch.

    They are the predictions of a head without anchors, or of the branch `one2many`.
    """
    if features.objects is not None:
        boxes = corners(features.objects.boxes.mT, *features.grid.frame).mT
        return Predictions(features.objects.scores, boxes)
    found = features.branches["one2many"]
    points, strides = features.grid.points(found.boxes.device)
    sides = expected_distances(found.boxes) * strides
    return Predictions(found.scores, torch.cat([points - sides[:, :2], points + sides[:, 2:]], dim=1))


def distinct_objects(
    scores: NDArray[np.float32], boxes: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return logits [k, classes] and boxes [k, 4] of the MAX_OBJECTS most certain objects of an image, best first.

    scores: class logits [n, classes]; boxes: [n, 4] x1, y1, x2, y2. Duplicates are suppressed.
    """
    certainty = scores.max(axis=1)
    least = np.log(MIN_OBJECT_PROBABILITY / (1 - MIN_OBJECT_PROBABILITY))
    order = np.argsort(-certainty, kind="stable")[: np.count_nonzero(certainty > least)]
    kept = order[suppress(boxes[order], scores[order].argmax(axis=1), MAX_OBJECT_IOU, MAX_OBJECTS)]
    return scores[kept], boxes[kept]


def batch_objects(
    records: NDArray[Any], numbers: torch.Tensor, boxes: torch.Tensor, images: torch.Tensor, batch: int
) -> Predictions:
    """Return the objects of a batch as a head without anchors predicts them: see `DetectorFeatures`.

    Args:
        records: Records of `object_record_type`.
        numbers: int64 [n], record * MAX_OBJECTS + row of each object.
        boxes: float32 [n, 4], after augmentation: middle x and y, width and height, as shares of the frame.
        images: int64 [n], ascending: the index of the frame in the batch.
        batch: Number of frames. Frames with fewer objects are padded with boxes of no area and MIN_PROBABILITY.
    """
    found, rows = divmod(numbers.cpu().numpy(), MAX_OBJECTS)
    scores = torch.from_numpy(records["scores"][found, rows].astype(np.float32)).to(boxes.device)
    return _padded(scores, boxes, images, batch)


def detected_objects(features: DetectorFeatures) -> Predictions:
    """Return the distinct objects that any head predicts for a batch, as a head without anchors predicts them."""
    found, (height, width) = predicted_boxes(features), features.grid.frame
    device, size = found.boxes.device, found.boxes.new_tensor([width, height, width, height])
    arrays = (each.float().mT.cpu().numpy() for each in (found.scores, found.boxes))
    frames = [tuple(map(torch.from_numpy, distinct_objects(*each))) for each in zip(*arrays, strict=True)]
    scores, corners_of = (torch.cat(each).to(device) for each in zip(*frames, strict=True))
    low, high = corners_of[:, :2], corners_of[:, 2:]
    images = torch.cat([torch.full((len(boxes),), index) for index, (_, boxes) in enumerate(frames)]).to(device)
    return _padded(scores, torch.cat([(low + high) / 2, high - low], dim=1) / size, images, len(frames))


def _padded(scores: torch.Tensor, boxes: torch.Tensor, images: torch.Tensor, batch: int) -> Predictions:
    """Return objects by frame, padded. scores: [n, classes]; boxes, images, batch: as for `batch_objects`."""
    counts = torch.bincount(images, minlength=batch)
    column = torch.arange(len(images), device=boxes.device) - (counts.cumsum(0) - counts)[images]
    most = max(int(counts.max()), 1)
    nothing = float(np.log(MIN_PROBABILITY))
    padded_scores = boxes.new_full((batch, most, scores.shape[1]), nothing)
    padded_boxes = boxes.new_zeros((batch, most, 4))
    padded_scores[images, column], padded_boxes[images, column] = scores, boxes
    return Predictions(padded_scores.mT, padded_boxes.mT)
