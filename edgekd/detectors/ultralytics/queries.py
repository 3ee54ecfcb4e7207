"""RT-DETR by Ultralytics for export: boxes and probabilities of all queries, without the selection of the best."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Queries(nn.Module):  # type: ignore[misc]
    """The network of an RT-DETR: returns [1, 4 + classes, queries] for frames float32 [1, 3, h, w], RGB, 0 to 1.

    Boxes are cx, cy, w, h in pixels. size: height and width of the frames in pixels.
    """

    def __init__(self, network: Any, size: tuple[int, int]) -> None:
        super().__init__()
        self.network = network
        height, width = size
        self.register_buffer("scale", torch.tensor([width, height, width, height], dtype=torch.float32))

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        boxes, scores = (each[-1] for each in self.network(frames)[1][:2])  # of the decoder's last layer
        return torch.cat([boxes * self.scale, scores.sigmoid()], dim=2).transpose(1, 2)
