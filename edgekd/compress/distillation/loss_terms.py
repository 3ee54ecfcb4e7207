"""What a student is told by its teacher on one batch: each level's loss by name, from what both see.

Made of the pure losses in `distill.py`; any training loop can use it. A loop that has further losses adds them to what
`Comparison` gives before they are weighed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import nn

from edgekd.compress.distillation import distill
from edgekd.compress.distillation.anchors import Grid, nearest_anchors, nearest_levels
from edgekd.compress.distillation.boxes import corners
from edgekd.compress.distillation.region_text import RegionText
from edgekd.compress.distillation.temperature import Temperature
from edgekd.core.errors import SpecError

if TYPE_CHECKING:
    from edgekd.builds.recipe import Distill, Weights

OBJECTS = 16
"""Objects of each image whose distances are compared, at most."""
SPOKEN = 100
"""Objects of a head without anchors that are heard of in each image: its surest."""
TAKEN = 10
"""Anchors that speak for each of them, at most: as many as labels are given."""
NOTHING = 1e-6
"""The probability where a head without anchors says nothing: so small that all anchors together hardly count."""


@dataclass(frozen=True)
class Predictions:
    """What a head says at each anchor: class logits [b, classes, anchors], box sides [b, 4 * bins, anchors].

    Sides are distances from the anchor in strides, or with several bins the logits of their distributions.
    """

    scores: torch.Tensor
    boxes: torch.Tensor


@dataclass(frozen=True)
class Seen:
    """What a detector sees in a batch.

    neck: the maps that its head reads, float32 [b, c, h, w], of the grid's sizes; hidden: a map of its backbone for
    each of them, of about the same size; branches: what its heads say, `one2many` and, where there is one, `one2one`;
    objects: what a head without anchors says in their place, as of `assigned`.
    """

    grid: Grid
    neck: tuple[torch.Tensor, ...]
    hidden: tuple[torch.Tensor, ...]
    branches: Mapping[str, Predictions]
    objects: Predictions | None = None


class Aids(nn.Module):  # type: ignore[misc]
    """What is trained beside a student and does not ship.

    1 x 1 projectors to its teacher's widths; a temperature; and where there are texts, the projection of regions.
    """

    def __init__(
        self,
        student: Sequence[int],
        teacher: Sequence[int],
        learn_temperature: bool,
        texts: torch.Tensor | None = None,
    ) -> None:
        """student, teacher: channels of the neck maps, level by level, already in pairs; texts: as of `RegionText`."""
        super().__init__()
        self.projectors = nn.ModuleList(nn.Conv2d(*widths, 1) for widths in zip(student, teacher, strict=True))
        self.temperature = Temperature() if learn_temperature else None
        self.words = None if texts is None else RegionText(student, texts)


@dataclass(frozen=True)
class Said:
    """losses: scalars by name; apart: the mean disagreement where the teacher sees something; temperature: used.

    sure: the teacher's certainty at the student's anchors, [b, anchors].
    """

    losses: Mapping[str, torch.Tensor]
    apart: torch.Tensor
    temperature: torch.Tensor
    sure: torch.Tensor


class Comparison:
    """The losses of one kind of distillation.

    classes: pairs of indices, of a class in the student's list and of the same one in the teacher's; of several of the
    teacher's the surest speaks. weights: of the student's classes, float32 [classes], None where all count alike.
    """

    def __init__(
        self, step: Distill, classes: Sequence[tuple[int, int]], aids: Aids, weights: torch.Tensor | None = None
    ) -> None:
        self._step = step
        found = sorted({ours for ours, _ in classes})
        self._ours = [[ours] for ours in found]
        self._theirs = [[theirs for each, theirs in classes if each == ours] for ours in found]
        self._class_weights = None if weights is None else weights[found]
        self._aids = aids

    def __call__(
        self,
        student: Seen,
        teacher: Seen,
        weights: Weights,
        progress: float,
        shares: Mapping[str, float] = MappingProxyType({}),
    ) -> Said:
        """The losses whose weight is not 0; progress: share of the training that is done.

        shares: how much the labels count in each branch, where that differs; what is said there counts as much.
        """
        teacher = _paired(student.grid, teacher)
        grid = teacher.grid if teacher.objects is None else student.grid
        index = nearest_anchors(student.grid, grid, student.neck[0].device)
        pairs = self._pairs(student, teacher, index)
        ours, theirs = pairs["one2many"]
        sure = distill.certainty(theirs.scores)
        temperature = self._temperature(progress, sure)
        parts = [shares.get(name, 1.0) / sum(shares.get(each, 1.0) for each in pairs) for name in pairs]
        losses = {}
        for name in (entry.name for entry in fields(weights) if getattr(weights, entry.name)):
            if name == "classes":
                losses[name] = _shared([self._class_loss(*pair, temperature) for pair in pairs.values()], parts)
            elif name == "boxes":
                losses[name] = _shared([_box_loss(student.grid, grid, index, *pair) for pair in pairs.values()], parts)
            else:
                losses[name] = getattr(self, f"_{name}")(student, teacher, sure)
        mask = distill.foreground(theirs.scores)
        apart = distill.disagreement(ours.scores, theirs.scores, mask, temperature)
        return Said(losses, apart, temperature.detach(), sure)

    def _pairs(self, student: Seen, teacher: Seen, index: torch.Tensor) -> dict[str, tuple[Predictions, Predictions]]:
        """What both say at the student's anchors of the classes that both know, branch by branch."""
        said = {name: _chosen(found, self._ours) for name, found in student.branches.items()}
        if teacher.objects is not None:
            ours = said["one2many"]
            return {"one2many": (ours, assigned(_chosen(teacher.objects, self._theirs), ours, student.grid))}
        return {
            name: (ours, _at(_chosen(teacher.branches[name], self._theirs), index))
            for name, ours in said.items()
            if name in teacher.branches
        }

    def _temperature(self, progress: float, like: torch.Tensor) -> torch.Tensor:
        learned = self._aids.temperature
        return like.new_full((), self._step.temperature) if learned is None else learned(progress)

    def _class_loss(self, ours: Predictions, theirs: Predictions, temperature: torch.Tensor) -> torch.Tensor:
        return distill.class_loss(ours.scores, theirs.scores, self._step.focus, temperature, self._class_weights)

    @staticmethod
    def _neurons(student: Seen, teacher: Seen, sure: torch.Tensor) -> torch.Tensor:
        return distill.pattern_loss(student.neck + student.hidden, teacher.neck + teacher.hidden)

    @staticmethod
    def _attention(student: Seen, teacher: Seen, sure: torch.Tensor) -> torch.Tensor:
        return distill.attention_loss(student.neck + student.hidden, teacher.neck + teacher.hidden)

    def _features(self, student: Seen, teacher: Seen, sure: torch.Tensor) -> torch.Tensor:
        projected = [project(maps).float() for project, maps in zip(self._aids.projectors, student.neck, strict=True)]
        if self._step.features == "correlation":
            return distill.correlation_loss(projected, teacher.neck)
        if self._step.features == "channels":
            return distill.channel_loss(projected, teacher.neck)
        levels = sure.split([height * width for height, width in student.grid.sizes], dim=1)
        weights = [level.unflatten(1, (1, *size)) for level, size in zip(levels, student.grid.sizes, strict=True)]
        return distill.feature_loss(projected, teacher.neck, weights)

    @staticmethod
    def _relations(student: Seen, teacher: Seen, sure: torch.Tensor) -> torch.Tensor:
        index, weight = distill.peaks(sure, student.grid.sizes, OBJECTS)
        points, _ = student.grid.points(sure.device)
        height, width = student.grid.frame
        places = torch.stack([points[0] / width, points[1] / height], dim=1)[index]
        ours, theirs = (distill.object_vectors(seen.neck, places) for seen in (student, teacher))
        return distill.relation_loss(ours, theirs, weight.flatten())


def _paired(own: Grid, teacher: Seen) -> Seen:
    """The teacher with the maps of the level that is nearest to each of the student's."""
    levels = nearest_levels(own.strides, teacher.grid.strides)
    neck, hidden = (tuple(maps[at] for at in levels) for maps in (teacher.neck, teacher.hidden))
    return replace(teacher, neck=neck, hidden=hidden)


def _shared(losses: Sequence[torch.Tensor], shares: Sequence[float]) -> torch.Tensor:
    return torch.stack([loss * share for loss, share in zip(losses, shares, strict=True)]).sum()


def _chosen(found: Predictions, classes: Sequence[Sequence[int]]) -> Predictions:
    """What is said of classes, each of them the surest of some in the list of whoever says it."""
    if list(classes) == [[at] for at in range(found.scores.shape[1])]:
        return found  # indices would have to travel to the GPU
    if all(len(some) == 1 for some in classes):
        return Predictions(found.scores[:, [at for (at,) in classes]], found.boxes)
    return Predictions(torch.stack([found.scores[:, some].amax(1) for some in classes], dim=1), found.boxes)


def _at(found: Predictions, index: torch.Tensor) -> Predictions:
    return Predictions(found.scores[..., index], found.boxes[..., index])


def _box_loss(own: Grid, other: Grid, index: torch.Tensor, ours: Predictions, theirs: Predictions) -> torch.Tensor:
    """By distributions where both heads have the same ones at the same anchors, else by overlap."""
    sure = distill.certainty(theirs.scores)
    if own == other and ours.boxes.shape == theirs.boxes.shape and ours.boxes.shape[1] > 4:
        return distill.distribution_loss(ours.boxes, theirs.boxes, sure)
    points, strides = own.points(index.device)
    others, steps = (found[..., index] for found in other.points(index.device))
    moved = (others - points) * torch.tensor([[[-1.0]], [[1.0]]], device=index.device)  # from the student's anchor
    sides = distill.expected_distances(theirs.boxes) * steps + moved.flatten(0, 1)
    return distill.overlap_loss(distill.expected_distances(ours.boxes) * strides, sides, sure)


def assigned(objects: Predictions, student: Predictions, grid: Grid) -> Predictions:
    """What a head without anchors finds (RT-DETR), as one with anchors would say it: at the student's anchors.

    objects: class logits [b, classes, n], and boxes [b, 4, n], middle x and y, width and height as shares of the frame.
    As labels are given to anchors (TOOD, arXiv 2108.07755), by how well the student does there: of the anchors in a box
    the TAKEN with the largest s^0.5 u^6 speak for it, s the probability of the box's surest class and u the overlap of
    the student's box. There a class has the object's probability times that measure, as a share of the box's largest,
    times the box's largest u. Of several boxes the one with most to say has the anchor. Elsewhere there is nothing.
    """
    with torch.no_grad():
        said = objects.scores.sigmoid()
        sure, order = said.amax(dim=1).topk(min(SPOKEN, said.shape[2]), dim=1)
        said, boxes = _taken(said, order), _taken(objects.boxes, order)
        sides, overlap = _placed(boxes, student, grid)
        probability = student.scores.sigmoid().gather(1, said.argmax(dim=1)[..., None].expand_as(overlap))
        claim = _claims(probability.sqrt() * overlap**6, overlap)
        _, speaker = (claim * sure[..., None]).max(dim=1)  # [b, a]
        found = _taken(said, speaker) * claim.gather(1, speaker[:, None])
        spoken = sides.gather(2, speaker[:, None, None].expand(-1, 4, -1, -1))[:, :, 0]
        return Predictions(found.clamp(NOTHING, 1 - NOTHING).logit(), spoken)


def _taken(each: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Of [b, c, n] all c at some of the n, whose indices are [b, k]."""
    return each.gather(2, index[:, None].expand(-1, each.shape[1], -1))


def _placed(boxes: torch.Tensor, student: Predictions, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes [b, 4, n] seen from the student's anchors: their sides in strides [b, 4, n, a], and how much the student's
    own boxes there overlap them [b, n, a], which is 0 where the anchor lies outside."""
    points, strides = grid.points(boxes.device)
    low, high = corners(boxes.mT, *grid.frame).mT[..., None].split(2, dim=1)
    sides = torch.cat([points[:, None] - low, high - points[:, None]], dim=1)
    own = (distill.expected_distances(student.boxes) * strides)[:, :, None]
    common, union = distill.overlaps(own, sides)
    return sides / strides, common / union.clamp(min=1e-9) * (sides > 0).all(dim=1)


def _claims(fit: torch.Tensor, overlap: torch.Tensor) -> torch.Tensor:
    """How much each anchor speaks for each box, both [b, n, a]: of the TAKEN fittest, as a share of the fittest."""
    best, taken = fit.topk(min(TAKEN, fit.shape[2]), dim=2)
    share = best / best[..., :1].clamp(min=1e-9) * overlap.gather(2, taken).amax(dim=2, keepdim=True)
    return torch.zeros_like(fit).scatter_(2, taken, share)


def shared_classes(ours: Sequence[str], theirs: Sequence[str], same: Sequence[str] = ()) -> tuple[tuple[int, int], ...]:
    """Pairs of indices of the classes that both lists have: by name, without regard to case and spaces around it.

    same: further pairs, each as "their name = our name"; one of theirs means one of ours, but several may mean the same
    one. Raises SpecError where there are no pairs, or a name is unknown or told to be two.
    """
    lists = [[name.strip().lower() for name in names] for names in (theirs, ours)]
    known, told = dict(zip(lists[0], lists[0], strict=True)), set()
    for pair in same:
        names = [name.strip().lower() for name in pair.split("=")]
        if len(names) != 2 or names[0] not in lists[0] or names[1] not in lists[1] or names[0] in told:
            expected = f'"their name = our name", each of theirs once, of {", ".join(theirs)} and {", ".join(ours)}'
            raise SpecError("distill: same_classes", expected=expected, found=pair)
        told.add(names[0])
        known[names[0]] = names[1]
    pairs = tuple(
        (at, lists[0].index(name))
        for at, wanted in enumerate(lists[1])
        for name, ours_too in known.items()
        if ours_too == wanted
    )
    if not pairs:
        raise SpecError(
            "the teacher knows none of the classes",
            expected="one or more of " + ", ".join(ours),
            found=", ".join(theirs),
            fix='say which are the same: same_classes = ["their name = our name"]',
        )
    return pairs
