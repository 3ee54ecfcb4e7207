"""Ultralytics networks with random weights, for tests of their heads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.core.detection.decode import Thresholds, decode
from edgekd.core.detection.preprocess import place
from edgekd.core.detection.types import Detections
from edgekd.detectors.export import Exported, export
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU
from edgekd.graph.view import Graph, load_graph

SIDE = 128


def lively(network: Any) -> Any:
    """Return the network after one update of batch-norm statistics, which makes scores differ between boxes."""
    import torch

    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        network.train()(torch.rand(4, 3, SIDE, SIDE))
        for name, parameter in network.model[-1].named_parameters():
            if name.endswith(".2.weight"):
                # Distances that are predicted directly must be positive.
                parameter.normal_(0, 0.001 if network.model[-1].reg_max == 1 and "cv2." in name else 0.02)
    return network.eval()


def saved(network: Any, folder: Path) -> Path:
    """Write a network's checkpoint, and return its path."""
    import torch

    torch.save({"model": network, "train_args": {"imgsz": SIDE}}, folder / "model.pt")
    return folder / "model.pt"


CONFIDENCE, IOU = 0.05, 0.7
"""Thresholds at which random networks have enough detections."""


@dataclass(frozen=True, eq=False)
class ExportedNetwork:
    """Results of a network and of its export on the same frame.

    raw: outputs of the network; decoded: detections of the export by ONNX Runtime and edgekd's decoding.
    """

    raw: Any
    result: Exported
    graph: Graph
    decoded: Detections


def exported(network: Any, folder: Path) -> ExportedNetwork:
    """Export a network, and run both on a random frame."""
    import torch

    from edgekd.detectors.ultralytics.detector import UltralyticsDetector

    frame = np.random.default_rng(3).uniform(0, 1, (1, 3, SIDE, SIDE)).astype(np.float32)
    with torch.no_grad():
        raw = network(torch.from_numpy(frame))[0]
    result = export(UltralyticsDetector(saved(network, folder)), folder / "graph.onnx", 13)
    with ONNXRUNTIME_CPU.load(folder / "graph.onnx") as session:
        output = session.run(frame)
    # Without NMS Ultralytics can select a box once per class.
    thresholds = Thresholds(CONFIDENCE, IOU, multi_label=network.end2end)
    decoded = decode(output, result.spec, place(SIDE, SIDE, result.spec.preprocess), thresholds)
    return ExportedNetwork(raw, result, Graph(load_graph(folder / "graph.onnx")), decoded)
