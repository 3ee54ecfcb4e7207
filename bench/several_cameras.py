"""Measure the service with several cameras: drops, latency and memory over minutes; a camera that dies, blocks or
floods; and frames per second compared with the engine alone.

Cameras are synthetic, 1920 x 1080 pixels, and count their own frames. Camera 0 is the faulty one.
"""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import frame
import numpy as np
import onnx
from common import DEMO, detector_in, exported
from frame import Blocks, Document, Given, Option, Result, claim, claims_table, table

from edgekd.agent.cameras.capacity import FRAME_SIZE, OpenModel
from edgekd.agent.cameras.service import CameraOptions, CameraResult, CameraService
from edgekd.agent.cameras.sources import MAX_FPS, CameraSource, synthetic_frames
from edgekd.agent.cameras.statistics import ServiceStatus
from edgekd.agent.serving import DriftWatch, Model
from edgekd.core import statistics
from edgekd.core.benchmark import FramePipeline
from edgekd.core.bundle.manifest import DetectionThresholds
from edgekd.core.detection.preprocess import letterbox
from edgekd.core.detection.types import DetectorSpec
from edgekd.core.documents import to_plain
from edgekd.deploy.devices.local import LocalDevice
from edgekd.detectors.interface import Interface, with_interface
from edgekd.evaluation.throughput import run_streams
from edgekd.graph.runtimes import runtime_named
from edgekd.graph.view import load_graph

MEMORY_S = 1.0  # interval between readings of the resident memory
MAX_GROWTH = 0.02  # goal: growth of the resident memory from the second to the last fifth of the run
MAX_SLOWED = 0.05  # goal: share of frames that the other cameras lose through a faulty one
MIN_SHARE = 0.97  # goal: frames per second relative to the engine alone
STALL_S = 2.0  # time after which a blocked camera is reopened
HEALTHY, DIES, BLOCKS, FLOODS = "healthy", "dies every second", "blocks", "floods"
BEHAVIOURS = (HEALTHY, DIES, BLOCKS, FLOODS)
RAW = ", frames as bytes"  # `edgekd build --input uint8 --postprocess graph`
PACKAGES = ("onnxruntime", "openvino", "opencv-python-headless", "numpy")

Frames = Callable[[], Iterator[np.ndarray]]


class Engine:
    """Opens sessions of a graph on the benchmark's cores."""

    def __init__(self, graph: Path, name: str, threads: int, streams: int) -> None:
        self.spec: DetectorSpec = detector_in(graph).spec
        self._graph, self._device, self._streams = graph, LocalDevice(runtime_named(name), threads), streams

    def sessions(self) -> tuple[Any, ...]:
        return tuple(self._device.load_streams(self._graph, self._streams))

    def models(self) -> Callable[[], OpenModel]:
        """Return a function that returns the model of the next stream at each call."""
        sessions = iter(self.sessions())
        limits = DetectionThresholds((0.25,) * len(self.spec.classes), 0.7, 300)
        watch = DriftWatch(None, self.spec.preprocess)
        known = ("bench", 0, "bench", "", self.spec, limits)
        return lambda: OpenModel(Model(*known, next(sessions), watch, self.spec.batch))


class Yielded(Counter[str]):
    """Number of frames that each camera has yielded, by name."""

    def counting(self, name: str, frames: Frames) -> Frames:
        def counted() -> Iterator[np.ndarray]:
            for each in frames():
                self[name] += 1
                yield each

        return counted


def behaving(behaviour: str, fps: float, released: threading.Event) -> tuple[Frames, float]:
    """Return the frame source of a camera with this behaviour, and the service's `max_fps` for it.

    released: Ends a camera that blocks.
    """
    steady = partial(synthetic_frames, *FRAME_SIZE, fps)

    def dies() -> Iterator[np.ndarray]:
        yield from itertools.islice(steady(), max(round(fps), 1))
        raise OSError("the camera was unplugged")

    def blocks() -> Iterator[np.ndarray]:
        yield from itertools.islice(steady(), max(round(fps), 1))
        released.wait()

    frames = {HEALTHY: steady, DIES: dies, BLOCKS: blocks, FLOODS: partial(synthetic_frames, *FRAME_SIZE, 1e6)}
    return frames[behaviour], MAX_FPS if behaviour == FLOODS else float("inf")


def serve(
    engine: Engine,
    cameras: int,
    fps: float,
    seconds: float,
    options: CameraOptions,
    behaviour: str = HEALTHY,
    on_status: Callable[[ServiceStatus], None] | None = None,
) -> Document:
    """Run the service. Return its status, and `exact`: whether its counts match frames yielded and results."""
    yielded, delivered, released = Yielded(), Counter[str](), threading.Event()
    sources = []
    for number in range(cameras):
        frames, max_fps = behaving(behaviour if number == 0 else HEALTHY, fps, released)
        sources.append(CameraSource(str(number), yielded.counting(str(number), frames), max_fps=max_fps))

    def count(result: CameraResult) -> None:
        delivered[result.camera] += 1

    status = CameraService(sources, engine.models(), count, options).run(seconds, on_status, MEMORY_S)
    released.set()
    exact = all(
        each.frames.captured == yielded[each.name] and each.frames.dropped == yielded[each.name] - delivered[each.name]
        for each in status.cameras
    )
    return Document(to_plain(status), exact=exact)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * 4096


def steady(given: Given, engine: Engine, options: CameraOptions) -> Document:
    """Run the service with healthy cameras for minutes. Return its status and the growth of resident memory."""
    memory: list[int] = []
    status = serve(
        engine,
        given.cameras,
        given.fps,
        60 * given.minutes,
        options,
        on_status=lambda _: memory.append(resident_bytes()),
    )
    second, last = (np.array_split(np.array(memory), 5)[part].mean() for part in (1, 4))
    return Document(status, memory=[int(second), int(last)], growth=float(last / second - 1))


def faults(given: Given, engine: Engine, options: CameraOptions) -> list[Document]:
    """Run the service with each behaviour of camera 0, interleaved. Return a row each with the others' rates."""
    rounds: dict[str, list[Document]] = {each: [] for each in BEHAVIOURS}
    for number in range(given.rounds):
        for behaviour in BEHAVIOURS if number % 2 == 0 else BEHAVIOURS[::-1]:
            rounds[behaviour].append(
                serve(engine, given.cameras, given.fps, given.seconds, replace(options, stall_s=STALL_S), behaviour)
            )
        frame.note(f"faults: round {number + 1} of {given.rounds}")
    rows = []
    for behaviour, runs in rounds.items():
        others = [run["cameras"][1:] for run in runs]
        row = Document(camera=behaviour, exact=all(run.exact for run in runs))
        row.update(fps=[sum(each["detected"] for each in run) / len(run) / given.seconds for run in others])
        row.update(p50=[max(each["latency_ms"]["p50"] for each in run) for run in others])
        row.update(p99=[max(each["latency_ms"]["p99"] for each in run) for run in others])
        row.update(state=[run["cameras"][0]["state"] for run in runs])
        rows.append(Document(row, attempts=[run["cameras"][0]["attempts"] for run in runs]))
    return rows


def alone(engine: Engine, seconds: float) -> tuple[float, float]:
    """Return frames per second and CPU milliseconds per frame of the engine alone, on a prepared input."""
    sessions = engine.sessions()
    batch, _ = letterbox(next(synthetic_frames(*FRAME_SIZE, 1e6)), engine.spec.preprocess)
    runs = itertools.count()

    def prepared(_: None) -> tuple[np.ndarray, int]:
        return batch, next(runs)

    lanes = [FramePipeline(session, prepared, lambda output, context: None) for session in sessions]
    began_cpu = time.process_time()
    done_s = run_streams(lanes, [None], seconds)
    cpu_ms = 1000 * (time.process_time() - began_cpu) / next(runs)
    for session in sessions:
        session.close()
    return len(done_s) / float(done_s[-1]), cpu_ms


def through(engine: Engine, options: CameraOptions, seconds: float) -> tuple[float, float]:
    """Return frames per second and CPU milliseconds per frame of the service, with two cameras that never wait."""
    sources = [
        CameraSource(name, partial(synthetic_frames, *FRAME_SIZE, 1e6), live=False, max_fps=float("inf"))
        for name in "ab"
    ]
    done: list[tuple[float, float]] = []
    CameraService(
        sources, engine.models(), lambda _: done.append((time.monotonic(), time.process_time())), options
    ).run(seconds)
    passed_s, passed_cpu = np.subtract(done[-1], done[0])
    return (len(done) - 1) / passed_s, 1000 * passed_cpu / (len(done) - 1)


def forms(given: Given, model: str) -> Iterator[tuple[str, Path]]:
    """Yield name and graph of a model as exported, and with uint8 input and postprocessing in the graph."""
    graph = DEMO
    if model != "demo":
        graph = given.scratch / f"{Path(model).stem}.onnx"
        exported(given.shared / "models" / model, graph)
    yield Path(model).stem, graph
    content, raw = load_graph(graph), given.scratch / f"{Path(model).stem}-raw.onnx"
    with_interface(content, detector_in(graph).spec, Interface(input="uint8", postprocess="graph"), model)
    onnx.save(content, raw)
    yield f"{Path(model).stem}{RAW}", raw


def compared(given: Given, name: str, engine: Engine) -> Document:
    """Compare the service with the engine alone, interleaved. Return the row."""
    fps: dict[str, list[float]] = {"alone": [], "service": []}
    cpu_ms: dict[str, list[float]] = {"alone": [], "service": []}
    work = {"alone": partial(alone, engine), "service": partial(through, engine, CameraOptions(streams=given.streams))}
    for number in range(given.rounds):
        for each in ("alone", "service") if number % 2 == 0 else ("service", "alone"):
            rate, cost = work[each](given.seconds)
            fps[each].append(float(rate))
            cpu_ms[each].append(float(cost))
    found = statistics.compare(np.array(fps["service"]), np.array(fps["alone"]))
    frame.note(f"{name}: {found.ratio:.3f} of the engine alone")
    row = Document(model=name, share=found.ratio, interval=[found.interval.low, found.interval.high])
    return Document(row, fps={each: float(np.median(of)) for each, of in fps.items()}, cpu_ms=cpu_ms)


def run(given: Given) -> Iterator[Result]:
    engine = Engine(DEMO, given.engine, given.threads, given.streams)
    options = CameraOptions(streams=given.streams)
    found: dict[str, Any] = {"packages": frame.installed()}
    found["throughput"] = [
        compared(given, name, Engine(graph, given.engine, given.threads, given.streams))
        for model in given.models
        for name, graph in forms(given, model)
    ]
    found["faults"] = faults(given, engine, options)
    found["steady"] = steady(given, engine, options)
    yield {**found, "claims": list(claims(Document(found)))}


def claims(found: Document) -> Iterator[dict[str, Any]]:
    growth = found.steady["growth"]
    yield claim(f"memory grows by at most {MAX_GROWTH:.0%}", growth, growth <= MAX_GROWTH)
    exact = found.steady["exact"] and all(row["exact"] for row in found.faults)
    yield claim("frames are counted exactly by what became of them", float(exact), exact)
    healthy = np.array(found.faults[0]["fps"])
    for row in found.faults[1:]:
        slowed = 1 - statistics.compare(np.array(row["fps"]), healthy).ratio
        yield claim(f"a camera that {row['camera']} slows the others by at most 5 %", slowed, slowed <= MAX_SLOWED)
    for row in (row for row in found.throughput if row["model"].endswith(RAW)):
        text = f"{row['model']}: at least {MIN_SHARE:.0%} of the engine's own frames a second"
        yield claim(text, row["share"], row["share"] >= MIN_SHARE)


def page(found: Document) -> Blocks:
    yield from frame.head("Several cameras", found)
    yield claims_table(found.claims)
    status = found.steady
    yield f"## {found.cameras} cameras at {found.fps:g} FPS for {found.minutes:g} minutes"
    yield table(
        "camera | captured | detected | dropped | p50 ms | p95 ms | p99 ms | max ms",
        (
            f"{each.name} | {each.captured} | {each.detected} | {each.dropped} | "
            + " | ".join(f"{each.latency_ms[name]:.1f}" for name in ("p50", "p95", "p99", "max"))
            for each in status.cameras
        ),
    )
    busy = ", ".join(f"{name[:-2]} {seconds:.0f}" for name, seconds in status.stages.items())
    yield f"""\
Resident memory {status.memory[0] / 1e6:.1f} MB in the second fifth of the run, {status.memory[1] / 1e6:.1f} MB in the
last. Seconds of the stages in {status.seconds:.0f}: {busy}."""
    yield f"## One of {found.cameras} cameras misbehaves"
    yield table(
        "camera 0 | FPS of each other | their p50 ms | their p99 ms | state at the end | times opened",
        (
            f"{row.camera} | {np.mean(row.fps):.2f} | {np.mean(row.p50):.1f} | {np.mean(row.p99):.1f} | "
            f"{', '.join(sorted(set(row.state)))} | {max(row.attempts)}"
            for row in found.faults
        ),
    )
    yield "## Compared with the engine alone"
    yield table(
        "model | engine alone, FPS | service, FPS | share | CPU ms a frame, alone | service",
        (
            f"{row.model} | {row.fps.alone:.2f} | {row.fps.service:.2f} | "
            f"{row.share:.3f} ({row.interval[0]:.3f} to {row.interval[1]:.3f}) | "
            f"{np.median(row.cpu_ms.alone):.2f} | {np.median(row.cpu_ms.service):.2f}"
            for row in found.throughput
        ),
    )
    yield f"""\
Frames of {FRAME_SIZE[0]} x {FRAME_SIZE[1]}, {found.rounds} rounds of {found.seconds:g} s, {found.engine} in
{found.streams} streams on {found.threads} cores, which also do all else: what a frame costs besides the engine bounds
its share. Packages: {frame.versions_of(found.packages, PACKAGES)}."""


if __name__ == "__main__":
    frame.main(
        run,
        page,
        Option("--cameras", 8),
        Option("--fps", 15.0),
        Option("--minutes", 10.0),
        Option("--models", ["demo", "yolo11n.pt", "yolo26n.pt"], "`demo`, or checkpoints in shared"),
        Option("--engine", "onnxruntime-cpu"),
        Option("--streams", 2),
        Option("--rounds", 6),
        Option("--seconds", 5.0),
    )
