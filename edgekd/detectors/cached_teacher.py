"""A teacher's predictions for all images of a training, computed once and cached on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgekd.compress.distillation.anchors import Grid
from edgekd.compress.distillation.loss_terms import DetectorFeatures, Predictions
from edgekd.compress.distillation.prediction_cache import (
    MAPS,
    MAX_BOX_ANCHORS,
    VIEWS,
    BranchShape,
    object_record_type,
    open_cache,
    record_type,
)
from edgekd.compress.distillation.recovery import kept_maps, mean_predictions, mirror
from edgekd.compress.distillation.teacher_objects import distinct_objects, predicted_boxes
from edgekd.core.detection.preprocess import Placement, letterbox, to_frame
from edgekd.core.errors import SpecError
from edgekd.core.progress import Progress
from edgekd.data.images import Image, ReadableImages
from edgekd.data.types import Sample
from edgekd.detectors.teacher import Teacher
from edgekd.detectors.torch_support import in_bfloat16

TEACHER_BATCH = 4
"""Images per pass of the teacher, each in both of its views."""


def cached_predictions(
    teacher: Teacher, samples: Sequence[Sample], size: tuple[int, int], cache: Path, limit: int, progress: Progress
) -> NDArray[Any]:
    """Return a teacher's predictions and maps for images and their mirror images: records of a `prediction_cache`.

    Args:
        size: Height and width of the frames; otherwise they are prepared as for the teacher.
        cache: The file, named after teacher, images and size.
        limit: Most bytes of all caches in its folder.

    Raises SpecError for a teacher without feature maps, and for a cache that would be too large; DataError if too many
    images are unreadable.
    """
    teacher.to(memory_format=torch.channels_last)
    blank = _features(teacher, np.zeros((1, 3, *size), np.float32))
    if not blank.branches:
        expected = "a detector of the student's own family"
        raise SpecError("the teacher has no feature maps, only objects", expected=expected)
    queries = blank.objects is not None
    preprocess = replace(teacher.preprocess, height=size[0], width=size[1])
    shapes = {name: _shape(each, every_box=queries) for name, each in blank.branches.items()}
    kind = record_type(*size, shapes, [each.shape[1:] for each in kept_maps(blank)])

    positions = {sample: index for index, sample in enumerate(samples)}

    def compute(first: int) -> Iterator[Any]:
        for chunk in _chunks(samples[first:], progress):
            frames = np.concatenate([letterbox(image, preprocess)[0] for _, image in chunk])
            features = _features(teacher, np.concatenate([frames, frames[..., ::-1]]))
            views = {name: _views(name, each, features.grid) for name, each in features.branches.items()}
            maps = [torch.stack(each.cpu().chunk(VIEWS)) for each in kept_maps(features)]
            for place, (sample, _) in enumerate(chunk):
                both = {name: Predictions(each.scores[:, place], each.boxes[:, place]) for name, each in views.items()}
                record = _record(kind, positions[sample], frames[place], both)
                for number, each in enumerate(maps):
                    record[MAPS][str(number)] = each[:, place]
                yield record

    return open_cache(cache, kind, len(samples), compute, limit)


def cached_objects(
    teacher: Teacher, samples: Sequence[Sample], cache: Path, limit: int, progress: Progress
) -> NDArray[Any]:
    """Return the objects that a teacher detects in images, at its own input size: records of `object_record_type`.

    Args:
        cache: The file, named after teacher and images.
        limit: Most bytes of all caches in its folder.

    Raises SpecError for a cache that would be too large; DataError if too many images are unreadable.
    """
    teacher.to(memory_format=torch.channels_last)
    kind = object_record_type(len(teacher.classes))
    positions = {sample: index for index, sample in enumerate(samples)}

    def compute(first: int) -> Iterator[Any]:
        for chunk in _chunks(samples[first:], progress):
            frames, placements = zip(*(letterbox(image, teacher.preprocess) for _, image in chunk), strict=True)
            found = predicted_boxes(_features(teacher, np.concatenate(frames)))
            arrays = (each.float().mT.cpu().numpy() for each in (found.scores, found.boxes))
            for (sample, _), placement, *predicted in zip(chunk, placements, *arrays, strict=True):
                yield _object_record(kind, positions[sample], placement, *distinct_objects(*predicted))

    return open_cache(cache, kind, len(samples), compute, limit)


def _object_record(
    kind: np.dtype[Any], index: int, placement: Placement, scores: NDArray[np.float32], boxes: NDArray[np.float32]
) -> NDArray[Any]:
    """Return the record of an image. scores: [k, classes]; boxes: [k, 4], corners in pixels of the input."""
    record = np.zeros((), kind)
    corners = to_frame(boxes, placement) / np.array([placement.width, placement.height] * 2, np.float32)
    low, high = corners[:, :2], corners[:, 2:]
    visible = (high > low).all(axis=1)
    record["index"], record["count"] = index, np.count_nonzero(visible)
    record["boxes"][: record["count"]] = np.concatenate([(low + high) / 2, high - low], axis=1)[visible]
    record["scores"][: record["count"]] = scores[visible]
    return record


def _chunks(samples: Sequence[Sample], progress: Progress) -> Iterator[list[tuple[Sample, Image]]]:
    """Yield the readable images in lists of TEACHER_BATCH."""
    images = iter(ReadableImages(samples, progress, label="predictions of the teacher"))
    while chunk := list(islice(images, TEACHER_BATCH)):
        yield chunk


def evenly_chosen(samples: Sequence[Sample], count: int | None) -> Sequence[Sample]:
    """Return at most `count` evenly spaced samples; all for None."""
    if count is None or count >= len(samples):
        return samples
    return [samples[index * len(samples) // count] for index in range(count)]


def _features(teacher: Teacher, frames: NDArray[np.float32]) -> DetectorFeatures:
    device = next(teacher.parameters()).device
    batch = torch.from_numpy(frames).to(device).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), in_bfloat16(device):
        return teacher(batch)


def _views(branch: str, predictions: Predictions, grid: Grid) -> Predictions:
    """Return predictions [2, n, ...] for n images and their mirror images, from predictions [2 * n, ...] for frames.

    In the branch `one2many` both are the mean over the two views, which is more accurate than either. A one-to-one
    branch may select different anchors in the views, so its predictions are not averaged.
    """
    first, second = map(Predictions, predictions.scores.cpu().chunk(2), predictions.boxes.cpu().chunk(2))
    if branch == "one2many":
        first = mean_predictions(first, mirror(second, grid))
        second = mirror(first, grid)
    return Predictions(torch.stack([first.scores, second.scores]), torch.stack([first.boxes, second.boxes]))


def _shape(predictions: Predictions, *, every_box: bool) -> BranchShape:
    _, classes, anchors = predictions.scores.shape
    boxes = anchors if every_box else min(anchors, MAX_BOX_ANCHORS)
    return BranchShape(classes, predictions.boxes.shape[1], anchors, boxes)


def _record(
    kind: np.dtype[Any], index: int, frame: NDArray[np.float32], branches: dict[str, Predictions]
) -> NDArray[Any]:
    """Return the record of an image; frame: float32 [3, h, w]; branches: predictions of its two views."""
    record = np.zeros((), kind)
    record["index"], record["frame"] = index, np.rint(frame * 255).transpose(1, 2, 0)
    for name, each in branches.items():
        part = record[name]
        anchors = each.scores.amax(dim=1).topk(part["anchors"].shape[1], dim=1).indices
        part["scores"], part["anchors"] = each.scores, anchors
        part["boxes"] = each.boxes.gather(2, anchors[:, None].expand(-1, each.boxes.shape[1], -1))
    return record
