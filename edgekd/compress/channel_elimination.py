"""Loss that the removal of channels leaves after the layers that read them are refitted: optimal brain surgeon.

A layer with weights W reads inputs z of covariance C. Without its input i the other weights can make good what is
linear in the others: to second order the loss then grows by

    sum over outputs o of  G_o * W_oi^2 / (C^-1)_ii,

with G_o the mean squared gradient of the loss by output o, of which the errors of places are independent. Channels
are eliminated one by one, always the one that costs least, and W and C^-1 are brought up to date after each. For one
weight: Hassibi and Stork, NIPS 1992; for groups of weights: ZipLM, Kurtic and others, arXiv 2302.04089. A convolution
reads patches, each channel by as many inputs as its kernel has places. Where these are too many, the covariance is
taken as that of channels times that of places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

RIDGE = 0.01
"""Ridge of a covariance, as a share of its mean variance: that of the refit."""
MIN_VARIANCE = 1e-12
"""Smallest mean variance, so that inputs that do not vary have an inverse."""


MAX_INPUTS = 1152
"""Most inputs with a covariance of their own, such as 128 channels by 3 x 3 places: a matrix of 11 MB."""


@dataclass(frozen=True)
class Reader:
    """A layer that reads channels.

    inverse: float64 [inputs, inputs], C^-1; gram: float64 [inputs, inputs], sum over outputs of G_o W_oi W_oj; places:
    neighbouring inputs by which each channel is read.
    """

    inverse: torch.Tensor
    gram: torch.Tensor
    places: int = 1

    def inputs_of(self, channels: torch.Tensor) -> torch.Tensor:
        """Return the inputs that read channels int64 [n, k]: [n, k * places]."""
        return (channels[..., None] * self.places + torch.arange(self.places)).flatten(1)


class ReaderStatistics:
    """Moments of the inputs and output gradients of a layer, accumulated at places drawn by their squared gradient."""

    def __init__(self, inputs: int, outputs: int, positions: int) -> None:
        """positions: of the kernel."""
        self._places = positions if inputs * positions <= MAX_INPUTS else 1
        inputs, positions = inputs * self._places, positions // self._places
        self._total = 0.0
        self._means = torch.zeros(inputs, positions, dtype=torch.float64)
        # Sums in float32: what is lost is far below the ridge, and a sum in place takes half of the time.
        self._channels = torch.zeros(inputs, inputs)
        self._kernel = torch.zeros(positions, positions)
        self._gradients = torch.zeros(outputs, dtype=torch.float64)

    def add(self, read: torch.Tensor, gradients: torch.Tensor) -> None:
        """Add an output map: patches that some places read, float32 [n, inputs, kh * kw], and all squared gradients,
        float32 [outputs, h * w], by whose sum over the outputs the places were drawn.
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
        """Return the layer with weights float32 [outputs, inputs, kh * kw]."""
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
        """Return values [n, channels, kh * kw] with the inputs in place of the channels."""
        return values.unflatten(2, (self._places, -1)).flatten(1, 2)


def elimination_losses(readers: Sequence[tuple[Reader, torch.Tensor]], channels: int) -> NDArray[np.float64]:
    """Return the growth of the loss with each channel when it is its turn, float64 [channels], none less than before.

    readers: with int64 [channels, k], the layer's input channels that are each channel.
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
    """Inverse covariance and Gram matrix of what a layer reads of some channels, float64 [channels * m, channels * m].

    Of n channels that are left the first n * m rows and columns are up to date. What a layer reads of other channels is
    left out: no update needs it.
    """

    def __init__(self, reader: Reader, index: torch.Tensor) -> None:
        """index: as of `elimination_losses`."""
        inputs = reader.inputs_of(index)
        self._size = inputs.shape[1]
        rows = inputs.flatten()
        self._matrices = [each[rows[:, None], rows] for each in (reader.inverse, reader.gram)]

    def growth(self, count: int) -> torch.Tensor:
        """Return the growth of the loss without each of the `count` channels that are left, float64 [count]."""
        shape = (count, self._size, count, self._size)
        inverse, gram = (
            each[: count * self._size, : count * self._size].view(shape).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
            for each in self._matrices
        )
        if self._size == 1:
            return (gram / inverse).flatten()
        return torch.linalg.solve(inverse, gram).diagonal(dim1=1, dim2=2).sum(1)

    def eliminate(self, channel: int, count: int) -> None:
        """Bring both up to date after a channel of the `count` that are left is gone; the last one takes its place."""
        size, end = self._size, (count - 1) * self._size
        here, last = slice(channel * size, (channel + 1) * size), slice(end, end + size)
        for each in self._matrices:
            for lines in (each, each.T):
                lines[here], lines[last] = lines[last].clone(), lines[here].clone()
        inverse, gram = (each[:end, :end] for each in self._matrices)
        own_inverse, own_gram = (each[last, last] for each in self._matrices)
        cross_inverse, cross_gram = (each[last, :end] for each in self._matrices)
        moves = torch.linalg.solve(own_inverse, cross_inverse)  # of the weights of all inputs, by those gone
        inverse.addmm_(cross_inverse.T, moves, alpha=-1)
        change = cross_gram - own_gram @ moves / 2
        gram.addmm_(torch.cat([change, moves]).T, torch.cat([moves, change]), alpha=-1)
