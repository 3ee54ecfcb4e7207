"""Families of ONNX detectors: small networks with the outputs of each family's export, and the family's decoding rules.

The rules compute boxes in input pixels and class scores from the outputs, before NMS, as the family's repository does.
They are reimplemented from the files that the descriptions in `heads/shipped` name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from raw_networks import CLASSES, STRIDES, STRIDES_TO_64, Network, Size, cells_of

Raw = Mapping[str, np.ndarray]
Candidates = tuple[np.ndarray, np.ndarray]
"""Boxes x1, y1, x2, y2 in pixels [n, 4], and scores [n, classes]."""


@dataclass(frozen=True)
class OnnxFamily:
    """Families with the same export.

    Args:
        names: Common names, separated by commas.
        form: Name of the export form, if the families have several.
        export: Adds the outputs of the export to a network.
        rules: Decodes the outputs to candidates, given the input's size.
        head: Value for `--head`; None if the graph is recognised.
        size: Height and width of the input.
        best_class: True if each box has only its best class.
        inputs: Values of inputs other than the image, as the family's own tools pass them.
        needs_torch: True if the rules are torchvision's own code.
    """

    names: str
    export: Callable[[Network], None]
    rules: Callable[[Raw, Size], Candidates]
    head: str | None = None
    size: Size = (64, 96)
    form: str = ""
    best_class: bool = False
    inputs: Mapping[str, np.ndarray] = field(default_factory=dict)
    needs_torch: bool = False

    def write(self, path: Path) -> Path:
        """Write the graph."""
        network = Network(self.size)
        for name, value in self.inputs.items():
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            network.inputs.append(helper.make_tensor_value_info(name, kind, value.shape))
        self.export(network)
        onnx.save(network.model(), path)
        return path


def sigmoid(value: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-value.astype(np.float64)))


def softmax(value: np.ndarray) -> np.ndarray:
    powers = np.exp(value.astype(np.float64) - value.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def points(size: Size, strides: Sequence[float], offset: float) -> tuple[np.ndarray, np.ndarray]:
    """Return each cell's point [n, 2], x, y in pixels, `offset` cells from its corner; and strides [n, 1]."""
    rows = [
        ((x + offset) * stride, (y + offset) * stride, stride)
        for stride in strides
        for y in range(cells_of(size, stride)[0])
        for x in range(cells_of(size, stride)[1])
    ]
    values = np.array(rows, np.float64)
    return values[:, :2], values[:, 2:]


def from_centres(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)


def from_distances(at: np.ndarray, distances: np.ndarray) -> np.ndarray:
    return np.concatenate([at - distances[:, :2], at + distances[:, 2:]], axis=1)


def means(bins: np.ndarray, count: int = 8) -> np.ndarray:
    """Return the means [n, 4] of distributions over 0 to `count - 1` (DFL)."""
    return (softmax(bins.reshape(-1, 4, count)) * np.arange(count)).sum(-1)


def levels(raw: Raw, prefix: str) -> np.ndarray:
    """Return the rows of all levels' outputs, concatenated in graph order."""
    return np.concatenate([value[0] for name, value in raw.items() if name.startswith(prefix)])


def of_maps(raw: Raw, prefix: str) -> np.ndarray:
    return np.concatenate([v[0].reshape(v.shape[1], -1).T for name, v in raw.items() if name.startswith(prefix)])


def finished(raw: Raw, first_class: int) -> Candidates:
    scores = np.zeros((raw["scores"].size, len(CLASSES)))
    scores[np.arange(len(scores)), raw["labels"][0] - first_class] = raw["scores"][0]
    return raw["boxes"][0], scores


def _yolo(net: Network) -> None:
    net.give("output0", net.add("Transpose", [net.join([net.decoded(), net.scores()], 2)], perm=[0, 2, 1]))


def _end2end(net: Network) -> None:
    boxes, scores, classes = net.best(0)
    columns = [net.add("Unsqueeze", [each, np.array([2])]) for each in (scores, net.add("Cast", [classes], to=1))]
    net.give("output0", net.join([boxes, *columns], 2))


def _of_end2end(raw: Raw, size: Size) -> Candidates:
    rows = raw["output0"]
    return finished({"boxes": rows[..., :4], "scores": rows[..., 4], "labels": rows[..., 5].astype(int)}, 0)


def _yolox(net: Network) -> None:
    boxes = net.rows(net.maps(4), 4)
    net.give("output", net.join([boxes, net.scores(1), net.scores()], 2))


def _of_yolox(raw: Raw, size: Size) -> Candidates:
    rows = raw["output"][0].astype(np.float64)
    corners, strides = points(size, STRIDES, 0)
    boxes = np.concatenate([rows[:, :2] * strides + corners, np.exp(rows[:, 2:4]) * strides], axis=1)
    return from_centres(boxes), rows[:, 4:5] * rows[:, 5:]


def _yolov5(net: Network) -> None:
    by_anchor = [net.join([net.decoded(), net.scores(1), net.scores()], 2) for _ in range(3)]
    net.give("output0", net.join(by_anchor, 1))


def _yolov6(net: Network) -> None:
    net.give("outputs", net.join([net.decoded(), net.scores(1), net.scores()], 2))


def _of_yolov5(raw: Raw, size: Size) -> Candidates:
    (rows,) = (value[0].astype(np.float64) for value in raw.values())
    return from_centres(rows[:, :4]), rows[:, 4:5] * rows[:, 5:]


def _queries(logits: str, boxes: str, classes: int) -> Callable[[Network], None]:
    """Return a function that adds the outputs of a DETR's last layer."""

    def export(net: Network) -> None:
        net.give(logits, net.rows(net.maps(classes, spread=2.0, mean=-1.0), classes))
        net.give(boxes, net.sigmoid(net.rows(net.maps(4), 4)))

    return export


def _of_fractions(boxes: np.ndarray, size: Size) -> np.ndarray:
    return from_centres(boxes[0]) * np.array([size[1], size[0]] * 2)


def _postprocessed(net: Network) -> None:
    boxes, scores, classes = net.best(0)
    given = net.add("Cast", ["orig_target_sizes"], to=TensorProto.FLOAT)
    factors = net.add("Div", [net.join([given, given], 1), np.array([net.size[1], net.size[0]] * 2, np.float32)])
    net.give("labels", classes, TensorProto.INT64)
    net.give("boxes", net.add("Mul", [boxes, factors]))
    net.give("scores", scores)


def _nanodet(net: Network) -> None:
    for stride, scores, bins in zip(STRIDES, net.maps(len(CLASSES)), net.maps(32, spread=2.0), strict=True):
        net.give(f"cls_pred_stride_{stride}", net.sigmoid(net.rows([scores], len(CLASSES))))
        net.give(f"dis_pred_stride_{stride}", net.rows([bins], 32))


def _of_nanodet(raw: Raw, size: Size) -> Candidates:
    at, strides = points(size, STRIDES, 0.5)
    return from_distances(at, means(levels(raw, "dis")) * strides), levels(raw, "cls")


def _nanodet_plus(net: Network) -> None:
    bins = net.rows(net.maps(32, STRIDES_TO_64, spread=2.0), 32)
    net.give("output", net.join([net.scores(strides=STRIDES_TO_64), bins], 2))


def _of_nanodet_plus(raw: Raw, size: Size) -> Candidates:
    rows, count = raw["output"][0], len(CLASSES)
    at, strides = points(size, STRIDES_TO_64, 0.0)
    return from_distances(at, means(rows[:, count:]) * strides), rows[:, :count]


def _picodet(net: Network) -> None:
    for level, scores in enumerate(net.maps(len(CLASSES), STRIDES_TO_64)):
        net.give(f"scores.{level}", net.sigmoid(net.rows([scores], len(CLASSES))))
    for level, bins in enumerate(net.maps(32, STRIDES_TO_64, spread=2.0)):
        net.give(f"boxes.{level}", net.rows([bins], 32))


def _of_picodet(raw: Raw, size: Size) -> Candidates:
    at, strides = points(size, STRIDES_TO_64, 0.5)
    return from_distances(at, means(levels(raw, "boxes")) * strides), levels(raw, "scores")


def _rtmdet(net: Network) -> None:
    for stride, scores, distances in zip(STRIDES, net.maps(len(CLASSES)), net.maps(4, spread=0.3), strict=True):
        net.give(f"cls{stride}", scores)
        net.give(f"reg{stride}", net.add("Mul", [net.add("Exp", [distances]), np.float32(stride)]))


def _of_rtmdet(raw: Raw, size: Size) -> Candidates:
    return from_distances(points(size, STRIDES, 0.0)[0], of_maps(raw, "reg")), sigmoid(of_maps(raw, "cls"))


def _damo_yolo(net: Network) -> None:
    net.give("output", net.scores())
    net.give("boxes", net.corners(net.decoded()))


def _yolo_nas(net: Network) -> None:
    """Add the outputs of YOLO-NAS, whose names are the numbers that PyTorch assigns."""
    net.give("913", net.corners(net.decoded()))
    net.give("904", net.scores())


def _pp_yoloe(net: Network) -> None:
    down, across = net.add("Split", ["scale_factor"], outputs=2, axis=1)
    factors = net.join([across, down, across, down], 1)
    net.give("boxes", net.add("Div", [net.corners(net.decoded()), factors]))
    net.give("scores", net.add("Transpose", [net.scores()], perm=[0, 2, 1]))


def _torchvision_head(strides: Sequence[float], anchors: Sequence[int], spread: float) -> Callable[[Network], None]:
    """Return a function that adds the outputs of a torchvision head, with a column for the background."""

    def export(net: Network) -> None:
        for name, columns, width in (("cls_logits", 1 + len(CLASSES), 1.0), ("bbox_regression", 4, spread)):
            by_level = []
            for level, count in enumerate(anchors):
                maps = net.maps(count * columns, strides, width)[level]
                by_cell = net.add("Transpose", [maps], perm=[0, 2, 3, 1])
                by_level.append(net.add("Reshape", [by_cell, np.array([1, -1, columns])]))
            net.give(name, net.join(by_level, 1))

    return export


def _of_ssd(generator: Callable[[Any], Any], strides: Sequence[float]) -> Callable[[Raw, Size], Candidates]:
    """Return the rules of torchvision's SSD, with its own default boxes and coder."""

    def rules(raw: Raw, size: Size) -> Candidates:
        import torch
        from torchvision.models.detection import _utils, anchor_utils, image_list

        maps = [torch.zeros(1, 1, *cells_of(size, stride)) for stride in strides]
        (priors,) = generator(anchor_utils)(image_list.ImageList(torch.zeros(1, 3, *size), [size]), maps)
        codes = torch.from_numpy(raw["bbox_regression"][0])
        boxes = _utils.BoxCoder((10.0, 10.0, 5.0, 5.0)).decode_single(codes, priors)
        return boxes.numpy(), softmax(raw["cls_logits"][0])[:, 1:]

    return rules


def _of_retinanet(raw: Raw, size: Size) -> Candidates:
    """Decode as torchvision's RetinaNet, with its own anchors and coder."""
    import torch
    from torchvision.models.detection import _utils, image_list, retinanet

    maps = [torch.zeros(1, 1, *cells_of(size, stride)) for stride in RETINANET]
    images = image_list.ImageList(torch.zeros(1, 3, *size), [size])
    (anchors,) = retinanet._default_anchorgen()(images, maps)
    codes = torch.from_numpy(raw["bbox_regression"][0])
    return _utils.BoxCoder((1.0,) * 4).decode_single(codes, anchors).numpy(), sigmoid(raw["cls_logits"][0])[:, 1:]


def _faster_rcnn(net: Network) -> None:
    boxes, scores, classes = (net.add("Squeeze", [each, np.array([0])]) for each in net.best(1))
    net.give("boxes", boxes)
    net.give("labels", classes, TensorProto.INT64)
    net.give("scores", scores)


SSD300 = (8, 16, 32, 64, 100, 300)
SSDLITE320 = (16, 32, 64, 320 / 3, 160, 320)
RETINANET = (8, 16, 32, 64, 128)
FAMILIES = (
    OnnxFamily(
        "YOLOv8, YOLOv9, YOLO11, YOLO12, YOLOv13, YOLOv3u, YOLOv5u",
        _yolo,
        lambda raw, size: (from_centres(raw["output0"][0, :4].T), raw["output0"][0, 4:].T),
    ),
    OnnxFamily("YOLOv10, YOLO26, RT-DETR", _end2end, _of_end2end, form=" as Ultralytics exports them"),
    OnnxFamily("YOLOX", _yolox, _of_yolox, best_class=True),
    OnnxFamily("YOLOv5, YOLOv7", _yolov5, _of_yolov5),
    OnnxFamily("YOLOv6", _yolov6, _of_yolov5, head="yolov5"),
    OnnxFamily(
        "RT-DETR, RT-DETRv2, RT-DETRv4, D-FINE, DEIM, DEIMv2",
        _queries("logits", "pred_boxes", 2),
        lambda raw, size: (_of_fractions(raw["pred_boxes"], size), sigmoid(raw["logits"][0])),
        head="rt-detr",
    ),
    OnnxFamily(
        "RT-DETR, D-FINE, DEIM",
        _postprocessed,
        lambda raw, size: finished(raw, 0),
        form=" with post-processing",
        inputs={"orig_target_sizes": np.array([[96, 64]])},
    ),
    OnnxFamily(
        "RF-DETR",
        _queries("labels", "dets", 2),
        lambda raw, size: (_of_fractions(raw["dets"], size), sigmoid(raw["labels"][0])),
        head="rf-detr",
    ),
    OnnxFamily(
        "DETR",
        _queries("logits", "pred_boxes", 3),
        lambda raw, size: (_of_fractions(raw["pred_boxes"], size), softmax(raw["logits"][0])[:, :-1]),
        head="detr",
        best_class=True,
    ),
    OnnxFamily("NanoDet", _nanodet, _of_nanodet, head="nanodet"),
    OnnxFamily("NanoDet-Plus", _nanodet_plus, _of_nanodet_plus, head="nanodet-plus"),
    OnnxFamily("PicoDet", _picodet, _of_picodet, head="picodet"),
    OnnxFamily("RTMDet", _rtmdet, _of_rtmdet, head="rtmdet"),
    OnnxFamily("DAMO-YOLO", _damo_yolo, lambda raw, size: (raw["boxes"][0], raw["output"][0]), head="damo-yolo"),
    OnnxFamily("YOLO-NAS", _yolo_nas, lambda raw, size: (raw["913"][0], raw["904"][0])),
    OnnxFamily(
        "PP-YOLOE",
        _pp_yoloe,
        lambda raw, size: (raw["boxes"][0], raw["scores"][0].T),
        head="pp-yoloe",
        inputs={"scale_factor": np.ones((1, 2), np.float32)},
    ),
    OnnxFamily(
        "SSD",
        _torchvision_head(SSD300, (4, 6, 6, 6, 4, 4), 2.0),
        _of_ssd(
            lambda boxes: boxes.DefaultBoxGenerator(
                [[2], [2, 3], [2, 3], [2, 3], [2], [2]],
                scales=[0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05],
                steps=list(SSD300),
            ),
            SSD300,
        ),
        head="ssd300",
        size=(300, 300),
        needs_torch=True,
    ),
    OnnxFamily(
        "SSDlite",
        _torchvision_head(SSDLITE320, (6,) * 6, 2.0),
        _of_ssd(lambda boxes: boxes.DefaultBoxGenerator([[2, 3]] * 6, min_ratio=0.2, max_ratio=0.95), SSDLITE320),
        head="ssdlite320",
        size=(320, 320),
        needs_torch=True,
    ),
    OnnxFamily(
        "RetinaNet",
        _torchvision_head(RETINANET, (9,) * 5, 0.3),
        _of_retinanet,
        head="retinanet",
        size=(128, 128),
        needs_torch=True,
    ),
    OnnxFamily(
        "Faster R-CNN, RetinaNet, FCOS, SSD",
        _faster_rcnn,
        lambda raw, size: finished({name: value[None] for name, value in raw.items()}, 1),
        head="torchvision",
        form=" as torchvision exports them",
    ),
)
