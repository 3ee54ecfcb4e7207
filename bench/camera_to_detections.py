"""Compare frames per second from JPEG to detections: edgekd, Ultralytics' `predict`, a hand-written loop, OpenVINO.

All get the same ONNX graph, JPEG files and cores. Each is a process that stays loaded. They are measured interleaved,
every other round in reverse order. Needs `edgekd[train,openvino]`. `--gpu` runs only the networks on the GPU, and
needs `onnxruntime-gpu`.
"""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import frame
import numpy as np
from common import DEMO, PEERS, RESULTS, detector_in, exported, ultralytics_environment
from frame import Blocks, Document, Given, Option, Result

from edgekd.core import statistics
from edgekd.data.frames import load_frames
from edgekd.deploy.artifact import opened
from edgekd.deploy.devices.local import LocalDevice
from edgekd.evaluation.latency import camera
from edgekd.evaluation.throughput import run_streams
from edgekd.graph.runtimes import runtime_named

BASELINE, ALONE = "Ultralytics predict", "OpenVINO benchmark_app"
CONFIDENCE, IOU = 0.25, 0.7
FRAMES = 64
PACKAGES = (
    *("edgekd", "ultralytics", "torch", "onnxruntime", "onnxruntime-gpu"),
    *("openvino", "opencv-python-headless", "numpy"),
)
GOAL = 1.5

Turn = Callable[[float], "tuple[int, float, int | None]"]
"""Runs for the given seconds. Returns the number of frames, the seconds they took, and the objects (None: unknown)."""


def edgekd(engine: str, streams: int, graph: Path, folder: Path) -> Turn:
    """Return turns of edgekd, as `edgekd bench` runs it. streams: 0 for one per core."""
    streams = streams or len(os.sched_getaffinity(0))
    stack = ExitStack()
    _, spec = stack.enter_context(opened(graph, None, (), False))
    source = load_frames(folder)
    sessions = LocalDevice(runtime_named(engine)).load_streams(graph, streams)
    lanes = [camera(stack.enter_context(session), spec, source.make_decoder()) for session in sessions]
    objects, lane = 0, lanes[0]
    for item in source.items:
        batch, placement = lane.preprocess(lane.decode(item))
        objects += len(lane.postprocess(lane.session.run(batch), placement))

    def turn(seconds: float) -> tuple[int, float, int | None]:
        done_s = run_streams(lanes, source.items, seconds)
        return len(done_s), float(done_s[-1]), objects

    return turn


def ultralytics(device: str, graph: Path, folder: Path) -> Turn:
    """Return turns of `YOLO(graph).predict` over the folder with `stream=True`, as its documentation shows."""
    from ultralytics import YOLO

    model, preprocess = YOLO(str(graph), task="detect"), detector_in(graph).spec.preprocess
    settings = {
        "imgsz": (preprocess.height, preprocess.width),
        "conf": CONFIDENCE,
        "iou": IOU,
        "device": device,
        "stream": True,
        "verbose": False,
    }
    return looped(lambda: (len(result.boxes) for result in model.predict(source=str(folder), **settings)))


def bare(provider: str, graph: Path, folder: Path) -> Turn:
    """Return turns of a hand-written loop: ONNX Runtime, decoding of a YOLO head, OpenCV's NMS."""
    import cv2
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    session = onnxruntime.InferenceSession(str(graph), options, providers=[provider])
    name, (_, _, height, width) = session.get_inputs()[0].name, session.get_inputs()[0].shape

    def results() -> Iterator[int]:
        for file in sorted(folder.iterdir()):
            frame = cv2.imread(str(file))
            ratio = min(height / frame.shape[0], width / frame.shape[1])
            across, down = round(frame.shape[1] * ratio), round(frame.shape[0] * ratio)
            canvas = np.full((height, width, 3), 114, np.uint8)
            top, left = (height - down) // 2, (width - across) // 2
            canvas[top : top + down, left : left + across] = cv2.resize(frame, (across, down))
            batch = cv2.dnn.blobFromImage(canvas, 1 / 255, swapRB=True)
            rows = session.run(None, {name: batch})[0][0].T
            best = rows[:, 4:].max(axis=1)
            rows, best = rows[best > CONFIDENCE], best[best > CONFIDENCE]
            corners = np.concatenate([rows[:, :2] - rows[:, 2:4] / 2, rows[:, 2:4]], axis=1)
            classes = rows[:, 4:].argmax(axis=1)
            yield len(cv2.dnn.NMSBoxesBatched(corners, best, classes, CONFIDENCE, IOU))

    return looped(results)


def looped(results: Callable[[], Iterable[int]]) -> Turn:
    """Return turns that iterate over the results repeatedly. The first result of a turn is not timed."""
    objects = sum(results())

    def turn(seconds: float) -> tuple[int, float, int | None]:
        stream = itertools.chain.from_iterable(results() for _ in itertools.count())
        next(stream)
        began, frames = time.perf_counter(), 0
        while (passed := time.perf_counter() - began) < seconds:
            next(stream)
            frames += 1
        return frames, passed, objects

    return turn


def benchmark_app(graph: Path, folder: Path) -> Turn:
    """Return turns of OpenVINO's `benchmark_app` on this process's cores: engine alone, float32, throughput hint."""
    tool = Path(sys.executable).with_name("benchmark_app")
    command = [str(tool), "-m", str(graph), "-d", "CPU", "-hint", "throughput", "-infer_precision", "f32"]
    return printed(r"Throughput:\s*([\d.]+)\s*FPS", lambda seconds: [*command, "-t", str(seconds)])


def trtexec(graph: Path, folder: Path) -> Turn:
    """Return turns of TensorRT's `trtexec`: the engine alone, in float16, launched as a CUDA graph."""
    tool, engine = str(shutil.which("trtexec")), graph.with_suffix(".engine")
    subprocess.run([tool, f"--onnx={graph}", "--fp16", f"--saveEngine={engine}", "--skipInference"], check=True)
    command = [tool, f"--loadEngine={engine}", "--useCudaGraph", "--warmUp=200"]
    return printed(r"Throughput:\s*([\d.]+)\s*qps", lambda seconds: [*command, f"--duration={seconds}"])


def printed(pattern: str, command: Callable[[int], Sequence[str]]) -> Turn:
    """Return turns of a tool that prints its throughput. Raises SystemExit if a run prints none."""

    def turn(seconds: float) -> tuple[int, float, int | None]:
        whole = max(round(seconds), 1)
        done = subprocess.run(command(whole), capture_output=True, text=True, check=True)
        found = re.search(pattern, done.stdout)
        if found is None:
            raise SystemExit(f"no throughput in the output: {done.stdout[-500:]}")
        return round(1000 * float(found[1])), 1000.0, None

    return turn


BY_HAND = "ONNX Runtime and OpenCV, by hand"
CONTENDERS: dict[str, dict[str, Callable[[Path, Path], Turn]]] = {
    "cpu": {
        BASELINE: partial(ultralytics, "cpu"),
        BY_HAND: partial(bare, "CPUExecutionProvider"),
        "edgekd, ONNX Runtime, 1 stream": partial(edgekd, "onnxruntime-cpu", 1),
        "edgekd, ONNX Runtime, a stream for each core": partial(edgekd, "onnxruntime-cpu", 0),
        "edgekd, OpenVINO, 1 stream": partial(edgekd, "openvino-cpu", 1),
        "edgekd, OpenVINO, a stream for each core": partial(edgekd, "openvino-cpu", 0),
        ALONE: benchmark_app,
    },
    "gpu": {
        BASELINE: partial(ultralytics, "0"),
        BY_HAND: partial(bare, "CUDAExecutionProvider"),
        "edgekd, ONNX Runtime with CUDA, 1 stream": partial(edgekd, "onnxruntime-cuda", 1),
        "edgekd, ONNX Runtime with CUDA, 2 streams": partial(edgekd, "onnxruntime-cuda", 2),
        "edgekd, ONNX Runtime with CUDA, 4 streams": partial(edgekd, "onnxruntime-cuda", 4),
        **({"TensorRT trtexec, float16": trtexec} if shutil.which("trtexec") else {}),
    },
}
"""Contenders by device and name. With 0 streams edgekd uses one per core."""


def work(where: str, name: str, graph: str, folder: str) -> NoReturn:
    """Run as a contender's process: for each line with seconds on stdin, print the result of a turn as a JSON line."""
    sys.path.insert(0, str(PEERS))
    from own_cores import keep_to_own_cores

    keep_to_own_cores()
    answers = os.fdopen(os.dup(1), "w")
    with redirect_stdout(sys.stderr):
        turn = CONTENDERS[where][name](Path(graph), Path(folder))
        turn(0.5)
        print("ready", file=answers, flush=True)
        for line in sys.stdin:
            print(json.dumps(turn(float(line))), file=answers, flush=True)
    raise SystemExit(0)  # `in_process` would print a result, which is not read


@dataclass
class Contender:
    """A contender's process and its milliseconds per frame in each round."""

    name: str
    process: subprocess.Popen[str]
    ms: list[float] = field(default_factory=list)
    objects: int | None = None

    def say(self, line: str) -> str:
        """Send a line (unless empty) and return the answer. Raises SystemExit if the process has ended."""
        assert self.process.stdin
        assert self.process.stdout
        if line:
            self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.name} failed with {self.process.wait()}")
        return answer

    def turn(self, seconds: float) -> None:
        """Run the process for some seconds, and record the mean milliseconds per frame."""
        frames, took, self.objects = json.loads(self.say(str(seconds)))
        self.ms.append(1000 * took / frames)


def take_turns(given: Given, where: str, graph: Path, environment: Mapping[str, str]) -> list[Contender]:
    """Start all contenders one after the other, then measure them in turns. Return them with their times."""
    contenders, folder = [], given.scratch / "frames"
    for name in CONTENDERS[where]:
        command = frame.in_process(work, where=where, name=name, graph=graph, folder=folder)
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, env=environment, cwd=given.scratch, **pipes)
        contenders.append(Contender(name, process))
        contenders[-1].say("")
    for number in range(given.rounds):
        for contender in contenders if number % 2 == 0 else contenders[::-1]:
            contender.turn(given.seconds)
        frame.note(f"{graph.stem}: round {number + 1} of {given.rounds}")
    for contender in contenders:
        contender.process.communicate()
    return contenders


def rows_of(contenders: Sequence[Contender]) -> Iterator[Document]:
    """Yield each contender's frames per second and its speed relative to Ultralytics."""
    base = np.array(next(each.ms for each in contenders if each.name == BASELINE))
    for each in contenders:
        found = statistics.compare(base, np.array(each.ms))
        row = Document(contender=each.name, fps=1000 / float(np.median(each.ms)), times_as_fast=found.ratio)
        row.update(interval=[found.interval.low, found.interval.high], p_value=found.p_value)
        yield Document(row, objects=each.objects, ms=each.ms)


def prepare(model: str, shared: Path, folder: Path) -> Path:
    if model == "demo":
        return Path(shutil.copy(DEMO, folder / "demo.onnx"))
    graph = folder / f"{Path(model).stem}.onnx"
    exported(shared / "models" / model, graph)
    return graph


def page(found: Document) -> Blocks:
    yield from frame.head("From JPEG to detections", found)
    for model, rows in found.models.items():
        yield f"## {model}"
        yield frame.table(
            f" | FPS | times as fast as {BASELINE} | objects found",
            (
                f"{row.contender} | {row.fps:.2f} | {row.times_as_fast:.3f} "
                f"({row.interval[0]:.3f} to {row.interval[1]:.3f}) | {frame.cell(row.objects, '', '-')}"
                for row in rows
            ),
        )
    best = {model: best_of(rows) for model, rows in found.models.items()}
    ratios = ", ".join(f"{model} {row.times_as_fast:.2f} ({row.contender})" for model, row in best.items())
    alone = " `benchmark_app` times the engine alone." if found.networks_on == "cpu" else ""
    yield f"The best of edgekd's rows: {ratios}; the goal is {GOAL}.{alone}"
    yield f"""\
{found.frames} JPEG files, {found.cores} cores, networks on the {found.networks_on.upper()},
{found.rounds} rounds of {found.seconds} s.
Packages: {frame.versions_of(found.packages, PACKAGES)}."""


def best_of(rows: Sequence[Document]) -> Document:
    return max((row for row in rows if row.contender.startswith("edgekd")), key=lambda row: row.times_as_fast)


def run(given: Given) -> Result:
    where, folder = "gpu" if given.gpu else "cpu", given.scratch / "frames"
    if given.gpu and given.out == RESULTS / "camera_to_detections.json":
        given.out = given.out.with_stem("camera_to_detections_gpu")
    folder.mkdir()
    for image in sorted((given.shared / "data/coco256/images/val2017").glob("*.jpg"))[: given.frames]:
        shutil.copy(image, folder)
    environment = {**ultralytics_environment(given.scratch / "settings"), "OMP_NUM_THREADS": str(given.threads)}
    models = {}
    for model in given.models:
        graph = prepare(model, given.shared, given.scratch)
        models[Path(model).stem] = list(rows_of(take_turns(given, where, graph, environment)))
    return {"networks_on": where, "cores": given.threads, "packages": frame.installed(), "models": models}


if __name__ == "__main__":
    options = (
        Option("--models", ["demo", "yolo11n.pt"], "`demo`, or checkpoints in shared"),
        Option("--cores", 2, dest="threads"),
        Option("--rounds", 12),
        Option("--seconds", 5.0),
        Option("--frames", FRAMES),
        Option("--gpu", False, "networks on an NVIDIA GPU, all else on the cores"),
    )
    frame.main(
        run,
        page,
        *options,
        holds=lambda found: all(best_of(rows).times_as_fast >= GOAL for rows in found.models.values()),
    )
