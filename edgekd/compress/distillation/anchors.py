"""Anchors of detectors with grids: their positions, and the nearest anchors of another detector."""

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
    """Return for each stride the index of the nearest one among `others`, by their ratio."""
    return tuple(
        min(range(len(others)), key=lambda at, stride=stride: abs(math.log(others[at] / stride)))  # type: ignore[misc]
        for stride in own
    )


def nearest_anchors(own: Grid, other: Grid, device: torch.device | None = None) -> torch.Tensor:
    """Return for each anchor the index of another detector's nearest anchor, on the level nearest to its own.

    Identity where both have the same grid.
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
