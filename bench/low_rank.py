"""Low-rank factorization without training: what goes, what is kept, and whether it is faster.

Every model is factorized at several shares of each layer's output to keep: as `edgekd factorize` does it; at the same
ranks, but knowing of what layers read only how channels go together, or nothing at all, as a decomposition of the
weights does; and with every layer replaced that then multiplies less, whatever else it costs. Scored on the split
`val`; before and after are timed interleaved, on ONNX Runtime and OpenVINO. How far outputs of replaced layers are off
is measured on images of `val`, too. Further tables: what layers and ranks are chosen for some targets, and what that is
predicted to save there; and what convolutions of many shapes cost by themselves on the engines.

    python bench/low_rank.py [--models FILE.pt=DATA ...] [--energies 0.99 0.97 0.95] [--images 118]

The environment needs `edgekd[train,openvino]`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from common import RESULTS, SHARED, conditions, conditions_lines, table, use_cores, write_results

from edgekd.builds.latency import Predicted
from edgekd.builds.recipe import LowRank
from edgekd.compress.pruning import Convolution
from edgekd.core.detection.preprocess import letterbox
from edgekd.core.errors import CompressError
from edgekd.core.progress import SILENT, PlainProgress
from edgekd.data.dataset import load_dataset
from edgekd.data.images import read_image
from edgekd.data.types import Split
from edgekd.deploy.devices.local import LocalDevice
from edgekd.detectors import load
from edgekd.detectors.export import export
from edgekd.evaluation.evaluate import evaluate
from edgekd.evaluation.latency import synthetic_frames, time_graphs
from edgekd.graph.runtimes.onnxruntime import ONNXRUNTIME_CPU
from edgekd.graph.runtimes.openvino import OPENVINO_CPU
from edgekd.graph.runtimes.types import Engine
from edgekd.hardware.predict.device import Precision
from edgekd.hardware.predict.latency import Predictor
from edgekd.hardware.target import load_target

if TYPE_CHECKING:
    from edgekd.compress.low_rank import InputMoments
    from edgekd.detectors.results import Factorized

OPSET = 17
MODELS = ("yolo11n-ppe.pt=ppe", "yolo11n.pt=coco256", "yolo26n.pt=coco256")
OURS, CHANNELS, BLIND, COUNTED = "edgekd", "channels alone", "weights alone", "multiply-adds alone"
MOST_SECONDS = 300.0
"""What a detector of 57 M parameters may take on two cores."""
ENGINES: dict[str, Engine] = {"onnxruntime": ONNXRUNTIME_CPU, "openvino": OPENVINO_CPU}
TARGETS: tuple[tuple[str, Precision], ...] = (
    ("nano", "fp16"),
    ("xavier", "fp16"),
    ("xavier", "int8"),
    ("orin-nano", "int8"),
    ("agx-orin", "int8"),
)
"""Of which it is predicted what they would gain."""
RUNS = 40
"""Of a convolution by itself, of which the fastest counts."""
PROBES = 8
"""Images of `val` on which outputs of layers are compared."""
SHAPES = [(c, c, 9, p) for c, p in ((16, 6400), (64, 6400), (64, 1600), (128, 1600), (128, 400), (256, 400))]
SHAPES += [(a, b, 1, p) for a, p in ((64, 6400), (128, 1600), (256, 400), (512, 400)) for b in (16, 48, 128, 256)]
"""Inputs, outputs, weights for a pair of them, and places of the convolutions that are timed by themselves."""


@dataclass(frozen=True)
class Row:
    """One detector, factorized. Pairs are before and after.

    way: how; layers: replaced ones; promised, seen: the mean share of what varies in their outputs that they keep, on
    the images that they were made by and on others; least: the smallest that was promised; latency_ms: median from
    frame to detections, by engine; seconds: from file to file.
    """

    model: str
    energy: float
    way: str
    layers: int
    parameters: tuple[int, int]
    multiply_adds: tuple[int, int]
    promised: float
    least: float
    seen: float
    map50_95: tuple[float, float]
    latency_ms: dict[str, tuple[float, float]]
    seconds: float


@dataclass(frozen=True)
class OnTarget:
    """What a target would gain, as predicted, with ranks chosen for it. before_ms, after_ms: all convolutions."""

    model: str
    energy: float
    target: str
    precision: str
    layers: int
    before_ms: float
    after_ms: float


@dataclass(frozen=True)
class Subject:
    """A model as it is: its file, its data, the images that are scored, its float graph and what that scores."""

    checkpoint: Path
    data: Path
    scored: Split
    graph: Path
    spec: Any
    map50_95: float


def subject(checkpoint: Path, data: Path, given: argparse.Namespace, folder: Path) -> Subject:
    """Export a model and score it."""
    split = load_dataset(data).split("val")
    split = replace(split, samples=split.samples[: given.images])
    graph = folder / f"{checkpoint.stem}.onnx"
    spec = export(load(checkpoint, trust_checkpoint=True), graph, OPSET).spec
    return Subject(checkpoint, data, split, graph, spec, evaluate(graph, spec, split).score.map50_95)


def rows_of(one: Subject, energy: float, given: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """One model at one energy, in every way in which something of it is replaced."""
    from edgekd.detectors.ultralytics.factorize import factorize_detector

    step = LowRank(energy, images=given.watched, image_size=given.image_size)
    progress, out = PlainProgress(interval_s=30), folder / "out.pt"
    make = partial(factorize_detector, one.checkpoint, out, one.data, step, True, progress)
    try:
        done = make()
        yield row(one, energy, OURS, done, out, given, folder, timed=True)
        for way, known in ((CHANNELS, channels_known), (BLIND, nothing_known)):
            remade(one, out, done, step, known)
            yield row(one, energy, way, done, out, given, folder, timed=False)
    except CompressError as error:
        print(f"{one.checkpoint.name} at {energy}: {error}", file=sys.stderr)
    done = make(cost=lambda layer: float(layer.multiply_adds))
    yield row(one, energy, COUNTED, done, out, given, folder, timed=True)


def row(
    one: Subject,
    energy: float,
    way: str,
    done: Factorized,
    out: Path,
    given: argparse.Namespace,
    folder: Path,
    timed: bool,
) -> Row:
    """Score, compare and time what lies in `out`."""
    graph = folder / "out.onnx"
    spec = export(load(out), graph, OPSET).spec
    kept = [layer.kept for layer in done.layers.values()]
    found = Row(
        one.checkpoint.name,
        energy,
        way,
        len(kept),
        done.parameters,
        done.multiply_adds,
        statistics.mean(kept),
        min(kept),
        seen(one, out, list(done.layers)),
        (one.map50_95, evaluate(graph, spec, one.scored).score.map50_95),
        latencies(one, graph, given.threads) if timed else {},
        done.seconds,
    )
    print(found, file=sys.stderr)
    return found


def remade(
    one: Subject, out: Path, done: Factorized, step: LowRank, known: Callable[[InputMoments], InputMoments]
) -> None:
    """Write the detector with the same ranks, found as if only this were known of what layers read."""
    import torch

    from edgekd.compress.low_rank import WeightedLayer
    from edgekd.detectors.ultralytics.checkpoint import load_checkpoint, write_checkpoint
    from edgekd.detectors.ultralytics.factorize import in_sequence, observe_inputs

    network = load_checkpoint(one.checkpoint, trust=True).model
    how = one.spec.preprocess
    with torch.no_grad():
        reads = observe_inputs(network, list(done.layers), one.data, step, (how.height, how.width), SILENT)
        for name, product in done.layers.items():
            layer = network.get_submodule(name)
            products = WeightedLayer(layer.conv.weight, known(reads[name])).products(product.ranks)
            network.set_submodule(name, in_sequence(layer, list(products)))
    write_checkpoint(network, load_checkpoint(out).train_args, out)


def nothing_known(read: InputMoments) -> InputMoments:
    """As if all channels and places were alike and apart."""
    from edgekd.compress.low_rank import InputMoments

    eyes = (read.moment.new_ones(len(each)).diag() for each in (read.moment, read.taps))
    return InputMoments(read.mean * 0, *eyes)


def channels_known(read: InputMoments) -> InputMoments:
    """As if the places of a patch had nothing in common."""
    return replace(read, taps=read.taps.new_ones(len(read.taps)).diag())


def seen(one: Subject, out: Path, names: Sequence[str]) -> float:
    """The mean share of what varies in outputs of layers that is kept, on images that nothing was made by.

    Each layer reads what it did before, so that only its own error counts; outputs are compared after the batch norm.
    """
    import torch

    from edgekd.compress.low_rank import merged
    from edgekd.detectors.ultralytics.checkpoint import load_checkpoint

    network, after = load_checkpoint(one.checkpoint, trust=True).model, load_checkpoint(out).model
    products = {}
    for name in names:
        *firsts, last = after.get_submodule(name)
        products[name] = merged([*(each.weight for each in firsts), last.conv.weight])
    sums = {name: torch.zeros(3, network.get_submodule(name).conv.out_channels) for name in names}
    pixels = dict.fromkeys(names, 0)

    def compare(name: str, layer: Any, inputs: Any, output: torch.Tensor) -> None:
        how = (layer.stride, layer.padding, layer.dilation)
        lost = torch.nn.functional.conv2d(inputs[0], products[name] - layer.weight, None, *how)
        sums[name] += torch.stack([lost.square().sum((0, 2, 3)), output.square().sum((0, 2, 3)), output.sum((0, 2, 3))])
        pixels[name] += output[:, 0].numel()

    layers = {name: network.get_submodule(name) for name in names}
    hooks = [layer.conv.register_forward_hook(partial(compare, name)) for name, layer in layers.items()]
    with torch.no_grad():
        for sample in one.scored.samples[:PROBES]:
            network(torch.from_numpy(letterbox(read_image(sample.image), one.spec.preprocess)[0]))
    for hook in hooks:
        hook.remove()
    shares = []
    for name, layer in layers.items():
        lost, power, total = sums[name]
        counts = layer.bn.weight.detach().square() / (layer.bn.running_var + layer.bn.eps)
        shares.append(1 - float((lost * counts).sum() / ((power - total**2 / pixels[name]) * counts).sum()))
    return statistics.mean(shares)


def on_targets(one: Subject, given: argparse.Namespace) -> Iterator[OnTarget]:
    """What each target would have replaced, and what that would save there, by prediction."""
    import torch

    from edgekd.compress.low_rank import WeightedLayer, choose, parts
    from edgekd.detectors.ultralytics.channels import convolutions_of
    from edgekd.detectors.ultralytics.checkpoint import load_checkpoint
    from edgekd.detectors.ultralytics.factorize import candidates, observe_inputs

    network, how = load_checkpoint(one.checkpoint, trust=True).model, one.spec.preprocess
    step = LowRank(images=given.watched, image_size=given.image_size)
    size = (how.height, how.width)
    with torch.no_grad():
        layers = convolutions_of(network, size)
        names = candidates(network, layers, step.channels)
        reads, kept = observe_inputs(network, names, one.data, step, size, SILENT), {}
        for name in names:
            layer = network.get_submodule(name)
            counts = layer.bn.weight.abs() / (layer.bn.running_var + layer.bn.eps).sqrt()
            kept[f"{name}.conv"] = WeightedLayer(layer.conv.weight, reads.pop(name), counts).kept
    for target, precision in TARGETS:
        cost = Predicted(Predictor(load_target(target), precision)).cost
        before = sum(map(cost, layers.values()))
        for energy in given.energies:
            chosen = {name: choose(layers[name], share, energy, cost) for name, share in kept.items()}
            products = {name: parts(layers[name], ranks) for name, ranks in chosen.items() if ranks}
            saved = sum(cost(layers[name]) - sum(map(cost, product)) for name, product in products.items())
            told = (len(products), before / 1e3, (before - saved) / 1e3)
            yield OnTarget(one.checkpoint.name, energy, target, precision, *told)


def latencies(one: Subject, graph: Path, threads: int) -> dict[str, tuple[float, float]]:
    """Median latency before and after, on every engine."""
    graphs, specs = {"before": one.graph, "after": graph}, {"before": one.spec, "after": one.spec}
    frames, found = synthetic_frames(one.spec), {}
    for name, engine in ENGINES.items():
        timed = time_graphs(graphs, specs, frames, LocalDevice(engine, threads), "measured")
        found[name] = (timed["before"].summary()["total_ms"]["p50"], timed["after"].summary()["total_ms"]["p50"])
    return found


def costs(threads: int, folder: Path) -> dict[str, dict[str, float]]:
    """By engine: multiply-adds a microsecond, and what a number and a layer cost in multiply-adds, fitted to SHAPES."""
    from scipy.optimize import nnls

    layers = [Convolution(a, b, positions, kernel) for a, b, kernel, positions in SHAPES]
    found = {}
    for name, engine in ENGINES.items():
        took = np.array([microseconds(layer, engine, threads, folder) for layer in layers])
        numbers = [(each.inputs + each.outputs) * each.positions for each in layers]
        terms = np.array([[each.multiply_adds, count, 1] for each, count in zip(layers, numbers, strict=True)], float)
        (one, number, layer), _ = nnls(terms / took[:, None], np.ones(len(took)))  # relative errors
        off = float(np.abs(terms @ (one, number, layer) / took - 1).mean())
        found[name] = {"per_us": 1 / one, "number": number / one, "layer": layer / one, "mean_error": off}
    return found


def microseconds(layer: Convolution, engine: Engine, threads: int, folder: Path) -> float:
    """Of a convolution by itself: the fastest of many runs."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    side, kernel = round(layer.positions**0.5), round(layer.kernel**0.5)
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(layer.outputs, layer.inputs, kernel, kernel)).astype(np.float32)
    shapes = [[1, layer.inputs, side, side], [1, layer.outputs, side, side]]
    ends = [helper.make_tensor_value_info(at, TensorProto.FLOAT, shape) for at, shape in zip("xy", shapes, strict=True)]
    node = helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[kernel] * 2, pads=[kernel // 2] * 4)
    graph = helper.make_graph([node], "layer", ends[:1], ends[1:], [numpy_helper.from_array(weight, "w")])
    opsets, path = [helper.make_opsetid("", OPSET)], folder / "one.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    batch, device = rng.normal(size=shapes[0]).astype(np.float32), LocalDevice(engine, threads)
    took = []
    with device.load(path) as session:
        for _ in range(RUNS):
            began = device.clock()
            session.run(batch)
            took.append(device.clock() - began)
    return min(took) * 1e6


def claims(found: Sequence[Row]) -> list[dict[str, Any]]:
    """What must hold."""
    ours = [row for row in found if row.way == OURS]
    blind_of = {(row.model, row.energy): row for row in found if row.way == BLIND}
    pairs = [(row, blind_of[row.model, row.energy]) for row in ours]
    speed = min((a / b for row in ours for a, b in row.latency_ms.values()), default=1.0)
    short = max((row.energy - row.least for row in ours), default=0.0)
    gain = min((row.map50_95[1] - other.map50_95[1] for row, other in pairs), default=0.0)
    nearer = min((row.seen - other.seen for row, other in pairs), default=0.0)
    slowest = max((row.seconds for row in ours), default=0.0)
    lines = [
        ("every one is faster on every engine; least speed-up", speed, speed > 1),
        ("products multiplied out keep what was asked for; most that is missing", short, short <= 1e-3),
        ("knowing what layers read keeps more of unseen outputs; least gain", nearer, nearer > 0),
        ("and more mAP50-95 at the same ranks; least gain", gain, gain > 0),
        ("each takes at most 300 s; longest", slowest, slowest <= MOST_SECONDS),
    ]
    return [{"claim": text, "found": value, "holds": holds} for text, value, holds in lines]


def page(found: Mapping[str, Any], all_rows: Sequence[Row]) -> list[str]:
    """The result as Markdown."""
    header = ["detector", "energy", "way", "layers", "parameters", "multiply-adds", "kept: told, seen", "mAP50-95"]
    header += [f"{name}, ms: before, after" for name in ENGINES]
    cells = []
    for row in all_rows:
        (p0, p1), (m0, m1), (s0, s1) = row.parameters, row.multiply_adds, row.map50_95
        sizes = [f"{p0 / 1e6:.2f} -> {p1 / 1e6:.2f} M", f"{m0 / 1e9:.2f} -> {m1 / 1e9:.2f} G ({m1 / m0 - 1:.0%})"]
        kept = f"{row.promised:.3f}, {row.seen:.3f}" if row.way in (OURS, COUNTED) else f", {row.seen:.3f}"
        score = f"{s0:.4f} -> {s1:.4f} ({s1 / s0:.1%})"
        times = [f"{a:.1f}, {b:.1f} ({a / b:.2f}x)" for a, b in row.latency_ms.values()] or [""] * len(ENGINES)
        cells.append([row.model, f"{row.energy:g}", row.way, str(row.layers), *sizes, kept, score, *times])
    marks = {True: "yes", False: "**no**"}
    held = [[each["claim"], f"{each['found']:.4g}", marks[each["holds"]]] for each in found["claims"]]
    price = []
    for name, each in found["costs"].items():
        numbers = (f"{each['per_us'] / 1e3:.1f}", f"{each['number']:.0f}", f"{each['layer'] / 1e6:.2f}")
        price.append([name, *numbers, f"{each['mean_error']:.0%}"])
    heads = ["detector", "energy", "target", "layers", "convolutions, predicted ms: before, after"]
    gains = []
    for each in found["targets"]:
        before, after = each["before_ms"], each["after_ms"]
        where = f"{each['target']}, {each['precision']}"
        times = f"{before:.2f}, {after:.2f} ({before / after:.2f}x)"
        gains.append([each["model"], f"{each['energy']:g}", where, str(each["layers"]), times])
    priced = ["engine", "G multiply-adds a second", "a number, in multiply-adds", "a layer, in M", "mean error"]
    return [
        *("# Low-rank factorization without training", "", f"`{found['command']}`", "", *_ABOUT, ""),
        *table(header, cells),
        *("", "## What must hold", "", *table(["", "found", "holds"], held), ""),
        *("## What is predicted for targets, by which layers and ranks are then chosen", "", *table(heads, gains), ""),
        *("## What a convolution costs by itself", "", *table(priced, price), "", *conditions_lines(found)),
    ]


_ABOUT = (
    f"Ways: `{OURS}`: what `edgekd factorize` does. `{CHANNELS}`, `{BLIND}`: the same ranks, with less known of what",
    f"layers read. `{COUNTED}`: every layer replaced that then multiplies less. Energy: the share of what varies in",
    "each replaced layer's output that it keeps at least. Kept: the mean over these layers, on images it was made by",
    "(told) and on images of `val` (seen). mAP50-95 on `val`, nothing trained. Milliseconds: median of a frame from",
    "letterbox to boxes, both graphs interleaved, on this machine's CPU. Without a row `edgekd` no layer was worth it.",
)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="checkpoints and the data they are for")
    parser.add_argument("--energies", nargs="+", type=float, default=[0.99, 0.97, 0.95])
    parser.add_argument("--watched", type=int, default=64, help="training images for what layers read")
    parser.add_argument("--image-size", type=int, help="their side; default: the detector's own")
    parser.add_argument("--images", type=int, help="images of `val` to score; default: all")
    parser.add_argument("--shared", type=Path, default=SHARED, help="where models and data lie")
    parser.add_argument("--threads", type=int, default=2, help="cores that everything may use")
    parser.add_argument("--out", type=Path, default=RESULTS / "low_rank.json")
    return parser.parse_args()


def file_named(name: str, shared: Path) -> Path:
    """A checkpoint: a path, or the name of a shared one."""
    return Path(name) if Path(name).is_file() else shared / "models" / name


def main() -> int:
    """0 when everything holds; else 1."""
    given = parse()
    use_cores(given.threads)
    found: dict[str, Any] = conditions(given.threads)
    done: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="edgekd-bench-") as scratch:
        folder = Path(scratch)
        found["costs"] = costs(given.threads, folder)
        predicted: list[OnTarget] = []
        for model in given.models:
            name, _, data = model.partition("=")
            one = subject(file_named(name, given.shared), given.shared / "data" / data, given, folder)
            predicted += on_targets(one, given)
            for energy in given.energies:
                done += rows_of(one, energy, given, folder)
    models = " ".join(f"{Path(name.partition('=')[0]).name}={name.partition('=')[2]}" for name in given.models)
    command = f"python bench/low_rank.py --models {models} --energies {' '.join(map(str, given.energies))}"
    command += f" --watched {given.watched}"
    command += f" --image-size {given.image_size}" if given.image_size else ""
    command += f" --images {given.images}" if given.images else ""
    found |= {"command": command, "rows": [asdict(row) for row in done], "claims": claims(done)}
    found["targets"] = [asdict(each) for each in predicted]
    write_results(given.out, found, page(found, done))
    return 0 if all(each["holds"] for each in found["claims"]) else 1


if __name__ == "__main__":
    sys.exit(main())
