"""Low-rank factorization of Ultralytics detectors: two or three thinner convolutions in place of one, where it pays.

What stands for a convolution with batch norm is a sequence of convolutions, the last of which is inside Ultralytics'
layer, with the batch norm and the activation that this had. So what comes out is a checkpoint like any other:
Ultralytics folds the batch norm into that last one, and finds what a layer reads by the number that it had.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from edgekd.builds.recipe import LowRank
from edgekd.compress.pruning import Convolution, Cost, multiply_adds
from edgekd.core.detection.preprocess import letterbox
from edgekd.core.detection.types import Preprocess
from edgekd.core.errors import CompressError, SpecError
from edgekd.core.progress import SILENT, Progress
from edgekd.data.dataset import load_dataset
from edgekd.data.images import drawn
from edgekd.detectors.checkpoint import write_checkpoint
from edgekd.detectors.teacher import parameters_in
from edgekd.detectors.ultralytics import UltralyticsDetector, input_size

# First: it says what is missing where PyTorch or Ultralytics are.
from edgekd.detectors.ultralytics_loop import quiet  # isort: skip

import torch
from torch import nn
from ultralytics.nn.modules.block import AAttn, Attention
from ultralytics.nn.modules.conv import Conv, RepConv

from edgekd.compress.low_rank import Ranks, Read, Watch, Weighed, charged, choose
from edgekd.detectors.ultralytics_channels import TRACED, convolutions_of

CLOSE = 1e-3
"""How much less than it should a layer may keep once its weights are in half precision, as checkpoints have them."""


@dataclass(frozen=True)
class Product:
    """What stands for a layer. ranks: channels between its parts; kept: the share of what varies in its output."""

    ranks: Ranks
    kept: float


@dataclass(frozen=True)
class Factorized:
    """What factorization did. parameters, multiply_adds: before and after, of one frame in the detector's size.

    layers: what stands for each convolution that is one no more, by its name.
    """

    parameters: tuple[int, int]
    multiply_adds: tuple[int, int]
    layers: Mapping[str, Product]
    seconds: float


def factorize_detector(
    checkpoint: Path,
    out: Path,
    data: Path,
    step: LowRank,
    trust: bool = False,
    progress: Progress = SILENT,
    cost: Cost | None = None,
) -> Factorized:
    """Write `out`, the detector in `checkpoint` with products for convolutions: again an Ultralytics checkpoint.

    data: a data set, of whose split `train` `step.images` are read, for what layers read; labels are not. cost: of a
    convolution, which decides where a product pays; None: `charged`. Nothing is trained. The same arguments give the
    same detector.
    Raises SpecError for a checkpoint that is no detector, DataError for unusable data, CompressError where nothing
    pays, or a layer does not keep what it should.
    """
    began = time.monotonic()
    network, train_args = UltralyticsDetector(checkpoint, trust).network()
    if network.is_fused():
        raise SpecError(f"{checkpoint}: batch norms are folded in", fix="pass the checkpoint that was trained")
    size = input_size(train_args, int(max(network.stride)))
    parameters = parameters_in(network)
    with quiet(), torch.no_grad():
        before = convolutions_of(network, size)
        layers = {name: before[f"{name}.conv"] for name in candidates(network, before, step.channels)}
        reads = watch(network, list(layers), data, step, size, progress)
        products = {}
        for name, layer in progress.items(layers.items(), "factorize", len(layers)):
            if (found := _factorize(network, name, layer, reads.pop(name), step, cost or charged)) is not None:
                products[name] = found
        after = convolutions_of(network, size)
    _require_some(products, len(layers), step)
    write_checkpoint(network, {"task": "detect", **train_args, "imgsz": list(size)}, out)
    return Factorized(
        parameters=(parameters, parameters_in(network)),
        multiply_adds=(multiply_adds(tuple(before.values())), multiply_adds(tuple(after.values()))),
        layers=products,
        seconds=time.monotonic() - began,
    )


def candidates(network: Any, convolutions: Mapping[str, Convolution], least: int) -> list[str]:
    """Ultralytics' layers of one convolution that a product may stand for.

    Those that a camera runs, with at least so many channels on both sides, all of which read all. Attention is left
    alone, as are layers that Ultralytics merges with others, and those that write what the head reads: by directions
    with little power it tells classes apart. The last convolutions of a head are no such layers.
    """
    spared = _read_by_head(network) | {
        part
        for module in network.modules()
        if isinstance(module, (AAttn, Attention, RepConv))
        for part in module.modules()
    }
    return [
        name
        for name, module in network.named_modules()
        if type(module) is Conv
        and module not in spared
        and module.conv.groups == 1
        and min(module.conv.in_channels, module.conv.out_channels) >= least
        and convolutions[f"{name}.conv"].positions
    ]


def _read_by_head(network: Any) -> set[Any]:
    """The layers that write the maps which the head reads."""
    written: dict[Any, torch.Tensor] = {}
    read: list[torch.Tensor] = []
    layers = [module for module in network.modules() if type(module) is Conv]
    hooks = [layer.register_forward_hook(lambda layer, _, output: written.update({layer: output})) for layer in layers]
    hooks.append(network.model[-1].register_forward_pre_hook(lambda _, inputs: read.extend(inputs[0])))
    network(torch.zeros(1, 3, TRACED, TRACED))
    for hook in hooks:
        hook.remove()
    return {layer for layer, output in written.items() if any(output is each for each in read)}


def watch(
    network: Any, names: list[str], data: Path, step: LowRank, size: tuple[int, int], progress: Progress
) -> dict[str, Read]:
    """What the layers of these names read on training images, drawn by the step's seed."""
    images = drawn(load_dataset(data).split("train").samples, step.images, step.seed, progress)
    shown = Preprocess(*input_size({"imgsz": step.image_size or size}, int(max(network.stride))))
    layers = {name: network.get_submodule(name).conv for name in names}
    watches = {name: Watch(layer.in_channels, layer.kernel_size, layer.dilation) for name, layer in layers.items()}

    def see(name: str, layer: Any, inputs: Any) -> None:
        watches[name].add(inputs[0])

    hooks = [layer.register_forward_pre_hook(partial(see, name)) for name, layer in layers.items()]
    for _, image in progress.items(images, "watch layers", len(images)):
        network(torch.from_numpy(letterbox(image, shown)[0]))
    for hook in hooks:
        hook.remove()
    return {name: each.read() for name, each in watches.items()}


def _factorize(network: Any, name: str, layer: Convolution, read: Read, step: LowRank, cost: Cost) -> Product | None:
    """Put a product in the layer's place where one pays. Raises CompressError."""
    module = network.get_submodule(name)
    norm = module.bn
    try:
        weighed = Weighed(module.conv.weight, read, norm.weight.abs() / (norm.running_var + norm.eps).sqrt())
    except torch.linalg.LinAlgError as error:
        raise CompressError(
            f"factorize: layer {name} cannot be factorized", expected="finite weights and maps"
        ) from error
    ranks = choose(layer, weighed.kept, step.energy, cost)
    if ranks is None:
        return None
    weights = [weight.half().float() for weight in weighed.products(ranks)]
    kept = weighed.keeps(weights)
    if not kept >= step.energy - CLOSE:
        raise CompressError(
            f"factorize: layer {name} does not keep what it should, in half precision",
            expected=f"{step.energy:.2%} of what varies in its output",
            found=f"{kept:.2%} at ranks {ranks.reading} and {ranks.writing}",
            fix="raise energy, or channels, so that it is left alone",
        )
    network.set_submodule(name, in_sequence(module, weights))
    return Product(ranks, kept)


def in_sequence(layer: Any, weights: list[torch.Tensor]) -> Any:
    """Convolutions with these weights, one after the other; the last one in the layer, with its norm and activation."""
    whole = layer.conv
    # Of 1 x 1 the last: that is how `parts` counts what they do.
    core = max(at for at, weight in enumerate(weights) if weight.shape[2:] == whole.weight.shape[2:])
    how = {"stride": whole.stride, "padding": whole.padding, "dilation": whole.dilation}
    made = []
    for at, weight in enumerate(weights):
        outputs, inputs, *kernel = weight.shape
        made.append(nn.Conv2d(inputs, outputs, tuple(kernel), bias=False, **(how if at == core else {})))
        made[-1].weight = nn.Parameter(weight)
    layer.conv = made.pop()
    sequence = nn.Sequential(*made, layer)
    told = {name: vars(layer)[name] for name in ("i", "f", "type", "np") if name in vars(layer)}
    vars(sequence).update(told)  # by which Ultralytics finds what to feed it
    return sequence.train(layer.training)


def _require_some(products: Mapping[str, Product], tried: int, step: LowRank) -> None:
    if not products:
        raise CompressError(
            "factorize: no convolution is cheaper as a product",
            expected=f"one of {tried} that keeps {step.energy:.2%} of what varies in its output at less cost",
            fix="lower energy or channels, or leave the network as it is",
        )
