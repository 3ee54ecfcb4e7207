"""Boxes and the anchors inside them: what is best in a box, and what a loss leaves out. Pure functions on tensors.

Points are float32 [2, anchors], x and y of the anchors in pixels of the input; boxes float32 [n, 4] x1, y1, x2, y2 in
the same pixels; images int64 [n], the batch index of each box.

Ignored boxes (`Truth.crowd`) in a training loop: carry them through the augmentation like objects, under the class
number `classes + c`; before the detection loss part them from the objects; and multiply its class loss, before it is
summed, with `~ignored(...)`.
"""

from __future__ import annotations

import torch


def corners(boxes: torch.Tensor, height: float, width: float) -> torch.Tensor:
    """Boxes [..., 4], middle x and y, width and height as shares of a frame of this size: corners in its pixels."""
    middle, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([middle - half, middle + half], dim=-1) * boxes.new_tensor([width, height, width, height])


def inside(points: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Which anchors lie in which boxes: bool [n, anchors]."""
    corners = boxes[:, :, None]
    return ((points >= corners[:, :2]) & (points <= corners[:, 2:])).all(dim=1)


def best_inside(values: torch.Tensor, points: torch.Tensor, boxes: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """The largest value among the anchors in each box, [n], of values >= 0 [b, anchors]; 0 where there is no anchor."""
    return (values[images] * inside(points, boxes)).amax(dim=1)


def ignored(
    points: torch.Tensor, boxes: torch.Tensor, images: torch.Tensor, labels: torch.Tensor, batch: int, classes: int
) -> torch.Tensor:
    """Where a class must count neither as there nor as absent: bool [batch, classes, anchors].

    labels: int64 [n], the class of each ignored box. Other classes are judged there as everywhere.
    """
    counts = torch.zeros(batch * classes, points.shape[1], dtype=torch.int32, device=points.device)
    counts.index_add_(0, images * classes + labels, inside(points, boxes).int())
    return (counts > 0).view(batch, classes, -1)
