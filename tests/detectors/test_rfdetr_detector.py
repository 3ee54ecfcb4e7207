"""Checkpoints by rfdetr: with random weights they export to graphs that predict what rfdetr itself does."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_runs import require_bundle_runs
from family_marks import BUILT, of_families

from edgekd.compress.steps import Distill
from edgekd.core.detection.decode import SCORING, decode
from edgekd.core.detection.preprocess import letterbox
from edgekd.core.detection.types import Detections
from edgekd.core.errors import SpecError
from edgekd.detectors import load
from edgekd.detectors.export import TOLERANCE, Exported, export
from edgekd.detectors.family import load_teacher
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU

torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.release,
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::torch.jit.TracerWarning", "ignore::UserWarning"
    ),
]
SIDES = {
    "RFDETRNano": {"resolution": 64},
    "RFDETRBase": {"resolution": 112, "positional_encoding_size": 8},
    "RFDETRSegNano": {"resolution": 48},
}
"""Side of the input of each model: whole windows of patches. With its own number of patches Base looks for weights."""
FAMILIES = dict.fromkeys(("RFDETRNano", "RFDETRBase"), "RF-DETR")
SMALL = {"hidden_dim": 32, "sa_nheads": 2, "ca_nheads": 2, "num_queries": 30, "group_detr": 1}
NAMES = ("red", "green", "blue")


def rfdetr() -> Any:
    return pytest.importorskip("rfdetr")


def built(builder: str, **settings: Any) -> Any:
    """Return a model whose predictions vary like those of a trained network."""
    torch.manual_seed(0)
    model = getattr(rfdetr(), builder)(pretrain_weights=None, device="cpu", **settings)
    for parameter in model.model.model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, 1.2 / parameter[0].numel() ** 0.5)
    return model


def saved(path: Path, builder: str = "RFDETRNano", names: tuple[str, ...] = NAMES, **more: Any) -> Path:
    """Write a checkpoint with what rfdetr's training writes."""
    model = built(builder, num_classes=len(names), **SIDES[builder], **SMALL)
    content = {
        "model": model.model.model.state_dict(),
        "args": {"class_names": list(names), "epochs": 1},
        "model_name": builder,
        "model_config": model.model_config.model_dump(),
        "rfdetr_version": "1.11.2",
    }
    torch.save({**content, **more}, path)
    return path


def exported(path: Path, folder: Path) -> Exported:
    found = export(load(path), folder / "graph.onnx", 17)
    assert found.error <= TOLERANCE
    return found


def detected(folder: Path, found: Exported, frame: np.ndarray) -> Detections:
    """Return what the graph that `exported` has written finds in a frame."""
    batch, placement = letterbox(frame, found.spec.preprocess)
    with ONNXRUNTIME_CPU.load(folder / "graph.onnx") as session:
        return decode(session.run(batch), found.spec, placement, replace(SCORING, max_detections=10**6))


def predicted(model: Any, frame: np.ndarray, classes: Collection[int]) -> Any:
    """Return what rfdetr's `predict` finds of some class numbers; the last one is that of the background."""
    theirs = model.predict(frame[..., ::-1].copy(), threshold=0.001)
    return theirs[np.isin(theirs.class_id, list(classes))]


def require_alike(ours: Detections, theirs: Any, frame: np.ndarray, first: int = 0) -> None:
    """Require the same boxes, scores and classes, best first. first: number of the first class in theirs."""
    count = len(theirs)
    assert 20 <= count <= len(ours)  # theirs: as many as there are queries
    np.testing.assert_allclose(ours.scores[:count], theirs.confidence, atol=1e-4)
    gaps = -np.diff(ours.scores[: count + 1], prepend=2, append=-1)
    clear = np.minimum(gaps[:-1], gaps[1:])[:count] > 1e-6
    assert clear.sum() >= 20
    np.testing.assert_array_equal(ours.classes[:count][clear], theirs.class_id[clear] - first)
    height, width = frame.shape[:2]
    low, high = ours.boxes[:count, :2], ours.boxes[:count, 2:]
    proper = clear & (high > low).all(axis=1)  # of a negative side, which a random network predicts, rfdetr makes 0
    assert proper.sum() >= 10
    boxes = np.clip(theirs.xyxy, 0, [width, height] * 2)
    np.testing.assert_allclose(ours.boxes[:count][proper], boxes[proper], atol=1e-4 * max(height, width))


def picture(height: int, width: int, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("builder", of_families("rfdetr", FAMILIES, "describe", release=FAMILIES))
def test_a_graph_predicts_what_rfdetr_predicts(builder: str, tmp_path: Path) -> None:
    path, side = saved(tmp_path / "checkpoint_best_total.pth", builder), SIDES[builder]["resolution"]
    found = exported(path, tmp_path)
    assert found.spec.classes == NAMES
    assert found.opset == 17
    assert (found.spec.preprocess.stretch, found.spec.head.nms) == (True, False)
    model = rfdetr().from_checkpoint(path, device="cpu")
    # Of the second one each column is there twice: any resizing by half gives back the column.
    for frame in (picture(side, side), picture(side, side, 6).repeat(2, axis=1)):
        require_alike(detected(tmp_path, found, frame), predicted(model, frame, range(3)), frame)


def test_weights_trained_on_coco_have_its_classes_at_their_numbers(tmp_path: Path) -> None:
    """As the published ones: no names, no settings of the model, which the name of the file tells."""
    model = built("RFDETRNano")
    path = tmp_path / "rf-detr-nano.pth"
    torch.save({"model": model.model.model.state_dict(), "args": Namespace(pretrain_weights=None)}, path)
    found = exported(path, tmp_path)
    from rfdetr.assets.coco_classes import COCO_CLASSES

    assert found.spec.preprocess.width == 384
    assert (len(found.spec.classes), found.spec.classes[0], found.spec.classes[-1]) == (80, "person", "toothbrush")
    frame, model = picture(384, 384), rfdetr().from_checkpoint(path, device="cpu")
    ours, theirs = detected(tmp_path, found, frame), predicted(model, frame, COCO_CLASSES)
    np.testing.assert_allclose(ours.scores[:20], theirs.confidence[:20], atol=1e-4)
    assert [found.spec.classes[index] for index in ours.classes[:20]] == theirs.data["class_name"][:20].tolist()


def test_of_an_older_training_classes_begin_in_the_second_column(tmp_path: Path) -> None:
    """Its settings are a Namespace, with the side of the input; the first column is that of a parent of all classes."""
    settings = Namespace(class_names=list(NAMES), num_classes=4, resolution=96, positional_encoding_size=6)
    model = built("RFDETRNano", resolution=96, num_classes=len(NAMES))
    path = tmp_path / "nano.pth"
    torch.save({"model": model.model.model.state_dict(), "args": settings}, path)
    found = exported(path, tmp_path)
    assert (found.spec.classes, found.spec.preprocess.width) == (NAMES, 96)
    frame = picture(96, 96)
    require_alike(detected(tmp_path, found, frame), predicted(model, frame, range(1, 4)), frame, first=1)


@pytest.mark.family("RF-DETR", *BUILT, package="rfdetr")
def test_a_checkpoint_becomes_a_bundle(tiny_data: Path, tmp_path: Path) -> None:
    require_bundle_runs(saved(tmp_path / "finder.pth", names=("red", "green")), tiny_data, tmp_path)


@pytest.mark.family("RF-DETR", "teach", package="rfdetr")
def test_a_checkpoint_teaches(tiny_data: Path, tmp_path: Path) -> None:
    distill = pytest.importorskip("edgekd.detectors.ultralytics.distill")
    path = saved(tmp_path / "finder.pth", names=("red", "green"))
    assert load_teacher(path).preprocess.stretch
    step = Distill("yolo11n.yaml", width=0.06, epochs=1, batch=6, image_size=64, warmup_steps=0)
    done = distill.distill_student(path, tmp_path / "student.pt", tiny_data, step, tmp_path / "state")
    assert min(done.losses[0]["classes"], done.losses[0]["boxes"]) > 0


def test_names_of_a_data_set_are_those_of_a_file_without_any(tmp_path: Path) -> None:
    path = saved(tmp_path / "finder.pth", args={})
    assert load(path, classes=NAMES).export(tmp_path / "graph.onnx", 17).classes == NAMES
    with pytest.raises(SpecError, match="names of at most 4 classes"):
        load(path).export(tmp_path / "graph.onnx", 17)


def test_a_pickle_beside_weights_runs_where_it_is_trusted_alone(tmp_path: Path) -> None:
    path = saved(tmp_path / "finder.pth", args={"class_names": list(NAMES), "notes": Path("a")})
    with pytest.raises(SpecError, match=r"pathlib.*--trust-checkpoint"):
        load(path).export(tmp_path / "graph.onnx", 17)
    assert load(path, trust_checkpoint=True).export(tmp_path / "graph.onnx", 17).classes == NAMES


def test_masks_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "finder.pth", "RFDETRSegNano")
    with pytest.raises(SpecError, match=r"boxes alone.*RFDETRSegNano"):
        load(path).export(tmp_path / "graph.onnx", 17)


def test_weights_of_another_size_are_refused(tmp_path: Path) -> None:
    """Which rfdetr would interpolate without a word, where a file tells no size."""
    path, model = tmp_path / "finder.pth", built("RFDETRNano", resolution=64, num_classes=3)
    content = {"model": model.model.model.state_dict(), "args": {"class_names": list(NAMES)}}
    torch.save({**content, "model_name": "RFDETRNano"}, path)
    with pytest.raises(SpecError, match=r"the weights of RFDETRNano.*position_embeddings"):
        load(path).export(tmp_path / "graph.onnx", 17)


@pytest.mark.parametrize("content", [{"model": {"a": 1}, "start_epoch": 3}, {"state_dict": {}}, [1]])
def test_a_checkpoint_of_another_package_is_told_the_way_by_onnx(content: Any, tmp_path: Path) -> None:
    rfdetr()
    torch.save(content, tmp_path / "yolox_s.pth")
    with pytest.raises(SpecError, match="export it to ONNX"):
        load(tmp_path / "yolox_s.pth").export(tmp_path / "graph.onnx", 17)
