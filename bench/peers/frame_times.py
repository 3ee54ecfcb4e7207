"""Time a frame before, in and after the engine with one tool, in the tool's own environment.

    python frame_times.py TOOL --graph detector.onnx --frames FOLDER [--method NAME]

FOLDER holds the frames, one uint8 `.npy` each. The first line on stdout is a JSON object with the version of every
package in the environment. Each line on stdin is the index of a frame, in the order of names. The answer is a JSON
array: CPU milliseconds before, in and after the engine, and the number of detections. All tools have the same
thresholds and the cores of the process. Only the tool `edgekd` needs edgekd.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

import cv2
import numpy as np
import onnxruntime
from own_cores import keep_to_own_cores

CONFIDENCE = 0.25  # Ultralytics' and edgekd's default
IOU = 0.7  # Ultralytics' and edgekd's default
MAX_DETECTIONS = 300  # Ultralytics' and edgekd's default
GREY = 114  # padding value of the letterbox

CLOCK = time.process_time
"""CPU time of this process, which does not include other programs."""


@dataclass(frozen=True)
class Loop:
    """The parts of a tool's pipeline from frame to detections.

    Args:
        before: Preprocesses a frame; returns the engine's input, and a context for `after`.
        engine: Runs the network on that input.
        after: Postprocesses the engine's output with the context of `before`; returns the number of detections.
    """

    before: Callable[[np.ndarray], tuple[Any, Any]]
    engine: Callable[[Any], Any]
    after: Callable[[Any, Any], int]

    def timed(self, image: np.ndarray) -> tuple[float, float, float, int]:
        """Return the CPU milliseconds before, in and after the engine, and the number of detections."""
        stamps = [CLOCK()]
        batch, kept = self.before(image)
        stamps.append(CLOCK())
        output = self.engine(batch)
        stamps.append(CLOCK())
        objects = self.after(output, kept)
        before, engine, after = (1000 * np.diff([*stamps, CLOCK()])).tolist()
        return before, engine, after, objects


def edgekd(graph: Path, method: str) -> Loop:
    """Return edgekd's own loop. method: `INPUT-POSTPROCESS` of the graph's interface."""
    from edgekd.core.detection.decode import decode
    from edgekd.core.detection.preprocess import letterbox
    from edgekd.detectors.interface import Interface, with_interface
    from edgekd.detectors.onnx import describe
    from edgekd.graph.model_file import read_model
    from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU
    from edgekd.graph.view import load_graph

    model = read_model(graph)
    spec = with_interface(model, describe(load_graph(graph), graph), Interface(*method.split("-")), graph.name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, graph.name)
        path.write_bytes(model.SerializeToString())
        session = ONNXRUNTIME_CPU.load(path, threads=1)
    return Loop(
        before=lambda image: letterbox(image, spec.preprocess),
        engine=session.run,
        after=lambda output, placement: len(decode(output, spec, placement)),
    )


def ultralytics(graph: Path, method: str) -> Loop:
    """Return the three parts of `YOLO(graph).predict` whose times it reports."""
    from ultralytics import YOLO

    model, (_, _, height, width) = YOLO(str(graph), task="detect"), input_of(onnxruntime.InferenceSession(graph)).shape
    settings = {"imgsz": (height, width), "conf": CONFIDENCE, "iou": IOU, "max_det": MAX_DETECTIONS, "device": "cpu"}
    model.predict(np.zeros((height, width, 3), np.uint8), verbose=False, **settings)
    predictor = model.predictor

    def before(image: np.ndarray) -> tuple[Any, Any]:
        batch = predictor.preprocess([image])
        return batch, (batch, [image])

    return Loop(before, predictor.inference, lambda output, kept: len(predictor.postprocess(output, *kept)[0].boxes))


def inference(graph: Path, method: str) -> Loop:
    """Return the three parts of a detector of Roboflow inference, loaded from a folder like one of its registry.

    Not timed: the pydantic objects that `inference` itself makes of each detection.
    """
    session = onnxruntime.InferenceSession(graph)
    (_, _, height, width), (_, rows, _) = input_of(session).shape, session.get_outputs()[0].shape
    network_input = {
        "training_input_size": {"height": height, "width": width},
        "dynamic_spatial_size_supported": False,
        "color_mode": "rgb",
        "resize_mode": "letterbox",
        "padding_value": GREY,
        "input_channels": 3,
        "scaling_factor": 255,
    }
    configuration = {"network_input": network_input, "post_processing": {"type": "nms", "fused": False}}
    kind = {"model_architecture": "yolov11", "task_type": "object-detection", "backend_type": "onnx"}
    with tempfile.TemporaryDirectory() as folder:
        # Read at import: no downloads, and the cache in this folder.
        os.environ.update(OFFLINE_MODE="True", INFERENCE_HOME=folder)
        from inference_models import AutoModel

        Path(folder, "model_config.json").write_text(json.dumps(kind))
        Path(folder, "inference_config.json").write_text(json.dumps(configuration))
        Path(folder, "class_names.txt").write_text("".join(f"class {index}\n" for index in range(rows - 4)))
        Path(folder, "weights.onnx").write_bytes(graph.read_bytes())
        model = AutoModel.from_pretrained(folder, onnx_execution_providers=["CPUExecutionProvider"])
    limits = {"confidence": CONFIDENCE, "iou_threshold": IOU, "max_detections": MAX_DETECTIONS}
    return Loop(
        model.pre_process, model.forward, lambda output, kept: len(model.post_process(output, kept, **limits)[0])
    )


Suppress = Callable[[np.ndarray, np.ndarray, np.ndarray], int]
"""Non-maximum suppression of boxes x1, y1, x2, y2 by scores and classes; returns the number of remaining boxes."""


def by_hand(graph: Path, suppress: Suppress) -> Loop:
    """Return a typical hand-written loop around ONNX Runtime."""
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    name, (_, _, height, width) = input_of(session).name, input_of(session).shape

    def before(image: np.ndarray) -> tuple[Any, Any]:
        ratio = min(height / image.shape[0], width / image.shape[1])
        across, down = round(image.shape[1] * ratio), round(image.shape[0] * ratio)
        canvas = np.full((height, width, 3), GREY, np.uint8)
        top, left = (height - down) // 2, (width - across) // 2
        canvas[top : top + down, left : left + across] = cv2.resize(image, (across, down))
        batch = np.ascontiguousarray(canvas[:, :, ::-1].transpose(2, 0, 1)[None]).astype(np.float32) / 255
        return batch, (left, top, ratio)

    def after(output: np.ndarray, placement: tuple[int, int, float]) -> int:
        left, top, ratio = placement
        rows = output[0].T
        scores = rows[:, 4:].max(axis=1)
        rows, scores = rows[scores > CONFIDENCE], scores[scores > CONFIDENCE]
        boxes = np.concatenate([rows[:, :2] - rows[:, 2:4] / 2, rows[:, :2] + rows[:, 2:4] / 2], axis=1)
        boxes = (boxes - [left, top, left, top]) / ratio
        return suppress(boxes, scores, rows[:, 4:].argmax(axis=1))

    return Loop(before, lambda batch: session.run(None, {name: batch})[0], after)


def opencv(graph: Path, method: str) -> Loop:
    """Return the hand-written loop with OpenCV's non-maximum suppression."""

    def suppress(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> int:
        sides = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
        return len(cv2.dnn.NMSBoxesBatched(sides, scores, classes, CONFIDENCE, IOU))

    return by_hand(graph, suppress)


def supervision(graph: Path, method: str) -> Loop:
    """Return the hand-written loop with supervision's non-maximum suppression."""
    from supervision import Detections

    def suppress(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> int:
        return len(Detections(xyxy=boxes, confidence=scores, class_id=classes).with_nms(threshold=IOU))

    return by_hand(graph, suppress)


TOOLS = {tool.__name__: tool for tool in (edgekd, inference, opencv, supervision, ultralytics)}


def input_of(session: onnxruntime.InferenceSession) -> Any:
    """Return the description of a network's only input: name and shape."""
    return session.get_inputs()[0]


def answers_of(process: int = 1) -> TextIO:
    """Return a stream to stdout for answers, and redirect the process's own stdout to stderr."""
    answers = os.fdopen(os.dup(process), "w", buffering=1)
    os.dup2(2, process)
    return answers


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("tool", choices=TOOLS)
    for name in ("--graph", "--frames"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--method", default="")
    given = parser.parse_args()
    answers = answers_of()
    cv2.setNumThreads(1)
    keep_to_own_cores()
    loop = TOOLS[given.tool](given.graph, given.method)
    # Memory-mapped, so that all tools' processes share one copy in the CPU caches.
    frames = [np.asarray(np.load(file, mmap_mode="c")) for file in sorted(given.frames.glob("*.npy"))]
    print(json.dumps({found.metadata["Name"]: found.version for found in metadata.distributions()}), file=answers)
    for index in sys.stdin:
        print(json.dumps(loop.timed(frames[int(index)])), file=answers)


if __name__ == "__main__":
    main()
