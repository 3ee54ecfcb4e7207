"""Groups of coupled channels of an Ultralytics network.

torch-pruning traces channels through the network, but not through blocks that split the output of one convolution into
halves (C2f and derived blocks). During pruning these blocks have a convolution for each half; both lose equally many
channels, and are joined again afterwards. The result has only Ultralytics' own layers.

In an RT-DETR only backbone and neck lose channels. Attention, decoder and embeddings keep their widths.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from edgekd.compress.channel_elimination import Reader
from edgekd.compress.pruning import Convolution
from edgekd.detectors.channel_groups import Channels, convolutions_run
from edgekd.detectors.ultralytics.upstream import AIFI, C2PSA, AAttn, Attention, C2f, PSABlock

TRACED = 256
"""Side in pixels of the frame for tracing; the groups do not depend on it."""


class _Halves(nn.Module):  # type: ignore[misc]
    """A C2f block, or a derived one, with a convolution for each half of the first convolution's output."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = [block]  # in a list, so that its layers are not registered here
        middle = block.cv1.conv.out_channels // 2
        values = _per_channel(block.cv1)
        self.halves = nn.ModuleList(
            _with_channels(block.cv1, {name: value[part] for name, value in values.items()})
            for part in (slice(middle), slice(middle, None))
        )
        self.m, self.cv2 = block.m, block.cv2
        for name in ("i", "f", "type"):  # Ultralytics finds a layer's input by these
            if hasattr(block, name):
                setattr(self, name, getattr(block, name))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        outputs = [half(maps) for half in self.halves]
        outputs.extend(part(outputs[-1]) for part in self.m)
        return self.cv2(torch.cat(outputs, 1))

    def joined(self) -> Any:
        """Return the block, with the present halves joined as its first convolution."""
        (block,) = self.block
        parts = [_per_channel(half) for half in self.halves]
        both = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        block.cv1, block.c = _with_channels(self.halves[0], both), self.halves[0].conv.out_channels
        return block


def _per_channel(layer: Any) -> dict[str, torch.Tensor]:
    """Return the tensors of a convolution with batch norm that have an entry per output channel, by name."""
    return {name: value for name, value in layer.state_dict().items() if value.ndim}


def _with_channels(layer: Any, values: Mapping[str, torch.Tensor]) -> Any:
    """Return a copy of a convolution with batch norm, with other tensors per output channel."""
    new = deepcopy(layer)
    new.act = layer.act  # shared by all layers
    for name, value in values.items():
        part, _, attribute = name.rpartition(".")
        holder, own = new.get_submodule(part), value.clone()
        setattr(holder, attribute, nn.Parameter(own) if isinstance(getattr(holder, attribute), nn.Parameter) else own)
    new.conv.out_channels = new.bn.num_features = len(values["conv.weight"])
    return new


@contextmanager
def in_halves(network: Any) -> Iterator[None]:
    """Replace the splitting blocks of a network by `_Halves`; join them at the end of the context."""
    for name, block in [item for item in network.named_modules() if isinstance(item[1], C2f)]:
        network.set_submodule(name, _Halves(block))
    try:
        yield
    finally:
        for name, halves in [item for item in network.named_modules() if isinstance(item[1], _Halves)]:
            network.set_submodule(name, halves.joined())


def channels_of(
    network: Any, size: tuple[int, int], importance: str, readers: Mapping[str, Reader] = MappingProxyType({})
) -> Channels:
    """Return the channels that can be removed from a network inside of `in_halves`.

    size: height and width of its frames in pixels; importance, readers: as for `Channels`.
    """
    firsts = [name for name, _ in network.named_modules() if name.endswith(".halves.0.conv")]
    pairs = [(name, name.replace(".halves.0.conv", ".halves.1.conv")) for name in firsts]
    convolutions = convolutions_of(network, size)
    with branches_alone(network), _encoders_skipped(network):
        frame = torch.zeros(1, 3, TRACED, TRACED)
        return Channels(network, frame, convolutions, _fixed_outputs(network), importance, pairs, readers)


def _fixed_outputs(network: Any) -> list[Any]:
    """Return the convolutions that keep all outputs: the last of each branch, and those that attention splits or reads.

    Attention over a whole map (AIFI) reads the output of the layer before it.
    """
    layers = [_convolutions_in(level)[-1] for branch in _branches(network) for level in branch]
    for module in network.modules():
        if isinstance(module, (Attention, AAttn, PSABlock)):
            layers += _convolutions_in(module)
        elif isinstance(module, C2PSA):
            layers.append(module.cv1.conv)
        elif isinstance(module, AIFI):
            layers += _convolutions_in(network.model[module.f if module.f >= 0 else module.i + module.f])
    return layers


def _convolutions_in(module: Any) -> list[Any]:
    return [each for each in module.modules() if isinstance(each, nn.Conv2d)]


def _branches(network: Any) -> list[Any]:
    """Return the head's branches: of boxes and of classes, once or twice, or the input projections of a decoder."""
    names = ("cv2", "cv3", "one2one_cv2", "one2one_cv3", "input_proj")
    return [branch for name in names if (branch := getattr(network.model[-1], name, None)) is not None]


@contextmanager
def branches_alone(network: Any) -> Iterator[None]:
    """Make the head return the outputs of its branches, without decoding, in this context.

    A second branch then reads the same maps as the first one; in training it would read detached copies.
    """
    network.model[-1].forward = lambda maps, batch=None: [
        branch[level](each) for branch in _branches(network) for level, each in enumerate(maps)
    ]
    try:
        yield
    finally:
        del network.model[-1].forward


@contextmanager
def _encoders_skipped(network: Any) -> Iterator[None]:
    """Make attention over whole maps return its input in this context: it cannot be traced, and keeps its widths."""
    encoders = [each for each in network.modules() if isinstance(each, AIFI)]
    for each in encoders:
        each.forward = lambda maps: maps
    try:
        yield
    finally:
        for each in encoders:
            del each.forward


def convolutions_of(network: Any, size: tuple[int, int]) -> dict[str, Convolution]:
    """Return a network's convolutions by name, for frames of `size`; 0 positions for those that a camera skips."""
    head = network.model[-1]
    names = ("one2one_cv2", "one2one_cv3") if getattr(head, "end2end", False) else ("cv2", "cv3", "input_proj")
    shipped = {id(getattr(head, name, None)) for name in names}
    skipped = {id(each) for part in _branches(network) if id(part) not in shipped for each in part.modules()}
    with branches_alone(network):
        run = partial(network.eval(), torch.zeros(1, 3, TRACED, TRACED))
        # The result is an integer: sizes and TRACED are multiples of the strides.
        return convolutions_run(network, run, (size[0] * size[1], TRACED**2), skipped)
