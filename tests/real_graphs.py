"""The real detectors as float graphs, each exported once per test session."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from edgekd.data.demo import DETECTOR
from edgekd.detectors import load
from edgekd.detectors.export import Exported, export

NAMES = ("yolo11n.pt", "yolo26n.pt", "yolox_nano.onnx")
DEMO = DETECTOR.name
"""The detector that ships with the package."""
WIDE_NAMES = (*NAMES, "yolo11s.yaml", "yolov8n.yaml", DEMO)
"""Every family that builds are promised for: where no weights lie in the shared folder, with random ones."""


@dataclass(frozen=True)
class RealGraph:
    """A graph on disk, not to be changed, and what its export said."""

    path: Path
    exported: Exported


def real_graph(name: str, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> RealGraph:
    """The graph of one of WIDE_NAMES, at opset 17."""
    folder = tmp_path_factory.getbasetemp() / "real-graphs"
    folder.mkdir(exist_ok=True)
    source = DETECTOR if name == DEMO else shared / "models" / name
    return _graph(source, folder)


@cache
def _graph(source: Path, folder: Path) -> RealGraph:
    path = folder / f"{source.stem}.onnx"
    source = _random_checkpoint(source.name, folder) if source.suffix == ".yaml" else source
    return RealGraph(path, export(load(source), path, 17))


def _random_checkpoint(description: str, folder: Path) -> Path:
    """Write a checkpoint of an architecture that Ultralytics describes, with random weights."""
    import torch
    from ultralytics import YOLO

    torch.manual_seed(0)
    path = folder / f"{Path(description).stem}.pt"
    YOLO(description).save(path)
    return path
