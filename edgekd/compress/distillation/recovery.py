"""Recovery of a compressed detector: trained to predict as the original does, without labels.

The predictions of the original, the teacher, are read from a cache, so a step costs as much as one without a teacher.
Every step is one update of the weights; batch norms keep their statistics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgekd.compress.distillation import distill
from edgekd.compress.distillation.anchors import Grid
from edgekd.compress.distillation.loss_terms import MIN_PROBABILITY, Predictions

if TYPE_CHECKING:
    from edgekd.compress.steps import Recover
    from edgekd.core.progress import Progress

WARM_UP_SHARE = 0.05
"""Share of the updates in which the learning rate rises; in the rest it falls to zero along a cosine."""
DISTRIBUTION_WEIGHT = 0.25
"""Weight of the loss of box side distributions; those of classes and of box overlaps have 1."""

Predict = Callable[[torch.Tensor], Mapping[str, Predictions]]
"""Predictions in float32 by branch, for frames float32 [b, 3, h, w], RGB, 0 to 1."""


@dataclass(frozen=True)
class Target:
    """The predictions of one branch of a teacher's head for a batch.

    scores: class logits float32 [b, classes, anchors]; anchors: int64 [b, k], those whose boxes are known; boxes:
    float32 [b, sides, k], as in `Predictions`.
    """

    scores: torch.Tensor
    anchors: torch.Tensor
    boxes: torch.Tensor


def recovery_losses(student: Predictions, teacher: Target) -> dict[str, torch.Tensor]:
    """Return the losses of one branch: of classes, of box overlaps, and of distributions where sides have them."""
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


def total_loss(losses: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the weighted sum of the losses of a branch."""
    weights = {"distributions": DISTRIBUTION_WEIGHT}
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
    """Return the means of class probabilities, and of box sides or of their distributions, of two predictions."""
    scores = torch.stack([ours.scores, theirs.scores]).sigmoid().mean(0).logit(eps=MIN_PROBABILITY)
    boxes = torch.stack([ours.boxes, theirs.boxes])
    if boxes.shape[2] > 4:
        boxes = boxes.unflatten(2, (4, -1)).softmax(3).flatten(2, 3)
        return Predictions(scores, boxes.mean(0).clamp(min=MIN_PROBABILITY).log())
    return Predictions(scores, boxes.mean(0))


def read_batch(
    records: NDArray[Any], chosen: NDArray[np.int64], mirrored: NDArray[np.bool_], device: torch.device
) -> tuple[torch.Tensor, dict[str, Target]]:
    """Return frames float32 [b, 3, h, w], RGB, 0 to 1, and the teacher's predictions of them by branch.

    records: of a `prediction_cache`; chosen: [b], their indices; mirrored: [b], of which the mirror image is taken.
    """
    batch, rows, views = records[chosen], np.arange(len(chosen)), mirrored.astype(int)
    frames = torch.from_numpy(batch["frame"]).to(device).permute(0, 3, 1, 2)  # channels last, as convolutions like it
    flipped = torch.from_numpy(mirrored).to(device)[:, None, None, None]
    targets = {}
    for name in records.dtype.names or ():
        if records.dtype[name].names is None:
            continue
        values = (
            torch.from_numpy(batch[name][each][rows, views]).to(device) for each in ("scores", "anchors", "boxes")
        )
        scores, anchors, boxes = values
        targets[name] = Target(scores.float(), anchors.long(), boxes.float())
    return torch.where(flipped, frames.flip(3), frames).float() / 255, targets


def epoch_batches(
    count: int, batch: int, seed: int, epoch: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.bool_]]]:
    """Yield the indices of the images of each batch of an epoch, and which of them are mirrored.

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


class Recovery:
    """Training of a network on the records of a `prediction_cache`, epoch by epoch.

    losses: the mean of each loss in each epoch that is done; last_loss: the total loss of the last update.
    """

    def __init__(self, network: torch.nn.Module, predict: Predict, records: NDArray[Any], step: Recover) -> None:
        """predict: the network's predictions."""
        self.losses: list[dict[str, float]] = []
        self.last_loss = 0.0
        self._network, self._predict, self._records, self._step = network, predict, records, step
        parameters = [each for each in network.parameters() if each.requires_grad]
        self._device = parameters[0].device
        self._optimizer = torch.optim.Adam(parameters, step.learning_rate, fused=True)
        self._updates_per_epoch = -(-len(records) // step.batch)

    @property
    def updates(self) -> int:
        """Number of weight updates that are done."""
        return self._updates_per_epoch * len(self.losses)

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs to go on after the last epoch."""
        return {
            "network": self._network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "losses": self.losses,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on after the last epoch of a state."""
        self._network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.losses = list(state["losses"])

    def run(self, finish: Callable[[], None], progress: Progress) -> None:
        """Train until the epochs are over. finish: called after each."""
        left = self._updates_per_epoch * self._step.epochs - self.updates
        ticks = iter(progress.items(range(left), "recover", left))
        while len(self.losses) < self._step.epochs:
            self._train_epoch(ticks)
            finish()
        next(ticks, None)

    def _train_epoch(self, ticks: Iterator[int]) -> None:
        sums: dict[str, torch.Tensor] = {}
        update, updates = self.updates, self._updates_per_epoch * self._step.epochs
        for chosen, mirrored in epoch_batches(len(self._records), self._step.batch, self._step.seed, len(self.losses)):
            next(ticks, None)
            frames, targets = read_batch(self._records, chosen, mirrored, self._device)
            branches = self._predict(frames)
            losses = {name: recovery_losses(branches[name], targets[name]) for name in targets}
            loss = torch.stack([total_loss(each) for each in losses.values()]).sum()
            loss.backward()
            self._optimizer.param_groups[0]["lr"] = self._step.learning_rate * rate_at(update, updates)
            self._optimizer.step()
            self._optimizer.zero_grad()
            update += 1
            for each in losses.values():
                for name, value in each.items():
                    sums[name] = sums.get(name, 0.0) + value.detach() / len(losses)
        self.losses.append({name: float(value) / self._updates_per_epoch for name, value in sums.items()})
        self.last_loss = float(loss.detach())
