"""The network in a checkpoint runs in a child process with limits before it runs here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgekd.core.errors import SpecError
from edgekd.core.limited_process import run_limited
from edgekd.detectors.ultralytics.detector import UltralyticsDetector, resize_detector, strides_of, unfused_network
from edgekd.graph import rehearsal

torch = pytest.importorskip("torch")
tasks = pytest.importorskip("ultralytics.nn.tasks")

from rtdetr import write_rtdetr  # noqa: E402

from edgekd.detectors.ultralytics.features import UltralyticsTeacher  # noqa: E402


def saved(network: Any, folder: Path) -> Path:
    path = folder / "model.pt"
    torch.save({"model": network.half(), "train_args": {"imgsz": 64}}, path)
    return path


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setattr(rehearsal, "run_limited", run_limited)
    monkeypatch.setattr(rehearsal, "_records", lambda: tmp_path / "rehearsed")
    return tasks.DetectionModel("yolov8n.yaml", nc=3, verbose=False).eval()


def test_a_layer_that_takes_all_memory_is_refused(network: Any, tmp_path: Path) -> None:
    network.model[0].conv.padding = (40_000, 40_000)
    with pytest.raises(SpecError, match="too much memory or time"):
        UltralyticsDetector(saved(network, tmp_path)).export(tmp_path / "out.onnx", 17)


@pytest.fixture
def teacher(network: Any, tmp_path: Path) -> Path:
    """An RT-DETR."""
    return write_rtdetr(tmp_path / "rtdetr.pt", ("red", "green", "blue"), 64)


def test_an_rtdetr_that_takes_all_memory_is_refused(teacher: Path) -> None:
    content = torch.load(teacher, weights_only=False)
    content["model"].model[0].conv.padding = (40_000, 40_000)
    torch.save(content, teacher)
    with pytest.raises(SpecError, match="too much memory or time"):
        UltralyticsTeacher(teacher, trust=False)


@pytest.mark.slow
def test_an_ordinary_rtdetr_passes(teacher: Path) -> None:
    assert UltralyticsTeacher(teacher, trust=False).classes == ("red", "green", "blue")


def test_every_network_is_rehearsed_once_however_it_is_used(
    network: Any, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = saved(network, tmp_path)
    rehearsed = []
    monkeypatch.setattr(rehearsal, "run_limited", lambda *told, **_: rehearsed.append(told[:2]))
    unfused_network(student, trust=False)
    resize_detector(student, 96, tmp_path / "resized.pt")
    UltralyticsTeacher(student, trust=False)
    UltralyticsTeacher(teacher, trust=False)
    unfused_network(student, trust=True)
    function = "edgekd.detectors.ultralytics.detector:run_once"
    assert rehearsed == [(function, [str(path), 64, 64]) for path in (student, teacher)]


def test_an_ordinary_network_passes(network: Any, tmp_path: Path) -> None:
    spec = UltralyticsDetector(saved(network, tmp_path)).export(tmp_path / "out.onnx", 17)
    assert spec.head.strides == (8, 16, 32)


@pytest.mark.parametrize("stride", [None, [], ["a"], [float("nan")], [float("inf")], [0], [-8], [1 << 40], 5])
def test_strides_that_no_detector_has_are_refused(stride: Any) -> None:
    with pytest.raises(SpecError, match="strides"):
        strides_of(type("Head", (), {"stride": stride}))
