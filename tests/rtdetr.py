"""A small RT-DETR with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ultralytics.nn.tasks import RTDETRDetectionModel

LAYERS = """nc: {classes}
backbone:
  - [-1, 1, Conv, [8, 3, 2]]
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, Conv, [24, 3, 2]]
  - [-1, 1, Conv, [32, 3, 2]]
head:
  - [2, 1, Conv, [32, 1, 1]]
  - [3, 1, Conv, [32, 1, 1]]
  - [4, 1, Conv, [32, 1, 1]]
  - [[5, 6, 7], 1, RTDETRDecoder, [nc, 32, 20, 4, 4, 1, 64]]
"""
BLOCKS = """nc: {classes}
backbone:
  - [-1, 1, HGStem, [8, 16]]
  - [-1, 2, HGBlock, [8, 32, 3]]
  - [-1, 1, DWConv, [32, 3, 2, 1, False]]
  - [-1, 2, HGBlock, [16, 48, 3]]
  - [-1, 1, DWConv, [48, 3, 2, 1, False]]
  - [-1, 2, HGBlock, [16, 64, 5, True, False]]
  - [-1, 2, HGBlock, [16, 64, 5, True, True]]
  - [-1, 1, DWConv, [64, 3, 2, 1, False]]
  - [-1, 2, HGBlock, [24, 64, 5, True, False]]
head:
  - [-1, 1, Conv, [32, 1, 1, None, 1, 1, False]]
  - [-1, 1, AIFI, [64, 4]]
  - [-1, 1, Conv, [32, 1, 1]]
  - [-1, 1, nn.Upsample, [None, 2, "nearest"]]
  - [6, 1, Conv, [32, 1, 1, None, 1, 1, False]]
  - [[-2, -1], 1, Concat, [1]]
  - [-1, 2, RepC3, [32]]
  - [-1, 1, Conv, [32, 1, 1]]
  - [-1, 1, nn.Upsample, [None, 2, "nearest"]]
  - [3, 1, Conv, [32, 1, 1, None, 1, 1, False]]
  - [[-2, -1], 1, Concat, [1]]
  - [-1, 2, RepC3, [32]]
  - [-1, 1, Conv, [32, 3, 2]]
  - [[-1, 16], 1, Concat, [1]]
  - [-1, 2, RepC3, [32]]
  - [-1, 1, Conv, [32, 3, 2]]
  - [[-1, 11], 1, Concat, [1]]
  - [-1, 2, RepC3, [32]]
  - [[20, 23, 26], 1, RTDETRDecoder, [nc, 32, 20, 4, 4, 2, 64]]
"""
"""YAML like rtdetr-l's, with fewer layers and channels."""


def write_sure(
    path: Path, frames: Any, layers: str = LAYERS, classes: Sequence[str] = ("red", "green"), noise: float = 0.0
) -> Path:
    """Write a checkpoint with these layers that has some detections with high scores.

    frames: float32 [b, 3, side, side], for batch-norm statistics; noise: relative noise added to the weights.
    """
    description = path.with_suffix(".yaml")
    description.write_text(layers.format(classes=len(classes)), "ascii")
    torch.manual_seed(0)
    network = RTDETRDetectionModel(str(description), nc=len(classes), verbose=False)
    network.names = dict(enumerate(classes))
    head = network.model[-1]
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        network.train()(frames)
        for scores in (head.enc_score_head, *head.dec_score_head):
            scores.weight.normal_(0, 0.3)
            scores.bias.fill_(-1)
        for layer in network.modules():
            if isinstance(layer, torch.nn.Conv2d):
                layer.weight += noise * layer.weight.std() * torch.randn_like(layer.weight)
    torch.save({"model": network.eval(), "train_args": {"imgsz": frames.shape[-1]}}, path)
    return path


def write_rtdetr(path: Path, classes: Sequence[str], side: int) -> Path:
    """Write a checkpoint for these classes and an input of this size in pixels."""
    path.with_suffix(".yaml").write_text(LAYERS.format(classes=len(classes)), "ascii")
    torch.manual_seed(0)
    network = RTDETRDetectionModel(str(path.with_suffix(".yaml")), nc=len(classes), verbose=False)
    network.names = dict(enumerate(classes))
    torch.save({"model": network.half(), "train_args": {"imgsz": side}}, path)
    return path
