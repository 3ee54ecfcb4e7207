"""Anchors of detectors with grids: positions, nearest anchors of another detector, anchors inside boxes. No I/O.

Points are float32 [2, anchors], x and y of the anchors in pixels of the input; boxes float32 [n, 4] x1, y1, x2, y2 in
the same pixels; images int64 [n], the batch index of each box.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Grid:
    """The anchors of a detector, level by level and row by row.

    sizes: height and width of each level in cells; strides: pixels between neighbours.
    """

    sizes: tuple[tuple[int, int], ...]
    strides: tuple[float, ...]

    @property
    def frame(self) -> tuple[float, float]:
        """Height and width of the frame in pixels."""
        height, width = self.sizes[0]
        return height * self.strides[0], width * self.strides[0]

    def points(self, device: torch.device | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the anchors' x and y in pixels, float32 [2, anchors], and the stride of each, [anchors]."""
        points, strides = [], []
        for (height, width), stride in zip(self.sizes, self.strides, strict=True):
            ys, xs = torch.meshgrid(
                torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
            )
            points.append((torch.stack([xs.flatten(), ys.flatten()]) + 0.5) * stride)
            strides.append(torch.full((height * width,), float(stride), device=device))
        return torch.cat(points, dim=1), torch.cat(strides)


def nearest_levels(own: Sequence[float], others: Sequence[float]) -> tuple[int, ...]:
    """Return for each stride the index of the nearest of `others`, by the logarithm of their ratio."""
    return tuple(
        min(range(len(others)), key=lambda at, stride=stride: abs(math.log(others[at] / stride)))  # type: ignore[misc]
        for stride in own
    )


def nearest_anchors(own: Grid, other: Grid, device: torch.device | None = None) -> torch.Tensor:
    """Return for each anchor the index of another detector's nearest anchor on the nearest level: int64 [anchors].

    For equal grids: 0, 1, 2, ...
    """
    points, _ = own.points(device)
    counts = [height * width for height, width in other.sizes]
    levels = points.split([height * width for height, width in own.sizes], dim=1)
    indices = []
    for level, nearest in zip(levels, nearest_levels(own.strides, other.strides), strict=True):
        rows, columns = other.sizes[nearest]
        cells = (level / other.strides[nearest]).floor().long()
        cell = cells[1].clamp(max=rows - 1) * columns + cells[0].clamp(max=columns - 1)
        indices.append(sum(counts[:nearest]) + cell)
    return torch.cat(indices)


def corners(boxes: torch.Tensor, height: float, width: float) -> torch.Tensor:
    """Return x1, y1, x2, y2 in pixels of boxes [..., 4]: middle x and y, width and height as shares of the frame."""
    middle, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([middle - half, middle + half], dim=-1) * boxes.new_tensor([width, height, width, height])


def inside(points: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Return whether each anchor lies in each box: bool [n, anchors]."""
    corners = boxes[:, :, None]
    return ((points >= corners[:, :2]) & (points <= corners[:, 2:])).all(dim=1)


def best_inside(values: torch.Tensor, points: torch.Tensor, boxes: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Return the largest of `values`, >= 0, [b, anchors], among the anchors in each box: [n]; 0 without an anchor."""
    return (values[images] * inside(points, boxes)).amax(dim=1)


def ignored(
    points: torch.Tensor, boxes: torch.Tensor, images: torch.Tensor, labels: torch.Tensor, batch: int, classes: int
) -> torch.Tensor:
    """Return the anchors at which a class is ignored in the loss: bool [batch, classes, anchors].

    labels: int64 [n], the class of each ignored box. Other classes are not ignored there.
    """
    counts = torch.zeros(batch * classes, points.shape[1], dtype=torch.int32, device=points.device)
    counts.index_add_(0, images * classes + labels, inside(points, boxes).int())
    return (counts > 0).view(batch, classes, -1)
