"""Measure the accuracy of coded INT8 at given sizes, without training or labels, for several calibration sets.

Plans are those of the recipe `mixed`, and for comparison some with fp4x as the small format, at equal size. Finished
rows are kept in `--work`; an interrupted run continues there. Needs `edgekd[train]`.
"""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from common import HERE, Detector, exported, images_of, quantize_step
from frame import (
    Blocks,
    Document,
    FinishedRows,
    Given,
    Option,
    Result,
    cell,
    claim,
    claims_table,
    head,
    main,
    note,
    spread,
    table,
)
from graphs import Reference
from onnx import helper, numpy_helper

from edgekd.builds.stages.plan import Attempt, fitted
from edgekd.compress.quantization.mixed_precision import Costs, measure_costs
from edgekd.compress.quantization.plan import Plan
from edgekd.compress.quantization.qdq import read_layers
from edgekd.compress.steps import Quantize
from edgekd.compress.weight_formats import WeightFormat
from edgekd.core.formats import packed_graph
from edgekd.data.dataset import load_dataset
from edgekd.data.types import Dataset

DATA = {
    "yolo11n.pt": ("coco256", ("val",)),
    "yolo26n.pt": ("coco256", ("val",)),
    "yolo11n-ppe.pt": ("ppe", ("val", "test")),
}
"""Data set and scored splits of each model."""
FLOAT, CODED, SPEED = "float32", "coded", "speed"
"""Values of `form` in rows, besides `fp4x`."""
KEEP = {8.0: 0.99, 10.0: 0.97}
"""Goals: share of the float graph's mAP50-95 to keep, by the factor by which the file shrinks."""
ENCODE_S, DECODE_S = 120, 5
"""Goals: CPU seconds for the plan and graph of one size, and for expanding the weights of a YOLO11x."""
JUDGED = 32  # frames of `val` for measuring output noise
SHARE = 0.75  # share of the calibration frames in each draw
YOLO11X = 57_000_000  # approximate number of weights of YOLO11x

Key = tuple[str, str, int | None, float | None]
"""Model, kind, draw and part of a row."""


def cpu_seconds(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return the result of `work` and its CPU seconds."""
    began = time.process_time()
    return work(), time.process_time() - began


def key_of(row: Document) -> Key:
    return row.model, row.form, row.get("draw"), row.get("part")


class Case:
    """A model with its data set, float graph and calibration frames."""

    def __init__(self, model: str, given: Given) -> None:
        data, self.splits = DATA[model]
        self.model, self._given = model, given
        self._dataset: Dataset = load_dataset(given.shared / "data" / data)

    @cached_property
    def _source(self) -> Detector:
        model = self._given.shared / "models" / self.model
        return exported(model, self._given.scratch / f"{self.model}.onnx", classes=self._dataset.classes)

    @cached_property
    def _reference(self) -> Reference:
        judged = images_of(self._dataset.split("val"), JUDGED)
        return Reference(self._source.graph, list(self._source.frames(judged)))

    def floating(self) -> Document:
        size = self._source.graph.stat().st_size
        return Document(model=self.model, form=FLOAT, bytes=size, scores=self._scores(self._source))

    def rows(self, form: WeightFormat, draw: int, parts: Sequence[float]) -> Iterator[Document]:
        """Yield a row for each size, with this small format and calibrated on this draw of the training frames."""
        images = images_of(self._dataset.split("train"))
        every = images[:: max(len(images) // self._given.frames, 1)][: self._given.frames]
        chosen = np.random.default_rng(draw).permutation(len(every))[: round(len(every) * SHARE)]
        frames = list(self._source.frames(every[index] for index in chosen))
        step = replace(quantize_step("mixed"), formats=("int8", form, "float16"))
        costs, seconds = cpu_seconds(lambda: measure_costs(self._source.graph, frames, step))
        for part in parts:
            first = Document(model=self.model, form=form, draw=draw, part=part, plan_s=round(seconds, 1))
            yield Document(first, **self._row(form, part, costs, frames, step))

    def _row(
        self, form: WeightFormat, part: float, costs: Costs, frames: list[np.ndarray], step: Quantize
    ) -> dict[str, Any]:
        """Quantize to a size and return the measurements. quantize_s: CPU seconds of each attempt at that size."""
        limit = int(self._source.graph.stat().st_size / part)
        out = self._given.work / f"{self.model}.{form}.onnx"
        seconds: list[float] = []

        def attempt(plan: Plan) -> Attempt[Plan]:
            _, took = cpu_seconds(lambda: self._source.quantized(out, frames, step, plan.forms, plan.steps))
            seconds.append(round(took, 1))
            return Attempt(plan, out, len(packed_graph.pack(out.read_bytes())))

        plan = fitted(costs, limit, 0, attempt)
        return {
            "limit": limit,
            "bytes": len(packed_graph.pack(out.read_bytes())),
            "noise": self._reference.noise(out),
            "quantize_s": seconds,
            "layers": Counter(plan.forms.values()),
            "scores": self._scores(Detector(out, self._source.spec)),
        }

    def _scores(self, detector: Detector) -> dict[str, float]:
        return {split: detector.map50_95(self._dataset.split(split)) for split in self.splits}


def speed(graph: Path, repeats: int) -> Document:
    """Time packing and expanding as many weights as YOLO11x has: copies of the coded layers of a graph."""
    coded = [layer.weights for layer in read_layers(graph) if layer.form == "coded"]
    copies = round(YOLO11X / sum(each.size for each in coded))
    tensors = [
        numpy_helper.from_array(each, f"{copy}/{index}") for copy in range(copies) for index, each in enumerate(coded)
    ]
    weights = helper.make_graph([helper.make_node("Identity", ["0/0"], ["y"])], "weights", [], [], tensors)
    content = helper.make_model(weights).SerializeToString()
    packed, seconds = cpu_seconds(lambda: packed_graph.pack(content))
    took = [cpu_seconds(lambda: packed_graph.unpack(packed)) for _ in range(repeats)]
    assert all(found == content for found, _ in took)
    unpack = [round(each, 2) for _, each in took]
    count = copies * sum(each.size for each in coded)
    row = Document(model="as many weights as YOLO11x", form=SPEED, weights=count, bits=8 * len(packed) / count)
    return Document(row, pack_s=round(seconds, 1), unpack_s=unpack)


def run(given: Given) -> Iterator[Result]:
    settings = {name: getattr(given, name) for name in ("frames", "repeats")}
    kept = FinishedRows(given.work / "rows.json", settings, given.threads)
    for rows in missing(given, {key_of(row) for row in kept.rows}):
        for row in rows:
            kept.add(row)
            note({name: value for name, value in row.items() if name != "layers"})
            yield result(kept)
    yield result(kept)


def missing(given: Given, finished: set[Key]) -> Iterator[Iterator[Document]]:
    """Yield the missing rows in groups that share a calibration."""
    cases = {model: Case(model, given) for model in given.models}
    for model, case in cases.items():
        if (model, FLOAT, None, None) not in finished:
            yield iter([case.floating()])
    for draw in range(given.draws):
        for model, case in cases.items():
            if left := [part for part in given.parts if (model, CODED, draw, part) not in finished]:
                yield case.rows("coded", draw, left)
    if SPEED not in {form for _, form, _, _ in finished}:
        yield iter([speed(given.work / f"{given.models[-1]}.{CODED}.onnx", given.repeats)])
    for model, case in cases.items():
        if (model, "fp4x", 0, given.parts[0]) not in finished:
            yield case.rows("fp4x", 0, given.parts[:1])


def result(kept: FinishedRows) -> Result:
    return {**kept.conditions, "rows": kept.rows, "claims": claims(kept.rows)}


def shares(rows: Sequence[Document], form: str, part: float) -> dict[str, list[float]]:
    """Return the kept share of the float graph's mAP50-95 for each draw, by model: the mean over splits."""
    whole = {row.model: row.scores for row in rows if row.form == FLOAT}
    found: dict[str, list[float]] = {}
    for row in rows:
        if (row.form, row.get("part")) == (form, part):
            kept = [score / whole[row.model][split] for split, score in row.scores.items()]
            found.setdefault(row.model, []).append(statistics.fmean(kept))
    return found


def claims(rows: Sequence[Document]) -> list[dict[str, Any]]:
    found = []
    coded = [row for row in rows if row.form == CODED]
    for part, keep in KEEP.items():
        if each := shares(rows, CODED, part):
            kept = statistics.fmean(share for of_model in each.values() for share in of_model)
            text = f"1/{part:g} keeps {keep:.0%} of the float mAP50-95, mean of models and draws"
            found.append(claim(text, kept, kept >= keep))
    if coded:
        over = max(row.bytes / row.limit for row in coded)
        took = max(row.plan_s + sum(row.quantize_s) for row in coded)
        found.append(claim("largest file of coded INT8, by its limit, is at most 1", over, over <= 1))
        found.append(claim(f"plan and graph take at most {ENCODE_S} s, the longest", took, took <= ENCODE_S))
    for row in (row for row in rows if row.form == SPEED):
        took = statistics.median(row.unpack_s)
        found.append(claim(f"{row.weights / 1e6:.1f} M weights expand in {DECODE_S} s", took, took <= DECODE_S))
    return found


def page(found: Document) -> Blocks:
    yield from head("Coded INT8 at a size, without training and without labels", found)
    draws = len({row.draw for row in found.rows if row.form == CODED})
    yield f"""\
Plans of the recipe `mixed`, for a part of the float file as the size of the packed graph; rows with fp4x, if there
are any, have it in place of coded INT8. Noise: relative to the float graph's signal where its last convolutions
end, on {JUDGED} images of `val`. mAP50-95 on every image of a split. Draws of calibration images: {draws}. Each is
three quarters of {found.frames} training images; a build calibrates on 128. Processor seconds of one core: to measure
the costs of a plan, and to quantize by it, once for each attempt at the size. Nothing was chosen by a score."""
    yield claims_table(found.claims)
    lines = []
    for form, part in dict.fromkeys((row.form, row.part) for row in found.rows if row.get("part")):
        for model, each in shares(found.rows, form, part).items():
            noise = [row.noise for row in found.rows if (row.model, row.form, row.get("part")) == (model, form, part)]
            lines.append(f"{model} | {form} | 1/{part:g} | {len(each)} | {spread(each)} | {spread(noise)}")
    yield "Share of the float graph's mAP50-95, mean of its splits, and noise: means of the draws (lowest..highest)."
    yield table(" | form | size | draws | share | noise", lines)
    yield table(" | form | draw | bytes | of float32 | noise | plan s | quantize s | mAP50-95", _lines(found.rows))
    for row in (row for row in found.rows if row.form == SPEED):
        unpack = row.unpack_s
        yield (
            f"{row.weights / 1e6:.1f} M coded weights of {row.bits:.2f} bits are packed in {row.pack_s:.1f} s and "
            f"expanded in {statistics.median(unpack):.2f} s ({min(unpack):.2f} to {max(unpack):.2f}), processor time "
            "of one core."
        )


def _lines(rows: Sequence[Document]) -> Iterator[str]:
    whole = {row.model: row.bytes for row in rows if row.form == FLOAT}
    for row in (row for row in rows if row.form != SPEED):
        scores = ", ".join(f"{split} {score:.4f}" for split, score in row.scores.items())
        took = ", ".join(f"{each:.0f}" for each in row.get("quantize_s", ())) or "–"
        cells = [cell(row.get("noise"), ".4f"), cell(row.get("plan_s"), ".0f"), took, scores]
        smaller = f"1/{whole[row.model] / row.bytes:.2f}"
        yield " | ".join([row.model, row.form, cell(row.get("draw")), f"{row.bytes:,}", smaller, *cells])


if __name__ == "__main__":
    main(
        run,
        page,
        Option("--models", list(DATA)),
        Option("--parts", list(KEEP), "sizes of the packed graph: the float file's by these"),
        Option("--draws", 4),
        Option("--frames", 32, "training images that draws are taken from"),
        Option("--repeats", 3),
        Option("--work", HERE.parent / "runs" / "coded_weights"),
        cores=1,
    )
