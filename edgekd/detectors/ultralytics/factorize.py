"""Low-rank factorization of Ultralytics detectors: two or three thinner convolutions instead of one, if they cost less.

A convolution with batch norm becomes a sequence of convolutions; the last one is in Ultralytics' layer, with its batch
norm and activation. So the result is an ordinary checkpoint: Ultralytics folds the batch norm into the last
convolution, and finds the layer's input by the index, which is copied to the sequence.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgekd.compress.low_rank import InputMoments, InputStatistics, WeightedLayer, choose, default_cost
from edgekd.compress.pruning import Convolution, CostFunction, multiply_adds
from edgekd.compress.steps import LowRank
from edgekd.core.detection.preprocess import letterbox
from edgekd.core.detection.types import Preprocess
from edgekd.core.errors import CompressError
from edgekd.core.progress import SILENT, Progress
from edgekd.data.dataset import load_dataset
from edgekd.data.images import draw_images
from edgekd.detectors.family import load_teacher
from edgekd.detectors.refit import object_certainty, refit
from edgekd.detectors.results import FactorizationRecord, LowRankProduct
from edgekd.detectors.torch_support import parameters_in
from edgekd.detectors.ultralytics.channels import TRACED, branches_alone, convolutions_of
from edgekd.detectors.ultralytics.checkpoint import write_checkpoint
from edgekd.detectors.ultralytics.detector import input_size, strides_of, unfused_network
from edgekd.detectors.ultralytics.loop import quiet
from edgekd.detectors.ultralytics.upstream import AAttn, Attention, Conv, RepConv

HALF_PRECISION_LOSS = 1e-3
"""Share of a layer's output variance that may be lost by rounding its weights to half precision, as in checkpoints."""


def factorize_detector(
    checkpoint: Path,
    out: Path,
    data: Path,
    step: LowRank,
    trust: bool = False,
    progress: Progress = SILENT,
    cost: CostFunction | None = None,
) -> FactorizationRecord:
    """Write `out`, the detector in `checkpoint` with products for convolutions: again an Ultralytics checkpoint.

    Arguments: `Family.factorize`. `step.images` training images are read to observe layers' inputs; no labels are used,
    and nothing is trained. cost: cost of a convolution, which determines whether a product is used; None for
    `default_cost`. Raises CompressError also if no product costs less.
    """
    began = time.monotonic()
    network, train_args = unfused_network(checkpoint, trust)
    size = input_size(train_args, max(strides_of(network)))
    parameters = parameters_in(network)
    with quiet(), torch.no_grad():
        before = convolutions_of(network, size)
        layers = {name: before[f"{name}.conv"] for name in candidates(network, before, step.channels)}
        frames = drawn_frames(network, data, step, size, progress)
        inputs = observe_inputs(network, list(layers), frames, progress)
        products, original = {}, deepcopy(network)
        for name, layer in progress.items(layers.items(), "factorize", len(layers)):
            product = _factorize(network, name, layer, inputs.pop(name), step, cost or default_cost)
            if product is not None:
                products[name] = product
        if step.refit and products:
            certainty = partial(object_certainty, load_teacher(checkpoint, trust))
            _refit(network, original, products, frames, certainty, step, progress)
        after = convolutions_of(network, size)
    _require_some(products, len(layers), step)
    write_checkpoint(network, {"task": "detect", **train_args, "imgsz": list(size)}, out)
    return FactorizationRecord(
        parameters=(parameters, parameters_in(network)),
        multiply_adds=(multiply_adds(tuple(before.values())), multiply_adds(tuple(after.values()))),
        layers=products,
        seconds=time.monotonic() - began,
    )


def candidates(network: Any, convolutions: Mapping[str, Convolution], least: int) -> list[str]:
    """Return the names of Ultralytics' layers of one convolution that may become a product.

    They run on a camera, are ungrouped, and have at least `least` input and output channels. Excluded are attention,
    layers that Ultralytics merges with others, and layers that write the head's inputs, because the head separates
    classes by directions with little power. The last convolutions of a head are not such layers.
    """
    skipped = _head_input_layers(network) | {
        part
        for module in network.modules()
        if isinstance(module, (AAttn, Attention, RepConv))
        for part in module.modules()
    }
    return [
        name
        for name, module in network.named_modules()
        if type(module) is Conv
        and module not in skipped
        and module.conv.groups == 1
        and min(module.conv.in_channels, module.conv.out_channels) >= least
        and convolutions[f"{name}.conv"].positions
    ]


def _head_input_layers(network: Any) -> set[Any]:
    """Return the layers that write the head's inputs."""
    written: dict[Any, torch.Tensor] = {}
    read: list[torch.Tensor] = []
    layers = [module for module in network.modules() if type(module) is Conv]
    hooks = [layer.register_forward_hook(lambda layer, _, output: written.update({layer: output})) for layer in layers]
    hooks.append(network.model[-1].register_forward_pre_hook(lambda _, inputs: read.extend(inputs[0])))
    network(torch.zeros(1, 3, TRACED, TRACED))
    for hook in hooks:
        hook.remove()
    return {layer for layer, output in written.items() if any(output is each for each in read)}


def drawn_frames(
    network: Any, data: Path, step: LowRank, size: tuple[int, int], progress: Progress
) -> list[torch.Tensor]:
    """Return training images drawn with the step's seed, float32 [1, 3, h, w] each."""
    images = draw_images(load_dataset(data).split("train").samples, step.images, step.seed, progress)
    preprocess = Preprocess(*input_size({"imgsz": step.image_size or size}, max(strides_of(network))))
    return [torch.from_numpy(letterbox(image, preprocess)[0]) for _, image in images]


def observe_inputs(
    network: Any, names: list[str], frames: Sequence[torch.Tensor], progress: Progress
) -> dict[str, InputMoments]:
    """Return the moments of the inputs of these layers on frames, by name."""
    layers = {name: network.get_submodule(name).conv for name in names}
    statistics = {
        name: InputStatistics(layer.in_channels, layer.kernel_size, layer.dilation) for name, layer in layers.items()
    }

    def record(name: str, layer: Any, inputs: Any) -> None:
        statistics[name].add(inputs[0])

    hooks = [layer.register_forward_pre_hook(partial(record, name)) for name, layer in layers.items()]
    for frame in progress.items(frames, "watch layers", len(frames)):
        network(frame)
    for hook in hooks:
        hook.remove()
    return {name: each.moments() for name, each in statistics.items()}


def _factorize(
    network: Any, name: str, layer: Convolution, inputs: InputMoments, step: LowRank, cost: CostFunction
) -> LowRankProduct | None:
    """Replace a layer by a product if it costs less, and return that, else None. Raises CompressError."""
    module = network.get_submodule(name)
    norm = module.bn
    try:
        weighted = WeightedLayer(module.conv.weight, inputs, norm.weight.abs() / (norm.running_var + norm.eps).sqrt())
    except torch.linalg.LinAlgError as error:
        raise CompressError(
            f"factorize: layer {name} cannot be factorized", expected="finite weights and maps"
        ) from error
    ranks = choose(layer, weighted.kept, step.energy, cost)
    if ranks is None:
        return None
    weights = [weight.half().float() for weight in weighted.products(ranks)]
    kept = weighted.keeps(weights)
    if not kept >= step.energy - HALF_PRECISION_LOSS:
        raise CompressError(
            f"factorize: layer {name} does not keep what it should, in half precision",
            expected=f"{step.energy:.2%} of what varies in its output",
            found=f"{kept:.2%} at ranks {ranks.reading} and {ranks.writing}",
            fix="raise energy, or channels, so that it is left alone",
        )
    network.set_submodule(name, in_sequence(module, weights))
    return LowRankProduct(ranks, kept)


def in_sequence(layer: Any, weights: list[torch.Tensor]) -> Any:
    """Return a sequence of convolutions with these weights; the last is in `layer`, with its norm and activation."""
    whole = layer.conv
    # If several are 1 x 1, the last one gets the stride, as in the cost by `low_rank.parts`.
    core = max(index for index, weight in enumerate(weights) if weight.shape[2:] == whole.weight.shape[2:])
    geometry = {"stride": whole.stride, "padding": whole.padding, "dilation": whole.dilation}
    layers = []
    for index, weight in enumerate(weights):
        outputs, inputs, *kernel = weight.shape
        layers.append(nn.Conv2d(inputs, outputs, tuple(kernel), bias=False, **(geometry if index == core else {})))
        layers[-1].weight = nn.Parameter(weight)
    layer.conv = layers.pop()
    sequence = nn.Sequential(*layers, layer)
    return _linked(sequence, layer)


def _linked(sequence: nn.Sequential, layer: Any) -> nn.Sequential:
    """Return the sequence with a layer's links to its inputs, so that it can replace the layer."""
    links = {name: vars(layer)[name] for name in ("i", "f", "type", "np") if name in vars(layer)}
    vars(sequence).update(links)  # Ultralytics finds a layer's input by these
    return sequence.train(layer.training)


def _refit(
    network: Any,
    original: Any,
    products: Iterable[str],
    frames: Sequence[torch.Tensor],
    certainty: Callable[[torch.Tensor], torch.Tensor],
    step: LowRank,
    progress: Progress,
) -> None:
    """Refit the last part of each product to the outputs of the layer that it replaces, and all layers after it."""
    for name in products:
        layer, parts = original.get_submodule(name), len(network.get_submodule(name))
        # Gives the layer the name of the product's last part.
        original.set_submodule(name, _linked(nn.Sequential(*[nn.Identity()] * (parts - 1), layer), layer))
    with branches_alone(network), branches_alone(original):
        refit(network, original, {}, torch.cat(list(frames)), certainty, step.seed, progress)


def _require_some(products: Mapping[str, LowRankProduct], tried: int, step: LowRank) -> None:
    if not products:
        raise CompressError(
            "factorize: no convolution is cheaper as a product",
            expected=f"one of {tried} that keeps {step.energy:.2%} of what varies in its output at less cost",
            fix="lower energy or channels, or leave the network as it is",
        )
