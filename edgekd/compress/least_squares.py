"""Least squares for the weights of a linear layer: weights that compute the original outputs from changed inputs.

After channels are removed, or an earlier layer is approximated, a layer reads other patches z than it was trained for,
but should still compute y, the kept outputs of the original layer. Its new weights W minimize

    mean |W z - y|^2 + r |W - W0|^2,    r = ridge * mean variance of z,

with the means of z and y subtracted: mean y - W mean z is an offset for the layer's bias, or for the mean of its batch
norm. The ridge keeps W near W0, the kept old weights, in directions in which z hardly varies. Each group of a grouped
layer is solved separately, and so is each channel of a depthwise layer.

Memory: only covariances, float64 [inputs, inputs + outputs] for each group, for any number of samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

MIN_RIDGE = 1e-12
"""Lower bound of the ridge and of the mean variance: weights of constant inputs do not change."""


@dataclass(frozen=True)
class Window:
    """The inputs that an output of a convolution reads. Pairs are (height, width).

    transposed: for a transposed convolution, whose output reads the positions whose window contains it.
    """

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    transposed: bool = False


def patches(maps: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, window: Window) -> torch.Tensor:
    """Return the input patches of some outputs of a convolution: [b, n, channels, kh * kw], zero outside of the map.

    maps: [b, channels, h, w]; rows, columns: int64 [b, n], positions of the outputs in each frame.
    """
    height, width = maps.shape[2:]
    down, fits_down = _sources(rows, 0, height, window)
    across, fits_across = _sources(columns, 1, width, window)
    index = (down[..., :, None] * width + across[..., None, :]).flatten(1)  # [b, n * kh * kw]
    inside = (fits_down[..., :, None] & fits_across[..., None, :]).flatten(2)
    values = maps.flatten(2).gather(2, index[:, None].expand(-1, maps.shape[1], -1))
    return values.unflatten(2, inside.shape[1:]).transpose(1, 2) * inside[:, :, None]


def _sources(places: torch.Tensor, axis: int, size: int, window: Window) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows (axis 0) or columns (1) of the input that outputs read, int64 [b, n, k], and which are inside."""
    reach = torch.arange(window.kernel[axis], device=places.device) * window.dilation[axis]
    stride, padding = window.stride[axis], window.padding[axis]
    if window.transposed:
        scaled = places[..., None] + padding - reach
        found, fits = scaled.div(stride, rounding_mode="floor"), scaled % stride == 0
    else:
        found = places[..., None] * stride - padding + reach
        fits = torch.ones_like(found, dtype=torch.bool)
    return found.clamp(0, size - 1), fits & (found >= 0) & (found < size)


class LeastSquares:
    """The normal equations of a layer's weights, accumulated batch by batch.

    centred: subtract means. False for a layer without an offset: its weights then fit the means, too.
    """

    def __init__(self, groups: int, inputs: int, outputs: int, *, centred: bool = True) -> None:
        """inputs, outputs: numbers per group."""
        self._inputs, self._centred = inputs, centred
        self._count = 0
        self._shift = torch.zeros(groups, 1, inputs + outputs)
        self._sums = torch.zeros(groups, 1, inputs + outputs, dtype=torch.float64)
        self._products = torch.zeros(groups, inputs, inputs + outputs, dtype=torch.float64)

    def add(self, read: torch.Tensor, wanted: torch.Tensor) -> None:
        """Add samples: inputs `read`, float32 [groups, n, inputs], and target outputs, float32 [groups, n, outputs]."""
        both = torch.cat([read, wanted], 2)
        if self._centred and not self._count:
            self._shift = both.mean(1, keepdim=True)  # close enough to the mean for products in float32
        both = both - self._shift
        self._count += both.shape[1]
        self._sums += both.double().sum(1, keepdim=True)
        self._products += (both[..., : self._inputs].transpose(1, 2) @ both).double()

    def solve(self, start: torch.Tensor, ridge: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weights, float32 [groups, outputs, inputs], and offsets, [groups, outputs], 0 if not centred.

        start: the old weights, of the same shape; ridge: a share of the mean variance of the inputs.
        """
        mean = self._sums / max(self._count, 1)
        covariance = self._products / max(self._count, 1)
        if self._centred:
            covariance = covariance - mean[..., : self._inputs].transpose(1, 2) @ mean
        own, cross = covariance.split([self._inputs, covariance.shape[2] - self._inputs], 2)
        power = own.diagonal(dim1=1, dim2=2).mean(1).clamp(min=MIN_RIDGE)
        damping = (max(ridge, MIN_RIDGE) * power)[:, None, None] * torch.eye(self._inputs, dtype=torch.float64)
        old = start.double().transpose(1, 2)
        weights = old + torch.linalg.solve(own + damping, cross - own @ old)
        read, wanted = (mean + self._shift).split([self._inputs, cross.shape[2]], 2)
        offset = wanted - read @ weights if self._centred else torch.zeros_like(wanted)
        return weights.transpose(1, 2).float(), offset[:, 0].float()
