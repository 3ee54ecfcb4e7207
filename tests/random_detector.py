"""Ultralytics checkpoints with random weights, for tests of what happens to a detector's structure."""

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
"""Families of YOLO by Ultralytics, by the smallest model of each."""
WIDTHS = {**dict.fromkeys(GENERATIONS, 0.125), "yolov9t": 0.5, "yolov10n": 0.25, "yolo12n": 0.25}
"""Factor of the channels of each, for a network that is small: the attention of the last two takes no smaller one."""


def write_detector(folder: Path, model: str, width: float | None, side: int) -> Path:
    """Write an untrained detector of two classes; side: of its input in pixels."""
    import torch

    from edgekd.compress.steps import Distill
    from edgekd.detectors.ultralytics.distill import student_network

    network = student_network(Distill(model, width=width), ("red", "green"), trust=False)
    path = folder / "detector.pt"
    torch.save({"model": network.half(), "train_args": {"imgsz": side}}, path)
    return path
