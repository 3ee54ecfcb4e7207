"""Increase of the loss by removing channels and refitting the layers that read them: optimal brain surgeon.

A layer with weights W reads inputs z with covariance C. If its input i is removed, the other weights can compensate the
part of it that is linear in the other inputs. To second order the loss then increases by

    sum over outputs o of  G_o * W_oi^2 / (C^-1)_ii,

where G_o is the mean squared gradient of the loss at output o; the errors at different positions are assumed to be
independent. Channels are eliminated one by one, always the one with the smallest increase, and W and C^-1 are updated
after each. For one weight: Hassibi and Stork, NIPS 1992; for groups of weights: ZipLM, Kurtic and others, arXiv
2302.04089. A convolution reads patches: each channel is as many inputs as its kernel has positions. If these are too
many, the covariance is approximated by the product of one over channels and one over kernel positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

RIDGE = 0.01
"""Ridge added to a covariance, as a share of its mean variance; the same as in `detectors.refit`."""
MIN_VARIANCE = 1e-12
"""Lower bound of the mean variance, which keeps the covariance of constant inputs invertible."""


MAX_INPUTS = 1152
"""Largest number of inputs with a full covariance, such as 128 channels times 3 x 3 positions: 11 MB in float64."""


@dataclass(frozen=True)
class Reader:
    """A layer that reads channels.

    inverse: float64 [inputs, inputs], C^-1; gram: float64 [inputs, inputs], sum over outputs of G_o W_oi W_oj; places:
    number of adjacent inputs of each channel.
    """

    inverse: torch.Tensor
    gram: torch.Tensor
    places: int = 1

    def inputs_of(self, channels: torch.Tensor) -> torch.Tensor:
        """Return the indices of the inputs of channels int64 [n, k]: int64 [n, k * places]."""
        return (channels[..., None] * self.places + torch.arange(self.places)).flatten(1)


class ReaderStatistics:
    """Moments of a layer's inputs and output gradients, accumulated at positions sampled by their squared gradient."""

    def __init__(self, inputs: int, outputs: int, positions: int) -> None:
        """positions: number of positions of the kernel, kh * kw."""
        self._places = positions if inputs * positions <= MAX_INPUTS else 1
        inputs, positions = inputs * self._places, positions // self._places
        self._total = 0.0
        self._means = torch.zeros(inputs, positions, dtype=torch.float64)
        # Sums in float32: the rounding error is far below the ridge, and summing in place takes half of the time.
        self._channels = torch.zeros(inputs, inputs)
        self._kernel = torch.zeros(positions, positions)
        self._gradients = torch.zeros(outputs, dtype=torch.float64)

    def add(self, read: torch.Tensor, gradients: torch.Tensor) -> None:
        """Add one frame.

        read: patches read at the sampled positions, float32 [n, inputs, kh * kw]; gradients: squared gradients at all
        positions, float32 [outputs, h * w]. Positions are sampled in proportion to their sum over the outputs.
        """
        read = self._by_input(read)
        by_output = gradients.double().sum(1)
        weight = float(by_output.sum()) / len(read)
        self._gradients += by_output
        self._total += weight * len(read)
        self._means += weight * read.sum(0)
        by_channel, by_position = (read.transpose(0, axis).flatten(1) for axis in (1, 2))
        self._channels.addmm_(by_channel, by_channel.T, alpha=weight)
        self._kernel.addmm_(by_position, by_position.T, alpha=weight)

    def reader(self, weights: torch.Tensor) -> Reader:
        """Return the layer for weights float32 [outputs, inputs, kh * kw]."""
        total, positions = max(self._total, MIN_VARIANCE), len(self._kernel)
        means = self._means / total
        channels = (self._channels.double() / total - means @ means.T) / positions
        kernel = self._kernel.double() / total - means.T @ means
        power = channels.diagonal().mean().clamp(min=MIN_VARIANCE)
        kernel = kernel / (len(channels) * power)
        inverse = torch.linalg.inv(channels + RIDGE * power * torch.eye(len(channels), dtype=torch.float64))
        rows = self._by_input(weights.double()).transpose(0, 1)
        scaled = rows * self._gradients[:, None] @ kernel
        return Reader(inverse, scaled.flatten(1) @ rows.flatten(1).T, self._places)

    def _by_input(self, values: torch.Tensor) -> torch.Tensor:
        """Reshape values [n, channels, kh * kw] to [n, channels * places, kh * kw / places]."""
        return values.unflatten(2, (self._places, -1)).flatten(1, 2)


def elimination_losses(readers: Sequence[tuple[Reader, torch.Tensor]], channels: int) -> NDArray[np.float64]:
    """Return the loss increase by each channel at its elimination, float64 [channels]; non-decreasing in that order.

    readers: each with an index int64 [channels, k]: the input channels of the layer that belong to each channel.
    """
    reading = [_Elimination(reader, index) for reader, index in readers]
    losses, left, last = np.zeros(channels), list(range(channels)), 0.0
    for _ in range(channels):
        growth = torch.zeros(len(left), dtype=torch.float64)
        for each in reading:
            growth += each.growth(len(left))
        place = int(growth.argmin())
        last = max(last, float(growth[place]))
        losses[left[place]] = last
        for each in reading:
            each.eliminate(place, len(left))
        left[place] = left[-1]
        left.pop()
    return losses


class _Elimination:
    """Inverse covariance and Gram matrix of a layer's inputs from the channels, float64 [channels * m, channels * m].

    m: inputs per channel. With n channels left, only the first n * m rows and columns are up to date. Inputs from other
    channels are left out: no update needs them.
    """

    def __init__(self, reader: Reader, index: torch.Tensor) -> None:
        """index: int64 [channels, k], as in `elimination_losses`."""
        inputs = reader.inputs_of(index)
        self._size = inputs.shape[1]
        rows = inputs.flatten()
        self._matrices = [each[rows[:, None], rows] for each in (reader.inverse, reader.gram)]

    def growth(self, count: int) -> torch.Tensor:
        """Return the loss increase by removing each of the `count` channels left, float64 [count]."""
        shape = (count, self._size, count, self._size)
        inverse, gram = (
            each[: count * self._size, : count * self._size].view(shape).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
            for each in self._matrices
        )
        if self._size == 1:
            return (gram / inverse).flatten()
        return torch.linalg.solve(inverse, gram).diagonal(dim1=1, dim2=2).sum(1)

    def eliminate(self, channel: int, count: int) -> None:
        """Remove one of the `count` channels left, and update both matrices; the last channel takes its place."""
        size, end = self._size, (count - 1) * self._size
        here, last = slice(channel * size, (channel + 1) * size), slice(end, end + size)
        for each in self._matrices:
            for lines in (each, each.T):
                lines[here], lines[last] = lines[last].clone(), lines[here].clone()
        inverse, gram = (each[:end, :end] for each in self._matrices)
        own_inverse, own_gram = (each[last, last] for each in self._matrices)
        cross_inverse, cross_gram = (each[last, :end] for each in self._matrices)
        moves = torch.linalg.solve(own_inverse, cross_inverse)  # changes of all weights per removed weight
        inverse.addmm_(cross_inverse.T, moves, alpha=-1)
        change = cross_gram - own_gram @ moves / 2
        gram.addmm_(torch.cat([change, moves]).T, torch.cat([moves, change]), alpha=-1)
