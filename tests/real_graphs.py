"""The real detectors as float graphs, each exported once per test session."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from edgekd.detectors import load
from edgekd.export import Exported, export

NAMES = ("yolo11n.pt", "yolo26n.pt", "yolox_nano.onnx")


@dataclass(frozen=True)
class RealGraph:
    """A graph on disk, not to be changed, and what its export said."""

    path: Path
    exported: Exported


def real_graph(name: str, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> RealGraph:
    """The graph of a model in the shared folder, at opset 17."""
    folder = tmp_path_factory.getbasetemp() / "real-graphs"
    folder.mkdir(exist_ok=True)
    return _graph(shared / "models" / name, folder)


@cache
def _graph(source: Path, folder: Path) -> RealGraph:
    path = folder / f"{source.stem}.onnx"
    return RealGraph(path, export(load(source), path, 17))
