"""What a detector sees in a box, placed beside what the classes' words mean: pure losses, and the projection they need.

Its features in a box become a vector among the texts (`compress/text.py`), and learn to lie near the text of the box's
class and as far from the other classes' as those are from each other: a class that is rarely seen is told by its words
how it relates to those that are often seen. The projection is trained beside the student; nothing of this ships.

From a training loop, with the objects' boxes, or the teacher's, in pixels of the input::

    words = RegionText(channels, texts)  # its parameters go to the optimizer
    regions = words(neck, strides, boxes, images)  # [n, d]
    logits = words.logits(regions)  # [n, classes]
    loss = contrastive_loss(logits, labels, weights) + relation_loss(regions, labels, words.texts)
    sure = best_inside(certainty(teacher_scores), points, boxes, images)  # compress/boxes.py, compress/distill.py
    by_text, by_teacher = modality_weights(confidence(logits), sure)
    total = detection + by_text * text_weight * loss + by_teacher * distillation
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

SAMPLES = 8
"""Points along each side of a box that its mean is taken over: as many as it has cells would take gigabytes on a GPU
where operations have to be deterministic, as in Ultralytics' trainer."""
MOST_SCALE = 100.0
"""Largest factor before the softmax, as in CLIP: beyond it single regions decide everything."""


def pool_regions(
    maps: Sequence[torch.Tensor], strides: Sequence[float], boxes: torch.Tensor, images: torch.Tensor
) -> torch.Tensor:
    """The mean of each map over each box, side by side: float32 [n, sum of channels].

    maps: [b, channels, h, w], one for each stride; boxes [n, 4] x1, y1, x2, y2 in pixels of the input; images int64
    [n], the batch index of each box. Means are those of RoIAlign (He et al., arXiv 1703.06870) with one bin.
    """
    from torchvision.ops import roi_align

    places = torch.cat([images[:, None].to(boxes.dtype), boxes], dim=1).float()
    pooled = [
        roi_align(each.float(), places, output_size=1, spatial_scale=1 / stride, sampling_ratio=SAMPLES, aligned=True)
        for each, stride in zip(maps, strides, strict=True)
    ]
    return torch.cat(pooled, dim=1).flatten(1)


class RegionText(nn.Module):  # type: ignore[misc]
    """Regions among texts: e = W f / |W f|, where f are the neck's maps pooled over a box.

    texts: float32 [classes, d], of length 1, not trained. What is: W, and the factor exp(log_scale) before the softmax,
    the inverse of InfoNCE's temperature, from 1 / 0.07 (Radford et al., CLIP, arXiv 2103.00020, section 2.5).
    """

    texts: torch.Tensor

    def __init__(self, channels: Sequence[int], texts: torch.Tensor) -> None:
        """channels: of the neck's maps."""
        super().__init__()
        self.project = nn.Linear(sum(channels), texts.shape[1])
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.register_buffer("texts", texts)

    def forward(
        self, maps: Sequence[torch.Tensor], strides: Sequence[float], boxes: torch.Tensor, images: torch.Tensor
    ) -> torch.Tensor:
        """Vectors of length 1, float32 [n, d]; arguments as of `pool_regions`."""
        return functional.normalize(self.project(pool_regions(maps, strides, boxes, images)), dim=1)

    def logits(self, regions: torch.Tensor) -> torch.Tensor:
        """How near each region is to each class's text, scaled cosines [n, classes]."""
        return self.log_scale.exp().clamp(max=MOST_SCALE) * regions @ self.texts.T


def contrastive_loss(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """InfoNCE: mean over regions of w_y * -log softmax(logits)_y, y the region's class; 0 without a region.

    logits [n, classes], labels int64 [n]; weights [classes], of rare classes more, as `long_tail.class_weights` gives.
    Regions against texts as in YOLO-World (Cheng et al., arXiv 2401.17270) and ViLD (Gu et al., arXiv 2104.13921).
    """
    losses = functional.cross_entropy(logits, labels, reduction="none")
    if weights is not None:
        losses = losses * weights[labels]
    return losses.sum() / max(len(labels), 1)


def relation_loss(regions: torch.Tensor, labels: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    """How far the classes' relations in this batch are from their texts': mean (cos(p_a, p_b) - cos(t_a, t_b))^2.

    p_c is the normed mean of the regions of class c; the mean goes over pairs of different classes that the batch has,
    and is 0 without a pair. regions [n, d] and texts [classes, d] of length 1, labels int64 [n].
    Similarities are matched as by Tung and Mori (arXiv 1907.09682); TinyCLIP calls it affinity mimicking (2309.12314).
    """
    present = torch.unique(labels)
    if len(present) < 2:
        return regions.sum() * 0
    belongs = (labels == present[:, None]).to(regions.dtype)
    means = functional.normalize(belongs @ regions, dim=1)
    apart = (means @ means.T - texts[present] @ texts[present].T).square()
    # Both diagonals are 1.
    return apart.sum() / (len(present) * (len(present) - 1))


def confidence(logits: torch.Tensor) -> torch.Tensor:
    """How sure the texts are of each region, [n] from 0 to 1: 1 - H(softmax(logits)) / log(classes)."""
    spread = logits.detach().log_softmax(dim=1)
    entropy = -(spread.exp() * spread).sum(dim=1)
    return (1 - entropy / math.log(max(logits.shape[1], 2))).clamp(0, 1)


def modality_weights(
    text: torch.Tensor, teacher: torch.Tensor, temperature: float = 0.5
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the texts' loss and the teacher's are multiplied with on this batch.

    w = 2 softmax([mean text, mean teacher] / temperature); text, teacher: how sure each is of each region, [n] from 0
    to 1. Both weights are 1 where they are equally sure, or where there is no region, and they add up to 2. They have
    no gradient: a loss could otherwise be lowered by doubt. At temperature 0.5 they stay between 0.24 and 1.76, for
    texts that know nothing yet must still be learned.
    """
    if not len(text):
        return text.new_ones(()), text.new_ones(())
    weights = 2 * (torch.stack([text.mean(), teacher.mean()]).detach() / temperature).softmax(dim=0)
    return weights[0], weights[1]
