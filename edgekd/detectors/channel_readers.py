"""Statistics of the layers that read channels, recorded by hooks during the backward pass of a loss."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from edgekd.compress.channel_elimination import Reader, ReaderStatistics
from edgekd.compress.least_squares import patches
from edgekd.detectors.refit import window_of

PLACES = 192
"""Positions sampled per output map and image: 24,576 for 128 images, as in the refit."""


@contextmanager
def observed_readers(network: Any, seed: int, floating: Any = None) -> Iterator[dict[str, Reader]]:
    """Yield a mapping that is filled with the convolutions that got gradients, by name, when the context ends.

    seed: seed of the sampled positions; floating: the network with float weights, if `network` computes with rounded
    ones. Grouped convolutions are left out: a depthwise one does not mix channels.
    """
    generator = torch.Generator().manual_seed(seed)
    modules = (floating or network).named_modules()
    layers = {name: each for name, each in modules if isinstance(each, nn.Conv2d) and each.groups == 1}
    statistics: dict[str, ReaderStatistics] = {}
    readers: dict[str, Reader] = {}

    def observe(name: str, layer: Any, module: Any, inputs: Any, output: torch.Tensor) -> None:
        if output.requires_grad:
            output.register_hook(partial(add, name, layer, inputs[0].detach()))

    def add(name: str, layer: Any, maps: torch.Tensor, gradient: torch.Tensor) -> None:
        squares = gradient.detach().square().flatten(2)
        for frame, square in zip(maps, squares, strict=True):
            total = square.sum(0)
            if total.any():
                places = torch.multinomial(total, min(PLACES, len(total)), replacement=True, generator=generator)[None]
                width = gradient.shape[3]
                read = patches(frame[None], places // width, places % width, window_of(layer))[0]
                if name not in statistics:
                    statistics[name] = ReaderStatistics(read.shape[1], len(square), read.shape[2])
                statistics[name].add(read, square)

    observed = [(network.get_submodule(name), partial(observe, name, layer)) for name, layer in layers.items()]
    hooks = [module.register_forward_hook(hook) for module, hook in observed]
    try:
        yield readers
    finally:
        for hook in hooks:
            hook.remove()
    for name in list(statistics):  # one by one: statistics and readers of a wide network each need much memory
        readers[name] = statistics.pop(name).reader(layers[name].weight.detach().flatten(2))
