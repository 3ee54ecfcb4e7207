"""Measure what batches bring to several cameras: frames a second of the service, one frame a run and up to N at once.

Cameras are synthetic, of 1920 x 1080 pixels, and always have a frame.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import frame
import numpy as np
import onnx
from common import DEMO, detector_in, exported
from frame import Blocks, Document, Given, Option, Result, table
from several_cameras import PACKAGES, Engine

from edgekd.agent.cameras.capacity import FRAME_SIZE
from edgekd.agent.cameras.service import CameraOptions, CameraService
from edgekd.agent.cameras.sources import CameraSource, synthetic_frames
from edgekd.core import statistics
from edgekd.detectors.interface import Interface, with_interface
from edgekd.graph.view import load_graph


def graphs(given: Given, model: str) -> dict[int, Path]:
    """Return the graph of a model for one frame, and for a batch, by the number of frames."""
    exported_to = DEMO
    if model != "demo":
        exported_to = given.scratch / f"{Path(model).stem}.onnx"
        exported(given.shared / "models" / model, exported_to)
    found = {}
    for batch in (1, given.batch):
        content, found[batch] = load_graph(exported_to), given.scratch / f"{Path(model).stem}-{batch}.onnx"
        with_interface(content, detector_in(exported_to).spec, Interface("uint8", "graph", batch=batch), model)
        onnx.save(content, found[batch])
    return found


def served(engine: Engine, cameras: int, seconds: float) -> dict[str, float]:
    """Serve cameras; return frames a second, and the largest p99 of their latencies in milliseconds."""
    read = partial(synthetic_frames, *FRAME_SIZE, 1e6)
    sources = [CameraSource(str(name), read, live=False, max_fps=float("inf")) for name in range(cameras)]
    status = CameraService(sources, engine.models(), lambda _: None, CameraOptions()).run(seconds)
    detected = sum(each.frames.detected for each in status.cameras)
    return {"fps": detected / status.seconds, "p99": max(each.latency_ms.p99 for each in status.cameras)}


def compared(given: Given, model: str, runtime: str) -> Document:
    """Serve with and without batches, interleaved."""
    rounds: dict[int, list[dict[str, float]]] = {1: [], given.batch: []}
    engines = {batch: Engine(graph, runtime, given.threads, streams=1) for batch, graph in graphs(given, model).items()}
    for number in range(given.rounds):
        for batch in rounds if number % 2 == 0 else reversed(rounds):
            rounds[batch].append(served(engines[batch], given.cameras, given.seconds))
    alone, together = (np.array([each["fps"] for each in of]) for of in rounds.values())
    found = statistics.compare(together, alone)
    frame.note(f"{model}, {runtime}: {found.ratio:.3f} times the frames")
    row = Document(model=Path(model).stem, runtime=runtime, ratio=found.ratio)
    row.update(
        interval=[found.interval.low, found.interval.high], fps=[float(np.median(of)) for of in (alone, together)]
    )
    return Document(row, p99=[float(np.median([each["p99"] for each in of])) for of in rounds.values()])


def run(given: Given) -> Iterator[Result]:
    rows: list[Any] = []
    for model in given.models:
        for runtime in given.engines:
            rows.append(compared(given, model, runtime))
            yield {"packages": frame.installed(), "rows": rows}


def page(found: Document) -> Blocks:
    yield from frame.head("Batches of several cameras", found)
    yield f"""\
{found.cameras} cameras that always have a frame of {FRAME_SIZE[0]} x {FRAME_SIZE[1]}, by `--input uint8 --postprocess
graph`: one frame a run, and up to {found.batch} at once. {found.rounds} rounds of {found.seconds:g} s on
{found.threads} cores."""
    yield table(
        "model | runtime | FPS, 1 a run | FPS, batches | ratio | p99 ms, 1 a run | p99 ms, batches",
        (
            f"{row.model} | {row.runtime} | {row.fps[0]:.2f} | {row.fps[1]:.2f} | "
            f"{row.ratio:.3f} ({row.interval[0]:.3f} to {row.interval[1]:.3f}) | {row.p99[0]:.0f} | {row.p99[1]:.0f}"
            for row in found.rows
        ),
    )
    yield f"Packages: {frame.versions_of(found.packages, PACKAGES)}."


if __name__ == "__main__":
    frame.main(
        run,
        page,
        Option("--cameras", 8),
        Option("--batch", 4),
        Option("--models", ["demo", "yolo11n.pt"], "`demo`, or checkpoints in shared"),
        Option("--engines", ["onnxruntime-cpu", "openvino-cpu"]),
        Option("--rounds", 4),
        Option("--seconds", 4.0),
    )
