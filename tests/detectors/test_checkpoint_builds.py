"""Small detectors of packages, from the checkpoint to what the agent finds in a frame."""

from __future__ import annotations

from pathlib import Path

import pytest
from bundle_runs import require_bundle_runs
from family_marks import BUILT, of_families
from random_detector import GENERATIONS, WIDTHS

pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore::UserWarning"
)  # PyTorch's and Ultralytics' own
CLASSES = ("red", "green")


@pytest.mark.parametrize("model", of_families("Ultralytics", GENERATIONS, *BUILT, release={*GENERATIONS} - {"yolo11n"}))
def test_a_checkpoint_by_ultralytics(model: str, tiny_data: Path, tmp_path: Path) -> None:
    distill = pytest.importorskip("test_ultralytics_distill")
    path = distill.write_checkpoint(tmp_path / "model.pt", f"{model}.yaml", WIDTHS[model], dict(enumerate(CLASSES)))
    require_bundle_runs(path, tiny_data, tmp_path)


@pytest.mark.slow
@pytest.mark.family("RT-DETR", *BUILT, package="Ultralytics")
def test_a_transformer_by_ultralytics(tiny_data: Path, tmp_path: Path) -> None:
    write = pytest.importorskip("rtdetr").write_rtdetr
    require_bundle_runs(write(tmp_path / "model.pt", CLASSES, 64), tiny_data, tmp_path)
