"""From a checkpoint to a scored INT8 model: `edgekd build` beside `yolo export` and `yolo val`, in wall time.

Same checkpoint, same images, same machine, whole processes from start to end, in turns; which goes first alternates.
edgekd does more in its time: it scores the float model too, times both, and writes bundle and report. Both calibrate
on the training split and score `val`; Ultralytics calibrates on `val` unless it is told.

    python bench/build_vs_ultralytics.py [--shared FOLDER] [--model NAME.pt] [--images N] [--repetitions N]

The environment needs `edgekd[train]`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common import (
    RESULTS,
    SHARED,
    conditions,
    conditions_lines,
    copy_data,
    table,
    ultralytics_environment,
    use_cores,
    without_folders,
    write_results,
)

from edgekd.core.progress import PlainProgress
from edgekd.data.dataset import load_dataset
from edgekd.graph.runtimes.types import library_version

IMAGE_SIZE = 640
EXPORT = ("format=onnx", "quantize=8", "split=train", "device=cpu")
VAL = ("batch=1", "rect=False", "device=cpu", "plots=False")
EXTRA = (
    *("score-fp32", "encode-fp32", "check-fp32", "check-int8", "encode-int8"),
    *("compile", "benchmark", "report", "pack"),
)
"""The stages of a build that have no counterpart in Ultralytics' two commands."""
REST = "interpreter start, imports, hashing"
PACKAGES = ("edgekd", "ultralytics", "torch", "onnx", "onnxruntime", "onnxslim", "openvino", "tensorrt-rtx")


@dataclass(frozen=True)
class Turn:
    """One tool's way from checkpoint to scored INT8 model. parts: wall seconds of its commands, or of its stages."""

    tool: str
    seconds: float
    bytes: int
    map50_95: float
    map50: float
    parts: Mapping[str, float]

    @property
    def like_for_like(self) -> float:
        """Seconds without what only edgekd does."""
        return self.seconds - sum(self.parts.get(name, 0.0) for name in EXTRA)


class Bench:
    """One run: the checkpoint, the data and a folder for everything that is made."""

    def __init__(self, work: Path, model: Path, data: Path) -> None:
        self._work = work
        self._model = model
        self._data = data
        self._environment = ultralytics_environment(work / "ultralytics")

    def edgekd(self, folder: Path) -> Turn:
        """`edgekd build`, fresh. Its stages' seconds are what it says itself."""
        command = [sys.executable, "-m", "edgekd", "build", str(self._model), "--data", str(self._data)]
        command += ["--target", "cpu", "--out", str(folder), "--fresh", "--json"]
        seconds, output = self._run(command, folder.parent)
        stages = {stage["name"]: stage for stage in json.loads(output)["stages"]}
        quantized = stages["quantize"]
        scored = stages["score-int8"]
        parts = {name: stage["seconds"] for name, stage in stages.items()}
        parts[REST] = seconds - sum(parts.values())
        return Turn("edgekd", seconds, quantized["bytes"], scored["map50_95"], scored["map50"], parts)

    def ultralytics(self, folder: Path) -> Turn:
        """`yolo export` and `yolo val`. The exported graph is scored once more by edgekd, outside the time."""
        folder.mkdir()
        checkpoint = Path(shutil.copy(self._model, folder))  # it exports beside the checkpoint
        yolo = str(Path(sys.executable).with_name("yolo"))
        shared = [f"data={self._data}", f"imgsz={IMAGE_SIZE}"]
        exporting, _ = self._run([yolo, "export", f"model={checkpoint}", *shared, *EXPORT], folder)
        (graph,) = folder.glob("*.onnx")
        scoring, _ = self._run([yolo, "val", f"model={graph}", *shared, *VAL], folder)
        evaluate = [sys.executable, "-m", "edgekd", "eval", str(graph), "--data", str(self._data), "--json"]
        scores = json.loads(self._run(evaluate, folder)[1])
        parts = {"yolo export": exporting, "yolo val": scoring}
        size = graph.stat().st_size
        return Turn("ultralytics", exporting + scoring, size, scores["map50_95"], scores["map50"], parts)

    def _run(self, command: Sequence[str], folder: Path) -> tuple[float, str]:
        """Wall seconds and stdout of a command. Stops the benchmark with its last words when it fails."""
        began = time.perf_counter()
        done = subprocess.run(command, cwd=folder, env=self._environment, capture_output=True, text=True)
        seconds = time.perf_counter() - began
        if done.returncode:
            words = without_folders(f"{done.stdout}\n{done.stderr}".strip(), self._work)
            raise SystemExit(f"{Path(command[0]).name} {command[1]} failed: {words[-2000:]}")
        return seconds, done.stdout


def take_turns(bench: Bench, work: Path, repetitions: int) -> list[Turn]:
    """Both tools, `repetitions` times; the first to go alternates."""
    progress = PlainProgress()
    turns = []
    for number in range(repetitions):
        tools = [bench.edgekd, bench.ultralytics]
        for tool in tools if number % 2 == 0 else reversed(tools):
            folder = work / f"{tool.__name__}-{number}"
            turn = tool(folder)
            shutil.rmtree(folder)
            turns.append(turn)
            progress.note(
                f"{number + 1}/{repetitions}: {turn.tool}: {turn.seconds:.1f} s, mAP50-95 {turn.map50_95:.4f}"
            )
    return turns


def summary(turns: Sequence[Turn], tool: str) -> dict[str, Any]:
    """Median and spread of a tool's wall time, the medians of its parts, and what it made: first, and every time."""
    mine = [turn for turn in turns if turn.tool == tool]
    made = [{"bytes": turn.bytes, "map50_95": turn.map50_95, "map50": turn.map50} for turn in mine]
    seconds = [turn.seconds for turn in mine]
    return {
        "tool": tool,
        "seconds": {"median": statistics.median(seconds), "least": min(seconds), "most": max(seconds)},
        "like_for_like": statistics.median(turn.like_for_like for turn in mine),
        "parts": {name: statistics.median(turn.parts[name] for turn in mine) for name in mine[0].parts},
        **made[0],
        "always_the_same": all(each == made[0] for each in made),
    }


def page(found: Mapping[str, Any]) -> list[str]:
    """The result as Markdown."""
    names = {
        "edgekd": "`edgekd build --target cpu --fresh`",
        "ultralytics": f"`yolo export {' '.join(EXPORT)}`, `yolo val {' '.join(VAL)}`",
    }
    rows = []
    for each in found["tools"]:
        seconds = each["seconds"]
        spread = f"{seconds['least']:.1f} to {seconds['most']:.1f}"
        scores = [f"{each['map50_95']:.4f}", f"{each['map50']:.4f}"]
        rows.append([names[each["tool"]], f"{seconds['median']:.1f}", spread, f"{each['bytes']:,}", *scores])
    same = ", ".join(f"{each['tool']} {'yes' if each['always_the_same'] else 'no'}" for each in found["tools"])
    parts = [
        [each["tool"], name, f"{seconds:.1f}"] for each in found["tools"] for name, seconds in each["parts"].items()
    ]
    versions = ", ".join(f"{name} {version}" for name, version in found["packages"].items())
    return [
        f"# From {found['model']} to a scored INT8 model",
        "",
        f"`{found['command']}`",
        "",
        f"{found['images']['train']} calibration images (split `train`), {found['images']['val']} scored (`val`), "
        f"{found['repetitions']} turns each, {found['host']['threads']} threads. Wall time of whole processes. Bytes: "
        "of the INT8 ONNX graph. mAP: both graphs by edgekd's scorer. edgekd also scores the float model, times both "
        "models, and writes a bundle and a report in that time.",
        "",
        *table(["", "seconds, median", "least to most", "bytes", "mAP50-95", "mAP50"], rows),
        "",
        f"Ultralytics' time is {found['ratio']:.2f} times edgekd's, and {found['ratio_like_for_like']:.2f} times what "
        f"edgekd takes without {', '.join(f'`{name}`' for name in EXTRA)}, which Ultralytics' two commands do not do. "
        f"Bytes and mAP were the same in every turn: {same}.",
        "",
        *table(["", "part", "seconds, median"], parts),
        "",
        f"{versions}.",
        "",
        *conditions_lines(found),
    ]


def main() -> int:
    """0 when edgekd's model scores no lower than Ultralytics', else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED, help="folder with models/ and data/coco256")
    parser.add_argument("--model", default="yolo11n.pt")
    parser.add_argument("--images", type=int, help="of each split; default: all")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="cores that both tools may use")
    parser.add_argument("--out", type=Path, default=RESULTS / "build_vs_ultralytics.json")
    given = parser.parse_args()
    use_cores(given.threads)
    asked = f" --images {given.images}" if given.images else ""
    found: dict[str, Any] = {
        "question": "how long from a checkpoint to a scored INT8 model, beside Ultralytics?",
        "command": f"python bench/build_vs_ultralytics.py --model {given.model}{asked} "
        f"--repetitions {given.repetitions} --threads {given.threads}",
        "model": given.model,
        "repetitions": given.repetitions,
        "seeds": "PYTHONHASHSEED=0; calibration images as each tool chooses them by default",
        **conditions(given.threads),
    }
    with tempfile.TemporaryDirectory(prefix="edgekd-bench-") as folder:
        work = Path(folder)
        data = copy_data(given.shared.absolute() / "data" / "coco256", work / "data", given.images)
        found["images"] = {name: len(load_dataset(data).split(name)) for name in ("train", "val")}
        bench = Bench(work, given.shared.absolute() / "models" / given.model, data)
        turns = take_turns(bench, work, given.repetitions)
    ours, theirs = found["tools"] = [summary(turns, tool) for tool in ("edgekd", "ultralytics")]
    found["ratio"] = theirs["seconds"]["median"] / ours["seconds"]["median"]
    found["ratio_like_for_like"] = theirs["like_for_like"] / ours["like_for_like"]
    found["turns"] = [asdict(turn) for turn in turns]
    found["packages"] = {name: version for name in PACKAGES if (version := library_version(name))}
    write_results(given.out, found, page(found))
    return 0 if ours["map50_95"] >= theirs["map50_95"] else 1


if __name__ == "__main__":
    sys.exit(main())
