"""torchvision's detectors as files: read without running anything, and exported as what they compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_runs import require_agent_runs
from family_marks import BUILT, of_families
from running import EdgeKD

from edgekd.core.detection.decode import Thresholds, decode
from edgekd.core.detection.preprocess import letterbox
from edgekd.core.errors import SpecError
from edgekd.data.dataset import load_dataset
from edgekd.data.images import read_image
from edgekd.detectors import load
from edgekd.detectors.export import TOLERANCE, export
from edgekd.detectors.torchvision.detector import TorchvisionDetector
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from edgekd.detectors.torchvision.network import (  # noqa: E402
    TorchvisionNetwork,
    load_network,
    save_network,
    with_classes,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning", "ignore::UserWarning"
)  # PyTorch's own
SIDE = 64
SMALL = "ssdlite320_mobilenet_v3_large"
NAMES = {SMALL: "SSDlite", "retinanet_resnet50_fpn": "RetinaNet", "fcos_resnet50_fpn": "FCOS"}
"""Families, by one of their builders."""


def make(builder: str = SMALL, classes: tuple[str, ...] = ("red", "green")) -> TorchvisionNetwork:
    """A detector with random weights that differs from place to place and is sure of something here and there."""
    torch.manual_seed(3)
    network = TorchvisionNetwork(builder, classes, (SIDE, SIDE))
    frames = torch.rand(4, 3, SIDE, SIDE)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # statistics of these frames, without which a random network says one thing only
    network.train()
    with torch.no_grad():
        network.features(frames)
        for name, value in network.model.head.named_parameters():
            if value.ndim == 4 and ("cls_logits" in name or "bbox" in name or ".1.weight" in name):
                value.normal_(0, 0.3)
            elif name.endswith("cls_logits.bias"):
                value.fill_(-1)
    return network.eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("torchvision") / "small.tv.pt"
    save_network(make(), path)
    return path


@pytest.mark.parametrize("builder", of_families("torchvision", NAMES, "describe", fast=[SMALL]))
def test_the_graph_finds_what_torchvision_itself_finds(builder: str, tiny_data: Path, tmp_path: Path) -> None:
    """Through edgekd's preprocessing, decoding and NMS, against the boxes of torchvision's own."""
    network = make(builder)
    save_network(network, tmp_path / "one.tv.pt")
    done = export(load(tmp_path / "one.tv.pt"), tmp_path / "one.onnx", 13)
    assert done.error < TOLERANCE
    frame = read_image(load_dataset(tiny_data).split("val").samples[0].image)
    model = network.model
    model.score_thresh, model.nms_thresh, model.topk_candidates, model.detections_per_img = 0.05, 0.5, 1000, 300
    with torch.no_grad():
        wanted = model([torch.from_numpy(np.ascontiguousarray(frame[..., ::-1])).permute(2, 0, 1) / 255])[0]
    batch, placement = letterbox(frame, done.spec.preprocess)
    with ONNXRUNTIME_CPU.load(tmp_path / "one.onnx") as session:
        output = session.run(batch)
    found = decode(output, done.spec, placement, Thresholds(0.05, 0.5, 300, multi_label=True))
    # FCOS and RetinaNet have a score for the background like any other, which only training keeps low.
    scores = np.where(wanted["labels"].numpy() > 0, wanted["scores"].numpy(), 0)
    strong = scores > scores.max() * 0.9
    assert strong.any()
    for box, score, label in zip(*(wanted[key].numpy()[strong] for key in ("boxes", "scores", "labels")), strict=True):
        near = (np.abs(found.boxes - box).max(axis=1) < 0.05) & (np.abs(found.scores - score) < 1e-3)
        assert (near & (found.classes == label - 1)).any(), (box, score, label)


@pytest.mark.slow
@pytest.mark.family("SSDlite", *BUILT, package="torchvision")
def test_it_is_a_detector_to_every_command(edgekd: EdgeKD, saved: Path, tiny_data: Path, tmp_path: Path) -> None:
    assert isinstance(load(saved), TorchvisionDetector)
    scored = edgekd("eval", saved, "--data", tiny_data, "--json")
    assert scored.code == 0, scored.err
    timed = edgekd("bench", saved, "--iterations", 1, "--seconds", 0, "--json")
    assert timed.code == 0, timed.err
    flags = ("--data", tiny_data, "--target", "cpu", "--recipe", "ptq", "--out", tmp_path / "out", "--json")
    built = edgekd("build", saved, *flags)
    assert built.code == 0, built.err
    sizes = {stage["name"]: stage["bytes"] for stage in built.json["stages"]}
    assert sizes["encode-int8"] < sizes["export"] / 2
    require_agent_runs(Path(built.json["bundle"]), tiny_data, tmp_path)


def test_a_recipe_that_factorizes_is_refused(edgekd: EdgeKD, saved: Path, tiny_data: Path, tmp_path: Path) -> None:
    flags = ("--data", tiny_data, "--target", "cpu", "--recipe", "factorize", "--out", tmp_path / "out")
    done = edgekd("build", saved, *flags)
    assert done.code == 2
    assert "a detector by Ultralytics" in done.err


def test_what_is_saved_is_loaded(saved: Path) -> None:
    one, other = make(), load_network(saved)
    assert (other.builder, other.classes, other.image_size) == (SMALL, ("red", "green"), (SIDE, SIDE))
    state = other.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in one.model.state_dict().items())
    assert not other.training


def test_weights_with_frozen_norms_are_taken(saved: Path, tmp_path: Path) -> None:
    """As torchvision's own are, which have no counters."""
    content = torch.load(saved, weights_only=True)
    content["state_dict"] = {n: v for n, v in content["state_dict"].items() if not n.endswith("num_batches_tracked")}
    torch.save(content, tmp_path / "frozen.tv.pt")
    assert load_network(tmp_path / "frozen.tv.pt").classes == ("red", "green")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"family": "else"}, "cannot be read"),
        ({"builder": "fasterrcnn_resnet50_fpn"}, "fasterrcnn"),
        ({"builder": "__init__"}, "__init__"),
        ({"builder": ["ssd"]}, "cannot be read"),
        ({"classes": []}, "classes"),
        ({"classes": [1]}, "classes"),
        ({"classes": ["red"]}, "weights are not those"),
        ({"image_size": 64}, "image_size"),
        ({"image_size": [64, 65]}, "multiples of 32"),
        ({"state_dict": {}}, "weights are not those"),
        ({"state_dict": None}, "cannot be read"),
    ],
)
def test_a_file_that_is_none_is_refused(saved: Path, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    torch.save({**torch.load(saved, weights_only=True), **change}, tmp_path / "bad.tv.pt")
    with pytest.raises(SpecError, match=said):
        load_network(tmp_path / "bad.tv.pt")


class Program:
    """What a hostile pickle does."""

    def __reduce__(self) -> Any:
        return print, ("ran",)


def test_nothing_in_a_file_runs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.save({"family": Program()}, tmp_path / "bad.tv.pt")
    with pytest.raises(SpecError, match="cannot be read"):
        load_network(tmp_path / "bad.tv.pt")
    assert "ran" not in capfd.readouterr().out
    (tmp_path / "cut.tv.pt").write_bytes(b"PK")
    with pytest.raises(SpecError, match="cannot be read"):
        load_network(tmp_path / "cut.tv.pt")


def test_what_is_known_of_classes_stays_with_other_ones(saved: Path) -> None:
    old = load_network(saved)
    new = with_classes(old, ("green", "blue", "red"), (SIDE, SIDE)).eval()
    frames = torch.rand(1, 3, SIDE, SIDE)
    with torch.no_grad():
        known, told = (each.model.head(list(each.model.backbone(frames).values()))["cls_logits"] for each in (old, new))
    assert torch.allclose(told[..., [0, 3, 1]], known, atol=1e-5)
    assert told.shape[-1] == 4


def test_best_anchor_of_each_place_speaks_for_it(saved: Path) -> None:
    network = load_network(saved)
    with torch.no_grad():
        seen = network.features(torch.rand(2, 3, SIDE, SIDE))
    said = seen.branches["one2many"]
    places = sum(height * width for height, width in seen.grid.sizes)
    assert seen.grid.strides[:2] == (16, 32)
    assert said.scores.shape == (2, 2, places)
    assert said.boxes.shape == (2, 4, places)
