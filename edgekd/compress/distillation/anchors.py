"""Anchors of detectors that look at a frame through grids: where they are, and which of another's is nearest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Grid:
    """The anchors of a detector, level by level and row by row.

    sizes: height and width of each level; strides: pixels between its neighbours.
    """

    sizes: tuple[tuple[int, int], ...]
    strides: tuple[float, ...]

    @property
    def frame(self) -> tuple[float, float]:
        """Height and width in pixels of the frame that the anchors are in."""
        height, width = self.sizes[0]
        return height * self.strides[0], width * self.strides[0]

    def points(self, device: torch.device | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Where the anchors are, float32 [2, anchors], x and y in pixels, and the stride of each, [anchors]."""
        places, strides = [], []
        for (height, width), stride in zip(self.sizes, self.strides, strict=True):
            ys, xs = torch.meshgrid(
                torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
            )
            places.append((torch.stack([xs.flatten(), ys.flatten()]) + 0.5) * stride)
            strides.append(torch.full((height * width,), float(stride), device=device))
        return torch.cat(places, dim=1), torch.cat(strides)


def nearest_levels(own: Sequence[float], others: Sequence[float]) -> tuple[int, ...]:
    """For each stride the index of the stride among `others` that is nearest to it, by their ratio."""
    return tuple(
        min(range(len(others)), key=lambda at, stride=stride: abs(math.log(others[at] / stride)))  # type: ignore[misc]
        for stride in own
    )


def nearest_anchors(own: Grid, other: Grid, device: torch.device | None = None) -> torch.Tensor:
    """For each of a detector's anchors the index of another's that is nearest to it, on the level nearest to its own.

    Identity where both have the same grid.
    """
    places, _ = own.points(device)
    starts = [0]
    for height, width in other.sizes:
        starts.append(starts[-1] + height * width)
    found, done = [], 0
    for (height, width), level in zip(own.sizes, nearest_levels(own.strides, other.strides), strict=True):
        mine = places[:, done : done + height * width]
        done += height * width
        rows, columns = other.sizes[level]
        cells = (mine / other.strides[level]).floor().long()
        found.append(starts[level] + cells[1].clamp(max=rows - 1) * columns + cells[0].clamp(max=columns - 1))
    return torch.cat(found)
