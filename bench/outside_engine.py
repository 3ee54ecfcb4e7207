"""Time preprocessing and postprocessing of a 1080p frame, outside the engine, on one core.

Contenders take turns frame by frame, each in its own process with an ONNX Runtime session of the same detector, so that
CPU caches are as cold as in an application. Needs `edgekd[train]`. supervision and Roboflow inference run in their own
environments, and are left out if those cannot be created.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import frame
import numpy as np
from common import DEMO, PEERS, VENVS, exported, peer_python, ultralytics_environment, without_folders
from frame import Blocks, Document, Given, Option, Result

from edgekd.core import statistics
from edgekd.core.detection.nv12 import nv12_from_bgr

WIDTH, HEIGHT = 1920, 1080


@dataclass(frozen=True)
class Contender:
    """A pipeline from frame to detections: a tool of `peers/frame_times.py` and its `--method`.

    Args:
        environment: Name of its own environment; None for this one.
        layout: Layout of its input frames, `bgr` or `nv12`.
    """

    name: str
    tool: str
    method: str = ""
    environment: str | None = None
    layout: str = "bgr"


ULTRALYTICS = Contender("Ultralytics predict", "ultralytics")
BY_HAND = Contender("ONNX Runtime and OpenCV, by hand", "opencv")
SUPERVISION = Contender("ONNX Runtime and supervision, by hand", "supervision", environment="supervision")
ROBOFLOW = Contender("Roboflow inference", "inference", environment="inference")
GOAL = Contender("edgekd, uint8, graph", "edgekd", "uint8-graph")
CONTENDERS = (
    ULTRALYTICS,
    BY_HAND,
    SUPERVISION,
    ROBOFLOW,
    Contender("edgekd, float32, host", "edgekd", "float32-host"),
    Contender("edgekd, uint8, host", "edgekd", "uint8-host"),
    GOAL,
    Contender("edgekd, NV12 frames, graph", "edgekd", "nv12-graph", layout="nv12"),
)
LIMITS = {ULTRALYTICS.name: 1 / 3, SUPERVISION.name: 1 / 2, ROBOFLOW.name: 1 / 2}
"""Goals: largest time of edgekd with uint8 input and postprocessing in the graph, as a share of a peer's."""
PACKAGES = ("edgekd", "ultralytics", "torch", "onnxruntime", "supervision", "opencv-python-headless", "numpy")
PEER_PACKAGES = ("inference-models", "supervision", "torch", "onnxruntime", "opencv-python", "numpy")

Timed = tuple[float, float, float, int]
"""Milliseconds before, in and after the engine; number of detections."""


class Loop:
    """The running process of a contender, and its times in the order of frames. Raises SystemExit if it ends."""

    def __init__(self, contender: Contender, python: Path, graph: Path, frames: Path, stack: ExitStack) -> None:
        self.contender = contender
        self.ms: list[Timed] = []
        self._log = frames.with_name(f"{contender.name}.log")
        script = PEERS / "frame_times.py"
        command = [python, script, contender.tool, "--graph", graph, "--frames", frames, "--method", contender.method]
        log = stack.enter_context(self._log.open("w"))
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
        self._process = stack.enter_context(subprocess.Popen(command, text=True, bufsize=1, **pipes))
        self.packages: dict[str, str] = self._answer()

    def time(self, index: int) -> None:
        """Run the frame of this index, and record its times."""
        print(index, file=self._process.stdin)
        self.ms.append(tuple(self._answer()))

    def _answer(self) -> Any:
        if line := self._process.stdout.readline():
            return json.loads(line)
        raise SystemExit(f"{self.contender.name} ended: {last_line(self._log.read_text('utf-8'))}")


def last_line(output: str) -> str:
    return (output.strip() or "no output").splitlines()[-1]


def write_frames(images: Path, count: int, folder: Path) -> None:
    """Write photographs, stretched to 1080p, as arrays in the layouts of the tools, `bgr/` and `nv12/`."""
    for layout in ("bgr", "nv12"):
        (folder / layout).mkdir()
    for index, file in enumerate(sorted(images.glob("*.jpg"))[:count]):
        image = cv2.resize(cv2.imread(str(file)), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        np.save(folder / "bgr" / f"{index:03}.npy", image)
        np.save(folder / "nv12" / f"{index:03}.npy", nv12_from_bgr(image))


def rows_of(loops: Sequence[Loop], frames: int) -> Iterator[Document]:
    """Yield each contender's median times, and its time outside the engine as a share of each peer's."""
    outside = {each.contender.name: np.array(each.ms)[:, [0, 2]].sum(axis=1) for each in loops}
    for each in loops:
        name = each.contender.name
        before, engine, after, _ = np.median(np.array(each.ms), axis=0).tolist()
        row = Document(contender=name, before_ms=before, engine_ms=engine, after_ms=after)
        row.update(outside_ms=float(np.median(outside[name])), objects=sum(found for *_, found in each.ms[:frames]))
        for peer in LIMITS:
            if peer in outside:
                found = statistics.compare(outside[name], outside[peer])
                row[peer] = Document(share=found.ratio, interval=[found.interval.low, found.interval.high])
        yield row


def run(given: Given) -> Result:
    environment = ultralytics_environment(given.scratch / "settings")
    os.environ.update(environment, OMP_NUM_THREADS="1")
    pythons, left_out = interpreters(given.venvs.absolute())
    contenders = [each for each in CONTENDERS if each.environment in pythons]
    write_frames(given.shared / "data/coco256/images/val2017", given.frames, given.scratch)
    models: dict[str, list[Document]] = {}
    environments: dict[str, dict[str, str]] = {}
    for model in given.models:
        graph = given.scratch / f"{Path(model).stem}.onnx"
        if model == "demo":
            shutil.copy(DEMO, graph)
        else:
            exported(given.shared / "models" / model, graph)
        with ExitStack() as stack:
            loops = [
                Loop(each, pythons[each.environment], graph, given.scratch / each.layout, stack) for each in contenders
            ]
            take_turns(loops, given.frames, given.rounds)
        models[Path(model).stem] = list(rows_of(loops, given.frames))
        environments = {each.contender.environment: each.packages for each in loops if each.contender.environment}
    return {"packages": frame.installed(), "environments": environments, "left_out": left_out, "models": models}


def interpreters(venvs: Path) -> tuple[dict[str | None, Path], dict[str, str]]:
    """Return the interpreters by environment, and the errors of environments that could not be created."""
    pythons: dict[str | None, Path] = {None: Path(sys.executable)}
    missing = {}
    for name in filter(None, (each.environment for each in CONTENDERS)):
        try:
            pythons[name] = peer_python(name, venvs)
        except subprocess.CalledProcessError as error:
            missing[name] = without_folders(last_line(error.stdout), venvs)
    return pythons, missing


def take_turns(loops: Sequence[Loop], frames: int, rounds: int) -> None:
    """Run all contenders on every frame, every other round in reverse order. The first round is not recorded."""
    for number in range(rounds + 1):
        for index in range(frames):
            for each in loops if number % 2 else loops[::-1]:
                each.time(index)
        if number == 0:
            for each in loops:
                each.ms.clear()


def page(found: Document) -> Blocks:
    yield from frame.head("Outside the engine", found)
    for model, rows in found.models.items():
        yield f"## {model}"
        peers = [peer for peer in LIMITS if peer in rows[0]]
        header = ["", "before the engine, ms", "after it, ms", "both, ms", "engine, ms", "objects found"]
        header += [f"time outside, beside {peer}" for peer in peers]
        yield frame.table(" | ".join(header), (" | ".join(cells_of(row, peers)) for row in rows))
    limits = ", ".join(f"{LIMITS[peer]:.2f} beside {peer}" for peer in peers)
    yield f"""\
Medians over {found.frames} frames of {WIDTH} x {HEIGHT} and {found.rounds} rounds, on {found.threads} core. The goal of
edgekd with uint8 and graph is at most {limits}. The engine is ONNX Runtime with one thread; with bytes and
selection it does more. Times are of the processor, so that other programs do not count.
Packages: {frame.versions_of(found.packages, PACKAGES)}."""
    # Results without environments are from a version with one process for all contenders.
    if "environments" in found:
        yield """\
Every contender has a process of its own, with one thread. Roboflow inference is `inference-models`, which runs its
detectors; what `inference` adds, an object of pydantic for each detection, is not counted. Other environments:"""
        yield "\n".join(
            f"- {name}: {frame.versions_of(packages, PEER_PACKAGES)}" for name, packages in found.environments.items()
        )
        yield from (
            f"Left out, because its environment could not be made: {name} ({reason})."
            for name, reason in found.left_out.items()
        )


def cells_of(row: Document, peers: Sequence[str]) -> Iterator[str]:
    yield row.contender
    yield from (f"{value:.2f}" for value in (row.before_ms, row.after_ms, row.outside_ms, row.engine_ms))
    yield str(row.objects)
    for peer in peers:
        low, high = row[peer].interval
        yield f"{row[peer].share:.3f} ({low:.3f} to {high:.3f})"


def within(found: Document) -> bool:
    rows = [row for rows in found.models.values() for row in rows if row.contender == GOAL.name]
    return all(row[peer].share <= share for row in rows for peer, share in LIMITS.items() if peer in row)


if __name__ == "__main__":
    options = (
        Option("--models", ["demo", "yolo11n.pt"], "`demo`, or checkpoints in shared"),
        Option("--rounds", 6),
        Option("--frames", 8),
        Option("--venvs", VENVS, "the peers' environments, kept from run to run"),
    )
    frame.main(run, page, *options, holds=within, cores=1)
