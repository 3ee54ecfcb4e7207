"""Ultralytics checkpoints with random weights, for tests of changes to a detector's structure."""

from __future__ import annotations

from pathlib import Path

GENERATIONS = {
    "yolov3-tiny": "YOLOv3u",
    "yolov5n": "YOLOv5u",
    "yolov6n": "YOLOv6u",
    "yolov8n": "YOLOv8",
    "yolov9t": "YOLOv9",
    "yolov10n": "YOLOv10",
    "yolo11n": "YOLO11",
    "yolo12n": "YOLO12",
    "yolo26n": "YOLO26",
}
"""Ultralytics' YOLO families, each by its smallest model."""
WIDTHS = {**dict.fromkeys(GENERATIONS, 0.125), "yolov9t": 0.5, "yolov10n": 0.25, "yolo12n": 0.25}
"""Width factor of each, for a small network. The attention of the last two does not allow smaller factors."""


def write_detector(folder: Path, model: str, width: float | None, side: int) -> Path:
    """Write an untrained detector of two classes, and return its path. side: input size in pixels."""
    import torch

    from edgekd.compress.steps import Distill
    from edgekd.detectors.ultralytics.distill import student_network

    network = student_network(Distill(model, width=width), ("red", "green"), trust=False)
    path = folder / "detector.pt"
    torch.save({"model": network.half(), "train_args": {"imgsz": side}}, path)
    return path
