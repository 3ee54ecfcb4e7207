"""Stage `label`: frames get the detections of the teacher, or of the labeller that a step names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgekd.builds.stages import label
from edgekd.builds.stages.base import StageContext
from edgekd.compress.steps import Distill
from edgekd.core.detection.decode import Thresholds, decode
from edgekd.core.detection.preprocess import letterbox
from edgekd.core.errors import SpecError
from edgekd.core.progress import SILENT
from edgekd.data.dataset import load_dataset
from edgekd.detectors.onnx import describe
from edgekd.evaluation.evaluate import finder
from edgekd.graph.view import load_graph

pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")  # PyTorch's
SIDE = 64
WORDS = ("red car", "blue car", "dog")


@pytest.fixture
def frames(tiny_data: Path, tmp_path: Path) -> Path:
    """Scenes with their left and right sides exchanged, which no split has."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for index, image in enumerate(sorted((tiny_data / "images" / "train").iterdir())[:4]):
        cv2.imwrite(str(folder / f"{index}.png"), cv2.imread(str(image))[:, ::-1])
    return folder


def test_a_graph_without_gradients_labels_in_place_of_the_teacher(
    tiny_model: Path, tiny_data: Path, frames: Path, tmp_path: Path
) -> None:
    step, missing = Distill("yolo11n.yaml", unlabelled=str(frames), labeller=str(tiny_model)), tmp_path / "teacher.pt"
    samples = label.run(StageContext.within(tmp_path / "out", False, SILENT), step, missing, load_dataset(tiny_data))
    assert [sample.image.name for sample in samples] == ["0.png", "1.png", "2.png", "3.png"]
    assert sum(int((~sample.truth.crowd).sum()) for sample in samples) > 4


def test_a_labeller_of_other_classes_is_refused(tiny_data: Path, frames: Path, tmp_path: Path) -> None:
    import tiny

    other = tiny.write_model(tmp_path / "other.onnx", ("green", "red"))
    step = Distill("yolo11n.yaml", unlabelled=str(frames), labeller=str(other))
    with pytest.raises(SpecError, match=r"expected red, green.*found green, red"):
        label.run(StageContext.within(tmp_path / "out", False, SILENT), step, other, load_dataset(tiny_data))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["world", "yoloe"])
def test_an_open_vocabulary_detector_exported_by_ultralytics_finds_what_its_network_does(
    kind: str, tmp_path: Path
) -> None:
    torch, ultralytics = pytest.importorskip("torch"), pytest.importorskip("ultralytics")
    with torch.no_grad():
        network = open_vocabulary_network(kind)
        torch.save({"model": network, "train_args": {"imgsz": SIDE}}, tmp_path / "open.pt")
        model = {"world": ultralytics.YOLOWorld, "yoloe": ultralytics.YOLOE}[kind](str(tmp_path / "open.pt"))
        graph = Path(model.export(format="onnx", imgsz=SIDE, simplify=False))
        spec = describe(load_graph(graph), graph)
        frame = np.random.default_rng(1).integers(0, 256, (48, 64, 3)).astype(np.uint8)
        batch, placement = letterbox(frame, spec.preprocess)
        output = network(torch.from_numpy(batch))[0]
    every = Thresholds(confidence=0.0)
    expected = decode(output.numpy(), spec, placement, every)
    with finder(graph, spec, every) as find:
        found = find(frame)
    assert spec.classes == WORDS
    assert len(found) == len(expected) > 10
    assert found.scores == pytest.approx(expected.scores, abs=1e-5)
    assert found.classes.tolist() == expected.classes.tolist()


def open_vocabulary_network(kind: str) -> Any:
    """Return a network with random weights and random words, as it is after Ultralytics' `set_classes`."""
    import torch
    from ultralytics.cfg import DEFAULT_CFG_DICT
    from ultralytics.nn import tasks

    torch.manual_seed(0)
    words = torch.nn.functional.normalize(torch.randn(1, len(WORDS), 512), dim=-1)
    if kind == "world":
        network = tasks.WorldModel("yolov8n-worldv2.yaml", verbose=False)
        network.txt_feats, network.model[-1].nc = words, len(WORDS)
    else:
        network = tasks.YOLOEModel("yoloe-11n.yaml", verbose=False)
        network.set_classes(list(WORDS), network.model[-1].get_tpe(words))
    network.names = dict(enumerate(WORDS))
    network.args = {**DEFAULT_CFG_DICT, "imgsz": SIDE, "task": "detect"}
    return network.eval()
