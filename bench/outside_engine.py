"""Time what a frame of 1080p takes outside the engine: preparing it, and choosing its detections, on one core.

Contenders take turns frame by frame in one process, each with an ONNX Runtime session of its own on the same detector,
so that caches are as cold as in an application. Needs `edgekd[train]`; a contender whose package is not installed is
left out: `pip install supervision`.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import cv2
import frame
import numpy as np
from common import DEMO, detector_in, exported, ultralytics_environment
from frame import Blocks, Document, Given, Option, Result

from edgekd.core import statistics
from edgekd.core.detection.decode import decode
from edgekd.core.detection.nv12 import nv12_from_bgr
from edgekd.core.detection.preprocess import letterbox
from edgekd.detectors.interface import Interface, with_interface
from edgekd.graph.model_file import read_model
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU

WIDTH, HEIGHT = 1920, 1080
CONFIDENCE, IOU = 0.25, 0.7  # Ultralytics' and edgekd's defaults
ULTRALYTICS = "Ultralytics predict"
BY_HAND = "ONNX Runtime and OpenCV, by hand"
SUPERVISION = "ONNX Runtime and supervision, by hand"
PACKAGES = ("edgekd", "ultralytics", "torch", "onnxruntime", "supervision", "opencv-python-headless", "numpy")
EDGEKD = {
    "edgekd, float32, host": Interface(),
    "edgekd, uint8, host": Interface("uint8"),
    "edgekd, uint8, graph": Interface("uint8", "graph"),
    "edgekd, NV12 frames, graph": Interface("nv12", "graph"),
}
LIMITS = {ULTRALYTICS: 1 / 3, SUPERVISION: 1 / 2}
"""Largest share of a peer's time that edgekd with bytes and selection may take."""

CLOCK = time.process_time
"""Processor time: what a core computes, whatever else it is busy with meanwhile."""

Timed = tuple[float, float, float, int]
"""Milliseconds before, in and after the engine; number of detections."""


@dataclass
class Contender:
    """A way from frame to detections; its times, in the order of frames."""

    name: str
    detect: Callable[[np.ndarray], Timed]
    ms: list[Timed] = field(default_factory=list)


def edgekd(graph: Path, interface: Interface) -> Callable[[np.ndarray], Timed]:
    """Run edgekd's own loop on a graph with an interface."""
    model, spec = read_model(graph), detector_in(graph).spec
    spec = with_interface(model, spec, interface, graph.name)
    path = graph.with_stem(f"{graph.stem}-{interface.input}-{interface.postprocess}")
    path.write_bytes(model.SerializeToString())
    session = ONNXRUNTIME_CPU.load(path, threads=1)

    def detect(image: np.ndarray) -> Timed:
        stamps = [CLOCK()]
        batch, placement = letterbox(image, spec.preprocess)
        stamps.append(CLOCK())
        output = session.run(batch)
        stamps.append(CLOCK())
        found = decode(output, spec, placement)
        return timed([*stamps, CLOCK()], len(found))

    return detect


def timed(stamps: Sequence[float], objects: int) -> Timed:
    before, engine, after = (1000 * np.diff(stamps)).tolist()
    return before, engine, after, objects


def ultralytics(graph: Path) -> Callable[[np.ndarray], Timed]:
    """Run the three parts of `YOLO(graph).predict` that it reports the times of."""
    from ultralytics import YOLO

    model, preprocess = YOLO(str(graph), task="detect"), detector_in(graph).spec.preprocess
    size = (preprocess.height, preprocess.width)
    settings = {"imgsz": size, "conf": CONFIDENCE, "iou": IOU, "device": "cpu", "verbose": False}

    model.predict(np.zeros((HEIGHT, WIDTH, 3), np.uint8), **settings)
    predictor = model.predictor

    def detect(image: np.ndarray) -> Timed:
        stamps = [CLOCK()]
        batch = predictor.preprocess([image])
        stamps.append(CLOCK())
        output = predictor.inference(batch)
        stamps.append(CLOCK())
        (result,) = predictor.postprocess(output, batch, [image])
        return timed([*stamps, CLOCK()], len(result.boxes))

    return detect


def by_hand(
    graph: Path, suppress: Callable[[np.ndarray, np.ndarray, np.ndarray], int]
) -> Callable[[np.ndarray], Timed]:
    """Run the loop that people write around ONNX Runtime. suppress: of boxes x1, y1, x2, y2, scores and classes."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    name, (_, _, height, width) = session.get_inputs()[0].name, session.get_inputs()[0].shape

    def detect(image: np.ndarray) -> Timed:
        stamps = [CLOCK()]
        ratio = min(height / image.shape[0], width / image.shape[1])
        across, down = round(image.shape[1] * ratio), round(image.shape[0] * ratio)
        canvas = np.full((height, width, 3), 114, np.uint8)
        top, left = (height - down) // 2, (width - across) // 2
        canvas[top : top + down, left : left + across] = cv2.resize(image, (across, down))
        batch = np.ascontiguousarray(canvas[:, :, ::-1].transpose(2, 0, 1)[None]).astype(np.float32) / 255
        stamps.append(CLOCK())
        output = session.run(None, {name: batch})[0]
        stamps.append(CLOCK())
        rows = output[0].T
        scores = rows[:, 4:].max(axis=1)
        rows, scores = rows[scores > CONFIDENCE], scores[scores > CONFIDENCE]
        boxes = np.concatenate([rows[:, :2] - rows[:, 2:4] / 2, rows[:, :2] + rows[:, 2:4] / 2], axis=1)
        boxes = (boxes - [left, top, left, top]) / ratio
        objects = suppress(boxes, scores, rows[:, 4:].argmax(axis=1))
        return timed([*stamps, CLOCK()], objects)

    return detect


def opencv_nms(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> int:
    sides = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    return len(cv2.dnn.NMSBoxesBatched(sides, scores, classes, CONFIDENCE, IOU))


def supervision_nms(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> int:
    import supervision

    return len(supervision.Detections(xyxy=boxes, confidence=scores, class_id=classes).with_nms(threshold=IOU))


def frames_of(folder: Path, count: int) -> list[np.ndarray]:
    """Return photographs as frames of 1080p, stretched."""
    files = sorted(folder.glob("*.jpg"))[:count]
    return [cv2.resize(cv2.imread(str(file)), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC) for file in files]


def rows_of(contenders: Sequence[Contender], frames: int) -> Iterator[Document]:
    """Yield each contender's medians, and the share of its peers' time that it takes outside the engine."""
    outside = {each.name: np.array(each.ms)[:, [0, 2]].sum(axis=1) for each in contenders}
    for each in contenders:
        before, engine, after, _ = np.median(np.array(each.ms), axis=0).tolist()
        row = Document(contender=each.name, before_ms=before, engine_ms=engine, after_ms=after)
        row.update(
            outside_ms=float(np.median(outside[each.name])), objects=sum(found for *_, found in each.ms[:frames])
        )
        for peer in LIMITS:
            if peer in outside:
                found = statistics.compare(outside[each.name], outside[peer])
                row[peer] = Document(share=found.ratio, interval=[found.interval.low, found.interval.high])
        yield row


def run(given: Given) -> Result:
    os.environ.update(ultralytics_environment(given.scratch / "settings"))
    cv2.setNumThreads(1)
    frames = frames_of(given.shared / "data/coco256/images/val2017", given.frames)
    nv12 = [nv12_from_bgr(image) for image in frames]
    models = {}
    for model in given.models:
        graph = given.scratch / f"{Path(model).stem}.onnx"
        if model == "demo":
            shutil.copy(DEMO, graph)
        else:
            exported(given.shared / "models" / model, graph)
        ways = {ULTRALYTICS: ultralytics(graph), BY_HAND: by_hand(graph, opencv_nms)}
        if find_spec("supervision"):
            ways[SUPERVISION] = by_hand(graph, supervision_nms)
        ways |= {name: edgekd(graph, interface) for name, interface in EDGEKD.items()}
        contenders = [Contender(name, detect) for name, detect in ways.items()]
        take_turns(contenders, frames, nv12, given.rounds)
        models[Path(model).stem] = list(rows_of(contenders, len(frames)))
    return {"packages": frame.installed(), "models": models}


def take_turns(
    contenders: Sequence[Contender], frames: Sequence[np.ndarray], nv12: Sequence[np.ndarray], rounds: int
) -> None:
    """Run all contenders on every frame, every other round in reverse; the first round is not counted."""
    for number in range(rounds + 1):
        for index, image in enumerate(frames):
            for each in contenders if number % 2 else contenders[::-1]:
                each.ms.append(each.detect(nv12[index] if "NV12" in each.name else image))
        if number == 0:
            for each in contenders:
                each.ms.clear()


def page(found: Document) -> Blocks:
    yield from frame.head("Outside the engine", found)
    for model, rows in found.models.items():
        yield f"## {model}"
        peers = [peer for peer in LIMITS if peer in rows[0]]
        header = ["", "before the engine, ms", "after it, ms", "both, ms", "engine, ms", "objects found"]
        header += [f"time outside, beside {peer}" for peer in peers]
        yield frame.table(" | ".join(header), (" | ".join(cells_of(row, peers)) for row in rows))
    limits = ", ".join(f"{share:.2f} beside {peer}" for peer, share in LIMITS.items())
    yield f"""\
Medians over {found.frames} frames of {WIDTH} x {HEIGHT} and {found.rounds} rounds, on {found.threads} core. The goal of
edgekd with uint8 and graph is at most {limits}. The engine is ONNX Runtime with one thread; with bytes and
selection it does more. Times are of the processor, so that other programs do not count.
Packages: {frame.versions_of(found.packages, PACKAGES)}."""


def cells_of(row: Document, peers: Sequence[str]) -> Iterator[str]:
    yield row.contender
    yield from (f"{value:.2f}" for value in (row.before_ms, row.after_ms, row.outside_ms, row.engine_ms))
    yield str(row.objects)
    for peer in peers:
        low, high = row[peer].interval
        yield f"{row[peer].share:.3f} ({low:.3f} to {high:.3f})"


def within(found: Document) -> bool:
    rows = [row for rows in found.models.values() for row in rows if row.contender == "edgekd, uint8, graph"]
    return all(row[peer].share <= share for row in rows for peer, share in LIMITS.items() if peer in row)


if __name__ == "__main__":
    options = (
        Option("--models", ["demo", "yolo11n.pt"], "`demo`, or checkpoints in shared"),
        Option("--rounds", 6),
        Option("--frames", 8),
    )
    frame.main(run, page, *options, holds=within, cores=1)
