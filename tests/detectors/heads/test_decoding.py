"""Decoding of raw outputs as part of the graph, beside the rules by which each family decodes its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.core.detection.decode import SCORING, decode
from edgekd.core.detection.preprocess import place
from edgekd.core.detection.types import Detections, DetectorSpec
from edgekd.core.errors import SpecError
from edgekd.detectors import load
from edgekd.detectors.export import export
from edgekd.detectors.heads.description import read_description, shipped
from edgekd.detectors.onnx import understand
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU

HEIGHT, WIDTH = 64, 96
LEVELS = ((8, 8, 12), (16, 4, 6), (32, 2, 3))
"""Stride, height and width of each level."""
RNG = np.random.default_rng(0)
FRAME = np.zeros((1, 3, HEIGHT, WIDTH), np.float32)


@pytest.fixture(autouse=True)
def _no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs of these tests are harmless, and a child process for each takes a second."""
    monkeypatch.setattr("edgekd.detectors.onnx.rehearse", lambda *_: None)


def write_graph(path: Path, outputs: Mapping[str, np.ndarray], **others: tuple[int, list[int]]) -> Path:
    """Write a graph that gives these outputs for any image; others: types and shapes of further inputs."""
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], "mean", keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"], "nothing"),
    ]
    weights = [numpy_helper.from_array(np.array(0, np.float32), "zero")]
    values = []
    for name, value in outputs.items():
        weights.append(numpy_helper.from_array(value, f"{name}.value"))
        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        source = "nothing"
        if value.dtype != np.float32:
            source = f"{name}.nothing"
            nodes.append(helper.make_node("Cast", ["nothing"], [source], source, to=kind))
        nodes.append(helper.make_node("Add", [f"{name}.value", source], [name], name))
        values.append(helper.make_tensor_value_info(name, kind, value.shape))
    inputs = [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, HEIGHT, WIDTH])]
    for name, (kind, shape) in others.items():
        inputs.append(helper.make_tensor_value_info(name, kind, shape))
    graph = helper.make_graph(nodes, "toy", inputs, values, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def head_file(folder: Path, text: str) -> str:
    (folder / "head.toml").write_text(text, "utf-8")
    return str(folder / "head.toml")


def decoded(path: Path, head: str | None = None, classes: tuple[str, ...] = ()) -> tuple[Detections, DetectorSpec]:
    """Export a graph and decode its output, in pixels of the input, without suppression of overlaps."""
    graph = path.with_name("exported.onnx")
    spec = export(load(path, head, classes), graph, 17).spec
    with ONNXRUNTIME_CPU.load(graph) as session:
        output = session.run(FRAME)
    spec = replace(spec, head=replace(spec.head, nms=False))
    every = replace(SCORING, max_detections=10**6)
    return decode(output, spec, place(WIDTH, HEIGHT, spec.preprocess), every), spec


def expected(boxes: np.ndarray, scores: np.ndarray) -> Detections:
    """Return all pairs of boxes [n, 4] x1, y1, x2, y2 and scores [n, classes] above the threshold, best first."""
    index, classes = np.nonzero(scores > SCORING.confidence)
    order = np.argsort(-scores[index, classes], kind="stable")
    index, classes = index[order], classes[order]
    limit = np.array([WIDTH, HEIGHT] * 2)
    return Detections(np.clip(boxes[index], 0, limit), scores[index, classes], classes)


def assert_same(found: Detections, wanted: Detections) -> None:
    assert len(found) == len(wanted) > 20
    np.testing.assert_array_equal(found.classes, wanted.classes)
    np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-5)
    np.testing.assert_allclose(found.boxes, wanted.boxes, atol=1e-2)


def sigmoid(value: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-value.astype(np.float64)))


def softmax(value: np.ndarray) -> np.ndarray:
    powers = np.exp(value.astype(np.float64) - value.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def normal(*shape: int, mean: float = 0.0, spread: float = 1.0) -> np.ndarray:
    return RNG.normal(mean, spread, shape).astype(np.float32)


def points(offset: float) -> tuple[np.ndarray, np.ndarray]:
    """Return a point of each cell [n, 2] x, y in pixels, `offset` cells from its corner, and strides [n, 1]."""
    rows = [
        ((x + offset) * stride, (y + offset) * stride, stride)
        for stride, height, width in LEVELS
        for y in range(height)
        for x in range(width)
    ]
    values = np.array(rows, np.float64)
    return values[:, :2], values[:, 2:]


def test_six_maps_with_distributions_of_distances(tmp_path: Path) -> None:
    """NanoDet as exported without post-processing: scores and 4 x 8 bins of each level."""
    maps = {}
    for stride, height, width in LEVELS:
        maps[f"cls_pred_stride_{stride}"] = normal(1, 3, height, width, mean=-2)
        maps[f"dis_pred_stride_{stride}"] = normal(1, 32, height, width, spread=2)
    path = write_graph(tmp_path / "nanodet.onnx", maps)
    found, spec = decoded(path, head_file(tmp_path, "cell_offset = 0.5\n"), ("a", "b", "c"))
    rows = [[maps[f"{kind}_pred_stride_{s}"][0].reshape(-1, h * w).T for s, h, w in LEVELS] for kind in ("cls", "dis")]
    scores, bins = (np.concatenate(each) for each in rows)
    centres, strides = points(0.5)
    distances = (softmax(bins.reshape(-1, 4, 8)) * np.arange(8)).sum(-1) * strides
    boxes = np.concatenate([centres - distances[:, :2], centres + distances[:, 2:]], axis=1)
    assert_same(found, expected(boxes, sigmoid(scores)))
    assert spec.head.strides == (8, 16, 32)


def test_nine_maps_of_a_grid(tmp_path: Path) -> None:
    """YOLOX without concatenation: boxes, objectness and classes of each level."""
    maps = {}
    for stride, height, width in LEVELS:
        maps[f"reg{stride}"] = normal(1, 4, height, width)
        maps[f"obj{stride}"] = normal(1, 1, height, width)
        maps[f"cls{stride}"] = normal(1, 2, height, width)
    found, _ = decoded(write_graph(tmp_path / "yolox.onnx", maps), None, ("a", "b"))
    rows = [[maps[f"{kind}{s}"][0].reshape(-1, h * w).T for s, h, w in LEVELS] for kind in ("reg", "obj", "cls")]
    regression, objectness, classes = (np.concatenate(each) for each in rows)
    corners, strides = points(0)
    centres, half = regression[:, :2] * strides + corners, np.exp(regression[:, 2:]) * strides / 2
    boxes = np.concatenate([centres - half, centres + half], axis=1)
    assert_same(found, expected(boxes, sigmoid(objectness) * sigmoid(classes)))


ANCHORS = ((10, 13, 16, 30, 33, 23), (30, 61, 62, 45, 59, 119), (116, 90, 156, 198, 373, 326))


@pytest.mark.parametrize("split", [False, True], ids=["1 x 21 x h x w", "1 x 3 x h x w x 7"])
def test_maps_with_anchors(tmp_path: Path, split: bool) -> None:
    """YOLOv5 and YOLOv7 as trained: three anchors a cell."""
    maps = {f"level{s}": normal(1, 21, h, w) for s, h, w in LEVELS}
    rows = [maps[f"level{s}"].reshape(3, 7, h * w).transpose(0, 2, 1).reshape(-1, 7) for s, h, w in LEVELS]
    if split:
        maps = {
            f"level{s}": maps[f"level{s}"].reshape(1, 3, 7, h, w).transpose(0, 1, 3, 4, 2).copy() for s, h, w in LEVELS
        }
    path = write_graph(tmp_path / "yolov5.onnx", maps)
    text = f'columns = ["boxes", "objectness", "scores"]\nanchors = {[list(each) for each in ANCHORS]}\n'
    if split:
        text += "strides = [8, 16, 32]\n"
    found, _ = decoded(path, head_file(tmp_path, text), ("a", "b"))
    boxes, scores = [], []
    for level, (stride, height, width), anchors in zip(rows, LEVELS, ANCHORS, strict=True):
        value = sigmoid(level)
        y, x = np.mgrid[:height, :width].reshape(2, -1)
        corners = np.tile(np.stack([x, y], axis=1), (3, 1))
        sizes = np.repeat(np.array(anchors).reshape(3, 2), height * width, axis=0)
        centres, half = (value[:, :2] * 2 - 0.5 + corners) * stride, (value[:, 2:4] * 2) ** 2 * sizes / 2
        boxes.append(np.concatenate([centres - half, centres + half], axis=1))
        scores.append(value[:, 4:5] * value[:, 5:])
    assert_same(found, expected(np.concatenate(boxes), np.concatenate(scores)))


def test_maps_with_priors(tmp_path: Path) -> None:
    """SSD as mmdetection exports it: two priors a cell, which follow each other, and the background last."""
    anchors = ((10, 20, 30, 30), (40, 40, 50, 80), (60, 60, 70, 90))
    maps = {f"{kind}{s}": normal(1, 2 * c, h, w) for kind, c in (("cls", 3), ("reg", 4)) for s, h, w in LEVELS}
    text = f'coding = "priors"\nactivation = "softmax"\nbackground = "last"\nanchors = {list(map(list, anchors))}\n'
    path = write_graph(tmp_path / "ssd.onnx", maps)
    found, spec = decoded(path, head_file(tmp_path, text + "variances = [0.1, 0.2]\ncell_offset = 0.5\n"), ("a", "b"))
    boxes, scores = [], []
    for (stride, height, width), level in zip(LEVELS, anchors, strict=True):
        codes, logits = (maps[f"{kind}{stride}"][0].transpose(1, 2, 0) for kind in ("reg", "cls"))
        for y, x in np.ndindex(height, width):
            for prior, code in zip(np.reshape(level, (2, 2)), codes[y, x].reshape(2, 4), strict=True):
                centre = (np.array([x, y]) + 0.5) * stride + 0.1 * code[:2] * prior
                half = np.exp(0.2 * code[2:]) * prior / 2
                boxes.append([*(centre - half), *(centre + half)])
            scores.extend(softmax(logits[y, x].reshape(2, 3))[:, :2])
    assert_same(found, expected(np.array(boxes), np.array(scores)))
    assert spec.head.strides == (8, 16, 32)


def raw_detr(classes: int) -> tuple[np.ndarray, np.ndarray]:
    return normal(1, 40, classes), RNG.uniform(0.2, 0.4, (1, 40, 4)).astype(np.float32)


def test_a_detr_as_its_own_library_decodes_it(tmp_path: Path) -> None:
    """RT-DETR, RT-DETRv2 and D-FINE: the best pairs of query and class."""
    torch = pytest.importorskip("torch")
    processor = pytest.importorskip("transformers").RTDetrImageProcessor()
    logits, boxes = raw_detr(3)
    path = write_graph(tmp_path / "detr.onnx", {"logits": logits, "pred_boxes": boxes})
    found, spec = decoded(path, None, ("a", "b", "c"))
    output = SimpleNamespace(logits=torch.from_numpy(logits), pred_boxes=torch.from_numpy(boxes))
    (own,) = processor.post_process_object_detection(output, 0.0, target_sizes=torch.tensor([[HEIGHT, WIDTH]]))
    assert not spec.head.nms
    first = found.only(np.arange(len(found)) < 40)
    assert_same(first, Detections(*(own[key].numpy() for key in ("boxes", "scores", "labels"))))


def test_a_detr_with_a_background_as_its_own_library_decodes_it(tmp_path: Path) -> None:
    """DETR: softmax, with the background last."""
    torch = pytest.importorskip("torch")
    logits, boxes = raw_detr(4)
    path = write_graph(tmp_path / "detr.onnx", {"logits": logits, "pred_boxes": boxes})
    text = 'activation = "softmax"\nbackground = "last"\n'
    found, _ = decoded(path, head_file(tmp_path, text), ("a", "b", "c"))
    scores = torch.from_numpy(logits).softmax(-1)[0, :, :-1].numpy()
    centres, half = boxes[0, :, :2], boxes[0, :, 2:] / 2
    corners = np.concatenate([centres - half, centres + half], axis=1) * [WIDTH, HEIGHT, WIDTH, HEIGHT]
    assert_same(found, expected(corners, scores))


def finished(labels: np.ndarray, folder: Path, **others: tuple[int, list[int]]) -> tuple[Path, Detections]:
    scores = np.sort(RNG.uniform(0.1, 1, (1, labels.size)))[:, ::-1].astype(np.float32)
    boxes = np.sort(RNG.uniform(0, 64, (1, labels.size, 2, 2)), axis=2).reshape(1, -1, 4).astype(np.float32)
    path = write_graph(folder / "finished.onnx", {"labels": labels, "boxes": boxes, "scores": scores}, **others)
    return path, Detections(boxes[0], scores[0], labels[0])


def test_finished_detections_with_a_second_input(tmp_path: Path) -> None:
    """RT-DETR and D-FINE as their own tools export them."""
    path, wanted = finished(RNG.integers(0, 2, (1, 30)), tmp_path, orig_target_sizes=(TensorProto.INT64, [1, 2]))
    found, spec = decoded(path, None, ("a", "b"))
    assert_same(found, wanted)
    assert spec.head.kind == "end2end"


def test_class_numbers_with_gaps(tmp_path: Path) -> None:
    """Numbers of COCO, from 1 and with gaps; a number that is no class is dropped."""
    path, wanted = finished(RNG.integers(1, 6, (1, 60)), tmp_path)
    found, _ = decoded(path, head_file(tmp_path, "class_columns = [1, 3, 4]\n"), ("a", "b", "c"))
    kept = wanted.only(np.isin(wanted.classes, (1, 3, 4)))
    assert_same(found, replace(kept, classes=np.searchsorted([1, 3, 4], kept.classes)))


def test_columns_of_scores_with_gaps(tmp_path: Path) -> None:
    logits, boxes = raw_detr(6)
    path = write_graph(tmp_path / "detr.onnx", {"dets": boxes, "labels": logits})
    found, spec = decoded(path, head_file(tmp_path, "class_columns = [1, 3, 4]\n"), ("a", "b", "c"))
    assert spec.classes == ("a", "b", "c")
    every, _ = decoded(path, None, tuple("zayx"[:1] + "abcde"))
    assert len(found) < len(every)
    np.testing.assert_allclose(np.sort(found.scores), np.sort(every.scores[np.isin(every.classes, (1, 3, 4))]))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('boxes = ["nowhere"]\nscores = ["logits"]\n', "no output nowhere"),
        ("class_columns = [9]\n", "class_columns"),
        ('kind = "yolo"\n', "wrong outputs"),
        ("[constants]\nmissing = [1.0]\n", "constants"),
        ('coding = "ltrb"\n', "strides"),
        ('kind = "yolo"\nboxes = ["a"]\n', "kind"),
        ("bins = 1000\n", "bins"),
        ('coding = "ltrb"\nstrides = [8.5]\n', "whole numbers"),
        ('coding = "priors"\nstrides = [8.0]\n', "widths and heights for each of 1 levels"),
        ('coding = "priors"\nstrides = [32.0]\nanchors = [[9, 9]]\n', "6 boxes, by .* found 40"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(tmp_path: Path, text: str, named: str) -> None:
    logits, boxes = raw_detr(3)
    path = write_graph(tmp_path / "detr.onnx", {"logits": logits, "pred_boxes": boxes})
    with pytest.raises(SpecError, match=named):
        load(path, head_file(tmp_path, text), ("a", "b", "c")).export(tmp_path / "out.onnx", 17)


def test_an_input_without_a_value_names_the_key(tmp_path: Path) -> None:
    path, _ = finished(RNG.integers(0, 2, (1, 30)), tmp_path, unusual=(TensorProto.FLOAT, [1, 2]))
    with pytest.raises(SpecError, match=r"constants\.unusual"):
        decoded(path, None, ("a", "b"))
    found, _ = decoded(path, head_file(tmp_path, "[constants]\nunusual = [1.0, 2.0]\n"), ("a", "b"))
    assert len(found) == 30


def test_boxes_alone_of_a_network_with_masks_may_be_described(tmp_path: Path) -> None:
    """Ultralytics' task segment: coefficients of masks behind the scores, and prototypes as a second output."""
    count = sum(height * width for _, height, width in LEVELS)
    rows = np.concatenate(
        [normal(1, 4, count, mean=30, spread=5), sigmoid(normal(1, 2, count)), normal(1, 32, count)], 1
    )
    outputs = {"output0": rows.astype(np.float32), "output1": normal(1, 32, 16, 24)}
    model = onnx.load(write_graph(tmp_path / "masks.onnx", outputs))
    helper.set_model_props(model, {"task": "segment", "names": "{0: 'a', 1: 'b'}"})
    onnx.save(model, tmp_path / "masks.onnx")
    described = 'predictions = ["output0"]\ncolumns = ["boxes", "scores"]\ncoding = "cxcywh"\nactivation = "none"\n'
    found, spec = decoded(tmp_path / "masks.onnx", head_file(tmp_path, f"{described}class_columns = [0, 1]\n"))
    centres, half = rows[0, :2].T, rows[0, 2:4].T / 2
    assert_same(found, expected(np.concatenate([centres - half, centres + half], axis=1), rows[0, 4:6].T))
    assert (spec.classes, spec.head.masks) == (("a", "b"), None)


def test_names_of_classes_must_match_the_columns(tmp_path: Path) -> None:
    logits, boxes = raw_detr(3)
    path = write_graph(tmp_path / "detr.onnx", {"logits": logits, "pred_boxes": boxes})
    with pytest.raises(SpecError, match="3 class names"):
        decoded(path, None, ("a", "b"))


def test_what_nothing_in_the_graph_confirms_is_listed(tmp_path: Path) -> None:
    maps: dict[str, Any] = {}
    for stride, height, width in LEVELS:
        maps[f"cls{stride}"], maps[f"reg{stride}"] = normal(1, 3, height, width), normal(1, 4, height, width)
    path = write_graph(tmp_path / "maps.onnx", maps)
    completed = understand(onnx.load(path), path, None, ("a", "b", "c")).completed
    assert completed is not None
    assert completed.unsure == ("coding", "unit", "cell_offset", "activation")


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_description_can_be_read(name: str) -> None:
    assert read_description(name).kind is None


def test_an_unknown_name_lists_those_that_exist() -> None:
    with pytest.raises(SpecError, match=r"rf-detr"):
        read_description("rfdetr")
