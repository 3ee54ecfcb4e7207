"""Distillation loss terms for one batch: each level's loss by name, from the features of student and teacher.

They combine the losses in `distill.py`, for any training loop. A loop with further losses adds them to those of
`DistillationTerms` before weighting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import nn

from edgekd.compress.distillation import distill
from edgekd.compress.distillation.anchors import Grid, corners, nearest_anchors, nearest_levels
from edgekd.compress.distillation.loss_weighting import Reading, mean_over_objects, teacher_shares
from edgekd.compress.distillation.region_text import RegionText
from edgekd.core.errors import SpecError

if TYPE_CHECKING:
    from edgekd.compress.steps import Distill, DistillStage

MAX_RELATED_OBJECTS = 16
"""Largest number of objects per image whose distances are compared."""
MAX_QUERIES = 100
"""Largest number of predictions used per image, of a head without anchors: the most certain ones."""
ASSIGN_TOPK = 10
"""Largest number of anchors that each of these is assigned to, the same as for labels; 1 in a one-to-one branch."""
MIN_PROBABILITY = 1e-6
"""Probability at anchors without an assigned prediction: so small that even all anchors together hardly matter."""
MATCH_CLASS_WEIGHT = 2.0
"""Weight of the distance of class probabilities in the matching of queries, as in DETR."""


@dataclass(frozen=True)
class Predictions:
    """A head's output at each anchor: class logits [b, classes, anchors], box sides [b, 4 * bins, anchors].

    Sides are distances from the anchor in strides, or with several bins the logits of their distributions.
    """

    scores: torch.Tensor
    boxes: torch.Tensor


@dataclass(frozen=True)
class DetectorFeatures:
    """A detector's maps and predictions for a batch.

    neck: the maps that its head reads, float32 [b, c, h, w], of the grid's sizes; hidden: a map of its backbone for
    each of them, of about the same size; branches: predictions of its heads, `one2many` and, if there is one,
    `one2one`; objects: only for a head without anchors: its predictions, with boxes as in `assign_objects`. Then the
    branches are the decoder's layers in order, if they are known; the last one is equal to the objects.
    """

    grid: Grid
    neck: tuple[torch.Tensor, ...]
    hidden: tuple[torch.Tensor, ...]
    branches: Mapping[str, Predictions]
    objects: Predictions | None = None


class Aids(nn.Module):  # type: ignore[misc]
    """Modules that are trained together with a student and are not shipped.

    1 x 1 projectors to its teacher's widths and, with texts, the projection of regions.
    """

    def __init__(self, student: Sequence[int], teacher: Sequence[int], texts: torch.Tensor | None = None) -> None:
        """Build the modules.

        student, teacher: channels of the neck maps by level, in pairs; the teacher's are empty if its maps are not
        compared. texts: as for `RegionText`; None for no text loss.
        """
        super().__init__()
        self.projectors = nn.ModuleList(nn.Conv2d(*widths, 1) for widths in zip(student, teacher, strict=bool(teacher)))
        self.words = None if texts is None else RegionText(student, texts)


@dataclass(frozen=True)
class DistillationLosses:
    """The losses of a batch.

    losses: scalars by name; share, disagreement: means over the teacher's objects, scalars; certainty: the teacher's,
    at the student's anchors, [b, anchors].
    """

    losses: Mapping[str, torch.Tensor]
    share: torch.Tensor
    disagreement: torch.Tensor
    certainty: torch.Tensor

    def record(self) -> dict[str, torch.Tensor]:
        """Return further scalars for the log of a training, beside the losses and their weights."""
        return {"teacher": self.share, "disagreement": self.disagreement}


@dataclass(frozen=True)
class _Pair:
    """The predictions of both networks in one branch. certainty, disagreement, share: per anchor, [b, anchors]."""

    ours: Predictions
    theirs: Predictions
    certainty: torch.Tensor
    disagreement: torch.Tensor
    share: torch.Tensor

    @classmethod
    def of(cls, ours: Predictions, theirs: Predictions, temperature: float, reading: Reading) -> _Pair:
        certainty = distill.certainty(theirs.scores)
        apart = distill.disagreement(ours.scores, theirs.scores, temperature)
        return cls(ours, theirs, certainty, apart, teacher_shares(apart, certainty, reading))


class DistillationTerms:
    """Compute the losses of one distillation.

    classes: pairs of a class's index in the student's list and in the teacher's; if several of the teacher's classes
    are one of the student's, the most certain one counts. weights: weights of the student's classes, float32 [classes];
    None: equal.
    """

    def __init__(
        self, step: Distill, classes: Sequence[tuple[int, int]], aids: Aids, weights: torch.Tensor | None = None
    ) -> None:
        self._step = step
        shared = sorted({ours for ours, _ in classes})
        self._ours = [[ours] for ours in shared]
        self._theirs = [[theirs for each, theirs in classes if each == ours] for ours in shared]
        self._class_weights = None if weights is None else weights[shared]
        self._aids = aids

    def __call__(
        self,
        student: DetectorFeatures,
        teacher: DetectorFeatures,
        stage: DistillStage,
        branch_weights: Mapping[str, float] = MappingProxyType({}),
    ) -> DistillationLosses:
        """Return the losses whose weight in the stage is not 0.

        branch_weights: relative weight of each branch, the same as in the loss on labels; 1 by default. For a student
        without anchors the teacher must have `objects`, and no loss of the stage may need anchors.
        """
        teacher = _nearest_maps(student.grid, teacher)
        grid = teacher.grid if teacher.objects is None else student.grid
        index = nearest_anchors(student.grid, grid, student.neck[0].device)
        pairs = self._pairs(student, teacher, index, self._step.alpha if stage.adaptive else "off")
        first = pairs["one2many"] if student.objects is None else list(pairs.values())[-1]
        weight = first.certainty * first.share
        parts = [branch_weights.get(name, 1.0) for name in pairs]
        parts = [part / sum(parts) for part in parts]
        losses = {}
        for name in (entry.name for entry in fields(stage.weights) if getattr(stage.weights, entry.name)):
            if name == "classes":
                of_branches = [
                    distill.class_loss(
                        each.ours.scores,
                        each.theirs.scores,
                        self._step.focus,
                        self._step.temperature,
                        self._class_weights,
                        each.share,
                    )
                    for each in pairs.values()
                ]
                losses[name] = _weighted_sum(of_branches, parts)
            elif name == "boxes":
                of_branches = [
                    _box_loss(student.grid, grid, index, each)
                    if student.objects is None
                    else distill.query_box_loss(each.ours.boxes, each.theirs.boxes, each.certainty * each.share)
                    for each in pairs.values()
                ]
                losses[name] = _weighted_sum(of_branches, parts)
            elif name == "features":
                losses[name] = self._feature_loss(student, teacher, weight)
            elif name == "relations":
                losses[name] = _relation_loss(student, teacher, weight)
            else:
                loss = distill.pattern_loss if name == "neurons" else distill.attention_loss
                losses[name] = loss(student.neck + student.hidden, teacher.neck + teacher.hidden)
        share, apart = (mean_over_objects(each, first.certainty) for each in (first.share, first.disagreement))
        return DistillationLosses(losses, share, apart, first.certainty)

    def _pairs(
        self, student: DetectorFeatures, teacher: DetectorFeatures, index: torch.Tensor, reading: Reading
    ) -> dict[str, _Pair]:
        """Return both networks' predictions of the shared classes at the student's anchors or queries, by branch."""
        predictions = {name: _select_classes(each, self._ours) for name, each in student.branches.items()}
        if student.objects is not None and teacher.objects is not None:
            objects = _select_classes(teacher.objects, self._theirs)
            matched = at_queries(objects, match_queries(list(predictions.values())[-1], objects))
            theirs = dict.fromkeys(predictions, matched)
        elif teacher.objects is not None:
            objects = _select_classes(teacher.objects, self._theirs)
            theirs = {
                name: assign_objects(objects, ours, student.grid, 1 if name == "one2one" else ASSIGN_TOPK)
                for name, ours in predictions.items()
            }
        else:
            selected = {name: _select_classes(each, self._theirs) for name, each in teacher.branches.items()}
            theirs = {
                name: Predictions(each.scores[..., index], each.boxes[..., index]) for name, each in selected.items()
            }
        shared = [name for name in predictions if name in theirs]
        return {name: _Pair.of(predictions[name], theirs[name], self._step.temperature, reading) for name in shared}

    def _feature_loss(self, student: DetectorFeatures, teacher: DetectorFeatures, weight: torch.Tensor) -> torch.Tensor:
        projected = [project(maps).float() for project, maps in zip(self._aids.projectors, student.neck, strict=True)]
        if self._step.features == "correlation":
            return distill.correlation_loss(projected, teacher.neck)
        if self._step.features == "channels":
            return distill.channel_loss(projected, teacher.neck)
        levels = weight.split([height * width for height, width in student.grid.sizes], dim=1)
        weights = [level.unflatten(1, (1, *size)) for level, size in zip(levels, student.grid.sizes, strict=True)]
        return distill.feature_loss(projected, teacher.neck, weights)


def _relation_loss(student: DetectorFeatures, teacher: DetectorFeatures, weights: torch.Tensor) -> torch.Tensor:
    index, weight = distill.peaks(weights, student.grid.sizes, MAX_RELATED_OBJECTS)
    points, _ = student.grid.points(weights.device)
    height, width = student.grid.frame
    positions = torch.stack([points[0] / width, points[1] / height], dim=1)[index]
    ours, theirs = (distill.object_vectors(each.neck, positions) for each in (student, teacher))
    return distill.relation_loss(ours, theirs, weight.flatten())


def _nearest_maps(own: Grid, teacher: DetectorFeatures) -> DetectorFeatures:
    """Return the teacher with its maps from the level nearest to each level of the student."""
    levels = nearest_levels(own.strides, teacher.grid.strides)
    neck, hidden = (tuple(maps[index] for index in levels if maps) for maps in (teacher.neck, teacher.hidden))
    return replace(teacher, neck=neck, hidden=hidden)


def _weighted_sum(losses: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    return torch.stack([loss * weight for loss, weight in zip(losses, weights, strict=True)]).sum()


def _select_classes(predictions: Predictions, classes: Sequence[Sequence[int]]) -> Predictions:
    """Select classes; if a class has several indices, the most certain one counts."""
    scores, boxes = predictions.scores, predictions.boxes
    if list(classes) == [[index] for index in range(scores.shape[1])]:
        return predictions  # saves copying the indices to the GPU
    if all(len(indices) == 1 for indices in classes):
        return Predictions(scores[:, [index for (index,) in classes]], boxes)
    return Predictions(torch.stack([scores[:, indices].amax(1) for indices in classes], dim=1), boxes)


def _box_loss(own: Grid, other: Grid, index: torch.Tensor, pair: _Pair) -> torch.Tensor:
    """Compare distributions if both heads have the same bins at the same anchors, else overlaps."""
    ours, theirs, weight = pair.ours, pair.theirs, pair.certainty * pair.share
    if own == other and ours.boxes.shape == theirs.boxes.shape and ours.boxes.shape[1] > 4:
        return distill.distribution_loss(ours.boxes, theirs.boxes, weight)
    points, strides = own.points(index.device)
    other_points, other_strides = (each[..., index] for each in other.points(index.device))
    offset = (other_points - points) * torch.tensor([[[-1.0]], [[1.0]]], device=index.device)
    sides = distill.expected_distances(theirs.boxes) * other_strides + offset.flatten(0, 1)
    return distill.overlap_loss(distill.expected_distances(ours.boxes) * strides, sides, weight)


def assign_objects(objects: Predictions, student: Predictions, grid: Grid, topk: int = ASSIGN_TOPK) -> Predictions:
    """Assign the predictions of a head without anchors (RT-DETR) to the student's anchors, as labels are assigned.

    objects: class logits [b, classes, n], and boxes [b, 4, n], middle x and y, width and height as shares of the frame.
    After TOOD (arXiv 2108.07755): a box is assigned to the `topk` anchors inside it with the largest t = s^0.5 u^6,
    where s is the student's probability of the box's most probable class, and u the IoU with the student's box. There
    the probability of each class is the object's probability times t / max t * max u, with maxima over the box's
    anchors. An anchor with several boxes gets the one with the largest such value. Other anchors have MIN_PROBABILITY.
    Returns class logits [b, classes, anchors], and box sides in strides [b, 4, anchors].
    """
    with torch.no_grad():
        probabilities = objects.scores.sigmoid()
        certainty, order = probabilities.amax(dim=1).topk(min(MAX_QUERIES, probabilities.shape[2]), dim=1)
        probabilities, boxes = _gather(probabilities, order), _gather(objects.boxes, order)
        # Frame by frame: most frames have far fewer objects than the one with most.
        counts = (certainty > 2 * MIN_PROBABILITY).sum(dim=1).clamp(min=1).tolist()
        frames = []
        for frame, count in enumerate(counts):
            own = Predictions(student.scores[frame, None], student.boxes[frame, None])
            found = (probabilities[frame, None, :, :count], boxes[frame, None, :, :count])
            frames.append(_assign(*found, own, grid, topk))
        return Predictions(torch.cat([each.scores for each in frames]), torch.cat([each.boxes for each in frames]))


def _assign(
    probabilities: torch.Tensor, boxes: torch.Tensor, student: Predictions, grid: Grid, topk: int
) -> Predictions:
    """Assign objects [b, classes, n] with boxes [b, 4, n] to the anchors: see `assign_objects`."""
    sides, overlap = _sides_and_overlaps(boxes, student, grid)
    best_class = probabilities.argmax(dim=1)[..., None].expand_as(overlap)
    probability = student.scores.sigmoid().gather(1, best_class)
    share = _assignment(probability.sqrt() * overlap**6, overlap, topk)
    _, assigned = (share * probabilities.amax(dim=1)[..., None]).max(dim=1)  # [b, anchors]
    values = _gather(probabilities, assigned) * share.gather(1, assigned[:, None])
    assigned_sides = sides.gather(2, assigned[:, None, None].expand(-1, 4, -1, -1))[:, :, 0]
    return Predictions(values.clamp(MIN_PROBABILITY, 1 - MIN_PROBABILITY).logit(), assigned_sides)


def _gather(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Select from values [b, c, n] the columns at index [b, k]: [b, c, k]."""
    return values.gather(2, index[:, None].expand(-1, values.shape[1], -1))


def _sides_and_overlaps(boxes: torch.Tensor, student: Predictions, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    """Return distances of the sides of boxes [b, 4, n] from each anchor, in strides, [b, 4, n, anchors], and IoUs.

    The IoU with the student's box at each anchor, [b, n, anchors], is 0 for anchors outside of the box.
    """
    points, strides = grid.points(boxes.device)
    low, high = corners(boxes.mT, *grid.frame).mT[..., None].split(2, dim=1)
    sides = torch.cat([points[:, None] - low, high - points[:, None]], dim=1)
    own = (distill.expected_distances(student.boxes) * strides)[:, :, None]
    common, union = distill.overlaps(own, sides)
    return sides / strides, common / union.clamp(min=1e-9) * (sides > 0).all(dim=1)


def _assignment(fit: torch.Tensor, overlap: torch.Tensor, topk: int) -> torch.Tensor:
    """Return fit / max fit * max overlap for each box's `topk` best anchors, 0 for other anchors: [b, n, anchors]."""
    best, index = fit.topk(min(topk, fit.shape[2]), dim=2)
    share = best / best[..., :1].clamp(min=1e-9) * overlap.gather(2, index).amax(dim=2, keepdim=True)
    return torch.zeros_like(fit).scatter_(2, index, share)


def match_queries(student: Predictions, teacher: Predictions) -> torch.Tensor:
    """Return for each query of a student the index of the matching prediction of the teacher, int64 [b, queries].

    -1: no match. Both have boxes as in `assign_objects`. Matches minimize the total cost as in DETR (Carion and others,
    arXiv 2005.12872): `query_box_distance`, and 2 sum |p_t - p_s| over class probabilities, because a teacher predicts
    probabilities, not labels. A query keeps its index through the layers of a decoder, so the match of the last layer
    is valid for all. Predictions of MIN_PROBABILITY, which pad a batch's objects, are not matched.
    """
    from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

    with torch.no_grad():
        ours, theirs = (each.scores.float().sigmoid().mT for each in (student, teacher))
        distance = distill.query_box_distance(student.boxes.float()[..., None], teacher.boxes.float()[:, :, None])
        costs = (MATCH_CLASS_WEIGHT * torch.cdist(ours, theirs, p=1.0) + distance).cpu()
        costs = costs.nan_to_num(0.0, 0.0, 0.0)  # a diverged training; its losses show that
        present = (distill.certainty(teacher.scores) > 2 * MIN_PROBABILITY).cpu()
        index = torch.full(costs.shape[:2], -1)
        for frame, cost in enumerate(costs):
            known = present[frame].nonzero()[:, 0]
            rows, columns = linear_sum_assignment(cost[:, known].numpy())
            index[frame, torch.from_numpy(rows)] = known[torch.from_numpy(columns)]
    return index.to(student.scores.device)


def at_queries(teacher: Predictions, index: torch.Tensor) -> Predictions:
    """Return the teacher's predictions in the order of the student's queries; MIN_PROBABILITY without a match.

    index: result of `match_queries`.
    """
    place = index.clamp(min=0)[:, None]
    scores, boxes = (each.gather(2, place.expand(-1, each.shape[1], -1)) for each in (teacher.scores, teacher.boxes))
    return Predictions(scores.masked_fill(index[:, None] < 0, math.log(MIN_PROBABILITY)), boxes)


def shared_classes(ours: Sequence[str], theirs: Sequence[str], same: Sequence[str] = ()) -> tuple[tuple[int, int], ...]:
    """Return pairs (our index, their index) of classes with the same name, ignoring case and surrounding spaces.

    same: further pairs, each as "their name = our name"; several of theirs may be the same one of ours. Raises
    SpecError if there are no pairs, a name is unknown, or one of theirs has two meanings.
    """
    lists = [[name.strip().lower() for name in names] for names in (theirs, ours)]
    meaning, given = dict(zip(lists[0], lists[0], strict=True)), set()
    for pair in same:
        names = [name.strip().lower() for name in pair.split("=")]
        if len(names) != 2 or names[0] not in lists[0] or names[1] not in lists[1] or names[0] in given:
            expected = f'"their name = our name", each of theirs once, of {", ".join(theirs)} and {", ".join(ours)}'
            raise SpecError("distill: same_classes", expected=expected, found=pair)
        given.add(names[0])
        meaning[names[0]] = names[1]
    pairs = tuple(
        (index, lists[0].index(name))
        for index, our_name in enumerate(lists[1])
        for name, means in meaning.items()
        if means == our_name
    )
    if not pairs:
        raise SpecError(
            "the teacher knows none of the classes",
            expected="one or more of " + ", ".join(ours),
            found=", ".join(theirs),
            fix='say which are the same: same_classes = ["their name = our name"]',
        )
    return pairs
