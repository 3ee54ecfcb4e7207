"""Compare ways to halve a detector's multiply-adds, by accuracy after the same training.

Compared: edgekd's pruning; torch-pruning by magnitude, the same share of every layer; a narrower model of the family
with the same latency on this machine; the original. One loop trains all of them on the same images for the same number
of epochs: on labels alone, or with the original as teacher. All ship the moving average of the last step, and are timed
interleaved at the end. Needs `edgekd[train,openvino]`.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import training
from common import CPU_ENGINES, SPLITS, detector_in, exported, median_ms
from frame import Blocks, Document, Given, Job, Option, cell, claim, claims_table, head, main, table, versions_of
from training import DEVICE, SEEDS, Trainings, Way

from edgekd.compress.steps import Prune
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU
from edgekd.hardware.predict.device import PredictedPrecision
from edgekd.hardware.predict.graph import works_in
from edgekd.hardware.predict.latency import Predictor
from edgekd.hardware.target import load_target

WHOLE = "as it was"
OURS, OURS_LABELS = "edgekd, distilled", "edgekd, on labels"
PEER, PEER_DISTILLED = "torch-pruning, magnitude, uniform, on labels", "torch-pruning, magnitude, uniform, distilled"
NARROWER = "narrower model, on labels"
UNPRUNED = "as it was, trained as long on labels"
TARGETS: tuple[tuple[str, PredictedPrecision], ...] = (("xavier", "fp16"), ("xavier", "int8"))
"""Targets whose latency is predicted."""
WIDTHS = tuple(number / 100 for number in range(8, 25, 2))
"""Width factors to try for the narrower model."""
ENOUGH = 0.98


@dataclass(frozen=True)
class Made:
    """How to make a row. start: job that writes the detector to train; distilled: whether a teacher is used."""

    start: Job
    distilled: bool
    step: Prune


def methods(given: Given) -> dict[str, Made]:
    step = Prune(given.ratio, images=given.gradient_images)
    found = {
        OURS: Made(edgekd_start, True, step),
        OURS_LABELS: Made(edgekd_start, False, step),
        UNPRUNED: Made(unpruned_start, False, step),
        PEER: Made(uniform_start, False, step),
        PEER_DISTILLED: Made(uniform_start, True, step),
        NARROWER: Made(narrower_start, False, step),
    }
    if given.ablation:
        changes: dict[str, dict[str, Any]] = {
            "first-order change of the loss": {"importance": "taylor"},
            "gradients alone": {"importance": "gradient"},
            "magnitude": {"importance": "magnitude"},
            "ranks among layers built alike": {"ranking": "isomorphic"},
        }
        found |= {
            f"edgekd, {name}, distilled": Made(edgekd_start, True, replace(step, **c)) for name, c in changes.items()
        }
    return found


class Bench(Trainings):
    """The original detector and pruned ones. seconds: training time."""

    asked = ("ratio", "epochs", "batch", "image_size", "images", "gradient_images", "family", "device")
    numbers = ("parameters", "multiply_adds", "seconds")
    required = WHOLE
    times: Mapping[str, Mapping[str, float]] = MappingProxyType({})

    def ways(self) -> Iterator[Way]:
        yield WHOLE, None, self._whole
        for seed in self.given.seeds:
            for method, made in methods(self.given).items():
                yield method, seed, partial(self._trained, method, made, seed)

    def graph(self, method: str) -> Path:
        name = WHOLE if method == WHOLE else f"{method}-{self.given.seeds[0]}"
        return self._path(name).with_suffix(".onnx")

    def _path(self, name: str) -> Path:
        safe = "".join(letter if letter.isalnum() else "-" for letter in name)
        return Path(self.given.work, f"{safe}.pt")

    def _whole(self) -> Document:
        graph, given = self.graph(WHOLE), self.given
        sizes = self.job("whole", whole_job, model=given.model, size=given.image_size, out=graph)
        return self.with_scores(self.row(WHOLE, **sizes), graph)

    def _trained(self, method: str, made: Made, seed: int) -> Document:
        given, out = self.given, self._path(f"{method}-{seed}")
        start = self._path(f"{made.start.__name__}-{made.step.importance}-{made.step.ranking}-{seed}")
        sizes = start.with_suffix(".json")
        if not sizes.is_file():
            sizes.write_text(json.dumps(self._start(made, seed, start)), "utf-8")
        step = training.shipped() if made.distilled else training.on_labels(training.shipped())
        mine = replace(step, student=str(start), **training.settings_of(given, seed))
        files = {"teacher": given.model, "out": out, "data": self.data, "state": out.with_suffix(".training")}
        took = self.job(out.stem, training.edgekd_job, step=training.step_table(mine), **files)
        row = self.row(method, seed, seconds=took["seconds"], **json.loads(sizes.read_text("utf-8")))
        return self.with_scores(row, out.with_suffix(".onnx"))

    def _start(self, made: Made, seed: int, out: Path) -> dict[str, Any]:
        asked = {"model": self.given.model, "out": out, "size": self.given.image_size, "data": self.data}
        if made.start is narrower_start:
            asked |= {"family": self.given.family, "seed": seed, "like": self.graph(OURS)}
        else:
            asked["step"] = training.step_table(replace(made.step, seed=seed, image_size=self.given.image_size))
        return self.job(out.stem, made.start, **asked)

    def finish(self) -> None:
        self.times = latencies(self)

    def result(self) -> dict[str, Any]:
        return {"latency_ms": dict(self.times), "claims": claims(training.by_method(self.rows), self.times)}


def whole_job(model: str, out: str, size: int, **_: Any) -> dict[str, Any]:
    training.export_sized(model, Path(out), size)
    return sizes_of(network_in(model), size)


def network_in(checkpoint: str | Path) -> Any:
    from edgekd.detectors.ultralytics.checkpoint import load_checkpoint

    return load_checkpoint(Path(checkpoint), trust=True).model


def edgekd_start(
    step: Mapping[str, Any], model: str, out: str, data: str, size: int, threads: int, **_: Any
) -> dict[str, Any]:
    """Prune with edgekd, for frames of this size. Return parameters and multiply-adds."""
    import torch

    from edgekd.core.toml import parse_table
    from edgekd.detectors.ultralytics.prune import prune_detector

    torch.set_num_threads(threads)
    training.sized(model, Path(out), size)
    done = prune_detector(Path(out), Path(out), Path(data), parse_table(Prune, dict(step), "step"), trust=True)
    return {"parameters": done.parameters[1], "multiply_adds": done.multiply_adds[1]}


def unpruned_start(model: str, out: str, size: int, **_: Any) -> dict[str, Any]:
    """Copy the detector unchanged, for frames of this size. Return parameters and multiply-adds."""
    training.sized(model, Path(out), size)
    return sizes_of(network_in(out), size)


def uniform_start(step: Mapping[str, Any], model: str, out: str, size: int, threads: int, **_: Any) -> dict[str, Any]:
    """Prune with torch-pruning by magnitude, the same share of every layer, until the multiply-adds reach the ratio.

    torch-pruning cannot trace channel splits, so split convolutions are replaced by two halves, as for edgekd. The same
    layers are excluded.
    """
    import torch
    import torch_pruning

    from edgekd.detectors.ultralytics.channels import TRACED, _fixed_outputs, branches_alone, in_halves
    from edgekd.detectors.ultralytics.checkpoint import load_checkpoint, write_checkpoint

    torch.set_num_threads(threads)
    before = sizes_of(network_in(model), size)["multiply_adds"]
    for percent in range(1, 100):
        found = load_checkpoint(Path(model), trust=True)
        network = found.model.requires_grad_(True)
        with in_halves(network), branches_alone(network):
            pruner = torch_pruning.pruner.BasePruner(
                network,
                torch.zeros(1, 3, TRACED, TRACED),
                importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
                pruning_ratio=percent / 100,
                ignored_layers=_fixed_outputs(network),
            )
            pruner.step()
        sizes = sizes_of(network, size)
        if sizes["multiply_adds"] <= before * (1 - step["ratio"]):
            break
    write_checkpoint(network, {**found.train_args, "imgsz": size, "task": "detect"}, Path(out))
    return sizes


def narrower_start(
    family: str, seed: int, like: str, out: str, data: str, size: int, threads: int, **_: Any
) -> dict[str, Any]:
    """Write a narrower model with random weights: the fastest width that is not faster than the graph `like`."""
    detectors = {"like": detector_in(Path(like))}
    step = {"student": family, "seed": seed, "image_size": size}
    with tempfile.TemporaryDirectory() as folder:
        for width in WIDTHS:
            checkpoint, graph = Path(folder, f"{width}.pt"), Path(folder, f"{width}.onnx")
            training.start_job({**step, "width": width}, str(checkpoint), data)
            detectors[str(width)] = exported(checkpoint, graph, trust_checkpoint=True)
        took = median_ms(detectors, threads, {"onnxruntime": ONNXRUNTIME_CPU})["onnxruntime"]
    slower = [width for width in WIDTHS if took[str(width)] >= took["like"]]
    width = min(slower or WIDTHS[-1:], key=lambda each: took[str(each)])
    training.start_job({**step, "width": width}, out, data)
    return sizes_of(network_in(out), size)


def sizes_of(network: Any, size: int) -> dict[str, Any]:
    from edgekd.compress.pruning import multiply_adds
    from edgekd.detectors.torch_support import parameters_in
    from edgekd.detectors.ultralytics.channels import convolutions_of

    found = convolutions_of(network, (size, size)).values()
    return {"parameters": parameters_in(network), "multiply_adds": multiply_adds(tuple(found))}


def latencies(bench: Bench) -> dict[str, dict[str, float]]:
    """Return milliseconds per frame by method, for the first seed: measured (by engine, interleaved) and predicted."""
    graphs = {method: bench.graph(method) for method in (WHOLE, *methods(bench.given)) if bench.graph(method).is_file()}
    by_place = median_ms({method: detector_in(graph) for method, graph in graphs.items()}, bench.given.threads)
    for target, precision in TARGETS:
        predictor, name = Predictor(load_target(target), precision), f"{target} {precision}, predicted"
        by_place[name] = {method: predictor.predict(works_in(graph)).latency_ms for method, graph in graphs.items()}
    return {method: {name: times[method] for name, times in by_place.items()} for method in graphs}


def claims(rows: Mapping[str, Sequence[Document]], times: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    ours = training.mean_score(rows.get(OURS, ()), "test")
    found = [
        (f"ahead of {peer}", ours - training.mean_score(rows[peer], "test"), 0.0)
        for peer in (PEER, PEER_DISTILLED, NARROWER)
        if peer in rows
    ]
    text = f"at least {ENOUGH:.0%} of the whole detector's mAP50-95"
    for whole, words in ((WHOLE, text), (UNPRUNED, f"{text} after as much training")):
        if whole in rows:
            found.append((words, ours / training.mean_score(rows[whole], "test"), ENOUGH))
    if {WHOLE, OURS} <= times.keys():
        speed = min(times[WHOLE][name] / times[OURS][name] for name in CPU_ENGINES)
        found.append(("faster than it was on every engine; least speed-up", speed, 1.0))
    return [claim(words, value, value >= least) for words, value, least in found]


def page(found: Document) -> Blocks:
    yield from head("Pruned detectors after training", found)
    yield """\
Means over the seeds; in brackets the lowest and the highest. On labels: plain training; distilled: the same
beside the detector as it was. The narrower model has random weights: of its width there is no trained one.
Seconds: of training. Milliseconds: median of a frame from letterbox to boxes, all graphs interleaved, on this
machine's CPU; predicted ones are of the network alone."""
    yield training.epochs_line(found)
    timed = list(next(iter(found.latency_ms.values()), ()))
    columns = [f"{split} mAP50-95" for split in SPLITS] + [f"{name}, ms" for name in timed]
    lines = []
    for method, rows in training.by_method(found.rows).items():
        times = found.latency_ms.get(method, {})
        parameters, operations = (
            cell(training.mean(rows, "parameters"), ".3g", unit=1e6),
            training.mean(rows, "multiply_adds"),
        )
        sizes = f"{parameters} M | {cell(operations, '.3g', unit=1e9)} G"
        line = [
            method,
            training.seeds_of(rows),
            sizes,
            cell(training.mean(rows, "seconds"), ".3g"),
            training.spreads(rows),
        ]
        lines.append(" | ".join([*line, *(cell(times.get(name), ".2f") for name in timed)]))
    yield table(" | ".join(["how", "seeds", "parameters", "multiply-adds", "seconds", *columns]), lines)
    yield from training.failures(found)
    yield "## Goals, on test"
    yield claims_table(found.claims)
    yield f"- {versions_of(found.packages.get('edgekd', {}), ('ultralytics', 'torch', 'torch-pruning'))}"


if __name__ == "__main__":
    options = (
        *training.options("pruning", "what is pruned", epochs=30, batch=16),
        Option("--family", "yolo11n.yaml", "of the narrower model"),
        Option("--ratio", 0.5, "share of the multiply-adds to remove"),
        Option("--gradient-images", 64, "by which edgekd chooses channels"),
        SEEDS,
        Option("--ablation", False, "also edgekd's other ways to choose"),
        DEVICE,
    )
    main(Bench.run, page, *options, holds=training.none_failed)
