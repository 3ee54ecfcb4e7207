"""Measure conversions: mAP, largest error, bytes and seconds by format, compared with Ultralytics' own exports.

The INT8 source is calibrated on few frames: the loss through INT8 is not measured. Finished rows are kept in `--work`.
Needs `edgekd[train,openvino,ncnn,rtx]`.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import frame
from common import Detector, detector_in, exported, images_of, ultralytics_environment, without_folders
from frame import IMAGES, Blocks, Document, Given, Option, Result, cell

from edgekd.commands.convert import FRAMES, INT8_MAP_LIMIT, MAP_LIMIT, convert, outputs
from edgekd.core.detection.types import Head
from edgekd.core.errors import EdgeKDError
from edgekd.data.dataset import load_dataset
from edgekd.data.types import Dataset, Split
from edgekd.deploy.artifact import runnable
from edgekd.deploy.converters.parity import distance
from edgekd.graph.runtimes.ncnn import NCNN_CPU
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU
from edgekd.graph.runtimes.openvino import OPENVINO_CPU
from edgekd.graph.runtimes.types import HostRuntime

MODELS = ("yolo11n.pt", "yolo26n.pt", "yolox_nano.onnx")
CALIBRATION = 16
NEWER_OPSET = 21
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
"""Conversions by edgekd: source, format, options."""
PEERS = (("ncnn", "16"), ("openvino", "16"), ("ncnn", "32"), ("openvino", "32"))
"""Exports by Ultralytics: format, bits per weight."""
EXPORT = """
import json, sys
from ultralytics import YOLO
checkpoint, form, bits = sys.argv[1:]
print(YOLO(checkpoint).export(format=form, imgsz=640, **({"quantize": 16} if bits == "16" else {})))
"""


NOTHING = ("bytes", "seconds", "int8_layers", "largest_score", "map50_95", "map50", "difference", "error")
"""Fields of a row that may be None. largest_score: largest difference of a score from the source's on FRAMES frames;
difference: mAP50-95 minus the source's."""


def row_named(model: str, source: str, to: str, how: str) -> Document:
    """Return a row without measurements."""
    return Document(model=model, source=source, to=to, how=how, **dict.fromkeys(NOTHING))


def name_of(row: Document) -> tuple[str, str, str, str]:
    """Return the key of a row: model, source, format, options."""
    return row.model, row.source, row.to, row.how


class Bench:
    """One run: its rows and folders."""

    def __init__(self, given: Given) -> None:
        self.given, self.work = given, given.work.absolute()
        self.shared: Path = given.shared.absolute()
        self.data: Dataset = load_dataset(self.shared / "data" / "coco256")
        whole = self.data.split("val")
        self.split: Split = replace(whole, samples=whole.samples[: given.images])
        settings = {"images": len(self.split)}
        self.kept = frame.FinishedRows(self.work / "rows.json", settings, given.threads)
        self.rows = self.kept.rows

    def documents(self) -> Iterator[dict[str, Any]]:
        for row, make in self._wanted():
            if not any(name_of(each) == name_of(row) for each in self.rows):
                yield self.document()
                self._add(row, make)
        yield self.document()

    def document(self) -> dict[str, Any]:
        """Return the result so far. `missing`: descriptions of rows that are not measured yet."""
        order = {model: index for index, model in enumerate(MODELS)}
        rows = sorted(self.rows, key=lambda r: (order.get(r.model, 99), r.source, r.to != "source", r.to, r.how))
        known = set(map(name_of, self.rows))
        absent = [row for row, _ in self._wanted() if name_of(row) not in known]
        return {
            "images": len(self.split),
            "rows": rows,
            "missing": [f"{row.model}, {row.source} to {_target(row)}" for row in absent],
            "claims": claims(rows),
            **self.kept.conditions,
        }

    def _wanted(self) -> Iterator[tuple[Document, Callable[[Document], Document]]]:
        """Yield every row with the function that measures it: one conversion for all models, then the next."""
        for model in self.given.models:
            for kind in (FLOAT, INT8):
                yield row_named(model, kind, "source", ""), self._source
        for kind, to, how in OURS:
            for model in self.given.models:
                yield row_named(model, kind, to, _how(how)), partial(self._converted, options=how)
        for to, bits in PEERS:
            for model in (each for each in self.given.models if each.endswith(".pt")):
                yield row_named(model, FLOAT, to, f"{ULTRALYTICS}, {bits} bits"), partial(self._exported, bits=bits)

    def _add(self, row: Document, make: Callable[[Document], Document]) -> None:
        began = time.monotonic()
        try:
            row = make(row)
        except (EdgeKDError, subprocess.CalledProcessError) as error:
            output = getattr(error, "stderr", "") or str(error)
            last = (str(output).strip() or "it said nothing").splitlines()[-1]
            row = Document(row, error=without_folders(last, self.work, self.shared)[:300])
        frame.note(f"{row} in {time.monotonic() - began:.0f} s")
        self.kept.add(row)

    def _source(self, row: Document) -> Document:
        source = detector_in(self.graph(row.model, row.source))
        return self._scored(Document(row, bytes=source.graph.stat().st_size), source, ONNXRUNTIME_CPU)

    def _converted(self, row: Document, options: Mapping[str, Any]) -> Document:
        graph = self.graph(row.model, row.source)
        out = self.work / "made" / "-".join((graph.stem, row.to, *map(str, options.values())))
        if row.to == "onnx":
            out = out.with_name(f"{out.name}.onnx")
        done = convert(graph, row.to, out=out, **options).document
        layers = (done["int8"]["carried"], done["int8"]["source"]) if done["int8"]["source"] else None
        row = Document(row, bytes=_model_bytes(done), seconds=round(done["seconds"], 1), int8_layers=layers)
        if done["parity"] is None:
            return row
        with runnable(out, None, (), False) as (entry, spec, engine):
            return self._scored(row, Detector(entry, spec), engine)

    def _exported(self, row: Document, bits: str) -> Document:
        """Export with Ultralytics in its own process, and score the result."""
        folder = self.work / f"{ULTRALYTICS}-{row.to}-{bits}"
        folder.mkdir(exist_ok=True)
        checkpoint = folder / row.model
        checkpoint.write_bytes((self.shared / "models" / row.model).read_bytes())
        command = [sys.executable, "-c", EXPORT, checkpoint.name, row.to, bits]
        environment = {**ultralytics_environment(self.given.scratch / folder.name), "OMP_NUM_THREADS": "1"}
        began = time.monotonic()
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True)
        seconds = round(time.monotonic() - began, 1)
        made = folder / f"{checkpoint.stem}_{row.to}_model"
        engine: HostRuntime = NCNN_CPU if row.to == "ncnn" else OPENVINO_CPU
        entry = next(made.glob("*.param" if row.to == "ncnn" else "*.xml"))
        size = sum(path.stat().st_size for path in (entry, entry.with_suffix(".bin")))
        spec = detector_in(self.graph(row.model, FLOAT)).spec
        return self._scored(Document(row, bytes=size, seconds=seconds), Detector(entry, spec), engine)

    def _scored(self, row: Document, made: Detector, engine: HostRuntime) -> Document:
        frames = list(made.frames(images_of(self.split, FRAMES)))
        graph = self.graph(row.model, row.source)
        expected, found = outputs(graph, ONNXRUNTIME_CPU, frames), outputs(made.graph, engine, frames)
        far = None
        if found[0].shape != expected[0].shape and found[0].shape[-1] == 6:  # TopK in the graph: no raw outputs
            made = Detector(made.graph, replace(made.spec, head=Head("end2end", nms=False)))
        else:
            far = distance(found, expected, made.spec.head).largest_score
        score = made.evaluation(self.split, engine=engine).score
        source = next((each for each in self.rows if name_of(each) == (row.model, row.source, "source", "")), None)
        apart = None if source is None or source.map50_95 is None else score.map50_95 - source.map50_95
        scores = {"map50_95": score.map50_95, "map50": score.map50, "difference": apart}
        return Document(row, largest_score=far, **scores)

    def graph(self, model: str, kind: str) -> Path:
        """Return a source graph, which is exported or quantized on first use."""
        exact = self.work / f"{Path(model).stem}.onnx"
        if not exact.is_file():
            exported(self.shared / "models" / model, exact, classes=self.data.classes)
        if kind == FLOAT:
            return exact
        int8 = exact.with_name(f"{exact.stem}.int8.onnx")
        if not int8.is_file():
            source = detector_in(exact)
            source.quantized(int8, source.frames(images_of(self.data.split("train"), CALIBRATION)))
        return int8


def _model_bytes(done: Mapping[str, Any]) -> int:
    """Return the bytes of a conversion without its JSON and YAML files."""
    return sum(each["bytes"] for each in done["files"] if Path(each["path"]).suffix not in (".json", ".yaml"))


def _how(options: Mapping[str, Any]) -> str:
    words = {"precision": "{}", "opset": "opset {}", "target": "for {}"}
    return ", ".join(words[key].format(*each if key == "target" else [each]) for key, each in options.items())


def _target(row: Document) -> str:
    return ", ".join(filter(None, (row.to, row.how)))


def claims(rows: Sequence[Document]) -> list[dict[str, Any]]:
    ours = [row for row in rows if row.to != "source" and not row.how.startswith(ULTRALYTICS)]
    found = []
    for kind, limit in ((FLOAT, MAP_LIMIT), (INT8, INT8_MAP_LIMIT)):
        apart = [abs(row.difference) for row in ours if row.source == kind and row.difference is not None]
        if apart:
            text = f"{len(apart)} conversions of {kind} sources are within {limit} mAP50-95 of them"
            found.append(frame.claim(text, max(apart), max(apart) <= limit))
    return found


def page(found: Document) -> Blocks:
    yield from frame.head("Accuracy of conversions", found)
    yield """\
Sources are scored by ONNX Runtime, results by the runtime of their format, all by edgekd's scorer. Seconds: of
the conversion alone, for Ultralytics of its whole process; on a machine that was busy they say little. INT8
layers: those carried over with their scales, of those in the source. Engines of TensorRT for RTX are compiled,
not run."""
    yield f"{found.images} images of coco256's `val`; error of a score on {FRAMES} of them."
    if found.missing:
        yield f"Cut, and not measured yet: {'; '.join(found.missing)}. The same command goes on with them."
    for model in dict.fromkeys(row.model for row in found.rows):
        mine = [row for row in found.rows if row.model == model]
        yield f"## {model}"
        header = "source | to | bytes | seconds | INT8 layers | largest error of a score | mAP50-95 | less source"
        failed = [f"- {row.to}, {row.how}: {row.error}" for row in mine if row.error]
        yield "\n\n".join([frame.table(header, map(_cells, mine)), *(["\n".join(failed)] if failed else [])])
    yield "\n" + frame.claims_table(found.claims, header="requirement | largest | holds")


def _cells(row: Document) -> str:
    layers = "{} of {}".format(*row.int8_layers) if row.int8_layers else "–"
    largest = None if row.to == "source" else row.largest_score
    return (
        f"{row.source} | {'itself' if row.to == 'source' else _target(row)} | {cell(row.bytes, ',')} | "
        f"{cell(row.seconds, '.1f')} | {layers} | {cell(largest, '.2g')} | {cell(row.map50_95, '.4f')} | "
        f"{cell(row.difference, '+.4f')}"
    )


def run(given: Given) -> Iterator[Result]:
    return Bench(given).documents()


if __name__ == "__main__":
    options = (
        Option("--models", MODELS, choices=MODELS),
        IMAGES,
        Option("--work", Path("runs/conversions"), "finished rows and sources"),
    )
    frame.main(run, page, *options)
