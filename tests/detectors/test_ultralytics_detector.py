"""Ultralytics checkpoints of every supported generation export to a dense graph that computes what they compute."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from family_marks import of_families
from random_detector import GENERATIONS
from real_graphs import real_graph

from edgekd.core.detection.decode import Thresholds, decode
from edgekd.core.detection.parity import largest_error
from edgekd.core.detection.preprocess import letterbox, place
from edgekd.core.detection.types import DetectorSpec, Head, Preprocess
from edgekd.core.errors import CompressError, SpecError
from edgekd.detectors import load
from edgekd.detectors.export import TOLERANCE, export, probe
from edgekd.detectors.onnx import OnnxDetector
from edgekd.detectors.ultralytics.detector import UltralyticsDetector
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU

torch = pytest.importorskip("torch")
tasks = pytest.importorskip("ultralytics.nn.tasks")

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning"
)  # PyTorch's and Ultralytics' own
SIDE = 128


def random_network(config: str, classes: int = 3) -> Any:
    """A network with random weights whose activations vary like a trained one's, by one step of batch statistics."""
    torch.manual_seed(0)
    network = tasks.DetectionModel(config, nc=classes, verbose=False)
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    spec = DetectorSpec(("0",), Preprocess(SIDE, SIDE), Head("yolo"))
    with torch.no_grad():
        network.train()(torch.from_numpy(np.concatenate([probe(spec, seed) for seed in range(4)])))
        for name, parameter in network.model[-1].named_parameters():
            if name.endswith(".2.weight"):
                parameter.normal_(0, 0.02)
    return network.eval()


def saved(network: Any, folder: Path, **train_args: Any) -> Path:
    path = folder / "model.pt"
    torch.save({"model": network, "train_args": {"imgsz": SIDE, **train_args}}, path)
    return path


def frame_of(size: int = SIDE) -> np.ndarray:
    return np.random.default_rng(3).uniform(0, 1, (1, 3, size, size)).astype(np.float32)


def run(graph: Path, batch: np.ndarray) -> np.ndarray:
    with ONNXRUNTIME_CPU.load(graph) as session:
        return session.run(batch)


@pytest.mark.parametrize("model", of_families("Ultralytics", GENERATIONS, "describe"))
def test_each_generation_exports_what_it_computes(model: str, tmp_path: Path) -> None:
    network = random_network(f"{model}.yaml")
    detector = UltralyticsDetector(saved(network, tmp_path))
    found = export(detector, tmp_path / "graph.onnx", 13)
    assert found.opset == 13
    assert found.error <= TOLERANCE
    assert found.spec.classes == ("0", "1", "2")
    assert found.spec.preprocess == Preprocess(SIDE, SIDE)
    assert found.spec.head == Head("yolo", strides=tuple(map(int, network.stride)))
    frame = probe(found.spec, 4)  # like those of its statistics: of noise a random YOLO12 makes anything, by rounding
    with torch.no_grad():
        expected = network(torch.from_numpy(frame))[0].numpy()
    assert largest_error(run(tmp_path / "graph.onnx", frame), expected) <= TOLERANCE


@pytest.mark.slow
def test_an_end_to_end_head_is_exported_dense_and_finds_the_same(tmp_path: Path) -> None:
    network = random_network("yolo26n.yaml")
    network.end2end = True
    with torch.no_grad():
        expected = network(torch.from_numpy(frame_of()))[0].numpy()[0]
    assert expected.shape == (300, 6)  # Ultralytics' own selection of the best
    found = export(UltralyticsDetector(saved(network, tmp_path)), tmp_path / "graph.onnx", 17)
    assert found.spec.head == Head("yolo", nms=False)
    assert not {"TopK", "Mod", "GatherElements"} & {n.op_type for n in onnx.load(tmp_path / "graph.onnx").graph.node}
    output = run(tmp_path / "graph.onnx", frame_of())
    assert output.shape == (1, 7, 336)
    ours = decode(output, found.spec, place(SIDE, SIDE, found.spec.preprocess), Thresholds(0.0, multi_label=True))
    np.testing.assert_allclose(ours.scores, expected[:, 4], atol=1e-4)
    apart = np.flatnonzero(np.abs(np.diff(expected[:, 4], prepend=2)) > 1e-4)[:50]  # equal scores have no order
    apart = apart[np.abs(np.diff(expected[:, 4], append=-1))[apart] > 1e-4]
    assert len(apart) > 10
    assert np.array_equal(ours.classes[apart], expected[apart, 5])
    np.testing.assert_allclose(ours.boxes[apart], np.clip(expected[apart, :4], 0, SIDE), atol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolo11n.pt", "yolo26n.pt"])
def test_real_checkpoints_compute_the_same_in_ultralytics(
    name: str, shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from ultralytics import YOLO

    graph = real_graph(name, shared, tmp_path_factory)
    assert graph.exported.error <= TOLERANCE
    assert graph.exported.spec.preprocess == Preprocess(640, 640)
    assert graph.exported.spec.classes[:2] == ("person", "bicycle")
    with torch.no_grad():
        expected = YOLO(shared / "models" / name).model.float().eval()(torch.from_numpy(frame_of(640)))[0].numpy()
    assert largest_error(run(graph.path, frame_of(640)), expected) <= TOLERANCE


@pytest.mark.slow
def test_ultralytics_predicts_with_the_exported_graph(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    import cv2
    from ultralytics import YOLO

    graph = real_graph("yolo11n.pt", shared, tmp_path_factory)
    spec = graph.exported.spec
    picture = sorted((shared / "data" / "coco256" / "images" / "train2017").iterdir())[1]
    theirs = YOLO(graph.path, task="detect").predict(picture, imgsz=640, conf=0.3, iou=0.7, rect=False, verbose=False)[
        0
    ]
    batch, at = letterbox(cv2.imread(str(picture)), spec.preprocess)
    ours = decode(run(graph.path, batch), spec, at, Thresholds(confidence=0.3))
    assert len(ours) > 0
    assert tuple(theirs.names.values()) == spec.classes
    assert ours.classes.tolist() == theirs.boxes.cls.int().tolist()
    np.testing.assert_allclose(ours.boxes, theirs.boxes.xyxy.numpy(), atol=0.5)
    np.testing.assert_allclose(ours.scores, theirs.boxes.conf.numpy(), atol=1e-3)


def test_ultralytics_own_format_is_read(tmp_path: Path) -> None:
    from ultralytics import YOLO

    path = tmp_path / "own.pt"
    YOLO("yolov8n.yaml", verbose=False).save(path)
    output = UltralyticsDetector(path).reference(frame_of(64))
    assert output.shape == (1, 84, 84)
    assert output.dtype == np.float32


def test_other_tasks_are_refused_by_name(tmp_path: Path) -> None:
    path = saved(tasks.ClassificationModel("yolo11n-cls.yaml", verbose=False), tmp_path)
    with pytest.raises(SpecError, match=r"not a box detector.*ClassificationModel"):
        UltralyticsDetector(path).export(tmp_path / "graph.onnx", 17)
    assert not (tmp_path / "graph.onnx").exists()


@pytest.mark.parametrize("content", [torch.nn.Conv2d(3, 3, 1), torch.nn.Sequential(), torch.nn.Identity()])
def test_other_networks_are_refused(content: Any, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="not a box detector"):
        UltralyticsDetector(saved(content, tmp_path)).reference(frame_of())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("imgsz", "size"),
    [
        (96, (96, 96)),
        (100, (128, 128)),
        ([64, 96], (64, 96)),
        ("[64, 96]", (64, 96)),
        ("64", (64, 64)),
        ([64], (64, 64)),
    ],
)
def test_the_input_size_is_that_of_the_training(imgsz: Any, size: tuple[int, int], tmp_path: Path) -> None:
    path = saved(random_network("yolov8n.yaml"), tmp_path, imgsz=imgsz)
    spec = UltralyticsDetector(path).export(tmp_path / "graph.onnx", 17)
    assert (spec.preprocess.height, spec.preprocess.width) == size
    assert run(tmp_path / "graph.onnx", np.zeros((1, 3, *size), np.float32)).shape[1] == 7


def test_an_opset_that_the_exporter_does_not_have_is_refused(tmp_path: Path) -> None:
    path = saved(tasks.DetectionModel("yolov8n.yaml", nc=3, verbose=False), tmp_path)
    with pytest.raises(CompressError, match="opset 99"):
        UltralyticsDetector(path).export(tmp_path / "graph.onnx", 99)


def test_without_ultralytics_the_command_that_installs_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(torch.nn.Identity(), tmp_path)
    monkeypatch.setitem(sys.modules, "ultralytics.nn.tasks", None)
    with pytest.raises(SpecError, match="pip install"):
        UltralyticsDetector(path).export(tmp_path / "graph.onnx", 17)


def test_a_file_is_loaded_by_its_kind(tmp_path: Path) -> None:
    for name, kind in (("a.pt", UltralyticsDetector), ("a.onnx", OnnxDetector)):
        (tmp_path / name).touch()
        assert isinstance(load(tmp_path / name), kind)


@pytest.mark.slow
def test_the_first_start_of_ultralytics_leaves_stdout_to_results(shared: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "edgekd",
        "check",
        str(shared / "models/yolo11n.pt"),
        "--target",
        "xavier",
        "--json",
    ]
    environment = {**os.environ, "YOLO_CONFIG_DIR": str(tmp_path)}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert json.loads(ran.stdout)["target"] == "xavier"
    assert "Ultralytics Settings" in ran.stderr, "the first start is what this test is about"
