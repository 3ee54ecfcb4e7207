"""Small detectors of packages, from the checkpoint to what the agent finds in a frame."""

from __future__ import annotations

from pathlib import Path

import pytest
from bundle_runs import require_bundle_runs
from family_marks import of_families

pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore::UserWarning"
)  # PyTorch's own
WHOLE = ("eval", "INT8", "bundle", "agent")
CLASSES = ("red", "green")


@pytest.mark.parametrize(
    "model", of_families("Ultralytics", {"yolov8n": "YOLOv8", "yolo11n": "YOLO11", "yolo26n": "YOLO26"}, *WHOLE)
)
def test_a_checkpoint_by_ultralytics(model: str, tiny_data: Path, tmp_path: Path) -> None:
    distill = pytest.importorskip("test_ultralytics_distill")
    path = distill.write_checkpoint(tmp_path / "model.pt", f"{model}.yaml", 0.1, dict(enumerate(CLASSES)))
    require_bundle_runs(path, tiny_data, tmp_path)


@pytest.mark.slow
@pytest.mark.family("RT-DETR", *WHOLE, package="Ultralytics")
def test_a_transformer_by_ultralytics(tiny_data: Path, tmp_path: Path) -> None:
    write = pytest.importorskip("rtdetr").write_rtdetr
    require_bundle_runs(write(tmp_path / "model.pt", CLASSES, 64), tiny_data, tmp_path)


DETRS = {
    "rt_detr": "RT-DETR",
    "rt_detr_v2": "RT-DETRv2",
    "d_fine": "D-FINE",
    "deimv2": "DEIMv2",
    "rf_detr": "RF-DETR",
}


@pytest.mark.parametrize("config", of_families("transformers", DETRS, *WHOLE))
def test_a_folder_by_transformers(config: str, tiny_data: Path, tmp_path: Path) -> None:
    detrs = pytest.importorskip("tiny_detrs")
    folder = detrs.save_detr(getattr(detrs, config)(CLASSES), tmp_path / "model")
    require_bundle_runs(folder, tiny_data, tmp_path)


@pytest.mark.slow
@pytest.mark.family("SSDlite", *WHOLE, package="torchvision")
def test_a_file_by_torchvision(tiny_data: Path, tmp_path: Path) -> None:
    detector = pytest.importorskip("test_torchvision_detector")
    detector.save_network(detector.make(), tmp_path / "model.tv.pt")
    require_bundle_runs(tmp_path / "model.tv.pt", tiny_data, tmp_path)
