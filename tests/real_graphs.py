"""The real detectors as float graphs, each exported once per test session."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from once import once

from edgekd.data.demo import DETECTOR
from edgekd.detectors import load
from edgekd.detectors.export import Exported, export

NAMES = ("yolo11n.pt", "yolo26n.pt", "yolox_nano.onnx")
DEMO = DETECTOR.name
"""The detector that ships with the package."""
WIDE_NAMES = (*NAMES, "yolov8n.yaml", DEMO)
"""One detector of every family that builds support; with random weights if the shared folder has none."""


def swept(*names: str, values: Sequence[object] = ()) -> list[Any]:
    """Return a test parameter for each detector, with its value.

    It is marked slow if PyTorch exports the detector, and left to a release if that has random weights.
    """
    rows = zip(names, values, strict=True) if values else ((name,) for name in names)
    marks = {".onnx": (), ".pt": (pytest.mark.slow,), ".yaml": (pytest.mark.release,)}
    return [pytest.param(*row, marks=marks[Path(row[0]).suffix]) for row in rows]


@dataclass(frozen=True)
class RealGraph:
    """A graph on disk, which must not be changed, and the result of its export."""

    path: Path
    exported: Exported


def real_graph(name: str, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> RealGraph:
    """Return the graph of one of WIDE_NAMES, at opset 17."""
    source = DETECTOR if name == DEMO else shared / "models" / name

    def write(folder: Path) -> None:
        model = _random_checkpoint(name, folder) if source.suffix == ".yaml" else source
        exported = export(load(model), folder / f"{source.stem}.onnx", 17)
        (folder / "exported.pickle").write_bytes(pickle.dumps(exported))

    folder = once(tmp_path_factory, f"real-graph-{source.stem}", write)
    return RealGraph(folder / f"{source.stem}.onnx", pickle.loads((folder / "exported.pickle").read_bytes()))


def _random_checkpoint(description: str, folder: Path) -> Path:
    """Write a checkpoint of one of Ultralytics' architectures with random weights."""
    import torch
    from ultralytics import YOLO

    torch.manual_seed(0)
    path = folder / f"{Path(description).stem}.pt"
    YOLO(description).save(path)
    return path
