"""Convolutions as products of thinner ones: low-rank approximation of weights, weighted by a layer's inputs.

A layer W computes outputs y = W x of patches x with the second moment S. Among the layers of lower rank, W~ minimizes
|D (W - W~) S^(1/2)|_F^2, the power of the error on real maps, where the diagonal matrix D weights the outputs. The kept
share is 1 minus this power relative to the variance of y.

A patch of k x k has I k^2 numbers, and S the square of that. Here S is C (x) T: the second moment C [I, I] of channels,
and the correlation T [k^2, k^2] of positions around the mean, which describes how smooth maps are. For a matrix and for
1 x 1 this is exact, with T = 1. For k x k it needs about 1 / k^4 of the memory and keeps the main effects: the
correlation of channels, and that the mean of a kernel matters more than its details. S includes the zeros around a map,
for which a bias that corrects the mean error would be wrong, so there is no such bias.

W~ is a Tucker-2 decomposition (Kim and others, ICLR 2016, arXiv 1511.06530) of D W (C (x) T)^(1/2): a 1 x 1 layer reads
the channels into fewer, a k x k layer mixes these, and a 1 x 1 layer writes the outputs. Either end may keep its full
rank, and then has no layer. A matrix or 1 x 1 layer becomes two layers, without a writing end, by singular value
decomposition, which is optimal for its rank (Eckart and Young, 1936).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from edgekd.compress.pruning import Convolution, CostFunction, multiply_adds

RIDGE = 1e-4
"""Share of the mean power added in every direction: directions inactive in these images may be active in others."""
RANK_MULTIPLE = 8
"""Ranks are multiples of this, or full: FP16 and INT8 kernels pad other channel counts."""
MAX_RELATIVE_COST = 0.8
"""Largest cost of a product relative to its layer: a smaller gain is not worth the loss of accuracy."""
MULTIPLY_ADDS_PER_NUMBER = 64
"""Cost of reading or writing one number, in multiply-adds."""
MULTIPLY_ADDS_PER_KERNEL = 4_000_000
"""Cost of starting a layer, in multiply-adds."""
MIN_OUTPUT_WEIGHT = 1e-3
"""Smallest weight of an output, relative to the largest one."""
EPS = 1e-30
"""Lower bound of divisors."""


def default_cost(layer: Convolution) -> float:
    """Return the cost of a convolution in multiply-adds, for a device on which its time is unknown."""
    inputs, outputs = layer.inputs * layer.positions * layer.stride**2, layer.outputs * layer.positions
    return layer.multiply_adds + MULTIPLY_ADDS_PER_NUMBER * (inputs + outputs) + MULTIPLY_ADDS_PER_KERNEL


@dataclass(frozen=True)
class Ranks:
    """Ranks of a product: `reading`, channels after its first layer, and `writing`, channels before its last one."""

    reading: int
    writing: int


def parts(layer: Convolution, ranks: Ranks) -> tuple[Convolution, ...]:
    """Return the layers of a product, two or three; the layer itself for full ranks."""
    layers = [replace(layer, inputs=ranks.reading, outputs=ranks.writing)]
    if ranks.reading < layer.inputs:
        layers.insert(0, Convolution(layer.inputs, ranks.reading, layer.positions * layer.stride**2, 1))
    if ranks.writing < layer.outputs:
        layers.append(Convolution(ranks.writing, layer.outputs, layer.positions, 1))
    return tuple(layers)


def choose(layer: Convolution, kept: torch.Tensor, energy: float, cost: CostFunction) -> Ranks | None:
    """Return the cheapest ranks that keep at least the share `energy` of the output's variance.

    kept: kept share by ranks, float64 [O, I], as in `WeightedLayer`. Returns None if no product has fewer multiply-adds
    than the layer and at most MAX_RELATIVE_COST of its cost.
    """
    best, least = None, MAX_RELATIVE_COST * cost(layer)
    for reading in _steps(layer.inputs):
        enough = [rank for rank in _steps(layer.outputs) if kept[rank - 1, reading - 1] >= energy]
        # The lowest sufficient rank, or full rank, which saves a layer; for 1 x 1 only full rank.
        for writing in {*enough[:1], *enough[-1:]} if layer.kernel > 1 else enough[-1:]:
            layers = parts(layer, Ranks(reading, writing))
            if multiply_adds(layers) < layer.multiply_adds and (spent := sum(map(cost, layers))) < least:
                best, least = Ranks(reading, writing), spent
    return best


def _steps(full_rank: int) -> list[int]:
    return [*range(RANK_MULTIPLE, full_rank, RANK_MULTIPLE), full_rank]


@dataclass(frozen=True, eq=False)
class InputMoments:
    """Moments of a layer's input, float64.

    mean: means of the channels [I]; moment: second moment of the channels [I, I]; taps: correlation of the positions of
    a patch around the mean, [k^2, k^2], 1 on the diagonal.
    """

    mean: torch.Tensor
    moment: torch.Tensor
    taps: torch.Tensor


class InputStatistics:
    """Accumulate `InputMoments` of maps batch by batch, without storing maps."""

    def __init__(self, channels: int, kernel: tuple[int, int] = (1, 1), dilation: tuple[int, int] = (1, 1)) -> None:
        positions = torch.cartesian_prod(torch.arange(kernel[0]), torch.arange(kernel[1]))
        self._lags = (positions[:, None] - positions) * torch.tensor(dilation)
        self._count = 0
        self._sum = torch.zeros(channels, dtype=torch.float64)
        self._products = torch.zeros(channels, channels, dtype=torch.float64)
        self._correlation, self._pairs = torch.zeros(2, len(positions), len(positions), dtype=torch.float64)

    def add(self, maps: torch.Tensor) -> None:
        """Add inputs of the layer, float32 [b, I, h, w]."""
        for channels in maps:
            flat = channels.flatten(1)
            self._count += flat.shape[1]
            self._sum += flat.sum(1).double()
            self._products += (flat @ flat.T).double()
            if len(self._lags) > 1:
                self._add_correlation(channels)

    def _add_correlation(self, channels: torch.Tensor) -> None:
        """Add the autocorrelation of channels [I, h, w], the transform of the power spectrum (Wiener-Khinchin)."""
        size = torch.tensor(channels.shape[1:])
        padded = tuple((size + self._lags.amax((0, 1))).tolist())
        power = torch.fft.rfft2(channels, s=padded).abs().square().sum(0)
        products = torch.fft.irfft2(power, s=padded)
        self._correlation += products[self._lags[..., 0], self._lags[..., 1]].double()
        self._pairs += (size - self._lags.abs()).clamp(min=0).prod(-1)

    def moments(self) -> InputMoments:
        """Return the moments of all maps so far."""
        mean = self._sum / max(self._count, 1)
        correlation = self._correlation / self._pairs.clamp(min=1) - mean.square().sum()
        varied = len(correlation) > 1 and correlation[0, 0] > 0
        taps = correlation / correlation[0, 0] if varied else torch.eye(len(correlation), dtype=torch.float64)
        return InputMoments(mean, self._products / max(self._count, 1), taps)


class WeightedLayer:
    """The weights of a layer, scaled by the power of its inputs and the weights of its outputs: D W (C (x) T)^(1/2).

    kept: float64 [O, I], the kept share of the output's variance for the ranks writing and reading, at
    [writing - 1, reading - 1]; below 0 if the error exceeds the variance. `products` keep a little more: one end is
    fitted to the other.
    """

    def __init__(self, weight: torch.Tensor, inputs: InputMoments, counts: torch.Tensor | None = None) -> None:
        """weight: [O, I, kh, kw], or [O, I] of a linear layer; counts: weights of the outputs [O]; None: equal."""
        counts = torch.ones(len(weight)) if counts is None else counts
        self._shape = weight.shape
        self._counts = counts.double().clamp(min=float(counts.max()) * MIN_OUTPUT_WEIGHT)
        self._weight = self._by_tap(weight)
        self._root, self._inverse = _roots(inputs.moment)
        self._tap_root, _ = _roots(inputs.taps)
        self._scaled = self._scale(self._weight)
        power = float(self._scaled.square().sum())
        constant = self._tap_root @ (self._weight @ inputs.mean) * self._counts
        self._variance = max(power - float(constant.square().sum()), EPS)
        self._writing, self._reading = _directions(self._scaled, 1), _directions(self._scaled, 2)
        core = (self._writing.T @ self._scaled @ self._reading).square().sum(0)
        self.kept = 1 - (power - core.cumsum(0).cumsum(1)) / self._variance

    def products(self, ranks: Ranks) -> tuple[torch.Tensor, ...]:
        """Return the weights, float32, of the layers that approximate this one in sequence.

        All channels of a map between them have about the same power, so that one INT8 scale suits them: the mean power
        of the inputs after the first layer, that of the outputs before the last one.
        """
        outputs, inputs = self._shape[:2]
        reading = self._reading[:, : ranks.reading]
        weights, core = [], self._weight
        if ranks.reading < inputs:
            level = self._root.norm() / inputs**0.5
            weights.append((level * reading.T @ self._inverse)[None])
            core = core @ (self._root @ reading) / level
        weights.append(core)
        if ranks.writing < outputs:
            scaled = self._scaled @ reading
            writing = _directions(scaled, 1)[:, : ranks.writing]
            power = (writing.T @ scaled).square().sum((0, 2)).sqrt().clamp(min=EPS)
            level = (self._scaled / self._counts[:, None]).norm() / outputs**0.5
            weights[-1] = (writing * (level / power)).T @ (core * self._counts[:, None])
            weights.append((writing * (power / level) / self._counts[:, None])[None])
        return tuple(self._by_channel(part) for part in weights)

    def keeps(self, products: Sequence[torch.Tensor]) -> float:
        """Return the share of the output's variance that a sequence of layers with these weights keeps."""
        lost = self._scale(self._weight - self._by_tap(merged(products)))
        return 1 - float(lost.square().sum()) / self._variance

    def _scale(self, weight: torch.Tensor) -> torch.Tensor:
        """Return D W (C (x) T)^(1/2)."""
        return torch.tensordot(self._tap_root, (weight * self._counts[:, None]) @ self._root, 1)

    def _by_tap(self, weight: torch.Tensor) -> torch.Tensor:
        """Reshape [O, I, kh, kw] to [k^2, O, I]: a matrix for each position of a patch."""
        return weight.double().flatten(2).permute(2, 0, 1) if weight.ndim > 2 else weight.double()[None]

    def _by_channel(self, weight: torch.Tensor) -> torch.Tensor:
        kernel = self._shape[2:] if len(weight) > 1 else [1] * len(self._shape[2:])
        return weight.permute(1, 2, 0).reshape(*weight.shape[1:], *kernel).float()


def merged(products: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the weights of the single layer equal to these layers in sequence, of which at most one is not 1 x 1."""
    whole = products[0]
    for part in products[1:]:
        whole = torch.einsum("om...,mi...->oi...", part, whole)
    return whole


def _directions(weight: torch.Tensor, axis: int) -> torch.Tensor:
    """Return the principal directions of an axis of size n, the strongest first: orthonormal [n, n]."""
    flat = weight.movedim(axis, 0).flatten(1)
    return torch.linalg.eigh(flat @ flat.T)[1].flip(1)


def _roots(moment: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the square root of a second moment, and its inverse."""
    power, directions = torch.linalg.eigh(moment)
    power = power.clamp(min=0)
    power = (power + RIDGE * power.mean().clamp(min=EPS)).sqrt()
    return (directions * power) @ directions.T, (directions / power) @ directions.T
