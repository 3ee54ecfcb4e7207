"""Compare coded INT8 with fp4x as the small form of a plan, at equal bytes, and time how coded INT8 expands.

Both are planned by the recipe `mixed` from the same frames; only `formats` differ. Needs `edgekd[train]`.
"""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from common import Detector, exported, images_of, quantize_step
from frame import Blocks, Document, Given, Option, Result, cell, head, main, note, table
from graphs import Reference
from onnx import helper, numpy_helper

from edgekd.builds.stages.plan import FILL, plan_within
from edgekd.compress.quantization.mixed_precision import Costs, measure_costs
from edgekd.compress.quantization.qdq import read_layers
from edgekd.compress.steps import Quantize
from edgekd.compress.weight_formats import WeightFormat
from edgekd.core.formats import packed_graph
from edgekd.data.dataset import load_dataset
from edgekd.data.types import Dataset

DATA = {"yolo11n-ppe.pt": ("ppe", ("val", "test")), "yolo11n.pt": ("coco256", ("val",))}
"""Data set and scored splits of each model."""
FORMS: tuple[WeightFormat, ...] = ("fp4x", "coded")
JUDGED = 32  # frames of `val` on which noise is measured
SHARE = 0.75  # of the calibration frames, in each draw
TRIES = 3  # plans for a size: how well codes compress is known only afterwards
YOLO11X = 57_000_000  # about how many weights YOLO11x has


def cpu_seconds(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return what work gives, and the seconds of processor time that it took."""
    began = time.process_time()
    return work(), time.process_time() - began


class Case:
    """One model with its data: its float graph, and frames."""

    def __init__(self, model: str, given: Given) -> None:
        data, self.splits = DATA[model]
        self.model, self._given = model, given
        self._dataset: Dataset = load_dataset(given.shared / "data" / data)
        classes = self._dataset.classes
        self._source = exported(given.shared / "models" / model, given.scratch / f"{model}.onnx", classes=classes)
        self._whole = self._source.graph.stat().st_size
        judged = images_of(self._dataset.split("val"), JUDGED)
        self._reference = Reference(self._source.graph, list(self._source.frames(judged)))

    def rows(self, draw: int) -> Iterator[Document]:
        """Yield the float graph, and both forms at each size, calibrated on a draw of the training frames."""
        images = images_of(self._dataset.split("train"))
        every = images[:: max(len(images) // self._given.frames, 1)][: self._given.frames]
        chosen = np.random.default_rng(draw).permutation(len(every))[: round(len(every) * SHARE)]
        frames = list(self._source.frames(every[index] for index in chosen))
        for form in FORMS:
            step = replace(quantize_step("mixed"), formats=("int8", form, "float16"))
            costs, seconds = cpu_seconds(lambda step=step: measure_costs(self._source.graph, frames, step))
            for part in self._given.parts:
                row = self._row(form, step, costs, frames, int(self._whole / part))
                yield Document(row, model=self.model, draw=draw, part=part, plan_s=round(seconds, 1))

    def floating(self) -> Document:
        return Document(model=self.model, form="float32", bytes=self._whole, scores=self._scores(self._source))

    def _row(
        self, form: WeightFormat, step: Quantize, costs: Costs, frames: list[np.ndarray], max_bytes: int
    ) -> Document:
        out, room = self._given.scratch / f"{self.model}.{form}.onnx", max_bytes
        for _ in range(TRIES):
            plan = plan_within(costs, room)
            quantized = Detector(out, self._source.spec)
            _, seconds = cpu_seconds(lambda: self._source.quantized(out, frames, step, plan.forms, plan.steps))  # noqa: B023
            size = len(packed_graph.pack(out.read_bytes()))
            if size <= max_bytes or plan.predicted_bytes > room:
                break
            room = int((plan.predicted_bytes - (size - max_bytes)) * FILL)
        row = Document(form=form, bytes=size, quantize_s=round(seconds, 1), noise=self._reference.noise(out))
        note(self.model, form, row)
        return Document(row, layers=Counter(plan.forms.values()), scores=self._scores(quantized))

    def _scores(self, detector: Detector) -> dict[str, float]:
        if self._given.unscored:
            return {}
        return {split: detector.map50_95(self._dataset.split(split)) for split in self.splits}

    def speed(self, repeats: int) -> Document:
        """Expand as many coded weights as a YOLO11x has: the last coded graph's layers, over and over."""
        layers = read_layers(self._given.scratch / f"{self.model}.coded.onnx")
        coded = [layer.weights for layer in layers if layer.form == "coded"]
        copies = round(YOLO11X / sum(each.size for each in coded))
        tensors = [
            numpy_helper.from_array(each, f"{copy}/{index}")
            for copy in range(copies)
            for index, each in enumerate(coded)
        ]
        graph = helper.make_graph([helper.make_node("Identity", ["0/0"], ["y"])], "weights", [], [], tensors)
        content = helper.make_model(graph).SerializeToString()
        packed, seconds = cpu_seconds(lambda: packed_graph.pack(content))
        took = [cpu_seconds(lambda: packed_graph.unpack(packed)) for _ in range(repeats)]
        assert all(found == content for found, _ in took)
        unpack = [round(each, 2) for _, each in took]
        weights = copies * sum(each.size for each in coded)
        return Document(weights=weights, bits=8 * len(packed) / weights, pack_s=round(seconds, 1), unpack_s=unpack)


def run(given: Given) -> Iterator[Result]:
    rows: list[Document] = []
    speed = None
    for model in given.models:
        case = Case(model, given)
        rows.append(case.floating())
        for draw in range(given.draws):
            for row in case.rows(draw):
                rows.append(row)
                yield {"rows": rows, "speed": speed}
        speed = speed or case.speed(given.repeats)
        yield {"rows": rows, "speed": speed}


def page(found: Document) -> Blocks:
    yield from head("Coded INT8 beside fp4x", found)
    yield (
        "Plans of the recipe `mixed` with INT8, float16 and one of the two, for the same bytes of the packed "
        "graph. Noise: relative to the float graph's signal where its last convolutions end, on "
        f"{JUDGED} images of `val`. mAP50-95 on every image of a split. Each draw is three quarters of {found.frames} "
        "training images. Processor seconds: to measure the costs of a plan, and to quantize by it. Where no plan is "
        "small enough, the row is the smallest."
    )
    whole = {row.model: row for row in found.rows if row.form == "float32"}
    lines = []
    for row in found.rows:
        smaller = whole[row.model].bytes / row.bytes
        scores = ", ".join(f"{split} {score:.4f}" for split, score in row.scores.items())
        cells = [
            cell(row.get(name), form) for name, form in (("noise", ".4f"), ("plan_s", ".0f"), ("quantize_s", ".0f"))
        ]
        draw = cell(row.get("draw"))
        lines.append(
            f"{row.model} | {row.form} | {draw} | {row.bytes:,} | 1/{smaller:.2f} | {' | '.join(cells)} | {scores}"
        )
    yield table(" | form | draw | bytes | of float32 | noise | plan s | quantize s | mAP50-95", lines)
    if found.speed:
        unpack = found.speed.unpack_s
        yield (
            f"{found.speed.weights / 1e6:.1f} M coded weights of {found.speed.bits:.2f} bits are packed in "
            f"{found.speed.pack_s:.1f} s and expanded in {statistics.median(unpack):.2f} s ({min(unpack):.2f} to "
            f"{max(unpack):.2f}), processor time of one core."
        )


if __name__ == "__main__":
    main(
        run,
        page,
        Option("--models", list(DATA)),
        Option("--parts", [8.0], "sizes of the packed graph: the float file's by these"),
        Option("--draws", 1),
        Option("--frames", 64),
        Option("--repeats", 3),
        Option("--unscored", False, "measure noise alone"),
        cores=1,
    )
