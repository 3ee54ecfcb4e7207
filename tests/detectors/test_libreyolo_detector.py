"""Checkpoints by LibreYOLO: with random weights they export to graphs that predict what LibreYOLO itself does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_marks import of_families

from edgekd.compress.steps import Distill
from edgekd.core.detection.decode import Thresholds, decode
from edgekd.core.detection.preprocess import letterbox
from edgekd.core.errors import SpecError
from edgekd.detectors import load
from edgekd.detectors.export import TOLERANCE, export

torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.release,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore::UserWarning"),
]
SMALLEST = {
    "LibreDEIM": "n",
    "LibreDFINE": "n",
    "LibrePICODET": "s",
    "LibrePPYOLOE": "s",
    "LibreRTDETRv4": "s",
    "LibreRTMDet": "t",
    "LibreYOLO9": "t",
    "LibreYOLOX": "n",
}
NAMES = {
    "LibreDEIM": "DEIM",
    "LibreDFINE": "D-FINE",
    "LibrePICODET": "PicoDet",
    "LibrePPYOLOE": "PP-YOLOE",
    "LibreRTDETRv4": "RT-DETRv4",
    "LibreRTMDet": "RTMDet",
    "LibreYOLO9": "YOLOv9",
    "LibreYOLOX": "YOLOX",
}
TEACHERS = {"LibrePICODET": "PicoDet"}
DENSE = ("LibrePICODET", "LibrePPYOLOE", "LibreRTMDet", "LibreYOLO9", "LibreYOLOX")
"""Those that predict at each cell."""
CONFIDENCE = 1e-5
TIE = 3e-6
"""Scores that differ by a smaller share may trade places."""


def saved(builder: str, folder: Path, classes: tuple[str, ...] = ("red", "green", "blue")) -> tuple[Any, Path]:
    """Write a checkpoint whose predictions vary like those of a trained network; return it opened by LibreYOLO, too."""
    libreyolo = pytest.importorskip("libreyolo")
    torch.manual_seed(0)
    model = getattr(libreyolo, builder)(None, size=SMALLEST[builder], nb_classes=len(classes), device="cpu")
    model.names = dict(enumerate(classes))
    gain = 0.6 if builder in DENSE else 1.2
    for parameter in model.model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, gain / parameter[0].numel() ** 0.5)
    for layer in model.model.eval().modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
            layer.train()
    frames = [model._preprocess(smooth(model.input_size, seed), color_format="rgb")[0] for seed in (0, 1)]
    with torch.no_grad():
        model.model(torch.cat(frames))
    path = folder / "model.libreyolo.pt"
    model.save(str(path))
    return libreyolo.LibreYOLO(str(path), device="cpu"), path


def smooth(side: int, seed: int) -> np.ndarray:
    """Return a frame uint8 [side, side, 3] with structure."""
    coarse = np.random.default_rng(seed).integers(0, 256, (side // 16, side // 16, 3), np.uint8)
    return np.kron(coarse, np.ones((16, 16, 1), np.uint8))


def without_negative_sides(boxes: np.ndarray) -> np.ndarray:
    """Return boxes as LibreYOLO does: a negative side, which only a random network predicts, has the length 0."""
    low, high = boxes[:, :2], boxes[:, 2:]
    middle = (low + high) / 2
    return np.concatenate([np.minimum(low, middle), np.maximum(high, middle)], axis=1)


@pytest.mark.parametrize("builder", of_families("LibreYOLO", NAMES, "describe", release=NAMES))
def test_a_graph_predicts_what_libreyolo_predicts(builder: str, tmp_path: Path) -> None:
    """Boxes, scores, classes and their order, by its own preprocessing and postprocessing, before suppression."""
    model, path = saved(builder, tmp_path)
    found = export(load(path), tmp_path / "graph.onnx", 17)
    assert found.spec.classes == ("red", "green", "blue")
    assert found.error <= TOLERANCE
    side = model.input_size
    frame = smooth(side, 5)
    batch, placement = letterbox(frame, found.spec.preprocess)
    spec = replace(found.spec, head=replace(found.spec.head, nms=False))

    frames, _, size, ratio = model._preprocess(frame[..., ::-1].copy(), color_format="rgb")
    np.testing.assert_allclose(batch, frames.numpy(), atol=1e-4)
    output = load(path).reference(frames.numpy())  # which `export` has compared with the graph
    model.model.eval()
    with torch.no_grad():
        raw = model._forward(frames)
    theirs = model._postprocess(raw, CONFIDENCE, 1.0, size, max_det=100, ratio=ratio)
    count = theirs["num_detections"]
    assert count >= 20
    multi_label = builder != "LibreYOLOX"
    every = decode(output, spec, placement, Thresholds(CONFIDENCE, 0.7, 10**6, multi_label))
    # Boxes outside the frame are left out by it where boxes overlap.
    ours = every.only((every.boxes[:, 2:] > every.boxes[:, :2]).all(axis=1)) if found.spec.head.nms else every
    np.testing.assert_allclose(ours.scores[:count], theirs["scores"], atol=1e-4)
    gaps = -np.diff(ours.scores[: count + 1], prepend=1)[:count]
    clear = np.minimum(gaps, np.append(gaps[1:], 1)) > TIE * ours.scores[:count]
    assert clear.sum() >= 20
    np.testing.assert_array_equal(ours.classes[:count][clear], np.array(theirs["classes"])[clear])
    boxes = without_negative_sides(ours.boxes[:count])
    np.testing.assert_allclose(boxes[clear], np.clip(theirs["boxes"], 0, side)[clear], atol=1e-4 * side)


@pytest.mark.parametrize("builder", of_families("LibreYOLO", TEACHERS, "teach", release=NAMES))
def test_a_checkpoint_teaches(builder: str, tiny_data: Path, tmp_path: Path) -> None:
    distill = pytest.importorskip("edgekd.detectors.ultralytics.distill")
    _, path = saved(builder, tmp_path, ("red", "green"))
    step = Distill("yolo11n.yaml", width=0.06, epochs=1, batch=6, image_size=64, warmup_steps=0)
    done = distill.distill_student(path, tmp_path / "student.pt", tiny_data, step, tmp_path / "state")
    assert min(done.losses[0]["classes"], done.losses[0]["boxes"]) > 0


def test_a_pickle_beside_weights_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("libreyolo")
    path = tmp_path / "model.libreyolo.pt"
    torch.save({"model_family": "yolox", "task": "detect", "imgsz": 416, "model": {}, "args": Path("a")}, path)
    with pytest.raises(SpecError, match="pathlib"):
        load(path).export(tmp_path / "graph.onnx", 17)


def test_another_task_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("libreyolo")
    path = tmp_path / "model.libreyolo.pt"
    torch.save({"model_family": "yolox", "task": "segment", "imgsz": 416, "model": {}}, path)
    with pytest.raises(SpecError, match="task 'segment'"):
        load(path).export(tmp_path / "graph.onnx", 17)
