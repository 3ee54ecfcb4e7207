"""Quantization-aware training of torchvision's detectors, to reproduce the predictions of the float detector."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models import detection
from torchvision.models.resnet import Bottleneck

from edgekd.compress.quantization.fake_quant_network import fake_quantized, quantize_input, trained_layers
from edgekd.compress.quantization.qdq import QdqConvolution, read_layers, write_layers
from edgekd.compress.steps import QuantAwareDistill
from edgekd.core.progress import Progress
from edgekd.detectors.recovery import recover
from edgekd.detectors.results import TrainingRun
from edgekd.detectors.torchvision.detector import TorchvisionDetector
from edgekd.detectors.torchvision.network import TorchvisionNetwork
from edgekd.detectors.torchvision.recover import compressed

_CALL = re.compile(r"(?P<module>.*?)(_(?P<call>\d+))?")
"""Name of a module in a graph; from its second call on with the number of the call, counted from 0."""


def distill_quantized(
    checkpoint: Path,
    teacher: Path,
    out: Path,
    data: Path,
    step: QuantAwareDistill,
    cache: Path,
    state: Path,
    trust: bool,
    device: str | None,
    progress: Progress,
    graph: Path,
) -> TrainingRun:
    """Write `out`: the Q/DQ graph `graph` with weights trained to reproduce the predictions of `teacher`.

    Arguments: `Family.quant_aware_distill`. graph: exported from `checkpoint`, and quantized by
    `compress.quantization.quantize`. Group norms keep their weights.
    """
    layers = read_layers(graph)
    network = quantized_network(float_network(checkpoint), layers, step.ranges == "learned")
    run = recover(compressed(network, step, device), teacher, data, step, cache, state, progress, trust=trust)
    write_layers(graph, out, trained_layers(network, layers, partial(module_of, network)))
    return run


def float_network(checkpoint: Path) -> TorchvisionNetwork:
    """Return a network with one module per convolution of its graph: batch norms are folded, each map has a head."""
    network = TorchvisionDetector(checkpoint).network()
    leaves = [(name, each) for name, each in network.named_modules() if not any(each.children())]
    # torchvision registers a norm right after the convolution that it reads.
    for (name, layer), (norm, after) in pairwise(leaves):
        if isinstance(layer, nn.Conv2d) and isinstance(after, nn.BatchNorm2d):
            network.set_submodule(name, fuse_conv_bn_eval(layer, after))
            network.set_submodule(norm, nn.Identity())
    if isinstance(network.model, (detection.FCOS, detection.RetinaNet)):
        network.model.head = HeadOfEachMap(deepcopy(network.model.head) for _ in network.strides)
    return network


class HeadOfEachMap(nn.ModuleList):  # type: ignore[misc]
    """A separate head for each map, instead of a shared one: quantized weights in the graph differ between maps."""

    def forward(self, maps: Sequence[torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Return the outputs by name, concatenated over the anchors of all maps: [b, n, ...]."""
        outputs = [head([each]) for head, each in zip(self, maps, strict=True)]
        return {name: torch.cat([each[name] for each in outputs], dim=1) for name in outputs[0]}


def quantized_network(
    network: TorchvisionNetwork, layers: Sequence[QdqConvolution], learned: bool
) -> TorchvisionNetwork:
    """Return a copy of a `float_network` that computes like the Q/DQ graph with these layers: see `fake_quantized`."""
    student: TorchvisionNetwork = fake_quantized(network, layers, partial(module_of, network), learned=learned)
    for block in student.modules():
        adds_its_input = isinstance(block, Bottleneck) and block.downsample is None
        if adds_its_input or getattr(block, "use_res_connect", False):
            quantize_input(block)
    return student


def module_of(network: TorchvisionNetwork, layer: QdqConvolution) -> str:
    """Return the name of the module of a `float_network` that computes a layer.

    It is derived from the node's name, which contains the called modules; names of weights with a folded norm do not.
    `/head/regression_head/conv/conv.0_4/Conv` is the fifth call of `conv.0`, which is in the fifth head.
    """
    path: list[str] = []
    for part in layer.node.removeprefix("/").split("/")[:-1]:
        if path and part.startswith(f"{path[-1]}."):
            path.pop()  # names of parts of a sequence start with its name
        path.append(part)
    name = ".".join(["model", *path])
    if not isinstance(network.model.head, HeadOfEachMap):
        return name
    called = _CALL.fullmatch(name)
    assert called is not None, "the expression takes every name"
    return re.sub(r"^model\.head\.", f"model.head.{called['call'] or 0}.", called["module"])
