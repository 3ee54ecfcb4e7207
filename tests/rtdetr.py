"""A small RT-DETR with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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


def write_rtdetr(path: Path, classes: Sequence[str], side: int) -> Path:
    """Write a checkpoint of one for these classes and frames of this side in pixels."""
    path.with_suffix(".yaml").write_text(LAYERS.format(classes=len(classes)), "ascii")
    torch.manual_seed(0)
    network = RTDETRDetectionModel(str(path.with_suffix(".yaml")), nc=len(classes), verbose=False)
    network.names = dict(enumerate(classes))
    torch.save({"model": network.half(), "train_args": {"imgsz": side}}, path)
    return path
