"""Recovery of a compressed detector, float or fake-quantized: training to reproduce the original's predictions.

It needs no labels. Predictions and feature maps of the original, the teacher, are read from a cache, so a step costs
as much as one without a teacher. The channels of a pruned map are a subset of the teacher's channels, so no projector
is needed. Every step is one update of the weights; batch norms keep their statistics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from edgekd.compress.distillation import distill
from edgekd.compress.distillation.anchors import Grid
from edgekd.compress.distillation.loss_terms import (
    MIN_PROBABILITY,
    DetectorFeatures,
    Predictions,
    at_queries,
    match_queries,
)
from edgekd.compress.distillation.prediction_cache import MAPS, map_stride
from edgekd.core.errors import SpecError

if TYPE_CHECKING:
    from edgekd.compress.steps import QuantAwareDistill, Recover
    from edgekd.core.progress import Progress

WARM_UP_SHARE = 0.05
"""Share of the updates in which the learning rate rises; afterwards it falls to zero along a cosine."""
DISTRIBUTION_WEIGHT = 0.25
"""Weight of the loss of box side distributions; the losses of classes and of box overlaps have weight 1."""
FEATURE_WEIGHT = 5.0
"""Weight of the loss of feature maps."""
MATCHING_IMAGES = 32
"""Number of images for matching channels: with 100 positions each, ten times the channels of a wide map."""
MIN_DEVIATION = 0.1
"""Smallest standard deviation by which a channel is scaled, as a share of the mean over its map's channels."""

Predict = Callable[[torch.Tensor], DetectorFeatures]
"""Returns maps and predictions of a network in float32, for frames float32 [b, 3, h, w], RGB, 0 to 1."""


@dataclass(frozen=True)
class Target:
    """The predictions of one branch of a teacher's head for a batch.

    scores: class logits float32 [b, classes, anchors]; anchors: int64 [b, k], those whose boxes are known; boxes:
    float32 [b, sides, k], as in `Predictions`.
    """

    scores: torch.Tensor
    anchors: torch.Tensor
    boxes: torch.Tensor


@dataclass(frozen=True)
class Batch:
    """Frames and a teacher's outputs for them.

    frames: float32 [b, 3, h, w], RGB, 0 to 1; targets: by branch; maps: float32 [b, c, h, w], as from `kept_maps`.
    """

    frames: torch.Tensor
    targets: Mapping[str, Target]
    maps: tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class ChannelMatch:
    """The channels of a teacher's map that correspond to the channels of a student's map.

    channels: int64 [c], the teacher's channel for each of the student's; deviations: float32 [c, 1, 1], standard
    deviations of these channels of the teacher.
    """

    channels: torch.Tensor
    deviations: torch.Tensor


def kept_maps(features: DetectorFeatures) -> tuple[torch.Tensor, ...]:
    """Return the maps of backbone and neck at the positions that a cache stores, float32 [b, c, h, w]."""
    strides = [map_stride(*each.shape[2:]) for each in (*features.hidden, *features.neck)]
    maps = (*features.hidden, *features.neck)
    return tuple(each[:, :, ::stride, ::stride] for each, stride in zip(maps, strides, strict=True))


def match_channels(student: torch.Tensor, teacher: torch.Tensor) -> ChannelMatch:
    """Return for each channel of a student's map the channel of the teacher's map with the highest correlation.

    Maps are float32 [b, c, h, w], of the same frames. Equally many channels are assumed to be in the same order.
    """
    ours, theirs = (maps.transpose(0, 1).flatten(1) for maps in (student, teacher))
    deviations = theirs.std(1)
    deviations = deviations.clamp(min=max(float(deviations.mean()) * MIN_DEVIATION, 1e-6))
    channels = torch.arange(len(theirs), device=theirs.device)
    if len(ours) != len(theirs):
        ours, theirs = (functional.normalize(each - each.mean(1, keepdim=True), dim=1) for each in (ours, theirs))
        channels = (ours @ theirs.T).argmax(1)
    return ChannelMatch(channels, deviations[channels, None, None])


def feature_loss(
    student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor], matches: Sequence[ChannelMatch]
) -> torch.Tensor:
    """Return the mean squared distance of maps from the teacher's matching channels, in units of their deviations.

    Maps float32 [b, c, h, w]. FitNets, without a regressor: Romero and others, arXiv 1412.6550.
    """
    losses = [
        ((ours - theirs[:, match.channels]) / match.deviations).square().mean()
        for ours, theirs, match in zip(student, teacher, matches, strict=True)
    ]
    return torch.stack(losses).mean()


def recovery_losses(student: Predictions, teacher: Target) -> dict[str, torch.Tensor]:
    """Return the losses of one branch: `classes`, `boxes` (overlaps) and, if sides have them, `distributions`."""
    boxes = student.boxes.gather(2, teacher.anchors[:, None].expand(-1, student.boxes.shape[1], -1))
    certainty = distill.certainty(teacher.scores).gather(1, teacher.anchors)
    ours, theirs = distill.expected_distances(boxes), distill.expected_distances(teacher.boxes)
    losses = {
        "classes": distill.class_loss(student.scores, teacher.scores),
        "boxes": distill.overlap_loss(ours, theirs, certainty),
    }
    if boxes.shape[1] > 4:
        losses["distributions"] = distill.distribution_loss(boxes, teacher.boxes, certainty)
    return losses


def query_losses(student: Mapping[str, Predictions], teacher: Mapping[str, Target]) -> dict[str, torch.Tensor]:
    """Return the losses `classes` and `boxes` of a head without anchors, means over its layers.

    Queries are matched in the last layer; each layer is compared with the same layer of the teacher.
    """
    theirs = {name: _in_order(teacher[name]) for name in student}
    last = list(student)[-1]
    index = match_queries(student[last], theirs[last])
    pairs = [(student[name], at_queries(theirs[name], index)) for name in student]
    boxes = [distill.query_box_loss(one.boxes, other.boxes, distill.certainty(other.scores)) for one, other in pairs]
    return {
        "classes": distill.mean([distill.class_loss(one.scores, other.scores) for one, other in pairs]),
        "boxes": distill.mean(boxes),
    }


def _in_order(target: Target) -> Predictions:
    """Return a target with all boxes as predictions, with the boxes in the order of the scores."""
    index = target.anchors[:, None].expand(-1, target.boxes.shape[1], -1)
    return Predictions(target.scores, torch.zeros_like(target.boxes).scatter(2, index, target.boxes))


def total_loss(losses: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the weighted sum of losses."""
    weights = {"distributions": DISTRIBUTION_WEIGHT, "features": FEATURE_WEIGHT}
    return torch.stack([loss * weights.get(name, 1.0) for name, loss in losses.items()]).sum()


def mirror(predictions: Predictions, grid: Grid) -> Predictions:
    """Return the predictions for mirrored frames: the cells of each row reversed, left and right sides swapped."""

    def reverse(values: torch.Tensor) -> torch.Tensor:
        levels = values.split([height * width for height, width in grid.sizes], dim=2)
        rows = [level.unflatten(2, size).flip(3) for level, size in zip(levels, grid.sizes, strict=True)]
        return torch.cat([level.flatten(2) for level in rows], dim=2)

    sides = reverse(predictions.boxes).unflatten(1, (4, -1))[:, [2, 1, 0, 3]]
    return Predictions(reverse(predictions.scores), sides.flatten(1, 2))


def mean_predictions(ours: Predictions, theirs: Predictions) -> Predictions:
    """Return the mean of two predictions: of class probabilities, and of box sides or their distributions."""
    scores = torch.stack([ours.scores, theirs.scores]).sigmoid().mean(0).logit(eps=MIN_PROBABILITY)
    boxes = torch.stack([ours.boxes, theirs.boxes])
    if boxes.shape[2] > 4:
        boxes = boxes.unflatten(2, (4, -1)).softmax(3).flatten(2, 3)
        return Predictions(scores, boxes.mean(0).clamp(min=MIN_PROBABILITY).log())
    return Predictions(scores, boxes.mean(0))


def read_batch(
    records: NDArray[Any], chosen: NDArray[np.int64], mirrored: NDArray[np.bool_], device: torch.device
) -> Batch:
    """Return a batch from the records of a `prediction_cache`.

    chosen: [b], indices of records; mirrored: [b], whether to use the mirror image.
    """
    batch, rows, views = records[chosen], np.arange(len(chosen)), mirrored.astype(int)

    def read(values: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(values[rows, views]).to(device)

    frames = torch.from_numpy(batch["frame"]).to(device).permute(0, 3, 1, 2)  # channels last: faster convolutions
    flipped = torch.from_numpy(mirrored).to(device)[:, None, None, None]
    targets = {}
    for name in records.dtype.names or ():
        if name == MAPS or records.dtype[name].names is None:
            continue
        scores, anchors, boxes = (read(batch[name][each]) for each in ("scores", "anchors", "boxes"))
        targets[name] = Target(scores.float(), anchors.long(), boxes.float())
    maps = tuple(read(batch[MAPS][name]).float() for name in batch[MAPS].dtype.names or ())
    return Batch(torch.where(flipped, frames.flip(3), frames).float() / 255, targets, maps)


def epoch_batches(
    count: int, batch: int, seed: int, epoch: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.bool_]]]:
    """Yield for each batch of an epoch the indices of its images, and which of them are mirrored.

    Each image alternates between its two views from epoch to epoch. The last batch may be smaller.
    """
    first = np.random.default_rng(seed).integers(0, 2, count)
    mirrored, order = (first + epoch) % 2 == 1, np.random.default_rng([seed, epoch]).permutation(count)
    for begin in range(0, count, batch):
        chosen = order[begin : begin + batch]
        yield chosen, mirrored[chosen]


def rate_at(update: int, updates: int) -> float:
    """Return the learning rate of an update, counted from 0, as a share of the largest one."""
    rising = (update + 1) / max(WARM_UP_SHARE * updates, 1)
    return min(rising, 0.5 + 0.5 * math.cos(math.pi * update / updates))


def _require_same_branches(student: Collection[str], teacher: Collection[str], step: str) -> None:
    """Raise SpecError if the teacher's head lacks a branch, or layer, of the student's head."""
    if not set(student) <= set(teacher):
        expected, found = (", ".join(each) for each in (student, teacher))
        raise SpecError(
            f"{step}: the teacher has another head", expected=expected, found=found, fix="train it by a step distill"
        )


class Recovery:
    """Training of a network on the records of a `prediction_cache`, epoch by epoch.

    losses: the mean of each loss in each completed epoch; last_loss: the total loss of the last update.
    """

    def __init__(
        self, network: torch.nn.Module, predict: Predict, records: NDArray[Any], step: Recover | QuantAwareDistill
    ) -> None:
        """Match channels with the teacher's, by the network's present outputs.

        predict: computes the network's outputs. Raises SpecError if the teacher's head has other branches.
        """
        self.losses: list[dict[str, float]] = []
        self.last_loss = 0.0
        self._network, self._predict, self._records, self._step = network, predict, records, step
        parameters = [each for each in network.parameters() if each.requires_grad]
        self._device = parameters[0].device
        self._optimizer = torch.optim.Adam(parameters, step.learning_rate, fused=True)
        self._updates_per_epoch = -(-len(records) // step.batch)
        first = np.arange(min(MATCHING_IMAGES, len(records)))
        batch = read_batch(records, first, np.zeros(len(first), bool), self._device)
        with torch.no_grad():
            features = predict(batch.frames)
        _require_same_branches(features.branches, batch.targets, step.kind)
        self._matches = [match_channels(*pair) for pair in zip(kept_maps(features), batch.maps, strict=True)]

    @property
    def updates(self) -> int:
        """Number of completed weight updates."""
        return self._updates_per_epoch * len(self.losses)

    def state(self) -> dict[str, Any]:
        """Return the state that `restore` needs to continue after the last completed epoch."""
        return {
            "network": self._network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "losses": self.losses,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue after the last completed epoch of a state."""
        self._network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.losses = list(state["losses"])

    def run(self, finish: Callable[[], None], progress: Progress) -> None:
        """Train the remaining epochs. finish: called after each."""
        left = self._updates_per_epoch * self._step.epochs - self.updates
        ticks = iter(progress.items(range(left), self._step.kind, left))
        while len(self.losses) < self._step.epochs:
            self._train_epoch(ticks)
            finish()
        next(ticks, None)

    def _train_epoch(self, ticks: Iterator[int]) -> None:
        sums: dict[str, torch.Tensor] = {}
        update, updates = self.updates, self._updates_per_epoch * self._step.epochs
        for chosen, mirrored in epoch_batches(len(self._records), self._step.batch, self._step.seed, len(self.losses)):
            next(ticks, None)
            losses = self._losses(read_batch(self._records, chosen, mirrored, self._device))
            loss = total_loss(losses)
            loss.backward()
            self._optimizer.param_groups[0]["lr"] = self._step.learning_rate * rate_at(update, updates)
            self._optimizer.step()
            self._optimizer.zero_grad()
            update += 1
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value.detach()
        self.losses.append({name: float(value) / self._updates_per_epoch for name, value in sums.items()})
        self.last_loss = float(loss.detach())

    def _losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the losses on a batch: sums over branches, or means over a decoder's layers, and `features`."""
        features = self._predict(batch.frames)
        losses: dict[str, torch.Tensor] = {}
        if features.objects is not None:
            losses = query_losses(features.branches, batch.targets)
        else:
            for name, predictions in features.branches.items():
                for each, value in recovery_losses(predictions, batch.targets[name]).items():
                    losses[each] = losses.get(each, 0.0) + value
        losses["features"] = feature_loss(kept_maps(features), batch.maps, self._matches)
        return losses
