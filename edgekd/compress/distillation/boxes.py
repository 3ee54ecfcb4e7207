"""Boxes and the anchors inside them. Pure functions on tensors.

Points are float32 [2, anchors], x and y of the anchors in pixels of the input; boxes float32 [n, 4] x1, y1, x2, y2 in
the same pixels; images int64 [n], the batch index of each box.
"""

from __future__ import annotations

import torch


def corners(boxes: torch.Tensor, height: float, width: float) -> torch.Tensor:
    """Return the corners, in pixels, of boxes [..., 4]: middle x and y, width and height as shares of a frame."""
    middle, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([middle - half, middle + half], dim=-1) * boxes.new_tensor([width, height, width, height])


def inside(points: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Return whether each anchor lies in each box: bool [n, anchors]."""
    corners = boxes[:, :, None]
    return ((points >= corners[:, :2]) & (points <= corners[:, 2:])).all(dim=1)


def best_inside(values: torch.Tensor, points: torch.Tensor, boxes: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Return the largest of values >= 0 [b, anchors] among the anchors in each box, [n]; 0 without an anchor."""
    return (values[images] * inside(points, boxes)).amax(dim=1)


def ignored(
    points: torch.Tensor, boxes: torch.Tensor, images: torch.Tensor, labels: torch.Tensor, batch: int, classes: int
) -> torch.Tensor:
    """Return where a class counts neither as present nor as absent: bool [batch, classes, anchors].

    labels: int64 [n], the class of each ignored box. Other classes count there as everywhere.
    """
    counts = torch.zeros(batch * classes, points.shape[1], dtype=torch.int32, device=points.device)
    counts.index_add_(0, images * classes + labels, inside(points, boxes).int())
    return (counts > 0).view(batch, classes, -1)
