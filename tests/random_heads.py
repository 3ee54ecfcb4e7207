"""Ultralytics networks with random weights, for tests of their heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SIDE = 128


def lively(network: Any) -> Any:
    """Return the network with scores that differ from box to box, by one step of batch statistics."""
    import torch

    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        network.train()(torch.rand(4, 3, SIDE, SIDE))
        for name, parameter in network.model[-1].named_parameters():
            if name.endswith(".2.weight"):
                # Distances to the sides that are predicted as they are have to be positive.
                parameter.normal_(0, 0.001 if network.model[-1].reg_max == 1 and "cv2." in name else 0.02)
    return network.eval()


def saved(network: Any, folder: Path) -> Path:
    """Write the checkpoint of a network."""
    import torch

    torch.save({"model": network, "train_args": {"imgsz": SIDE}}, folder / "model.pt")
    return folder / "model.pt"
