"""How far a student's detections and features are from its teacher's: pure functions on tensors.

Every loss is 0 where the student does what the teacher does. Anchors count as much as the teacher is sure that
something is there: the many that see background would otherwise drown the few that matter.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional


def certainty(teacher: torch.Tensor) -> torch.Tensor:
    """How sure the teacher is of each anchor's best class: [b, anchors], from class logits [b, classes, anchors]."""
    return teacher.amax(dim=1).sigmoid()


def class_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Divergence (KL) of the classes' probabilities, per sure anchor; class logits float32 [b, classes, anchors].

    All anchors take part: one that the teacher is sure is empty must stay so. Their divergences are small by nature.
    """
    wanted = teacher.sigmoid()
    cross = functional.binary_cross_entropy_with_logits(student, wanted, reduction="sum")
    entropy = functional.binary_cross_entropy_with_logits(teacher, wanted, reduction="sum")
    return (cross - entropy) / _mass(certainty(teacher))


def box_loss(student: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Mean distance of box sides, as a share of the teacher's box (half its width and height together).

    student, teacher float32 [b, 4, anchors]: how far left, top, right and bottom are from the anchor, in any unit;
    weight float32 [b, anchors]. For small distances it is about 1 - IoU.
    """
    size = teacher.sum(dim=1).clamp(min=1e-3) / 2
    return ((student - teacher).abs().sum(dim=1) / size * weight).sum() / _mass(weight)


def feature_loss(student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor]) -> torch.Tensor:
    """Noise power over signal power of feature maps [b, c, h, w], averaged over the maps."""
    pairs = list(zip(student, teacher, strict=True))
    return torch.stack([functional.mse_loss(ours, theirs) / theirs.square().mean() for ours, theirs in pairs]).mean()


def _mass(weight: torch.Tensor) -> torch.Tensor:
    return weight.sum().clamp(min=1)
