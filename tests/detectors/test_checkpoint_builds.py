"""Small detectors of packages, from the checkpoint to what the agent finds in a frame."""

from __future__ import annotations

from pathlib import Path

import pytest
from bundle_runs import require_bundle_runs

pytest.importorskip("torch")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore::UserWarning"),
]
CLASSES = ("red", "green")


@pytest.mark.family("YOLO11", "eval", "INT8", "bundle", "agent", package="Ultralytics")
def test_a_checkpoint_by_ultralytics(tiny_data: Path, tmp_path: Path) -> None:
    distill = pytest.importorskip("test_ultralytics_distill")
    path = distill.write_checkpoint(tmp_path / "model.pt", "yolo11n.yaml", 0.1, dict(enumerate(CLASSES)))
    require_bundle_runs(path, tiny_data, tmp_path)


@pytest.mark.family("RT-DETR", "eval", "INT8", "bundle", "agent", package="Ultralytics")
def test_a_transformer_by_ultralytics(tiny_data: Path, tmp_path: Path) -> None:
    write = pytest.importorskip("rtdetr").write_rtdetr
    require_bundle_runs(write(tmp_path / "model.pt", CLASSES, 64), tiny_data, tmp_path)
