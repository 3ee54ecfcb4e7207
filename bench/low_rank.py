"""Measure low-rank factorization without training: multiply-adds removed, accuracy kept, and latency.

Further tables: the layers chosen and the latency predicted for each target, and the costs of single convolutions. Needs
`edgekd[train,openvino]`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from common import CPU_ENGINES, OPSET, Detector, exported, images_of, median_ms
from frame import Blocks, Document, Given, Option, Result, claim, claims_table, head, main, note, table
from pruning_shapes import TIMES_HEADER, network_in, sizes_cells, times_cells

from edgekd.builds.stages.latency import Predicted
from edgekd.compress.pruning import Convolution
from edgekd.compress.steps import LowRank
from edgekd.core.errors import CompressError
from edgekd.core.progress import SILENT, PlainProgress
from edgekd.data.dataset import load_dataset
from edgekd.data.types import Split
from edgekd.deploy.devices.local import LocalDevice
from edgekd.graph.runtimes.types import HostRuntime
from edgekd.hardware.predict.device import PredictedPrecision
from edgekd.hardware.predict.latency import Predictor
from edgekd.hardware.target import load_target

if TYPE_CHECKING:
    from edgekd.compress.low_rank import InputMoments
    from edgekd.detectors.results import FactorizationRecord

MODELS = ("yolo11n-ppe.pt=ppe", "yolo11n.pt=coco256", "yolo26n.pt=coco256")
OURS, CHANNELS, BLIND, COUNTED = "edgekd", "channels alone", "weights alone", "multiply-adds alone"
MOST_SECONDS = 300.0  # goal: time for a detector of 57 M parameters on two cores
TARGETS: tuple[tuple[str, PredictedPrecision], ...] = (
    ("nano", "fp16"),
    ("xavier", "fp16"),
    ("xavier", "int8"),
    ("orin-nano", "int8"),
    ("agx-orin", "int8"),
)
"""Targets whose latency is predicted."""
RUNS = 40  # runs of a single convolution, of which the fastest counts
PROBES = 8  # images of `val` for comparing outputs of layers
SHAPES = [(c, c, 9, p) for c, p in ((16, 6400), (64, 6400), (64, 1600), (128, 1600), (128, 400), (256, 400))]
SHAPES += [(a, b, 1, p) for a, p in ((64, 6400), (128, 1600), (256, 400), (512, 400)) for b in (16, 48, 128, 256)]
"""Convolutions that are timed alone: input channels, output channels, kernel elements, output positions."""


@dataclass(frozen=True)
class Subject:
    """An unchanged model: its file, data, scored images, float graph and that graph's score."""

    checkpoint: Path
    data: Path
    scored: Split
    detector: Detector
    map50_95: float

    @property
    def size(self) -> tuple[int, int]:
        return self.detector.spec.preprocess.height, self.detector.spec.preprocess.width


def subject(model: str, given: Given) -> Subject:
    """Export and score a model given as `FILE.pt=DATA`. FILE: a path, or the name of a file in the shared models."""
    name, _, data = model.partition("=")
    checkpoint = Path(name) if Path(name).is_file() else given.shared / "models" / name
    split = load_dataset(given.shared / "data" / data).split("val")
    split = replace(split, samples=split.samples[: given.images])
    detector = exported(checkpoint, given.scratch / f"{checkpoint.stem}.onnx", trust_checkpoint=True)
    return Subject(checkpoint, given.shared / "data" / data, split, detector, detector.map50_95(split))


def rows_of(one: Subject, energy: float, given: Given) -> Iterator[Document]:
    """Factorize a model at one energy in every way. Yields no row for ways that replace no layer."""
    from edgekd.detectors.ultralytics.factorize import factorize_detector

    step = LowRank(energy, images=given.watched, image_size=given.image_size)
    progress, out = PlainProgress(interval_s=30), given.scratch / "out.pt"
    make = partial(factorize_detector, one.checkpoint, out, one.data, step, True, progress)
    try:
        done = make()
        yield row_of(one, energy, OURS, done, given, timed=True)
        for way, known in ((CHANNELS, channels_known), (BLIND, nothing_known)):
            remade(one, out, done, step, known)
            yield row_of(one, energy, way, done, given, timed=False)
    except CompressError as error:
        note(f"{one.checkpoint.name} at {energy}: {error}")
    done = make(cost=lambda layer: float(layer.multiply_adds))
    yield row_of(one, energy, COUNTED, done, given, timed=True)


def row_of(one: Subject, energy: float, way: str, done: FactorizationRecord, given: Given, *, timed: bool) -> Document:
    """Score, compare and time the factorized detector. Pairs are values before and after.

    `layers`: number of replaced layers; `promised`, `seen`: mean share of their outputs' variance that is kept, on the
    calibration images and on other images; `least`: the smallest promised share; `latency_ms`: median from frame to
    detections, by engine; `seconds`: from checkpoint to checkpoint.
    """
    out = given.scratch / "out.pt"
    factorized = exported(out, given.scratch / "out.onnx")
    kept = [layer.kept for layer in done.layers.values()]
    row = Document(model=one.checkpoint.name, energy=energy, way=way, layers=len(kept), parameters=done.parameters)
    row.update(multiply_adds=done.multiply_adds, promised=statistics.mean(kept), least=min(kept))
    row.update(seen=seen(one, out, list(done.layers)), seconds=done.seconds)
    row.update(map50_95=(one.map50_95, factorized.map50_95(one.scored)), latency_ms={})
    if timed:
        times = median_ms({"before": one.detector, "after": factorized}, given.threads)
        row.latency_ms.update({name: (each["before"], each["after"]) for name, each in times.items()})
    note(row)
    return row


def remade(
    one: Subject, out: Path, done: FactorizationRecord, step: LowRank, known: Callable[[InputMoments], InputMoments]
) -> None:
    """Write the detector with the same ranks, from input statistics that `known` has reduced."""
    import torch

    from edgekd.compress.low_rank import WeightedLayer
    from edgekd.detectors.ultralytics.checkpoint import load_checkpoint, write_checkpoint
    from edgekd.detectors.ultralytics.factorize import drawn_frames, in_sequence, observe_inputs

    network = network_in(one.checkpoint)
    with torch.no_grad():
        frames = drawn_frames(network, one.data, step, one.size, SILENT)
        reads = observe_inputs(network, list(done.layers), frames, SILENT)
        for name, product in done.layers.items():
            layer = network.get_submodule(name)
            products = WeightedLayer(layer.conv.weight, known(reads[name])).products(product.ranks)
            network.set_submodule(name, in_sequence(layer, list(products)))
    write_checkpoint(network, load_checkpoint(out).train_args, out)


def nothing_known(read: InputMoments) -> InputMoments:
    """Return statistics without information: channels and kernel positions uncorrelated and of equal variance."""
    from edgekd.compress.low_rank import InputMoments

    eyes = (read.moment.new_ones(len(each)).diag() for each in (read.moment, read.taps))
    return InputMoments(read.mean * 0, *eyes)


def channels_known(read: InputMoments) -> InputMoments:
    """Return statistics of channels alone: the positions of a patch count as uncorrelated."""
    return replace(read, taps=read.taps.new_ones(len(read.taps)).diag())


def seen(one: Subject, out: Path, names: Sequence[str]) -> float:
    """Return the mean share of the layers' output variance that is kept, on images not used for the factorization.

    Each layer gets the original network's input, so that only its own error counts. Outputs are compared after the
    batch norm.
    """
    import torch

    from edgekd.compress.low_rank import merged

    network, after = network_in(one.checkpoint), network_in(out)
    products = {}
    for name in names:
        *firsts, last = after.get_submodule(name)
        products[name] = merged([*(each.weight for each in firsts), last.conv.weight])
    layers = {name: network.get_submodule(name) for name in names}
    sums = {name: torch.zeros(3, layer.conv.out_channels) for name, layer in layers.items()}
    pixels = dict.fromkeys(names, 0)

    def compare(name: str, layer: Any, inputs: Any, output: torch.Tensor) -> None:
        placement = (layer.stride, layer.padding, layer.dilation)
        lost = torch.nn.functional.conv2d(inputs[0], products[name] - layer.weight, None, *placement)
        sums[name] += torch.stack([lost.square().sum((0, 2, 3)), output.square().sum((0, 2, 3)), output.sum((0, 2, 3))])
        pixels[name] += output[:, 0].numel()

    hooks = [layer.conv.register_forward_hook(partial(compare, name)) for name, layer in layers.items()]
    with torch.no_grad():
        for frame in one.detector.frames(images_of(one.scored, PROBES)):
            network(torch.from_numpy(frame))
    for hook in hooks:
        hook.remove()
    shares = []
    for name, layer in layers.items():
        lost, power, total = sums[name]
        counts = layer.bn.weight.detach().square() / (layer.bn.running_var + layer.bn.eps)
        shares.append(1 - float((lost * counts).sum() / ((power - total**2 / pixels[name]) * counts).sum()))
    return statistics.mean(shares)


def on_targets(one: Subject, given: Given) -> Iterator[Document]:
    """Yield for each target the number of layers to replace, and the predicted time of all convolutions."""
    import torch

    from edgekd.compress.low_rank import WeightedLayer, choose, parts
    from edgekd.detectors.ultralytics.channels import convolutions_of
    from edgekd.detectors.ultralytics.factorize import candidates, drawn_frames, observe_inputs

    network, step = network_in(one.checkpoint), LowRank(images=given.watched, image_size=given.image_size)
    with torch.no_grad():
        layers = convolutions_of(network, one.size)
        names = candidates(network, layers, step.channels)
        frames = drawn_frames(network, one.data, step, one.size, SILENT)
        reads, kept = observe_inputs(network, names, frames, SILENT), {}
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
            row = Document(model=one.checkpoint.name, energy=energy, target=target, precision=precision)
            yield Document(row, layers=len(products), before_ms=before / 1e3, after_ms=(before - saved) / 1e3)


def costs(threads: int, folder: Path) -> dict[str, dict[str, float]]:
    """Fit times of SHAPES. Return by engine: multiply-adds per µs, and the cost of a value and of a layer in them."""
    from scipy.optimize import nnls

    layers = [Convolution(a, b, positions, kernel) for a, b, kernel, positions in SHAPES]
    found = {}
    for name, engine in CPU_ENGINES.items():
        took = np.array([microseconds(layer, engine, threads, folder) for layer in layers])
        numbers = [(each.inputs + each.outputs) * each.positions for each in layers]
        terms = np.array([[each.multiply_adds, count, 1] for each, count in zip(layers, numbers, strict=True)], float)
        (one, number, layer), _ = nnls(terms / took[:, None], np.ones(len(took)))  # relative errors
        off = float(np.abs(terms @ (one, number, layer) / took - 1).mean())
        found[name] = {"per_us": 1 / one, "number": number / one, "layer": layer / one, "mean_error": off}
    return found


def microseconds(layer: Convolution, engine: HostRuntime, threads: int, folder: Path) -> float:
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


def claims(rows: Sequence[Document]) -> list[dict[str, Any]]:
    ours = [row for row in rows if row.way == OURS]
    blind_of = {(row.model, row.energy): row for row in rows if row.way == BLIND}
    pairs = [(row, blind_of[row.model, row.energy]) for row in ours]
    speed = min((a / b for row in ours for a, b in row.latency_ms.values()), default=1.0)
    short = max((row.energy - row.least for row in ours), default=0.0)
    gain = min((row.map50_95[1] - other.map50_95[1] for row, other in pairs), default=0.0)
    nearer = min((row.seen - other.seen for row, other in pairs), default=0.0)
    slowest = max((row.seconds for row in ours), default=0.0)
    return [
        claim("every one is faster on every engine; least speed-up", speed, speed > 1),
        claim("products multiplied out keep what was asked for; most that is missing", short, short <= 1e-3),
        claim("knowing what layers read keeps more of unseen outputs; least gain", nearer, nearer > 0),
        claim("and more mAP50-95 at the same ranks; least gain", gain, gain > 0),
        claim("each takes at most 300 s; longest", slowest, slowest <= MOST_SECONDS),
    ]


def _cells(row: Document) -> str:
    before, after = row.map50_95
    promised = f"{row.promised:.3f}" if row.way in (OURS, COUNTED) else ""
    return (
        f"{row.model} | {row.energy:g} | {row.way} | {row.layers} | {sizes_cells(row)} | {promised}, {row.seen:.3f} | "
        f"{before:.4f} -> {after:.4f} ({after / before:.1%}) | {times_cells(row)}"
    )


def page(found: Document) -> Blocks:
    yield from head("Low-rank factorization without training", found)
    yield f"""\
Ways: `{OURS}`: what `edgekd factorize` does. `{CHANNELS}`, `{BLIND}`: the same ranks, with less known of what
layers read. `{COUNTED}`: every layer replaced that then multiplies less. Energy: the share of what varies in
each replaced layer's output that it keeps at least. Kept: the mean over these layers, on the images that the
products were computed from, and on images of `val`. mAP50-95 on `val`, nothing trained. Milliseconds: median
of a frame from letterbox to boxes, both graphs interleaved, on this machine's CPU. Without a row `edgekd` no
layer was faster as a product."""
    yield table(
        "detector | energy | way | layers | parameters | multiply-adds | kept: computed from, `val` | mAP50-95 | "
        + TIMES_HEADER,
        map(_cells, found.rows),
    )
    yield "## Requirements"
    yield claims_table(found.claims, ".4g")
    yield "## Layers chosen by the predicted latency of targets"
    yield table(
        "detector | energy | target | layers | convolutions, predicted ms: before, after",
        (
            f"{each.model} | {each.energy:g} | {each.target}, {each.precision} | {each.layers} | "
            f"{each.before_ms:.2f}, {each.after_ms:.2f} ({each.before_ms / each.after_ms:.2f}x)"
            for each in found.targets
        ),
    )
    yield "## Cost of single convolutions"
    yield table(
        "engine | G multiply-adds a second | a number, in multiply-adds | a layer, in M | mean error",
        (
            f"{name} | {each.per_us / 1e3:.1f} | {each.number:.0f} | {each.layer / 1e6:.2f} | {each.mean_error:.0%}"
            for name, each in found.costs.items()
        ),
    )


def run(given: Given) -> Result:
    found = costs(given.threads, given.scratch)
    rows: list[Document] = []
    targets: list[Document] = []
    for model in given.models:
        one = subject(model, given)
        targets += on_targets(one, given)
        for energy in given.energies:
            rows += rows_of(one, energy, given)
    return {"costs": found, "rows": rows, "claims": claims(rows), "targets": targets}


if __name__ == "__main__":
    options = (
        Option("--models", MODELS, "checkpoints and the data they are for"),
        Option("--energies", [0.99, 0.97, 0.95]),
        Option("--watched", 64, "training images for what layers read"),
        Option("--image-size", type=int, help="their side; default: the detector's own"),
        Option("--images", type=int, help="images of `val` to score; default: all"),
    )
    main(run, page, *options)
