"""Pruning: what a detector at half of its multiply-adds is worth after the same training, made in different ways.

edgekd's pruning beside torch-pruning's magnitude pruning with the same share of every layer, beside a narrower model of
the same family that takes as long on this machine, and beside the detector as it was. All are trained by the same loop,
on the same images, for as many epochs: on labels alone, as its users would, and beside the detector that was pruned.
All ship the moving average of the last step: no epoch is chosen. All are timed at the end, interleaved.

    python bench/pruning.py [--model TRAINED.pt] [--ratio 0.5] [--epochs N] [--seeds N ...] [--device 0] [--ablation]

A row that is finished is kept in `--work`, and `--out` is written again after each: what was cut goes on where it was.
The environment needs `edgekd[train,openvino]`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from common import RESULTS, SHARED, SPLITS, JobError, Resumable, answer, conditions_lines, table, use_cores, write_pair
from distillation import edgekd_job, exported, sized, start_job, told

from edgekd.builds.recipe import Distill, DistillStage, Prune, Weights, load_recipe
from edgekd.deploy.devices.local import LocalDevice
from edgekd.evaluation.latency import synthetic_frames, time_graphs
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU
from edgekd.graph.runtimes.openvino import OPENVINO_CPU
from edgekd.graph.runtimes.types import Engine
from edgekd.hardware.predict.device import Precision
from edgekd.hardware.predict.graph import works_in
from edgekd.hardware.predict.latency import Predictor
from edgekd.hardware.target import load_target

WHOLE = "as it was"
OURS, OURS_LABELS = "edgekd, distilled", "edgekd, on labels"
PEER, PEER_DISTILLED = "torch-pruning, magnitude, uniform, on labels", "torch-pruning, magnitude, uniform, distilled"
NARROWER = "narrower model, on labels"
UNPRUNED = "as it was, trained as long on labels"
ENGINES: dict[str, Engine] = {"onnxruntime": ONNXRUNTIME_CPU, "openvino": OPENVINO_CPU}
TARGETS: tuple[tuple[str, Precision], ...] = (("xavier", "fp16"), ("xavier", "int8"))
"""Of which it is predicted how long a frame takes them."""
WIDTHS = tuple(number / 100 for number in range(8, 25, 2))
"""Factors of width among which the narrower model is looked for."""
ENOUGH = 0.98


@dataclass(frozen=True)
class Way:
    """How a row is made. start: a job that leaves what is trained; distilled: whether its training has a teacher."""

    start: str
    distilled: bool
    step: Prune = field(default_factory=Prune)


def ways(given: argparse.Namespace) -> dict[str, Way]:
    """What is compared, by name."""
    step = Prune(given.ratio, images=given.gradient_images)
    found = {
        OURS: Way("edgekd", True, step),
        OURS_LABELS: Way("edgekd", False, step),
        UNPRUNED: Way("unpruned", False, step),
        PEER: Way("uniform", False, step),
        PEER_DISTILLED: Way("uniform", True, step),
        NARROWER: Way("narrower", False, step),
    }
    if given.ablation:
        changes: dict[str, dict[str, Any]] = {
            "gradients alone": {"importance": "gradient"},
            "magnitude": {"importance": "magnitude"},
            "ranks among layers built alike": {"ranking": "isomorphic"},
        }
        found |= {f"edgekd, {name}, distilled": Way("edgekd", True, replace(step, **c)) for name, c in changes.items()}
    return found


@dataclass(frozen=True)
class Row:
    """One detector, trained. seconds: of training; made_in: seconds of pruning; untrained: mAP50-95 before training."""

    method: str
    seed: int | None = None
    parameters: int | None = None
    multiply_adds: int | None = None
    made_in: float | None = None
    seconds: float | None = None
    map50_95: Mapping[str, float] = field(default_factory=dict)
    map50: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None


class Bench(Resumable[Row]):
    """One run: what was asked, the folder in which it goes on after a cut, and the rows it has."""

    asked = ("ratio", "epochs", "batch", "image_size", "images", "gradient_images", "family", "device")

    def run(self) -> Iterable[None]:
        """Every row that is not there yet; pauses after each."""
        if self.missing(WHOLE):
            self.add(self._whole())
            yield
        for seed in self.given.seeds:
            for method, way in ways(self.given).items():
                if self.missing(method, seed):
                    self.add_made(method, seed, partial(self._trained, method, way, seed))
                    yield

    def graph(self, method: str) -> Path:
        """The float graph of a method's first seed."""
        name = WHOLE if method == WHOLE else f"{method}-{self.given.seeds[0]}"
        return self._path(name).with_suffix(".onnx")

    def _path(self, name: str) -> Path:
        safe = "".join(letter if letter.isalnum() else "-" for letter in name)
        return Path(self.given.work, f"{safe}.pt")

    def _whole(self) -> Row:
        job = {"do": "whole", "model": self.given.model, "size": self.given.image_size}
        took = self._job("whole", {**job, "out": self._path(WHOLE).with_suffix(".onnx")})
        return self.with_scores(Row(WHOLE, **took), self._path(WHOLE).with_suffix(".onnx"))

    def _trained(self, method: str, way: Way, seed: int) -> Row:
        given, out = self.given, self._path(f"{method}-{seed}")
        start = self._path(f"{way.start}-{way.step.importance}-{way.step.ranking}-{seed}")
        made = start.with_suffix(".json")
        if not made.is_file():
            made.write_text(json.dumps(self._start(way, seed, start)), "utf-8")
        step = shipped() if way.distilled else on_labels(shipped())
        asked = {"epochs": given.epochs, "batch": given.batch, "image_size": given.image_size, "seed": seed}
        mine = replace(step, student=str(start), **asked)
        files = {"teacher": given.model, "out": out, "data": self.data, "state": out.with_suffix(".training")}
        common = {"device": given.device, "threads": given.threads}
        took = self._job(out.stem, {"do": "train", "step": told(mine), **files, **common})
        sizes = json.loads(made.read_text("utf-8"))
        row = Row(method, seed, seconds=took["seconds"], **sizes)
        return self.with_scores(row, out.with_suffix(".onnx"))

    def _start(self, way: Way, seed: int, out: Path) -> dict[str, Any]:
        given = self.given
        common = {"model": given.model, "out": out, "size": given.image_size, "threads": given.threads}
        step = replace(way.step, seed=seed, image_size=given.image_size)
        if way.start == "narrower":
            like = self.graph(OURS)
            return self._job(
                out.stem,
                {"do": "narrower", "family": given.family, "seed": seed, "like": like, "data": self.data, **common},
            )
        job = {"do": way.start, "step": {name: value for name, value in asdict(step).items() if value is not None}}
        return self._job(out.stem, {**job, "data": self.data, **common})

    def _job(self, name: str, job: Mapping[str, Any]) -> dict[str, Any]:
        took = self.process(name, [*_MYSELF, json.dumps(job, default=str)])
        self.packages["edgekd"] = took.pop("packages")
        return took


def shipped() -> Distill:
    """The step of the shipped recipe."""
    step = load_recipe("distill").distill
    assert step is not None
    return step


def on_labels(step: Distill) -> Distill:
    """The same training without a teacher."""
    return replace(step, stages=(DistillStage("none", 1.0, Weights()),))


# ----------------------------------------------------------------------------------- what a process of its own does


def whole_job(model: str, out: str, size: int) -> dict[str, Any]:
    """Export the detector that is pruned."""
    from edgekd.detectors.ultralytics.checkpoint import load_checkpoint

    exported(model, Path(out), size)
    return sizes_of(load_checkpoint(Path(model), trust=True).model, size)


def edgekd_start(step: Mapping[str, Any], model: str, out: str, data: str, size: int, threads: int) -> dict[str, Any]:
    """Prune with edgekd, for frames of this size."""
    import torch

    from edgekd.core.toml import parse_table
    from edgekd.detectors.ultralytics.prune import prune_detector

    torch.set_num_threads(threads)
    sized(model, Path(out), size)
    done = prune_detector(Path(out), Path(out), Path(data), parse_table(Prune, dict(step), "step"), trust=True)
    return {"parameters": done.parameters[1], "multiply_adds": done.multiply_adds[1], "made_in": done.seconds}


def unpruned_start(step: Mapping[str, Any], model: str, out: str, data: str, size: int, threads: int) -> dict[str, Any]:
    """The detector as it is, for frames of this size."""
    from edgekd.detectors.ultralytics.checkpoint import load_checkpoint

    sized(model, Path(out), size)
    return sizes_of(load_checkpoint(Path(out)).model, size)


def uniform_start(step: Mapping[str, Any], model: str, out: str, data: str, size: int, threads: int) -> dict[str, Any]:
    """Prune with torch-pruning: the same share of every layer, the smallest weights first, until as much is gone.

    It cannot follow what blocks split, so they are in halves for it, as for edgekd, and the same layers are left alone.
    """
    import torch
    import torch_pruning

    from edgekd.detectors.ultralytics.channels import TRACED, _untouched, branches_alone, in_halves
    from edgekd.detectors.ultralytics.checkpoint import load_checkpoint, write_checkpoint

    torch.set_num_threads(threads)
    began = time.perf_counter()
    before = sizes_of(load_checkpoint(Path(model), trust=True).model, size)["multiply_adds"]
    for percent in range(1, 100):
        found = load_checkpoint(Path(model), trust=True)
        network = found.model.requires_grad_(True)
        with in_halves(network), branches_alone(network):
            pruner = torch_pruning.pruner.BasePruner(
                network,
                torch.zeros(1, 3, TRACED, TRACED),
                importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
                pruning_ratio=percent / 100,
                ignored_layers=_untouched(network),
            )
            pruner.step()
        sizes = sizes_of(network, size)
        if sizes["multiply_adds"] <= before * (1 - step["ratio"]):
            break
    took = time.perf_counter() - began
    write_checkpoint(network, {**found.train_args, "imgsz": size, "task": "detect"}, Path(out))
    return {**sizes, "made_in": took}


def narrower_start(
    family: str, model: str, seed: int, like: str, out: str, data: str, size: int, threads: int
) -> dict[str, Any]:
    """The narrower model of a family that takes at least as long as the graph `like`, with random weights."""
    from edgekd.detectors import load
    from edgekd.detectors.export import export
    from edgekd.detectors.onnx import describe
    from edgekd.detectors.ultralytics.checkpoint import load_checkpoint
    from edgekd.graph.view import load_graph

    began = time.perf_counter()
    graphs, specs = {"like": Path(like)}, {"like": describe(load_graph(Path(like)), Path(like))}
    with tempfile.TemporaryDirectory() as folder:
        for width in WIDTHS:
            checkpoint, graph = Path(folder, f"{width}.pt"), Path(folder, f"{width}.onnx")
            asked: dict[str, Any] = {"student": family, "width": width, "seed": seed, "image_size": size}
            start_job(asked, str(checkpoint), data, "cpu", threads)
            graphs[str(width)] = graph
            specs[str(width)] = export(load(checkpoint, trust_checkpoint=True), graph, 17).spec
        timed = time_graphs(
            graphs, specs, synthetic_frames(specs["like"]), LocalDevice(ONNXRUNTIME_CPU, threads), "measured"
        )
        took = {name: timing.summary()["total_ms"]["p50"] for name, timing in timed.items()}
        slower = [width for width in WIDTHS if took[str(width)] >= took["like"]]
        width = min(slower or WIDTHS[-1:], key=lambda each: took[str(each)])
        asked = {"student": family, "width": width, "seed": seed, "image_size": size}
        start_job(asked, out, data, "cpu", threads)
    return {**sizes_of(load_checkpoint(Path(out), trust=True).model, size), "made_in": time.perf_counter() - began}


def train_job(out: str, **job: Any) -> dict[str, Any]:
    """Train with edgekd's loop, and export."""
    return edgekd_job(out=out, **job)


def sizes_of(network: Any, size: int) -> dict[str, Any]:
    """Parameters, and multiply-adds of a frame."""
    from edgekd.compress.pruning import multiply_adds
    from edgekd.detectors.torch_support import parameters_in
    from edgekd.detectors.ultralytics.channels import convolutions_of

    found = convolutions_of(network, (size, size)).values()
    return {"parameters": parameters_in(network), "multiply_adds": multiply_adds(tuple(found))}


_MYSELF = (sys.executable, str(Path(__file__).resolve()), "--do")
_JOBS: dict[str, Callable[..., dict[str, Any]]] = {
    "whole": whole_job,
    "edgekd": edgekd_start,
    "unpruned": unpruned_start,
    "uniform": uniform_start,
    "narrower": narrower_start,
    "train": train_job,
}


# ------------------------------------------------------------------------------------------------------- the result


def latencies(bench: Bench) -> dict[str, dict[str, float]]:
    """Milliseconds of a frame of every method's first seed: by engine the median, all interleaved; by target."""
    from edgekd.detectors.onnx import describe
    from edgekd.graph.view import load_graph

    graphs = {method: bench.graph(method) for method in (WHOLE, *ways(bench.given)) if bench.graph(method).is_file()}
    specs = {method: describe(load_graph(graph), graph) for method, graph in graphs.items()}
    found: dict[str, dict[str, float]] = {method: {} for method in graphs}
    for name, engine in ENGINES.items():
        device = LocalDevice(engine, bench.given.threads)
        timed = time_graphs(graphs, specs, synthetic_frames(specs[WHOLE]), device, "measured")
        for method, timing in timed.items():
            found[method][name] = timing.summary()["total_ms"]["p50"]
    for target, precision in TARGETS:
        predictor = Predictor(load_target(target), precision)
        for method, graph in graphs.items():
            found[method][f"{target} {precision}, predicted"] = predictor.predict(works_in(graph)).latency_ms
    return found


def mean(rows: Sequence[Row], method: str, split: str) -> float:
    """Of the seeds' mAP50-95; NaN without a row."""
    scores = [row.map50_95[split] for row in rows if row.method == method and not row.error]
    return statistics.fmean(scores) if scores else float("nan")


def claims(rows: Sequence[Row], times: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """What is aimed at, on the split test, means of the seeds."""
    ours, there = mean(rows, OURS, "test"), {row.method for row in rows if not row.error}
    peers = [peer for peer in (PEER, PEER_DISTILLED, NARROWER) if peer in there]
    lines = [(f"ahead of {peer}", ours - mean(rows, peer, "test"), 0.0) for peer in peers]
    text = f"at least {ENOUGH:.0%} of the whole detector's mAP50-95"
    wholes = {WHOLE: text, UNPRUNED: f"{text} after as much training"}
    lines += [(told, ours / mean(rows, one, "test"), ENOUGH) for one, told in wholes.items() if one in there]
    speed = [times[WHOLE][name] / times[OURS][name] for name in ENGINES] if {WHOLE, OURS} <= times.keys() else []
    if speed:
        lines.append(("faster than it was on every engine; least speed-up", min(speed), 1.0))
    return [{"claim": text, "found": value, "holds": bool(value >= least)} for text, value, least in lines]


def page(found: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    """The result as Markdown."""
    header = ["how", "seeds", "parameters", "multiply-adds", "seconds", *(f"{split} mAP50-95" for split in SPLITS)]
    timed = list(next(iter(found["latency_ms"].values()), ()))
    header += [f"{name}, ms" for name in timed]
    cells = []
    for method in dict.fromkeys(row.method for row in rows if not row.error):
        mine = [row for row in rows if row.method == method and not row.error]
        times = found["latency_ms"].get(method, {})
        line = [method, ", ".join(str(row.seed) for row in mine if row.seed is not None) or "–"]
        line += [_mean(mine, "parameters", 1e6, " M"), _mean(mine, "multiply_adds", 1e9, " G"), _mean(mine, "seconds")]
        line += [_spread([row.map50_95[split] for row in mine]) for split in SPLITS]
        cells.append([*line, *(f"{times[name]:.2f}" if name in times else "–" for name in timed)])
    marks = {True: "yes", False: "**no**"}
    held = [[each["claim"], f"{each['found']:.4f}", marks[each["holds"]]] for each in found["claims"]]
    counts, packages = found["images"], found["packages"].get("edgekd", {})
    return [
        *("# Pruned detectors after training", "", f"`{found['command']}`", "", *_ABOUT, ""),
        f"{found['epochs']} epochs of {counts['train']} images of {found['image_size']} pixels; scored on "
        f"{counts['val']} (val) and {counts['test']} (test).",
        *("", *table(header, cells)),
        *(f"\n{row.method}, seed {row.seed}: {row.error}" for row in rows if row.error),
        *("", "## What is aimed at, on test", "", *table(["", "found", "holds"], held), ""),
        "- " + ", ".join(f"{n} {packages[n]}" for n in ("ultralytics", "torch", "torch-pruning") if n in packages),
        *("", *conditions_lines(found)),
    ]


def _mean(rows: Sequence[Row], name: str, unit: float = 1.0, text: str = "") -> str:
    values = [value for row in rows if (value := getattr(row, name)) is not None]
    return f"{statistics.fmean(values) / unit:.3g}{text}" if values else "–"


def _spread(values: Sequence[float]) -> str:
    text = f"{statistics.fmean(values):.4f}"
    return text if len(values) < 2 else f"{text} ({min(values):.4f}..{max(values):.4f})"


_ABOUT = (
    "Means over the seeds; in brackets the lowest and the highest. On labels: plain training; distilled: the same",
    "beside the detector as it was. The narrower model has random weights: of its width there is no trained one.",
    "Seconds: of training. Milliseconds: median of a frame from letterbox to boxes, all graphs interleaved, on this",
    "machine's CPU; predicted ones are of the network alone.",
)


def write(bench: Bench, command: str, times: Mapping[str, Mapping[str, float]]) -> str:
    """Write what there is so far as JSON and Markdown; the page."""
    given = bench.given
    found = {
        "question": "what is a detector at half of its multiply-adds worth after training, made in different ways?",
        "command": command,
        "images": {name: len(bench.split(name)) for name in ("train", *SPLITS)},
        **{name: getattr(given, name) for name in ("seeds", "device", "epochs", "image_size", "ratio")},
        **bench.conditions,
        "rows": [asdict(row) for row in bench.rows],
        "latency_ms": times,
        "claims": claims(bench.rows, times),
        "packages": bench.packages,
    }
    return write_pair(given.out, found, page(found, bench.rows))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=SHARED / "models" / "yolo11n-ppe.pt", help="what is pruned")
    parser.add_argument("--family", default="yolo11n.yaml", help="of the narrower model")
    parser.add_argument("--ratio", type=float, default=0.5, help="share of the multiply-adds to remove")
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "ppe", help="with splits train, val and test")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--image-size", type=int, default=640)
    parser.add_argument("--images", type=int, help="of each split; default: all")
    parser.add_argument("--gradient-images", type=int, default=64, help="by which edgekd chooses channels")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ablation", action="store_true", help="also edgekd's other ways to choose")
    parser.add_argument("--device", default="cpu", help="where to train: cpu, or the number of a GPU")
    parser.add_argument("--threads", type=int, default=2, help="cores that everything may use")
    parser.add_argument("--work", type=Path, default=Path("runs/pruning"), help="logs and finished rows")
    parser.add_argument("--out", type=Path, default=RESULTS / "pruning.json")
    parser.add_argument("--do", type=json.loads, help=argparse.SUPPRESS)  # what a process of its own is to do
    given = parser.parse_args()
    return argparse.Namespace(
        **{**vars(given), **{name: getattr(given, name).absolute() for name in ("model", "data", "work", "out")}}
    )


def main() -> int:
    """0 when no row failed; else 1."""
    given = parse()
    if given.do:
        return answer(_JOBS, given.do)
    use_cores(given.threads)
    for folder in (given.work, given.out.parent):
        folder.mkdir(parents=True, exist_ok=True)
    names = ("ratio", "epochs", "batch", "image_size", "images", "gradient_images", "family", "device", "threads")
    asked = [f"--{n.replace('_', '-')} {value}" for n in names if (value := getattr(given, n)) is not None]
    asked += [f"--model {given.model.name}", "--seeds", *map(str, given.seeds), *(["--ablation"] * given.ablation)]
    command = f"python bench/pruning.py {' '.join(asked)}"
    with tempfile.TemporaryDirectory(prefix="edgekd-bench-") as scratch:
        bench = Bench(given, Path(scratch), Row)
        try:
            for _ in bench.run():
                write(bench, command, {})
        except JobError as error:  # without the whole detector there is nothing to compare
            raise SystemExit(str(error)) from error
        print(write(bench, command, latencies(bench)))
    return 1 if any(row.error for row in bench.rows) else 0


if __name__ == "__main__":
    sys.exit(main())
