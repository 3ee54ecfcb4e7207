"""Distances between a student's detections and features and its teacher's: pure functions on tensors, by level.

Every loss is 0 if the student equals its teacher. Anchors are weighted by the teacher's certainty of an object there:
otherwise the many background anchors would outweigh the few with objects.
Feature maps are float32 [b, c, h, w], one per resolution; the teacher's maps are resized to the student's.

level     compared                        function
neuron    activation pattern of a channel pattern_loss
layer     spatial attention of a layer    attention_loss
feature   the maps themselves             feature_loss, correlation_loss, channel_loss
task      classes and boxes               class_loss, box_loss, overlap_loss, distribution_loss, query_box_loss
relation  distances between objects       relation_loss
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

Maps = Sequence[torch.Tensor]
BOX_TEMPERATURE = 10.0
"""Temperature of the distributions of box sides, as in LD."""
QUERY_DISTANCE_WEIGHT = 5.0
"""Weight of the L1 distance of a query's box, as in DETR."""
QUERY_OVERLAP_WEIGHT = 2.0
"""Weight of 1 - GIoU of a query's box, as in DETR."""


def certainty(teacher: torch.Tensor) -> torch.Tensor:
    """Return the probability of each anchor's best class [b, anchors], from class logits [b, classes, anchors]."""
    return teacher.amax(dim=1).sigmoid()


def disagreement(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Return the largest |p_t - p_s| of each anchor's softened class probabilities, p = sigmoid(z / T).

    student, teacher: class logits [b, classes, anchors]. The result, float32 [b, anchors], has no gradient.
    """
    with torch.no_grad():
        return ((teacher / temperature).sigmoid() - (student / temperature).sigmoid()).abs().amax(dim=1)


def resized(maps: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Resize maps [b, c, h, w] to the height and width of `like`: average to smaller, interpolate to larger sizes."""
    if maps.shape[2:] == like.shape[2:]:
        return maps
    if maps.shape[2] >= like.shape[2] and maps.shape[3] >= like.shape[3]:
        return functional.adaptive_avg_pool2d(maps, tuple(like.shape[2:]))
    return functional.interpolate(maps, like.shape[2:], mode="bilinear", align_corners=False)


# ----------------------------------------------------------------------------------------------------------- neuron


def pattern_loss(student: Maps, teacher: Maps) -> torch.Tensor:
    """Return the squared maximum mean discrepancy between channels' activation patterns, mean over images and maps.

    A channel's pattern is its map as a unit vector; the kernel is k(x, y) = (x . y)^2, so the loss is
    mean k(t, t') + mean k(s, s') - 2 mean k(t, s). Numbers of channels may differ; their order and scale do not matter.
    Neuron selectivity transfer: Huang and Wang, arXiv 1707.01219, polynomial kernel with d = 2, c = 0.
    """
    return mean([_pattern_distance(ours, resized(theirs, ours)) for ours, theirs in zip(student, teacher, strict=True)])


def _pattern_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    ours, theirs = (functional.normalize(maps.flatten(2), dim=2) for maps in (student, teacher))

    def similar(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return (one @ other.transpose(1, 2)).square().mean()

    return similar(theirs, theirs) + similar(ours, ours) - 2 * similar(ours, theirs)


# ------------------------------------------------------------------------------------------------------------ layer


def attention_loss(student: Maps, teacher: Maps) -> torch.Tensor:
    """Return the squared distance of attention maps, mean over images and maps: 0 to 2.

    The attention of a layer is q = sum_c F_c^2 as a unit vector over positions. No projector is needed: numbers of
    channels may differ, and scale does not matter. Zagoruyko and Komodakis, arXiv 1612.03928.
    """
    pairs = zip(student, teacher, strict=True)
    return mean(
        [(_attention(ours) - _attention(resized(theirs, ours))).square().sum(1).mean() for ours, theirs in pairs]
    )


def _attention(maps: torch.Tensor) -> torch.Tensor:
    return functional.normalize(maps.square().sum(dim=1).flatten(1), dim=1)


# ---------------------------------------------------------------------------------------------------------- feature


def feature_loss(student: Maps, teacher: Maps, weights: Maps | None = None) -> torch.Tensor:
    """Return the ratio of noise to signal power of feature maps with equally many channels, mean over the maps.

    weights: [b, 1, h, w], weights of positions, for each map of the student. With the teacher's certainty this is the
    score-weighted L2 loss of Ultralytics' own distillation, made independent of the scale of the teacher's features:
    sum w (s - t)^2 / sum w t^2.
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
    """Return 1 - Pearson's correlation of each channel with the teacher's over batch and positions, mean: 0 to 2.

    Maps have equally many channels. Offset and positive scale of a channel do not matter, so it suits detectors of
    different kinds. PKD: Cao and others, arXiv 2207.02039.
    """
    pairs = zip(student, teacher, strict=True)
    return mean([(_standard(ours) - _standard(resized(theirs, ours))).square().mean() / 2 for ours, theirs in pairs])


def _standard(maps: torch.Tensor) -> torch.Tensor:
    """Scale each channel to mean 0 and standard deviation 1; a constant one to 0."""
    centred = maps - maps.mean(dim=(0, 2, 3), keepdim=True)
    return centred / centred.square().mean(dim=(0, 2, 3), keepdim=True).clamp(min=1e-12).sqrt()


def channel_loss(student: Maps, teacher: Maps) -> torch.Tensor:
    """Return the KL divergence of each channel's distribution over positions, mean over images, channels and maps.

    p = softmax(F_c) over h * w; the loss is KL(p_teacher || p_student). Maps have equally many channels; an offset of a
    channel does not matter. CWD: Shu and others, arXiv 2011.13256, with T = 1.
    """
    pairs = zip(student, teacher, strict=True)
    return mean([_divergence(ours.flatten(2), resized(theirs, ours).flatten(2), 1.0).mean() for ours, theirs in pairs])


def _divergence(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return KL(softmax(teacher / T) || softmax(student / T)) over axis 2."""
    ours, theirs = (functional.log_softmax(each / temperature, dim=2) for each in (student, teacher))
    return functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(2)


# ------------------------------------------------------------------------------------------------------------- task


def class_loss(
    student: torch.Tensor,
    teacher: torch.Tensor,
    focus: float = 0.0,
    temperature: float = 1.0,
    weights: torch.Tensor | None = None,
    share: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the KL divergence of class probabilities, from class logits float32 [b, classes, anchors].

    T^2 sum |p_t - p_s|^focus KL(p_t || p_s), divided by the sum of the teacher's certainty, with p = sigmoid(z / T) for
    each class independently. All anchors count, so that background stays background. focus: 0 for plain KL, 1 for
    weights by disagreement as in BCKD (Yang and others, arXiv 2308.14286). weights [classes]: as returned by
    `long_tail.class_weights`. share [b, anchors]: factor of each anchor in both sums, 1 by default.
    """
    ours, theirs = student / temperature, teacher / temperature
    target = theirs.sigmoid()
    cross = functional.binary_cross_entropy_with_logits(ours, target, reduction="none")
    divergence = cross - functional.binary_cross_entropy_with_logits(theirs, target, reduction="none")
    if focus:
        divergence = divergence * (target - ours.sigmoid()).abs() ** focus
    if weights is not None:
        divergence = divergence * weights[:, None]
    mass = certainty(teacher)
    if share is not None:
        divergence, mass = divergence * share[:, None], mass * share
    return divergence.sum() * temperature**2 / _mass(mass)


def box_loss(student: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the weighted mean distance of box sides, relative to the mean of width and height of the teacher's box.

    student, teacher float32 [b, 4, anchors]: distances of left, top, right and bottom from the anchor, in any unit;
    weight float32 [b, anchors]. For small distances, such as of a student that starts as its teacher, it is about
    1 - IoU.
    """
    size = teacher.sum(dim=1).clamp(min=1e-3) / 2
    return ((student - teacher).abs().sum(dim=1) / size * weight).sum() / _mass(weight)


def overlap_loss(student: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the weighted mean of 1 - GIoU of the boxes at each anchor: 0 to 2, so that no box dominates.

    Arguments as for `box_loss`. Weighted by the teacher's certainty, this is the box loss of BCKD with GIoU instead of
    IoU: the gradient of GIoU does not vanish for boxes that do not overlap.
    """
    return ((1 - generalized_iou(student, teacher)) * weight).sum() / _mass(weight)


def generalized_iou(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """Return the GIoU, -1 to 1, [b, ...], of boxes at the same points, given by sides [b, 4, ...]."""
    common, union = overlaps(ours, theirs)
    around = _area(torch.maximum(ours, theirs))
    return common / union.clamp(min=1e-9) - (around - union) / around.clamp(min=1e-9)


def query_box_loss(student: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the weighted mean of `query_box_distance` over pairs of queries, 0 or more.

    student, teacher: float32 [b, 4, queries]; weight: float32 [b, queries].
    """
    return (query_box_distance(student, teacher) * weight).sum() / _mass(weight)


def query_box_distance(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """Return the distance [b, ...] of boxes [b, 4, ...]: middle x and y, width and height as shares of the frame.

    5 |b_s - b_t| + 2 (1 - GIoU), as DETR compares boxes with labels: Carion and others, arXiv 2005.12872.
    """
    overlap = generalized_iou(*(_sides_from_origin(boxes) for boxes in (ours, theirs)))
    return QUERY_DISTANCE_WEIGHT * (ours - theirs).abs().sum(dim=1) + QUERY_OVERLAP_WEIGHT * (1 - overlap)


def _sides_from_origin(boxes: torch.Tensor) -> torch.Tensor:
    """Return boxes [b, 4, ...] (middle, size) as distances of their sides from an anchor at the origin."""
    middle, half = boxes[:, :2], boxes[:, 2:] / 2
    return torch.cat([half - middle, middle + half], dim=1)


def overlaps(ours: torch.Tensor, theirs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return areas of intersection and union, [b, ...], of boxes at the same points, given by sides [b, 4, ...]."""
    common = _area(torch.minimum(ours, theirs))
    return common, _area(ours) + _area(theirs) - common


def _area(sides: torch.Tensor) -> torch.Tensor:
    return (sides[:, :2] + sides[:, 2:]).clamp(min=0).prod(dim=1)


def distribution_loss(student: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the KL divergence of distributions of box sides: mean over four sides, weighted mean over anchors.

    student, teacher: logits float32 [b, 4 * bins, anchors] of a head that predicts distances as distributions (DFL);
    T^2 KL(softmax(z_t / T) || softmax(z_s / T)) over the bins. LD: Zheng and others, arXiv 2102.12252.
    """
    ours, theirs = (logits.unflatten(1, (4, -1)) for logits in (student, teacher))
    divergence = _divergence(ours, theirs, BOX_TEMPERATURE).mean(1)
    return (divergence * weight).sum() * BOX_TEMPERATURE**2 / _mass(weight)


def expected_distances(boxes: torch.Tensor) -> torch.Tensor:
    """Return distances [b, 4, anchors], the means of distributions with logits [b, 4 * bins, anchors].

    With one bin, `boxes` are distances, and are returned unchanged.
    """
    if boxes.shape[1] == 4:
        return boxes
    shares = boxes.unflatten(1, (4, -1)).softmax(dim=2)
    steps = torch.arange(shares.shape[2], dtype=shares.dtype, device=shares.device)
    return (shares * steps[:, None]).sum(2)


# --------------------------------------------------------------------------------------------------------- relation


def relation_loss(student: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the Huber loss of the relative distances between objects, weighted mean over pairs.

    student [n, c], teacher [n, d]: a vector per object; weight [n]: the teacher's certainty of each object; a pair is
    weighted by the product. Distances are relative to their mean, so rotation, translation and scale do not matter.
    RKD: Park and others, arXiv 1904.05068.
    """
    pair = weight[:, None] * weight * (1 - torch.eye(len(weight), dtype=weight.dtype, device=weight.device))
    share = pair / pair.sum().clamp(min=1e-6)
    ours, theirs = (_relative_distances(vectors, share) for vectors in (student, teacher))
    return (functional.smooth_l1_loss(ours, theirs, reduction="none") * share).sum()


def _relative_distances(vectors: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    distances = torch.cdist(vectors, vectors)
    return distances / (distances * share).sum().clamp(min=1e-6)


def object_vectors(maps: Maps, positions: torch.Tensor) -> torch.Tensor:
    """Return a vector of all channels for each position: [b * k, channels]; the part of each map has length 1.

    positions: [b, k, 2], x and y as shares of width and height, 0 to 1; maps are interpolated.
    """
    grid = (positions * 2 - 1)[:, :, None]
    parts = [functional.grid_sample(each, grid, align_corners=False, padding_mode="border")[..., 0] for each in maps]
    return torch.cat([functional.normalize(part, dim=1) for part in parts], dim=1).transpose(1, 2).flatten(0, 1)


def peaks(certainty: torch.Tensor, sizes: Sequence[tuple[int, int]], count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the most certain anchors of different objects: indices and certainties, both [b, count], best first.

    certainty: [b, anchors]; sizes: height and width of each level's grid. Only maxima of 3 x 3 neighbours count; if
    there are fewer than `count`, the certainty of the rest is 0. With fewer than `count` anchors, all are returned.
    """
    levels = certainty.split([height * width for height, width in sizes], dim=1)
    kept = []
    for level, size in zip(levels, sizes, strict=True):
        grid = level.unflatten(1, size)
        highest = functional.max_pool2d(grid, 3, stride=1, padding=1)
        kept.append((grid * (grid == highest)).flatten(1))
    best = torch.cat(kept, dim=1).topk(min(count, certainty.shape[1]), dim=1)
    return best.indices, best.values


def mean(losses: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the mean of scalars."""
    return torch.stack(list(losses)).mean()


def _mass(weight: torch.Tensor) -> torch.Tensor:
    return weight.sum().clamp(min=1)
