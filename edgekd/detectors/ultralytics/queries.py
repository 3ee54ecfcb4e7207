"""RT-DETR by Ultralytics as a graph: boxes and probabilities of its queries, before the best are chosen."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Queries(nn.Module):  # type: ignore[misc]
    """The network of an RT-DETR from frames float32 [1, 3, h, w], RGB, 0 to 1, to [1, 4 + classes, queries].

    Boxes are cx, cy, w, h in pixels. size: height and width of the frames.
    """

    def __init__(self, network: Any, size: tuple[int, int]) -> None:
        super().__init__()
        self.network = network
        height, width = size
        self.register_buffer("scale", torch.tensor([width, height, width, height], dtype=torch.float32))

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        boxes, scores = (each[-1] for each in self.network(frames)[1][:2])  # of the decoder's last layer
        return torch.cat([boxes * self.scale, scores.sigmoid()], dim=2).transpose(1, 2)
