"""The network in a checkpoint runs in a child process with limits before it runs here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgekd.core.errors import SpecError
from edgekd.core.limited_process import run_limited
from edgekd.detectors.ultralytics.detector import UltralyticsDetector, strides_of
from edgekd.graph import rehearsal

torch = pytest.importorskip("torch")
tasks = pytest.importorskip("ultralytics.nn.tasks")


def saved(network: Any, folder: Path) -> Path:
    path = folder / "model.pt"
    torch.save({"model": network.half(), "train_args": {"imgsz": 64}}, path)
    return path


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(rehearsal, "run_limited", run_limited)
    return tasks.DetectionModel("yolov8n.yaml", nc=3, verbose=False).eval()


def test_a_layer_that_takes_all_memory_is_refused(network: Any, tmp_path: Path) -> None:
    network.model[0].conv.padding = (40_000, 40_000)
    with pytest.raises(SpecError, match="too much memory or time"):
        UltralyticsDetector(saved(network, tmp_path)).export(tmp_path / "out.onnx", 17)


def test_an_ordinary_network_passes(network: Any, tmp_path: Path) -> None:
    spec = UltralyticsDetector(saved(network, tmp_path)).export(tmp_path / "out.onnx", 17)
    assert spec.head.strides == (8, 16, 32)


@pytest.mark.parametrize("stride", [None, [], ["a"], [float("nan")], [float("inf")], [0], [-8], [1 << 40], 5])
def test_strides_that_no_detector_has_are_refused(stride: Any) -> None:
    with pytest.raises(SpecError, match="strides"):
        strides_of(type("Head", (), {"stride": stride}))
