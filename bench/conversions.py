"""What conversions keep: mAP, largest error, bytes and seconds of each format, beside Ultralytics' own exports.

Each detector is exported as float32 ONNX and quantized (recipe `ptq`, few frames: what INT8 costs is not the question),
then `edgekd convert` writes both in each format. Everything is scored by the same scorer on the same images: sources
by ONNX Runtime, results by the runtime of their format. Ultralytics exports its own checkpoints to the same formats.

    python bench/conversions.py [--models M ...] [--images N] [--work FOLDER]

Finished rows are kept in `--work`, where a cut run goes on. The environment needs `edgekd[train,openvino,ncnn,rtx]`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
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
    without_folders,
    write_results,
)

from edgekd.builds.recipe import Quantize
from edgekd.commands.convert import FRAMES, INT8_MAP_LIMIT, MAP_LIMIT, convert, outputs
from edgekd.compress.quantization.quantize import quantize
from edgekd.core.detection.preprocess import letterbox
from edgekd.core.detection.types import DetectorSpec, Head
from edgekd.core.errors import EdgeKDError
from edgekd.data.dataset import load_dataset
from edgekd.data.images import read_image
from edgekd.data.types import Dataset, Split
from edgekd.deploy.artifact import runnable
from edgekd.deploy.converters.parity import distance
from edgekd.detectors import load
from edgekd.detectors.export import export
from edgekd.detectors.onnx import describe
from edgekd.evaluation.evaluate import evaluate
from edgekd.graph.runtimes.ncnn import NCNN_CPU
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU
from edgekd.graph.runtimes.openvino import OPENVINO_CPU
from edgekd.graph.runtimes.types import Engine
from edgekd.graph.view import load_graph

MODELS = ("yolo11n.pt", "yolo26n.pt", "yolox_nano.onnx")
CALIBRATION = 16
OPSET, NEWER_OPSET = 17, 21
FLOAT, INT8 = "float32", "int8"
ULTRALYTICS = "Ultralytics"
OURS = (
    (INT8, "ncnn", {}),
    (INT8, "openvino", {}),
    (FLOAT, "ncnn", {"precision": "fp16"}),
    (FLOAT, "openvino", {"precision": "fp16"}),
    (FLOAT, "ncnn", {}),
    (FLOAT, "openvino", {}),
    (INT8, "onnx", {"opset": NEWER_OPSET}),
    (FLOAT, "onnx", {"opset": NEWER_OPSET}),
    (FLOAT, "onnx", {"precision": "fp16"}),
    (FLOAT, "tensorrt-rtx", {"precision": "fp16", "target": ("rtx-40",)}),
    (INT8, "tensorrt-rtx", {"precision": "fp16", "target": ("rtx-40",)}),
)
"""What edgekd converts: from which source, to which format, how."""
PEERS = (("ncnn", "16"), ("openvino", "16"), ("ncnn", "32"), ("openvino", "32"))
"""What Ultralytics exports: format, bits of a weight."""
EXPORT = """
import json, sys
from ultralytics import YOLO
checkpoint, form, bits = sys.argv[1:]
print(YOLO(checkpoint).export(format=form, imgsz=640, **({"quantize": 16} if bits == "16" else {})))
"""


@dataclass(frozen=True)
class Row:
    """One line; what could not be had is None. largest_score: difference of any score from the source's, on FRAMES
    frames; difference: mAP50-95 less the source's.
    """

    model: str
    source: str
    to: str
    how: str
    bytes: int | None = None
    seconds: float | None = None
    int8_layers: tuple[int, int] | None = None
    largest_score: float | None = None
    map50_95: float | None = None
    map50: float | None = None
    difference: float | None = None
    error: str | None = None

    @property
    def name(self) -> tuple[str, str, str, str]:
        return (self.model, self.source, self.to, self.how)


class Bench:
    """One run: its rows, and where its files lie."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.work: Path = given.work
        self.work.mkdir(parents=True, exist_ok=True)
        self.data: Dataset = load_dataset(given.shared / "data" / "coco256")
        whole = self.data.split("val")
        self.split: Split = replace(whole, samples=whole.samples[: given.images])
        self._state = self.work / "rows.json"
        kept = json.loads(self._state.read_text("utf-8")) if self._state.is_file() else {}
        self.conditions = kept.get("conditions") or conditions(given.threads)
        rows = kept.get("rows", []) if kept.get("images") == len(self.split) else []
        self.rows = [Row(**{**row, "int8_layers": row["int8_layers"] and tuple(row["int8_layers"])}) for row in rows]

    def measure(self) -> None:
        """Every row that is missing."""
        for row, make in self._wanted():
            self._add(row, make)

    def missing(self) -> list[str]:
        """The rows that a cut run has not come to, in words."""
        there = {row.name for row in self.rows}
        absent = [row for row, _ in self._wanted() if row.name not in there]
        return [f"{row.model}, {row.source} to {', '.join(filter(None, (row.to, row.how)))}" for row in absent]

    def _wanted(self) -> Iterator[tuple[Row, Callable[[Row], Row]]]:
        """All rows, and what makes them: the first way for all models, then the next."""
        for model in self.given.models:
            for kind in (FLOAT, INT8):
                yield Row(model, kind, "source", ""), self._source
        for kind, to, told in OURS:
            for model in self.given.models:
                yield Row(model, kind, to, _how(told)), partial(self._converted, told=told)
        for to, bits in PEERS:
            for model in (each for each in self.given.models if each.endswith(".pt")):
                yield Row(model, FLOAT, to, f"{ULTRALYTICS}, {bits} bits"), partial(self._exported, bits=bits)

    def _add(self, row: Row, make: Callable[[Row], Row]) -> None:
        if any(each.name == row.name for each in self.rows):
            return
        began = time.monotonic()
        try:
            row = make(row)
        except (EdgeKDError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", "") or str(error)
            last = (str(said).strip() or "it said nothing").splitlines()[-1]
            row = replace(row, error=without_folders(last, self.work, self.given.shared)[:300])
        print(f"{row} in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        self.rows.append(row)
        kept = {"conditions": self.conditions, "images": len(self.split), "rows": [asdict(each) for each in self.rows]}
        self._state.write_text(json.dumps(kept, indent=1), "utf-8")
        report(self)

    def _source(self, row: Row) -> Row:
        graph = self.graph(row.model, row.source)
        return self._scored(replace(row, bytes=graph.stat().st_size), graph, self._spec(row), ONNXRUNTIME_CPU)

    def _converted(self, row: Row, told: Mapping[str, Any]) -> Row:
        graph = self.graph(row.model, row.source)
        out = self.work / "made" / "-".join((graph.stem, row.to, *map(str, told.values())))
        if row.to == "onnx":
            out = out.with_name(f"{out.name}.onnx")
        done = convert(graph, row.to, out=out, **told).document
        layers = (done["int8"]["carried"], done["int8"]["source"]) if done["int8"]["source"] else None
        row = replace(row, bytes=_model_bytes(done), seconds=round(done["seconds"], 1), int8_layers=layers)
        if done["parity"] is None:
            return row
        with runnable(out, None, (), False) as (entry, spec, engine):
            return self._scored(row, entry, spec, engine)

    def _exported(self, row: Row, bits: str) -> Row:
        """What Ultralytics exports, in a process of its own."""
        with tempfile.TemporaryDirectory(prefix="edgekd-bench-") as settings:
            environment = {**ultralytics_environment(Path(settings)), "OMP_NUM_THREADS": "1"}
            return self._exported_with(row, bits, environment)

    def _exported_with(self, row: Row, bits: str, environment: Mapping[str, str]) -> Row:
        folder = self.work / f"{ULTRALYTICS}-{row.to}-{bits}"
        folder.mkdir(exist_ok=True)
        checkpoint = folder / row.model
        checkpoint.write_bytes((self.given.shared / "models" / row.model).read_bytes())
        command = [sys.executable, "-c", EXPORT, checkpoint.name, row.to, bits]
        began = time.monotonic()
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True)
        seconds = round(time.monotonic() - began, 1)
        made = folder / f"{checkpoint.stem}_{row.to}_model"
        engine: Engine = NCNN_CPU if row.to == "ncnn" else OPENVINO_CPU
        entry = next(made.glob("*.param" if row.to == "ncnn" else "*.xml"))
        size = sum(path.stat().st_size for path in (entry, entry.with_suffix(".bin")))
        return self._scored(replace(row, bytes=size, seconds=seconds), entry, self._spec(row), engine)

    def _scored(self, row: Row, entry: Path, spec: DetectorSpec, engine: Engine) -> Row:
        frames = list(islice(self._frames(spec, self.split), FRAMES))
        graph = self.graph(row.model, row.source)
        expected, found = (outputs(of, by, frames) for of, by in ((graph, ONNXRUNTIME_CPU), (entry, engine)))
        if found[0].shape != expected[0].shape and found[0].shape[-1] == 6:  # with its TopK: nothing to hold it against
            spec, far = replace(spec, head=Head("end2end", nms=False)), None
        else:
            far = distance(found, expected, spec.head).largest_score
        score = evaluate(entry, spec, self.split, engine=engine).score
        source = next((each for each in self.rows if each.name == (row.model, row.source, "source", "")), None)
        apart = None if source is None or source.map50_95 is None else score.map50_95 - source.map50_95
        return replace(row, largest_score=far, map50_95=score.map50_95, map50=score.map50, difference=apart)

    def graph(self, model: str, kind: str) -> Path:
        """A source: made once, and kept."""
        exact = self.work / f"{Path(model).stem}.onnx"
        if not exact.is_file():
            export(load(self.given.shared / "models" / model, classes=self.data.classes), exact, OPSET)
        if kind == FLOAT:
            return exact
        int8 = exact.with_name(f"{exact.stem}.int8.onnx")
        if not int8.is_file():
            spec = describe(load_graph(exact), exact)
            frames = list(islice(self._frames(spec, self.data.split("train")), CALIBRATION))
            quantize(exact, int8, frames, Quantize())
        return int8

    def _spec(self, row: Row) -> DetectorSpec:
        graph = self.graph(row.model, FLOAT)
        return describe(load_graph(graph), graph)

    def _frames(self, spec: DetectorSpec, split: Split) -> Iterator[np.ndarray]:
        return (letterbox(read_image(sample.image), spec.preprocess)[0] for sample in split.samples)


def _model_bytes(done: Mapping[str, Any]) -> int:
    """Without the contract beside it."""
    return sum(each["bytes"] for each in done["files"] if Path(each["path"]).suffix not in (".json", ".yaml"))


def _how(told: Mapping[str, Any]) -> str:
    words = {"precision": "{}", "opset": "opset {}", "target": "for {}"}
    return ", ".join(words[key].format(*each if key == "target" else [each]) for key, each in told.items())


def claims(rows: list[Row]) -> list[dict[str, Any]]:
    """What edgekd's rows must show, and whether they do."""
    found = []
    for kind, limit in ((FLOAT, MAP_LIMIT), (INT8, INT8_MAP_LIMIT)):
        apart = [
            abs(row.difference) for row in rows if _is_ours(row) and row.source == kind and row.difference is not None
        ]
        if apart:
            text = f"{len(apart)} conversions of {kind} sources are within {limit} mAP50-95 of them"
            found.append({"claim": text, "found": max(apart), "holds": max(apart) <= limit})
    return found


def _is_ours(row: Row) -> bool:
    return row.to != "source" and not row.how.startswith(ULTRALYTICS)


def report(bench: Bench) -> dict[str, Any]:
    """Write what there is so far."""
    order = {model: index for index, model in enumerate(MODELS)}
    rows = sorted(
        bench.rows, key=lambda row: (order.get(row.model, 99), row.source, row.to != "source", row.to, row.how)
    )
    images = f" --images {bench.given.images}" if bench.given.images else ""
    found = {
        "question": "what do conversions keep of a detector?",
        "command": f"python bench/conversions.py --threads {bench.given.threads}{images}",
        "images": len(bench.split),
        "rows": [asdict(row) for row in rows],
        "claims": claims(rows),
        "missing": bench.missing(),
        **bench.conditions,
    }
    write_results(bench.given.out, found, page(found, rows))
    return found


def page(found: Mapping[str, Any], rows: list[Row]) -> list[str]:
    """The result as Markdown."""
    lines = ["# What conversions keep", "", f"`{found['command']}`", "", *_ABOUT, ""]
    lines += [f"{found['images']} images of coco256's `val`; error of a score on {FRAMES} of them.", ""]
    if missing := found["missing"]:
        lines += [f"Cut, and not measured yet: {'; '.join(missing)}. The same command goes on with them.", ""]
    header = ["source", "to", "bytes", "seconds", "INT8 layers", "largest error of a score", "mAP50-95", "less source"]
    for model in dict.fromkeys(row.model for row in rows):
        mine = [row for row in rows if row.model == model]
        lines += [f"## {model}", "", *table(header, [_cells(row) for row in mine]), ""]
        lines += [f"- {row.to}, {row.how}: {row.error}" for row in mine if row.error]
    marks = {True: "yes", False: "**no**"}
    held = [[each["claim"], f"{each['found']:.4f}", marks[each["holds"]]] for each in found["claims"]]
    return [*lines, "", *table(["what must hold", "largest", "holds"], held), "", *conditions_lines(found)]


_ABOUT = (
    "Sources are scored by ONNX Runtime, results by the runtime of their format, all by edgekd's scorer. Seconds: of",
    "the conversion alone, for Ultralytics of its whole process; on a machine that was busy they say little. INT8",
    "layers: those carried over with their scales, of those in the source. Engines of TensorRT for RTX are compiled,",
    "not run.",
)


def _cells(row: Row) -> list[str]:
    values = [
        None if row.bytes is None else f"{row.bytes:,}",
        None if row.seconds is None else f"{row.seconds:.1f}",
        None if row.int8_layers is None else "{} of {}".format(*row.int8_layers),
        None if row.largest_score is None or row.to == "source" else f"{row.largest_score:.2g}",
        None if row.map50_95 is None else f"{row.map50_95:.4f}",
        None if row.difference is None else f"{row.difference:+.4f}",
    ]
    to = "itself" if row.to == "source" else ", ".join(filter(None, (row.to, row.how)))
    return [row.source, to, *(value or "–" for value in values)]


def main() -> int:
    """0 when every claim holds and no row failed, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--images", type=int, help="of the split; default: all")
    parser.add_argument("--threads", type=int, default=2, help="cores that everything may use")
    parser.add_argument("--work", type=Path, default=Path("runs/conversions"), help="finished rows and sources")
    parser.add_argument("--out", type=Path, default=RESULTS / "conversions.json")
    given = parser.parse_args()
    given.work, given.shared = given.work.absolute(), given.shared.absolute()
    use_cores(given.threads)
    bench = Bench(given)
    bench.measure()
    found = report(bench)
    return 0 if all(each["holds"] for each in found["claims"]) and not any(row.error for row in bench.rows) else 1


if __name__ == "__main__":
    sys.exit(main())
