"""Open-vocabulary checkpoints find what they are given words for, without a text encoder and without a download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hashed_words import hashed_words

from edgekd.compress.distillation.text import class_texts
from edgekd.core.detection.decode import Thresholds, decode
from edgekd.core.detection.preprocess import letterbox
from edgekd.core.detection.types import DetectorSpec, Head, Preprocess
from edgekd.core.errors import SpecError

torch = pytest.importorskip("torch")
tasks = pytest.importorskip("ultralytics.nn.tasks")
open_vocabulary = pytest.importorskip("edgekd.detectors.ultralytics.open_vocabulary").open_vocabulary

SIDE = 64
CLASSES = ("red car", "blue car", "dog")
WORDS = np.random.default_rng(0).standard_normal((3, 512)).astype(np.float32)
FRAME = np.random.default_rng(1).integers(0, 256, (48, 64, 3)).astype(np.uint8)
ALL = Thresholds(confidence=0.0)
KINDS = {
    "world": ("WorldModel", "yolov8n-worldv2.yaml"),
    "yoloe": ("YOLOEModel", "yoloe-11n.yaml"),
    "yoloe-seg": ("YOLOESegModel", "yoloe-26n-seg.yaml"),
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Networks with random weights, as Ultralytics saves them."""
    folder = tmp_path_factory.mktemp("open")
    for kind, (name, config) in KINDS.items():
        torch.manual_seed(0)
        save(getattr(tasks, name)(config, verbose=False), folder / f"{kind}.pt")
    return {kind: folder / f"{kind}.pt" for kind in KINDS}


def save(network: Any, path: Path) -> None:
    torch.save({"model": network.eval(), "train_args": {"imgsz": SIDE}}, path)


def load(path: Path) -> Any:
    return torch.load(path, weights_only=False)["model"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_found_is_what_the_network_says(kind: str, checkpoints: dict[str, Path]) -> None:
    network = load(checkpoints[kind])
    vectors = torch.nn.functional.normalize(torch.tensor(WORDS), dim=1)[None]
    spec = DetectorSpec(CLASSES, Preprocess(SIDE, SIDE), Head("yolo"))
    batch, placement = letterbox(FRAME, spec.preprocess)
    with torch.no_grad():
        if kind == "world":
            network.model[-1].nc = 3
            said = network.predict(torch.tensor(batch), txt_feats=vectors)
        else:
            said = network.predict(torch.tensor(batch), tpe=vectors)
    while isinstance(said, (tuple, list)):
        said = said[0]
    wanted = decode(said[:, :7].numpy(), spec, placement, ALL)
    found = open_vocabulary(checkpoints[kind], CLASSES, WORDS, ALL)(FRAME)
    assert len(found) == len(wanted) > 10
    assert found.boxes == pytest.approx(wanted.boxes, abs=1e-3)
    assert found.scores == pytest.approx(wanted.scores, abs=1e-5)
    assert found.classes.tolist() == wanted.classes.tolist()


def test_other_words_find_other_classes(checkpoints: dict[str, Path]) -> None:
    ours = open_vocabulary(checkpoints["world"], CLASSES, WORDS, ALL)(FRAME)
    turned = open_vocabulary(checkpoints["world"], CLASSES, np.roll(WORDS, 1, axis=0), ALL)(FRAME)
    assert len(set(ours.classes.tolist())) > 1
    assert ((ours.classes + 1) % 3).tolist() == turned.classes.tolist()


def test_words_that_were_saved_with_the_checkpoint_are_used(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    network = load(checkpoints["world"])
    network.txt_feats = torch.nn.functional.normalize(torch.tensor(WORDS), dim=1)[None]
    network.model[-1].nc, network.names = 3, dict(enumerate(CLASSES))
    save(network, tmp_path / "own.pt")
    ours = open_vocabulary(tmp_path / "own.pt", CLASSES, thresholds=ALL)(FRAME)
    given = open_vocabulary(checkpoints["world"], CLASSES, WORDS, ALL)(FRAME)
    assert np.array_equal(ours.scores, given.scores)


@pytest.mark.parametrize("kind", KINDS)
def test_without_words_nothing_is_downloaded_but_asked_for(kind: str, checkpoints: dict[str, Path]) -> None:
    with pytest.raises(SpecError, match=r"no words for these classes.*set_classes"):
        open_vocabulary(checkpoints[kind], CLASSES)


def test_words_of_another_encoder_are_refused(checkpoints: dict[str, Path]) -> None:
    with pytest.raises(SpecError, match=r"shape \[3, 512\].*found shape \[3, 64\]"):
        open_vocabulary(checkpoints["yoloe"], CLASSES, class_texts(CLASSES, hashed_words))


def test_a_detector_of_fixed_classes_is_refused(tmp_path: Path) -> None:
    save(tasks.DetectionModel("yolo11n.yaml", nc=3, verbose=False), tmp_path / "fixed.pt")
    with pytest.raises(SpecError, match=r"not an open-vocabulary detector.*found DetectionModel"):
        open_vocabulary(tmp_path / "fixed.pt", CLASSES, WORDS)
