"""What pruning makes of detectors: how much goes, what still fits together, how long it takes, whether it is faster.

Networks with random weights, one for each model and share of the multiply-adds; `--trained` adds a trained checkpoint,
pruned by gradients on its training images. Nothing is trained afterwards, so nothing is scored: this is about shapes
and time. Before and after are timed interleaved, on ONNX Runtime and OpenVINO.

    python bench/pruning_shapes.py [--models yolo11n yolo11s ...] [--ratios 0.3 0.5] [--trained FILE.pt --images 16]

The environment needs `edgekd[train,openvino]`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common import RESULTS, SHARED, conditions, conditions_lines, table, use_cores, write_results

from edgekd.builds.recipe import Distill, Prune
from edgekd.core.progress import PlainProgress
from edgekd.deploy.devices.local import LocalDevice
from edgekd.detectors import load
from edgekd.detectors.export import export
from edgekd.evaluation.latency import synthetic_frames, time_graphs
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU
from edgekd.graph.runtimes.openvino import OPENVINO_CPU
from edgekd.graph.runtimes.types import Engine

OPSET = 17
MODELS = ("yolo11n", "yolo11s", "yolo11m", "yolo11x", "yolo26n", "yolo26s", "yolov8n", "yolov8s")
MOST_SECONDS = 300.0
"""What pruning a trained detector of 57 M parameters may take on two cores."""
ENGINES: dict[str, Engine] = {"onnxruntime": ONNXRUNTIME_CPU, "openvino": OPENVINO_CPU}


@dataclass(frozen=True)
class Row:
    """One detector, pruned. Pairs are before and after.

    split_difference: the largest change of an output by giving blocks that split a convolution for each half; shapes:
    of the output; latency_ms: median from frame to detections, by engine; seconds: that pruning took.
    """

    model: str
    trained: bool
    ratio: float
    parameters: tuple[int, int]
    multiply_adds: tuple[int, int]
    split_difference: float
    shapes: tuple[list[int], list[int]]
    latency_ms: dict[str, tuple[float, float]]
    seconds: float


def prune(model: str, checkpoint: Path, step: Prune, data: Path, folder: Path, threads: int) -> Row:
    """Prune, look at it, and time it."""
    from edgekd.detectors.ultralytics.prune import prune_detector

    out = folder / "pruned.pt"
    done = prune_detector(checkpoint, out, data, step, trust=True, progress=PlainProgress(interval_s=30))
    return Row(
        model,
        step.importance != "magnitude",
        step.ratio,
        done.parameters,
        done.multiply_adds,
        split_difference(checkpoint),
        (shape(checkpoint), shape(out)),
        latencies(checkpoint, out, folder, threads),
        done.seconds,
    )


def network_in(checkpoint: Path) -> Any:
    """The network of a checkpoint."""
    from edgekd.detectors.ultralytics.checkpoint import load_checkpoint

    return load_checkpoint(checkpoint, trust=True).model


def shape(checkpoint: Path) -> list[int]:
    """The shape of a network's output for a frame of 640 x 640."""
    import torch

    with torch.no_grad():
        return list(network_in(checkpoint)(torch.zeros(1, 3, 640, 640))[0].shape)


def split_difference(checkpoint: Path) -> float:
    """How far the network in halves is from the whole one, on a frame of noise."""
    import torch

    from edgekd.detectors.ultralytics.channels import in_halves

    network, frame = network_in(checkpoint), torch.rand(1, 3, 640, 640, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = network(frame)[0]
        with in_halves(network):
            return float((network.eval()(frame)[0] - wanted).abs().max())


def latencies(before: Path, after: Path, folder: Path, threads: int) -> dict[str, tuple[float, float]]:
    """Median latency of both on every engine."""
    graphs, specs = {}, {}
    for side, checkpoint in (("before", before), ("after", after)):
        graphs[side] = folder / f"{side}.onnx"
        specs[side] = export(load(checkpoint, trust_checkpoint=True), graphs[side], OPSET).spec
    frames = synthetic_frames(specs["before"])
    found = {}
    for name, engine in ENGINES.items():
        timed = time_graphs(graphs, specs, frames, LocalDevice(engine, threads), "measured")
        found[name] = tuple(timed[side].summary()["total_ms"]["p50"] for side in ("before", "after"))
    return found  # type: ignore[return-value]


def rows(given: argparse.Namespace) -> Iterator[Row]:
    """One after the other."""
    import torch

    from edgekd.detectors.ultralytics.distill import student_network

    with tempfile.TemporaryDirectory(prefix="edgekd-bench-") as scratch:
        folder = Path(scratch)
        for model in given.models:
            network = student_network(Distill(f"{model}.yaml"), ("a", "b", "c", "d", "e"), trust=False)
            torch.save({"model": network, "train_args": {"imgsz": 640}}, folder / "random.pt")
            for ratio in given.ratios:
                step = Prune(ratio, importance="magnitude", ranking="isomorphic")
                yield prune(model, folder / "random.pt", step, given.data, folder, given.threads)
        for ratio in given.ratios if given.trained else ():
            step = Prune(ratio, images=given.images, batch=1)
            yield prune(given.trained.name, given.trained, step, given.data, folder, given.threads)


def claims(found: Sequence[Row]) -> list[dict[str, Any]]:
    """What must hold of every row."""
    least = min(before / after for row in found for before, after in row.latency_ms.values())
    over = max(row.multiply_adds[1] / row.multiply_adds[0] - (1 - row.ratio) for row in found)
    lines: list[tuple[str, float, bool]] = [
        ("a split block computes the same to the bit; largest difference", *_zero([r.split_difference for r in found])),
        ("the output has the shape it had; rows where not", *_zero([r.shapes[0] != r.shapes[1] for r in found])),
        ("as many multiply-adds go as were asked for; share too many left", over, over <= 0),
        ("every one is faster on every engine; least speed-up", least, least > 1),
    ]
    trained = [row.seconds for row in found if row.trained]
    if trained:
        lines.append(("a trained one is pruned in 300 s; longest", max(trained), max(trained) <= MOST_SECONDS))
    return [{"claim": text, "found": value, "holds": holds} for text, value, holds in lines]


def _zero(values: Sequence[float]) -> tuple[float, bool]:
    return float(sum(values)), not any(values)


def page(found: dict[str, Any], all_rows: Sequence[Row]) -> list[str]:
    """The result as Markdown."""
    header = ["detector", "asked for", "parameters", "multiply-adds", "seconds"]
    header += [f"{name}, ms: before, after" for name in ENGINES]
    cells = []
    for row in all_rows:
        (p0, p1), (m0, m1) = row.parameters, row.multiply_adds
        name = f"{row.model}, trained" if row.trained else row.model
        sizes = [f"{p0 / 1e6:.2f} -> {p1 / 1e6:.2f} M", f"{m0 / 1e9:.2f} -> {m1 / 1e9:.2f} G ({m1 / m0 - 1:.0%})"]
        times = [f"{a:.1f}, {b:.1f} ({a / b:.2f}x)" for a, b in row.latency_ms.values()]
        cells.append([name, f"-{row.ratio:.0%}", *sizes, f"{row.seconds:.1f}", *times])
    marks = {True: "yes", False: "**no**"}
    held = [[each["claim"], f"{each['found']:.4g}", marks[each["holds"]]] for each in found["claims"]]
    return [
        *("# Pruned detectors: shapes and time", "", f"`{found['command']}`", "", *_ABOUT, ""),
        *table(header, cells),
        *("", "## What must hold", "", *table(["", "found", "holds"], held), "", *conditions_lines(found)),
    ]


_ABOUT = (
    "Random weights by magnitude among layers built alike; trained ones by Taylor importance on",
    "training images. 640 x 640 pixels, 5 classes, widths in multiples of 16. Seconds: of pruning, from file to file.",
    "Milliseconds: median of a frame from letterbox to boxes, both graphs interleaved, on this machine's CPU.",
)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(MODELS), help="models by Ultralytics, with random weights")
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.3, 0.5])
    parser.add_argument("--trained", type=Path, help="a checkpoint that is pruned by gradients")
    parser.add_argument("--images", type=int, default=16, help="for these gradients")
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "ppe", help="where these images are")
    parser.add_argument("--threads", type=int, default=2, help="cores that everything may use")
    parser.add_argument("--out", type=Path, default=RESULTS / "pruning_shapes.json")
    return parser.parse_args()


def main() -> int:
    """0 when everything holds; else 1."""
    given = parse()
    use_cores(given.threads)
    found: dict[str, Any] = conditions(given.threads)
    done: list[Row] = []
    for row in rows(given):
        print(row.model, row.ratio, row.latency_ms, f"{row.seconds:.1f} s", file=sys.stderr)
        done.append(row)
    command = (
        f"python bench/pruning_shapes.py --models {' '.join(given.models)} --ratios {' '.join(map(str, given.ratios))}"
    )
    if given.trained:
        command += f" --trained {given.trained.name} --images {given.images}"
    found |= {"command": command, "rows": [asdict(row) for row in done], "claims": claims(done)}
    write_results(given.out, found, page(found, done))
    return 0 if all(each["holds"] for each in found["claims"]) else 1


if __name__ == "__main__":
    sys.exit(main())
