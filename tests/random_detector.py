"""Ultralytics checkpoints with random weights, for tests of what happens to a detector's structure."""

from __future__ import annotations

from pathlib import Path


def write_detector(folder: Path, model: str, width: float | None, side: int) -> Path:
    """Write an untrained detector of two classes; side: of its input in pixels."""
    import torch

    from edgekd.compress.steps import Distill
    from edgekd.detectors.ultralytics.distill import student_network

    network = student_network(Distill(model, width=width), ("red", "green"), trust=False)
    path = folder / "detector.pt"
    torch.save({"model": network.half(), "train_args": {"imgsz": side}}, path)
    return path
