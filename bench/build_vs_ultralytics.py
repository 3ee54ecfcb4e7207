"""Compare `edgekd build` with `yolo export` and `yolo val`: wall time from a checkpoint to a scored INT8 model.

The two alternate in which one runs first. Ultralytics calibrates on `val` by default; here both calibrate on the
training split. Needs `edgekd[train]`.
"""

import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import frame
from common import PEERS, copy_data, ultralytics_environment, without_folders
from frame import IMAGES, Blocks, Document, Given, Option, Result

from edgekd.data.dataset import load_dataset

IMAGE_SIZE = 640
EXPORT = ("format=onnx", "quantize=8", "split=train", "device=cpu")
VAL = ("batch=1", "rect=False", "device=cpu", "plots=False")
EXTRA = (
    *("score-fp32", "encode-fp32", "check-fp32", "check-int8", "encode-int8"),
    *("drift", "compile", "benchmark", "analyse", "report", "pack"),
)
"""Build stages that have no counterpart in Ultralytics' two commands."""
REST = "interpreter start, imports, hashing"
PACKAGES = ("edgekd", "ultralytics", "torch", "onnx", "onnxruntime", "onnxslim", "openvino", "tensorrt-rtx")


def turn(tool: str, seconds: float, graph: Mapping[str, Any], parts: Mapping[str, float]) -> Document:
    """Return a row: one tool's run from checkpoint to scored INT8 model. parts: wall seconds by command or stage."""
    made = {name: graph[name] for name in ("bytes", "map50_95", "map50")}
    return Document(tool=tool, seconds=seconds, **made, parts=parts)


def like_for_like(each: Document) -> float:
    """Return the wall seconds without the stages that only edgekd has."""
    return float(each.seconds - sum(each.parts.get(name, 0.0) for name in EXTRA))


class Bench:
    def __init__(self, work: Path, model: Path, data: Path) -> None:
        self._work, self._model, self._data = work, model, data
        self._environment = ultralytics_environment(work / "ultralytics")

    def edgekd(self, folder: Path) -> Document:
        """Run `edgekd build --fresh`. The seconds of stages are those that it reports."""
        command = [sys.executable, "-m", "edgekd", "build", str(self._model), "--data", str(self._data)]
        command += ["--target", "cpu", "--out", str(folder), "--fresh", "--json"]
        seconds, output = self._run(command, folder.parent)
        stages = {stage["name"]: stage for stage in json.loads(output)["stages"]}
        parts = {name: stage["seconds"] for name, stage in stages.items()}
        parts[REST] = seconds - sum(parts.values())
        return turn("edgekd", seconds, {**stages["score-int8"], "bytes": stages["quantize"]["bytes"]}, parts)

    def ultralytics(self, folder: Path) -> Document:
        """Run `yolo export` and `yolo val`. Then edgekd scores the exported graph, which is not timed."""
        folder.mkdir()
        checkpoint = Path(shutil.copy(self._model, folder))  # Ultralytics writes the export beside the checkpoint
        yolo = [sys.executable, str(PEERS / "own_cores.py"), "yolo"]
        shared = [f"data={self._data}", f"imgsz={IMAGE_SIZE}"]
        exporting, _ = self._run([*yolo, "export", f"model={checkpoint}", *shared, *EXPORT], folder)
        (graph,) = folder.glob("*.onnx")
        scoring, _ = self._run([*yolo, "val", f"model={graph}", *shared, *VAL], folder)
        evaluate = [sys.executable, "-m", "edgekd", "eval", str(graph), "--data", str(self._data), "--json"]
        scores = {**json.loads(self._run(evaluate, folder)[1]), "bytes": graph.stat().st_size}
        return turn("ultralytics", exporting + scoring, scores, {"yolo export": exporting, "yolo val": scoring})

    def _run(self, command: Sequence[str], folder: Path) -> tuple[float, str]:
        """Return wall seconds and stdout of a command. Raises SystemExit with the end of its output if it fails."""
        began = time.perf_counter()
        done = subprocess.run(command, cwd=folder, env=self._environment, capture_output=True, text=True)
        seconds = time.perf_counter() - began
        if done.returncode:
            words = without_folders(f"{done.stdout}\n{done.stderr}".strip(), self._work)
            raise SystemExit(f"{Path(command[0]).name} {command[1]} failed: {words[-2000:]}")
        return seconds, done.stdout


def take_turns(bench: Bench, work: Path, repetitions: int) -> list[Document]:
    turns = []
    for number in range(repetitions):
        tools = [bench.edgekd, bench.ultralytics]
        for tool in tools if number % 2 == 0 else reversed(tools):
            folder = work / f"{tool.__name__}-{number}"
            turns.append(tool(folder))
            shutil.rmtree(folder)
            frame.note(f"{number + 1}/{repetitions}: {turns[-1]}")
    return turns


def summary(turns: Sequence[Document], tool: str) -> dict[str, Any]:
    """Return a tool's wall time (median, least, most), the medians of its parts, and its model's size and scores."""
    mine = [each for each in turns if each.tool == tool]
    made = [{name: each[name] for name in ("bytes", "map50_95", "map50")} for each in mine]
    seconds = [each.seconds for each in mine]
    return {
        "tool": tool,
        "seconds": {"median": statistics.median(seconds), "least": min(seconds), "most": max(seconds)},
        "like_for_like": statistics.median(map(like_for_like, mine)),
        "parts": {name: statistics.median(each.parts[name] for each in mine) for name in mine[0].parts},
        **made[0],
        "always_the_same": all(each == made[0] for each in made),
    }


def page(found: Document) -> Blocks:
    yield from frame.head(f"From {found.model} to a scored INT8 model", found)
    threads = frame.counted(found.host.threads, "thread")
    yield (
        f"{found.images.train} calibration images (split `train`), {found.images.val} scored (`val`), "
        f"{found.repetitions} turns each, {threads}. Wall time of whole processes. Bytes: "
        "of the INT8 ONNX graph. mAP: both graphs by edgekd's scorer. edgekd also scores the float model, times both "
        "models, and writes a bundle and a report in that time."
    )
    if "own_cores" not in found:
        yield (
            "In this run ONNX Runtime had a thread on each core of the machine while Ultralytics calibrated and "
            f"scored, and while edgekd calibrated; edgekd scored with {threads}."
        )
    names = {
        "edgekd": "`edgekd build --target cpu --fresh`",
        "ultralytics": f"`yolo export {' '.join(EXPORT)}`, `yolo val {' '.join(VAL)}`",
    }
    yield frame.table(
        " | seconds, median | least to most | bytes | mAP50-95 | mAP50",
        (
            f"{names[each.tool]} | {each.seconds.median:.1f} | {each.seconds.least:.1f} to {each.seconds.most:.1f} | "
            f"{each.bytes:,} | {each.map50_95:.4f} | {each.map50:.4f}"
            for each in found.tools
        ),
    )
    extra = [name for name in EXTRA if name in found.tools[0].parts]
    yield (
        f"Ultralytics' time is {found.ratio:.2f} times edgekd's, and {found.ratio_like_for_like:.2f} times what "
        f"edgekd takes without {', '.join(f'`{name}`' for name in extra)}, which Ultralytics' two commands do not do. "
        "Bytes and mAP were the same in every turn: "
        f"{', '.join(f'{each.tool} {frame.yes(each.always_the_same)}' for each in found.tools)}."
    )
    yield frame.table(
        " | part | seconds, median",
        (f"{each.tool} | {name} | {seconds:.1f}" for each in found.tools for name, seconds in each.parts.items()),
    )
    yield f"{frame.versions_of(found.packages, PACKAGES)}."


def run(given: Given) -> Result:
    work, shared = given.scratch, given.shared.absolute()
    data = copy_data(shared / "data" / "coco256", work / "data", given.images)
    turns = take_turns(Bench(work, shared / "models" / given.model, data), work, given.repetitions)
    ours, theirs = tools = [summary(turns, tool) for tool in ("edgekd", "ultralytics")]
    return {
        "images": {name: len(load_dataset(data).split(name)) for name in ("train", "val")},
        "own_cores": True,
        "tools": tools,
        "ratio": theirs["seconds"]["median"] / ours["seconds"]["median"],
        "ratio_like_for_like": theirs["like_for_like"] / ours["like_for_like"],
        "packages": frame.installed(),
    }


if __name__ == "__main__":
    options = (Option("--model", "yolo11n.pt"), IMAGES, Option("--repetitions", 3))
    frame.main(run, page, *options, holds=lambda found: found.tools[0].map50_95 >= found.tools[1].map50_95)
