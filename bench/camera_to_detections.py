"""Frames a second from JPEG to detections: edgekd beside Ultralytics' `predict`, a bare loop, and OpenVINO's own tool.

Every contender gets the same ONNX graph, the same JPEG files and the same cores. Each is a process of its own that
stays loaded; they take turns, and every other round goes the other way round. The ratio to Ultralytics is that of the
rounds, with its interval. `benchmark_app` times the engine alone: what OpenVINO could reach if the rest took no time.

    python bench/camera_to_detections.py [--models NAME ...] [--cores N] [--rounds N] [--seconds S] [--gpu]

The environment needs `edgekd[train,openvino]`; with `--gpu`, where only the networks move, `onnxruntime-gpu` as well.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    RESULTS,
    SHARED,
    conditions,
    conditions_lines,
    table,
    ultralytics_environment,
    use_cores,
    write_results,
)

from edgekd.core import statistics
from edgekd.data.demo import DETECTOR
from edgekd.data.frames import load_frames
from edgekd.deploy.artifact import opened
from edgekd.deploy.devices.local import LocalDevice
from edgekd.evaluation.latency import camera
from edgekd.evaluation.throughput import run_streams
from edgekd.graph.runtimes import engine_named
from edgekd.graph.runtimes.types import library_version

BASELINE, ALONE = "Ultralytics predict", "OpenVINO benchmark_app"
CONFIDENCE, IOU = 0.25, 0.7
FRAMES = 64
GOAL = 1.5

Turn = Callable[[float], "tuple[int, float, int | None]"]
"""Works for so many seconds: frames, the seconds they took, objects that were found where that is known."""


def edgekd(engine: str, streams: int, graph: Path, folder: Path) -> Turn:
    """edgekd as `edgekd bench` runs it, in one stream or several; 0: one for each core."""
    streams = streams or len(os.sched_getaffinity(0))
    stack = ExitStack()
    _, spec = stack.enter_context(opened(graph, None, (), False))
    source, found = load_frames(folder), [0]
    sessions = LocalDevice(engine_named(engine)).load_streams(graph, streams)
    lanes = [camera(stack.enter_context(session), spec, source.opener()) for session in sessions]

    def once() -> int:
        lane = lanes[0]
        for item in source.items:
            batch, at = lane.preprocess(lane.decode(item))
            found[0] += len(lane.postprocess(lane.session.run(batch), at))
        return found[0]

    objects = once()

    def turn(seconds: float) -> tuple[int, float, int | None]:
        done_s = run_streams(lanes, source.items, seconds)
        return len(done_s), float(done_s[-1]), objects

    return turn


def ultralytics(device: str, graph: Path, folder: Path) -> Turn:
    """`YOLO(graph).predict` over the folder, frame by frame, as its documentation streams."""
    from ultralytics import YOLO

    model = YOLO(str(graph), task="detect")
    size = input_size(graph)
    settings = {"imgsz": size, "conf": CONFIDENCE, "iou": IOU, "device": device, "stream": True, "verbose": False}

    def results() -> Iterator[int]:
        for result in model.predict(source=str(folder), **settings):
            yield len(result.boxes)

    objects = sum(results())

    def turn(seconds: float) -> tuple[int, float, int | None]:
        return loop(itertools.chain.from_iterable(results() for _ in itertools.count()), seconds, objects)

    return turn


def bare(provider: str, graph: Path, folder: Path) -> Turn:
    """ONNX Runtime and OpenCV in the loop that people write by hand: a YOLO head, NMS by OpenCV."""
    import cv2
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    session = onnxruntime.InferenceSession(str(graph), options, providers=[provider])
    name, (height, width) = session.get_inputs()[0].name, input_size(graph)

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

    objects = sum(results())

    def turn(seconds: float) -> tuple[int, float, int | None]:
        return loop(itertools.chain.from_iterable(results() for _ in itertools.count()), seconds, objects)

    return turn


def benchmark_app(graph: Path, folder: Path) -> Turn:
    """OpenVINO's own tool: the engine alone, in the precision of the graph, for throughput, on the cores it may use."""
    tool = Path(sys.executable).with_name("benchmark_app")
    command = [str(tool), "-m", str(graph), "-d", "CPU", "-hint", "throughput", "-infer_precision", "f32"]

    def turn(seconds: float) -> tuple[int, float, int | None]:
        done = subprocess.run([*command, "-t", str(max(round(seconds), 1))], capture_output=True, text=True, check=True)
        return told_rate(r"Throughput:\s*([\d.]+)\s*FPS", done.stdout)

    return turn


def trtexec(graph: Path, folder: Path) -> Turn:
    """TensorRT's own tool where it is installed: the engine alone, in float16, its launches recorded."""
    tool, engine = str(shutil.which("trtexec")), graph.with_suffix(".engine")
    subprocess.run([tool, f"--onnx={graph}", "--fp16", f"--saveEngine={engine}", "--skipInference"], check=True)
    command = [tool, f"--loadEngine={engine}", "--useCudaGraph", "--warmUp=200"]

    def turn(seconds: float) -> tuple[int, float, int | None]:
        asked = f"--duration={max(round(seconds), 1)}"
        done = subprocess.run([*command, asked], capture_output=True, text=True, check=True)
        return told_rate(r"Throughput:\s*([\d.]+)\s*qps", done.stdout)

    return turn


def told_rate(pattern: str, text: str) -> tuple[int, float, None]:
    """A rate in what a tool prints, as frames and the seconds for them."""
    found = re.search(pattern, text)
    if found is None:
        raise SystemExit(f"no throughput is told: {text[-500:]}")
    return round(1000 * float(found[1])), 1000.0, None


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
"""By where the networks run; 0 streams are one for each core."""


def loop(results: Iterator[int], seconds: float, objects: int) -> tuple[int, float, int | None]:
    """Take results for so long; the first is not counted."""
    next(results)
    began, frames = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < seconds:
        next(results)
        frames += 1
    return frames, passed, objects


def input_size(graph: Path) -> tuple[int, int]:
    """Height and width of the graph's input."""
    import onnx

    dims = onnx.load(graph, load_external_data=False).graph.input[0].type.tensor_type.shape.dim
    return dims[2].dim_value, dims[3].dim_value


def work(where: str, name: str, graph: Path, folder: Path) -> None:
    """A contender's process: for each line of seconds on stdin a line with what was done."""
    answers = os.fdopen(os.dup(1), "w")
    with redirect_stdout(sys.stderr):
        turn = CONTENDERS[where][name](graph, folder)
        turn(0.5)
        print("ready", file=answers, flush=True)
        for line in sys.stdin:
            print(json.dumps(turn(float(line))), file=answers, flush=True)


@dataclass
class Contender:
    """A process, and what it did in each round."""

    name: str
    process: subprocess.Popen[str]
    ms: list[float] = field(default_factory=list)
    objects: int | None = None

    def say(self, line: str) -> str:
        """Send a line, wait for the answer. Stops the benchmark where there is none."""
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
        """One turn."""
        frames, took, self.objects = json.loads(self.say(str(seconds)))
        self.ms.append(1000 * took / frames)


def take_turns(
    where: str, graph: Path, folder: Path, environment: dict[str, str], rounds: int, seconds: float
) -> list[Contender]:
    """All contenders, loaded one after the other, then in turns."""
    script = str(Path(__file__).resolve())
    contenders = []
    for name in CONTENDERS[where]:
        command = [sys.executable, script, "--work", where, name, str(graph), str(folder)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder.parent
        )
        contenders.append(Contender(name, process))
        contenders[-1].say("")
    for number in range(rounds):
        for contender in contenders if number % 2 == 0 else contenders[::-1]:
            contender.turn(seconds)
        print(f"{graph.stem}: round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    for contender in contenders:
        assert contender.process.stdin
        contender.process.stdin.close()
        contender.process.wait()
    return contenders


def rows_of(contenders: Sequence[Contender]) -> list[dict[str, Any]]:
    """Frames a second of each, and how many times as fast as Ultralytics."""
    base = np.array(next(each.ms for each in contenders if each.name == BASELINE))
    rows = []
    for each in contenders:
        ms = np.array(each.ms)
        found = statistics.compare(base, ms)
        rows.append(
            {
                "contender": each.name,
                "fps": 1000 / float(np.median(ms)),
                "times_as_fast": found.ratio,
                "interval": [found.interval.low, found.interval.high],
                "p_value": found.p_value,
                "objects": each.objects,
                "ms": each.ms,
            }
        )
    return rows


def prepare(model: str, shared: Path, folder: Path) -> Path:
    """The graph of a model: the demo's, or a checkpoint's as edgekd exports it."""
    from edgekd.detectors import load
    from edgekd.detectors.export import export

    if model == "demo":
        return Path(shutil.copy(DETECTOR, folder / "demo.onnx"))
    graph = folder / f"{Path(model).stem}.onnx"
    export(load(shared / "models" / model), graph, 17)
    return graph


def page(found: dict[str, Any]) -> list[str]:
    """The document as a page."""
    lines = ["# From JPEG to detections", "", f"`{found['command']}`", ""]
    for model, rows in found["models"].items():
        cells = [
            [
                row["contender"],
                f"{row['fps']:.2f}",
                f"{row['times_as_fast']:.3f} ({row['interval'][0]:.3f} to {row['interval'][1]:.3f})",
                "-" if row["objects"] is None else str(row["objects"]),
            ]
            for row in rows
        ]
        lines += [f"## {model}", "", *table(["", "FPS", f"times as fast as {BASELINE}", "objects found"], cells), ""]
    best = {model: best_of(rows) for model, rows in found["models"].items()}
    told = ", ".join(f"{model} {row['times_as_fast']:.2f} ({row['contender']})" for model, row in best.items())
    alone = " `benchmark_app` times the engine alone." if found["networks_on"] == "cpu" else ""
    packages = ", ".join(f"{name} {version}" for name, version in found["packages"].items())
    return [
        *lines,
        f"The best of edgekd's rows: {told}; the goal is {GOAL}.{alone}",
        "",
        f"{found['frames']} JPEG files, {found['cores']} cores, networks on the {found['networks_on'].upper()},",
        f"{found['rounds']} rounds of {found['seconds']} s.",
        f"Packages: {packages}.",
        "",
        *conditions_lines(found),
    ]


def best_of(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The fastest of edgekd's rows."""
    return max((row for row in rows if row["contender"].startswith("edgekd")), key=lambda row: row["times_as_fast"])


def main() -> int:
    """0 where edgekd's best row reaches the goal for every model, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["demo", "yolo11n.pt"], help="`demo`, or checkpoints in shared")
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--frames", type=int, default=FRAMES)
    parser.add_argument("--gpu", action="store_true", help="networks on an NVIDIA GPU, all else on the cores")
    parser.add_argument("--out", type=Path, help="default: bench/results/camera_to_detections[_gpu].json")
    parser.add_argument("--work", nargs=4, metavar=("WHERE", "NAME", "GRAPH", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(given.work[0], given.work[1], Path(given.work[2]), Path(given.work[3]))
        return 0
    where = "gpu" if given.gpu else "cpu"
    use_cores(given.cores)
    runtime = "onnxruntime-gpu" if given.gpu else "onnxruntime"
    packages = ("edgekd", "ultralytics", "torch", runtime, "openvino", "opencv-python-headless", "numpy")
    command = f"python bench/camera_to_detections.py --models {' '.join(given.models)} --cores {given.cores}"
    found: dict[str, Any] = {
        "command": f"{command} --rounds {given.rounds} --seconds {given.seconds:g}{' --gpu' if given.gpu else ''}",
        "networks_on": where,
        "cores": given.cores,
        "rounds": given.rounds,
        "seconds": given.seconds,
        "frames": given.frames,
        "packages": {name: library_version(name) for name in packages},
        **conditions(given.cores),
        "models": {},
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "frames"
        folder.mkdir()
        for image in sorted((given.shared / "data/coco256/images/val2017").glob("*.jpg"))[: given.frames]:
            shutil.copy(image, folder)
        environment = {**ultralytics_environment(Path(scratch) / "settings"), "OMP_NUM_THREADS": str(given.cores)}
        for model in given.models:
            graph = prepare(model, given.shared, Path(scratch))
            turns = take_turns(where, graph, folder, environment, given.rounds, given.seconds)
            found["models"][Path(model).stem] = rows_of(turns)
    suffix = "_gpu" if given.gpu else ""
    write_results(given.out or RESULTS / f"camera_to_detections{suffix}.json", found, page(found))
    return 0 if all(best_of(rows)["times_as_fast"] >= GOAL for rows in found["models"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
