"""Alignment of a detector's regions with the text embeddings of its classes: losses, and the projection they need.

Features in a box are projected into the space of text embeddings (`distillation/text.py`). They are trained to be near
the text of the box's class, and as far from other classes as the texts are from each other, so that rare classes learn
their relation to frequent ones. The projection is trained together with the student and is not shipped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

SAMPLES = 8
"""Sampling points along each side of a box: one per cell would need gigabytes on a GPU with deterministic operations,
which Ultralytics' trainer uses."""
MAX_SCALE = 100.0
"""Largest factor before the softmax, as in CLIP: with more, single regions dominate."""
INITIAL_TEMPERATURE = 0.07
"""Temperature of InfoNCE, as in CLIP (Radford et al., arXiv 2103.00020, section 2.5)."""

MODALITY_TEMPERATURE = 0.5
"""Temperature of `modality_weights`: factors stay between 0.24 and 1.76, so that texts are learned from the start."""


def pool_regions(
    maps: Sequence[torch.Tensor], strides: Sequence[float], boxes: torch.Tensor, images: torch.Tensor
) -> torch.Tensor:
    """Return the means of all maps over each box: float32 [n, sum of channels].

    maps: [b, channels, h, w], one for each stride; boxes [n, 4] x1, y1, x2, y2 in pixels of the input; images int64
    [n], the batch index of each box. Means are computed by RoIAlign (He et al., arXiv 1703.06870) with one bin.
    """
    from torchvision.ops import roi_align

    regions = torch.cat([images[:, None].to(boxes.dtype), boxes], dim=1).float()
    pooled = [
        roi_align(each.float(), regions, output_size=1, spatial_scale=1 / stride, sampling_ratio=SAMPLES, aligned=True)
        for each, stride in zip(maps, strides, strict=True)
    ]
    return torch.cat(pooled, dim=1).flatten(1)


class RegionText(nn.Module):  # type: ignore[misc]
    """Projection of regions into the space of texts: e = W f / |W f|, where f are the neck's maps pooled over a box.

    texts: float32 [classes, d], of length 1, not trained. W and the factor exp(log_scale) before the softmax, the
    inverse of InfoNCE's temperature, are trained.
    """

    texts: torch.Tensor

    def __init__(self, channels: Sequence[int], texts: torch.Tensor) -> None:
        """channels: numbers of channels of the neck's maps."""
        super().__init__()
        self.project = nn.Linear(sum(channels), texts.shape[1])
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / INITIAL_TEMPERATURE)))
        self.register_buffer("texts", texts)

    def forward(
        self, maps: Sequence[torch.Tensor], strides: Sequence[float], boxes: torch.Tensor, images: torch.Tensor
    ) -> torch.Tensor:
        """Return vectors of length 1, float32 [n, d]; arguments as for `pool_regions`."""
        return functional.normalize(self.project(pool_regions(maps, strides, boxes, images)), dim=1)

    def logits(self, regions: torch.Tensor) -> torch.Tensor:
        """Return the scaled cosines of each region and each class's text, [n, classes]."""
        return self.log_scale.exp().clamp(max=MAX_SCALE) * regions @ self.texts.T


def contrastive_loss(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Return InfoNCE: mean over regions of w_y * -log softmax(logits)_y, y the region's class; 0 without a region.

    logits [n, classes], labels int64 [n]; weights [classes], as from `long_tail.class_weights`.
    Regions against texts as in YOLO-World (Cheng et al., arXiv 2401.17270) and ViLD (Gu et al., arXiv 2104.13921).
    """
    losses = functional.cross_entropy(logits, labels, reduction="none")
    if weights is not None:
        losses = losses * weights[labels]
    return losses.sum() / max(len(labels), 1)


def relation_loss(regions: torch.Tensor, labels: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    """Return the mean (cos(p_a, p_b) - cos(t_a, t_b))^2 over pairs of different classes in the batch; 0 without one.

    p_c is the normed mean of the regions of class c, t_c its text. regions [n, d] and texts [classes, d] of length 1,
    labels int64 [n].
    Similarities are matched as by Tung and Mori (arXiv 1907.09682); TinyCLIP calls it affinity mimicking (2309.12314).
    """
    present = torch.unique(labels)
    if len(present) < 2:
        return regions.sum() * 0
    belongs = (labels == present[:, None]).to(regions.dtype)
    means = functional.normalize(belongs @ regions, dim=1)
    differences = (means @ means.T - texts[present] @ texts[present].T).square()
    # Both diagonals are 1.
    return differences.sum() / (len(present) * (len(present) - 1))


def confidence(logits: torch.Tensor) -> torch.Tensor:
    """Return the confidence of each region's class, [n] from 0 to 1: 1 - H(softmax(logits)) / log(classes)."""
    spread = logits.detach().log_softmax(dim=1)
    entropy = -(spread.exp() * spread).sum(dim=1)
    return (1 - entropy / math.log(max(logits.shape[1], 2))).clamp(0, 1)


def modality_weights(text: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the factors of the text loss and the teacher's loss on this batch, scalars.

    w = 2 softmax([mean text, mean teacher] / MODALITY_TEMPERATURE); text, teacher: confidence in each region, 0 to 1,
    [n]. The factors sum to 2; both are 1 if the means are equal, or without regions. They have no gradient: otherwise
    lower confidence could reduce the loss.
    """
    if not len(text):
        return text.new_ones(()), text.new_ones(())
    weights = 2 * (torch.stack([text.mean(), teacher.mean()]).detach() / MODALITY_TEMPERATURE).softmax(dim=0)
    return weights[0], weights[1]
