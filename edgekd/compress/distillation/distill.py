"""How far a student's detections and features are from its teacher's: pure functions on tensors, level by level.

Every loss is 0 where the student does what the teacher does. Where anchors are compared they count as much as the
teacher is sure that something is there: the many that see background would otherwise drown the few that matter.
Feature maps are float32 [b, c, h, w], one per resolution; those of the teacher are resized to those of the student.

level     what is matched                        function
neuron    which positions a channel answers to   pattern_loss
layer     where a whole layer looks              attention_loss
feature   the maps themselves                    feature_loss, correlation_loss, channel_loss
task      classes and boxes                      class_loss, box_loss, overlap_loss, distribution_loss
relation  distances between objects              relation_loss
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

Maps = Sequence[torch.Tensor]
FOREGROUND = 0.05
"""The probability from which on a class counts as there, where the teacher's share is found."""


def certainty(teacher: torch.Tensor) -> torch.Tensor:
    """How sure the teacher is of each anchor's best class: [b, anchors], from class logits [b, classes, anchors]."""
    return teacher.amax(dim=1).sigmoid()


def foreground(teacher: torch.Tensor) -> torch.Tensor:
    """Where the teacher holds a class to be there: bool, of the shape of its class logits."""
    return teacher.sigmoid() > FOREGROUND


def disagreement(
    student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None, temperature: torch.Tensor | float = 1.0
) -> torch.Tensor:
    """Mean |p_t - p_s| of softened class probabilities, p = sigmoid(z / T): a scalar, 0 to 1, without a gradient.

    student, teacher: class logits [b, classes, anchors]; mask: bool of the same shape, which of them count. Without one
    nearly all are background on which both agree, and the mean hardly ever moves from 0. Nothing in the mask: 0.
    """
    with torch.no_grad():
        apart = ((teacher / temperature).sigmoid() - (student / temperature).sigmoid()).abs()
        weight = torch.ones_like(apart) if mask is None else mask.to(apart.dtype)
        return (apart * weight).sum() / weight.sum().clamp(min=1)


def resized(maps: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Maps [b, c, h, w] in the height and width of others: averaged where they shrink, interpolated where they grow."""
    if maps.shape[2:] == like.shape[2:]:
        return maps
    if maps.shape[2] >= like.shape[2] and maps.shape[3] >= like.shape[3]:
        return functional.adaptive_avg_pool2d(maps, tuple(like.shape[2:]))
    return functional.interpolate(maps, like.shape[2:], mode="bilinear", align_corners=False)


# ----------------------------------------------------------------------------------------------------------- neuron


def pattern_loss(student: Maps, teacher: Maps) -> torch.Tensor:
    """Squared maximum mean discrepancy between the activation patterns of channels, averaged over images and maps.

    A channel's pattern is its map as a unit vector; the kernel is k(x, y) = (x . y)^2, so the loss is
    mean k(t, t') + mean k(s, s') - 2 mean k(t, s). Numbers of channels may differ; neither their order nor their scale
    counts. Neuron selectivity transfer: Huang and Wang, arXiv 1707.01219, polynomial kernel with d = 2, c = 0.
    """
    return mean([_pattern_distance(ours, resized(theirs, ours)) for ours, theirs in zip(student, teacher, strict=True)])


def _pattern_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    ours, theirs = (functional.normalize(maps.flatten(2), dim=2) for maps in (student, teacher))

    def similar(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return (one @ other.transpose(1, 2)).square().mean()

    return similar(theirs, theirs) + similar(ours, ours) - 2 * similar(ours, theirs)


# ------------------------------------------------------------------------------------------------------------ layer


def attention_loss(student: Maps, teacher: Maps) -> torch.Tensor:
    """Squared distance of attention maps, averaged over images and maps; 0 to 2, as attention is not negative.

    The attention of a layer is q = sum_c F_c^2 as a unit vector over positions. No projector: numbers of channels may
    differ, and scale does not count. Zagoruyko and Komodakis, arXiv 1612.03928.
    """
    pairs = zip(student, teacher, strict=True)
    return mean(
        [(_attention(ours) - _attention(resized(theirs, ours))).square().sum(1).mean() for ours, theirs in pairs]
    )


def _attention(maps: torch.Tensor) -> torch.Tensor:
    return functional.normalize(maps.square().sum(dim=1).flatten(1), dim=1)


# ---------------------------------------------------------------------------------------------------------- feature


def feature_loss(student: Maps, teacher: Maps, weights: Maps | None = None) -> torch.Tensor:
    """Noise power over signal power of feature maps with as many channels, averaged over the maps.

    weights: [b, 1, h, w] for each map of the student, how much each position counts. With the teacher's certainty it
    is the score-weighted L2 of Ultralytics' own distillation, sum w (s - t)^2 / sum w t^2, made free of the scale that
    a teacher's features happen to have.
    """
    if weights is None:
        pairs = zip(student, teacher, strict=True)
        return mean([functional.mse_loss(ours, theirs) / theirs.square().mean() for ours, theirs in pairs])
    losses = []
    for ours, unsized, weight in zip(student, teacher, weights, strict=True):
        theirs = resized(unsized, ours)
        signal = (theirs.square() * weight).sum()
        losses.append(((ours - theirs).square() * weight).sum() / signal.clamp(min=1e-6))
    return mean(losses)


def correlation_loss(student: Maps, teacher: Maps) -> torch.Tensor:
    """1 - Pearson's correlation of each channel with the teacher's over batch and positions, averaged: 0 to 2.

    Maps with as many channels; neither offset nor positive scale of a channel counts, so it suits detectors of
    different kinds. PKD: Cao and others, arXiv 2207.02039.
    """
    losses = []
    for ours, theirs in zip(student, teacher, strict=True):
        losses.append((_standard(ours) - _standard(resized(theirs, ours))).square().mean() / 2)
    return mean(losses)


def _standard(maps: torch.Tensor) -> torch.Tensor:
    """Each channel with mean 0 and standard deviation 1; one that never changes is 0."""
    centred = maps - maps.mean(dim=(0, 2, 3), keepdim=True)
    return centred / centred.square().mean(dim=(0, 2, 3), keepdim=True).clamp(min=1e-12).sqrt()


def channel_loss(student: Maps, teacher: Maps, temperature: float = 1.0) -> torch.Tensor:
    """KL divergence of each channel's distribution over positions, averaged over images, channels and maps.

    p = softmax(F_c / T) over h * w; the loss is T^2 KL(p_teacher || p_student). Maps with as many channels; an offset
    of a channel does not count. CWD: Shu and others, arXiv 2011.13256.
    """
    losses = []
    for ours, theirs in zip(student, teacher, strict=True):
        found = functional.log_softmax(ours.flatten(2) / temperature, dim=2)
        wanted = functional.log_softmax(resized(theirs, ours).flatten(2) / temperature, dim=2)
        losses.append(
            functional.kl_div(found, wanted, reduction="none", log_target=True).sum(2).mean() * temperature**2
        )
    return mean(losses)


# ------------------------------------------------------------------------------------------------------------- task


def class_loss(
    student: torch.Tensor,
    teacher: torch.Tensor,
    focus: float = 0.0,
    temperature: torch.Tensor | float = 1.0,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Divergence (KL) of the classes' probabilities, per sure anchor; class logits float32 [b, classes, anchors].

    T^2 sum |p_t - p_s|^focus KL(p_t || p_s), p = sigmoid(z / T), each class on its own, over the teacher's certainty
    summed. All anchors take part: one that the teacher is sure is empty must stay so. focus: 0 for the plain KL, 1
    for that of BCKD, which looks at what they disagree on (Yang and others, arXiv 2308.14286). weights [classes]: how
    much each class counts, as `long_tail.class_weights` gives.
    """
    softened, wanted = student / temperature, (teacher / temperature).sigmoid()
    cross = functional.binary_cross_entropy_with_logits(softened, wanted, reduction="none")
    divergence = cross - functional.binary_cross_entropy_with_logits(teacher / temperature, wanted, reduction="none")
    if focus:
        divergence = divergence * (wanted - softened.sigmoid()).abs() ** focus
    if weights is not None:
        divergence = divergence * weights[:, None]
    return divergence.sum() * temperature**2 / _mass(certainty(teacher))


def box_loss(student: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Mean distance of box sides, as a share of the teacher's box (half its width and height together).

    student, teacher float32 [b, 4, anchors]: how far left, top, right and bottom are from the anchor, in any unit;
    weight float32 [b, anchors]. For small distances it is about 1 - IoU: for a student that starts as its teacher.
    """
    size = teacher.sum(dim=1).clamp(min=1e-3) / 2
    return ((student - teacher).abs().sum(dim=1) / size * weight).sum() / _mass(weight)


def overlap_loss(student: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Weighted mean of 1 - GIoU of the boxes at each anchor, 0 to 2: no distance is so large that it drowns the others.

    Arguments as for `box_loss`. Weighted by the teacher's certainty it is the box loss of BCKD, with GIoU in place of
    IoU, whose gradient does not vanish for boxes that are off their anchor.
    """
    common, union = overlaps(student, teacher)
    around = _area(torch.maximum(student, teacher))
    overlap = common / union.clamp(min=1e-9) - (around - union) / around.clamp(min=1e-9)
    return ((1 - overlap) * weight).sum() / _mass(weight)


def overlaps(ours: torch.Tensor, theirs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Areas of intersection and union, each [b, ...], of boxes about the same points, distances [b, 4, ...]."""
    common = _area(torch.minimum(ours, theirs))
    return common, _area(ours) + _area(theirs) - common


def _area(sides: torch.Tensor) -> torch.Tensor:
    return (sides[:, :2] + sides[:, 2:]).clamp(min=0).prod(dim=1)


def distribution_loss(
    student: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor, temperature: float = 10.0
) -> torch.Tensor:
    """KL divergence of the distributions of box sides, mean of the four sides and weighted mean of the anchors.

    student, teacher: logits float32 [b, 4 * bins, anchors] of a head that predicts distances as distributions (DFL);
    T^2 KL(softmax(z_t / T) || softmax(z_s / T)) over the bins. LD: Zheng and others, arXiv 2102.12252, T = 10.
    """
    found, wanted = (
        functional.log_softmax(logits.unflatten(1, (4, -1)) / temperature, dim=2) for logits in (student, teacher)
    )
    divergence = functional.kl_div(found, wanted, reduction="none", log_target=True).sum(2).mean(1)
    return (divergence * weight).sum() * temperature**2 / _mass(weight)


def expected_distances(boxes: torch.Tensor) -> torch.Tensor:
    """Distances [b, 4, anchors] from a head's [b, 4 * bins, anchors]: the mean of each distribution over 0, 1, ...

    With one bin they are there already.
    """
    if boxes.shape[1] == 4:
        return boxes
    shares = boxes.unflatten(1, (4, -1)).softmax(dim=2)
    steps = torch.arange(shares.shape[2], dtype=shares.dtype, device=shares.device)
    return (shares * steps[:, None]).sum(2)


# --------------------------------------------------------------------------------------------------------- relation


def relation_loss(student: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Huber distance of the distances between objects, each relative to the mean distance; weighted mean of the pairs.

    student [n, c], teacher [n, d]: a vector per object; weight [n]: how sure the teacher is of it; a pair counts as
    much as the product says. Turning, moving and scaling all vectors together changes nothing. RKD: Park and others,
    arXiv 1904.05068.
    """
    pair = weight[:, None] * weight * (1 - torch.eye(len(weight), dtype=weight.dtype, device=weight.device))
    share = pair / pair.sum().clamp(min=1e-6)
    ours, theirs = (_relative_distances(vectors, share) for vectors in (student, teacher))
    return (functional.smooth_l1_loss(ours, theirs, reduction="none") * share).sum()


def _relative_distances(vectors: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    distances = torch.cdist(vectors, vectors)
    return distances / (distances * share).sum().clamp(min=1e-6)


def object_vectors(maps: Maps, places: torch.Tensor) -> torch.Tensor:
    """What maps hold at places, a vector per place: [b * k, all channels], each map's part scaled to length 1.

    places: [b, k, 2], x and y as shares of width and height, 0 to 1; between positions the maps are interpolated.
    """
    grid = (places * 2 - 1)[:, :, None]
    found = [functional.grid_sample(each, grid, align_corners=False, padding_mode="border")[..., 0] for each in maps]
    return torch.cat([functional.normalize(part, dim=1) for part in found], dim=1).transpose(1, 2).flatten(0, 1)


def peaks(sure: torch.Tensor, sizes: Sequence[tuple[int, int]], count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The anchors most likely to be one object each: indices and certainties, both [b, count], surest first.

    sure: certainty [b, anchors]; sizes: height and width of each level's grid. Only an anchor that is the surest of its
    3 x 3 neighbours counts; where there are fewer than `count`, the certainty of the rest is 0.
    """
    levels = sure.split([height * width for height, width in sizes], dim=1)
    kept = []
    for level, size in zip(levels, sizes, strict=True):
        grid = level.unflatten(1, size)
        highest = functional.max_pool2d(grid, 3, stride=1, padding=1)
        kept.append((grid * (grid == highest)).flatten(1))
    found = torch.cat(kept, dim=1).topk(min(count, sure.shape[1]), dim=1)
    return found.indices, found.values


def mean(losses: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mean of scalars."""
    return torch.stack(list(losses)).mean()


def _mass(weight: torch.Tensor) -> torch.Tensor:
    return weight.sum().clamp(min=1)
