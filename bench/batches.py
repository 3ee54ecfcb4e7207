"""Measure what batching gains with several cameras: frames per second of the service with batches of 1 and of up to N,
and CPU time per frame of the engine alone, which depends less on other programs on the machine.

Cameras are synthetic, 1920 x 1080 pixels, and always have a frame ready.
"""

import time
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
from edgekd.core.detection.preprocess import letterbox
from edgekd.deploy.devices.local import LocalDevice
from edgekd.detectors.interface import Interface, with_interface
from edgekd.graph.runtimes import runtime_named
from edgekd.graph.view import load_graph

RUNS = 10  # timed runs of the engine alone


def graphs(given: Given, model: str) -> dict[int, Path]:
    """Return the graphs of a model for a single frame and for a batch, by the batch size."""
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
    """Run the service. Return `fps`, and `p99`: the largest p99 latency of all cameras in milliseconds."""
    read = partial(synthetic_frames, *FRAME_SIZE, 1e6)
    sources = [CameraSource(str(name), read, live=False, max_fps=float("inf")) for name in range(cameras)]
    status = CameraService(sources, engine.models(), lambda _: None, CameraOptions()).run(seconds)
    detected = sum(each.frames.detected for each in status.cameras)
    latencies = [each.latency_ms.p99 for each in status.cameras if each.latency_ms]
    return {"fps": detected / status.seconds, "p99": max(latencies, default=float("nan"))}


def alone(found: dict[int, Path], runtime: str) -> list[float]:
    """Return median CPU milliseconds per frame on one thread: single-frame graph; batch graph with 1 and N frames."""
    (single, several), most = (LocalDevice(runtime_named(runtime), 1).load(path) for path in found.values()), max(found)
    image, _ = letterbox(next(synthetic_frames(*FRAME_SIZE, 1e6)), detector_in(found[1]).spec.preprocess)
    times: list[list[float]] = [[], [], []]
    for _ in range(1 + RUNS):
        for of, session, count in zip(times, (single, several, several), (1, 1, most), strict=True):
            batch, began = image.repeat(count, axis=0), time.process_time()
            session.run(batch)
            of.append(1000 * (time.process_time() - began) / count)
    return [float(np.median(of[1:])) for of in times]


def compared(given: Given, model: str, runtime: str) -> Document:
    """Compare the service with and without batches, interleaved."""
    rounds: dict[int, list[dict[str, float]]] = {1: [], given.batch: []}
    found_graphs = graphs(given, model)
    engines = {batch: Engine(graph, runtime, given.threads, streams=1) for batch, graph in found_graphs.items()}
    for number in range(given.rounds):
        for batch in rounds if number % 2 == 0 else reversed(rounds):
            rounds[batch].append(served(engines[batch], given.cameras, given.seconds))
    single, together = (np.array([each["fps"] for each in of]) for of in rounds.values())
    found = statistics.compare(together, single)
    frame.note(f"{model}, {runtime}: {found.ratio:.3f} times the frames")
    row = Document(model=Path(model).stem, runtime=runtime, ratio=found.ratio)
    row.update(cpu_ms=alone(found_graphs, runtime))
    row.update(
        interval=[found.interval.low, found.interval.high], fps=[float(np.median(of)) for of in (single, together)]
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
    yield f"""\
Processor milliseconds of the engine alone for a frame, on one thread, medians of {RUNS} interleaved runs: of the graph
for one frame, and of the graph with `--batch {found.batch}` on one frame and on {found.batch}."""
    yield table(
        f"model | runtime | graph for one | with batches, 1 frame | {found.batch} frames",
        (f"{row.model} | {row.runtime} | " + " | ".join(f"{ms:.2f}" for ms in row.cpu_ms) for row in found.rows),
    )
    yield f"Packages: {frame.versions_of(found.packages, PACKAGES)}."


if __name__ == "__main__":
    frame.main(
        run,
        page,
        Option("--cameras", 4),
        Option("--batch", 4),
        Option("--models", ["demo", "yolo11n.pt"], "`demo`, or checkpoints in shared"),
        Option("--engines", ["onnxruntime-cpu", "openvino-cpu"]),
        Option("--rounds", 3),
        Option("--seconds", 5.0),
    )
