"""Convolutions as products of thinner ones: linear algebra on their weights, weighed by what they read.

A layer W writes y = W x, of patches x with the second moment S. Of all layers of lower rank, the one that is wanted
writes nearly the same on real maps: it has the least |D (W - W~) S^(1/2)|_F^2, the power of the error, where D says how
much each output counts. What is kept is 1 less that power relative to what varies in y, which leaves out the mean.

A patch of k x k has I k^2 numbers, and S the square of that. Here S is C (x) T: the second moment C [I, I] of channels,
and the correlation T [k^2, k^2] of places around the mean, which says how smooth maps are. For a matrix and for 1 x 1
this is exact, T being 1. For k x k it takes a k^4-th of the memory and has what matters most: which channels go
together, and that of a kernel the mean counts for more than the details. S itself is the one of patches, zeros around
a map included, for which a bias that makes up for the mean error would be wrong; so none does.

W~ is a Tucker-2 decomposition (Kim and others, ICLR 2016, arXiv 1511.06530), here of D W (C (x) T)^(1/2): channels are
read into fewer by 1 x 1, those are mixed by k x k, and channels are written from fewer by 1 x 1. Either end may keep
all it has, and then there is no layer for it. Without the writing end, a matrix or 1 x 1 is the product of two by its
singular value decomposition, which nothing of their rank is better than (Eckart and Young, 1936).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from edgekd.compress.pruning import Convolution, Cost, multiply_adds

RIDGE = 1e-4
"""Of the mean power, added in every direction: what was never active here may be elsewhere."""
MULTIPLE = 8
"""Ranks are multiples of it, or all there are: kernels for FP16 and INT8 fill up what is less."""
WORTH = 0.8
"""Of what a layer costs, what its product may: for less of a gain a network is not to lose anything."""
NUMBER, KERNEL = 64, 4_000_000
"""What a number costs that is read or written, and a layer that is begun, in multiply-adds."""
LEAST = 1e-3
"""Of what the output that counts most does, what each counts at least."""
TINY = 1e-30
"""What is divided by at least."""


def charged(layer: Convolution) -> float:
    """What a convolution costs where nothing better is known, in multiply-adds."""
    read = layer.inputs * layer.positions * layer.stride**2
    return layer.multiply_adds + NUMBER * (read + layer.outputs * layer.positions) + KERNEL


@dataclass(frozen=True)
class Ranks:
    """How many channels are left between the products: those that are read into, and those that are written from."""

    reading: int
    writing: int


def parts(layer: Convolution, ranks: Ranks) -> tuple[Convolution, ...]:
    """What stands for a layer: two or three, or the layer itself where the ranks leave nothing out."""
    found = [replace(layer, inputs=ranks.reading, outputs=ranks.writing)]
    if ranks.reading < layer.inputs:
        found.insert(0, Convolution(layer.inputs, ranks.reading, layer.positions * layer.stride**2, 1))
    if ranks.writing < layer.outputs:
        found.append(Convolution(ranks.writing, layer.outputs, layer.positions, 1))
    return tuple(found)


def choose(layer: Convolution, kept: torch.Tensor, energy: float, cost: Cost) -> Ranks | None:
    """Of the ranks that keep at least the share `energy` of what varies in the output those that cost least.

    kept: the share by ranks, as in `Weighed`. None where nothing costs much less than the layer, or multiplies less.
    """
    best, least = None, WORTH * cost(layer)
    for reading in _steps(layer.inputs):
        enough = [rank for rank in _steps(layer.outputs) if kept[rank - 1, reading - 1] >= energy]
        # The least rank, or all there are: then a layer is saved. Of 1 x 1 only that.
        for writing in {*enough[:1], *enough[-1:]} if layer.kernel > 1 else enough[-1:]:
            found = parts(layer, Ranks(reading, writing))
            if multiply_adds(found) < layer.multiply_adds and (spent := sum(map(cost, found))) < least:
                best, least = Ranks(reading, writing), spent
    return best


def _steps(most: int) -> list[int]:
    return [*range(MULTIPLE, most, MULTIPLE), most]


@dataclass(frozen=True, eq=False)
class Read:
    """What a layer reads. mean: of channels [I]; moment: their second moment [I, I]; taps: how much alike two places of
    a patch are, apart from the mean, [k^2, k^2], 1 on the diagonal. All float64.
    """

    mean: torch.Tensor
    moment: torch.Tensor
    taps: torch.Tensor


class Watch:
    """Gathers a `Read` from maps, batch by batch, and keeps none of them."""

    def __init__(self, channels: int, kernel: tuple[int, int] = (1, 1), dilation: tuple[int, int] = (1, 1)) -> None:
        places = torch.cartesian_prod(torch.arange(kernel[0]), torch.arange(kernel[1]))
        self._lags = (places[:, None] - places) * torch.tensor(dilation)
        self._count = 0
        self._sum = torch.zeros(channels, dtype=torch.float64)
        self._products = torch.zeros(channels, channels, dtype=torch.float64)
        self._alike, self._pairs = torch.zeros(2, len(places), len(places), dtype=torch.float64)

    def add(self, maps: torch.Tensor) -> None:
        """Maps float32 [b, I, h, w] that the layer has read."""
        for channels in maps:
            flat = channels.flatten(1)
            self._count += flat.shape[1]
            self._sum += flat.sum(1).double()
            self._products += (flat @ flat.T).double()
            if len(self._lags) > 1:
                self._add_places(channels)

    def _add_places(self, channels: torch.Tensor) -> None:
        """Products of values at all distances at once: the transform of a spectrum of power, by Wiener and Khinchin."""
        size = torch.tensor(channels.shape[1:])
        padded = tuple((size + self._lags.amax((0, 1))).tolist())
        power = torch.fft.rfft2(channels, s=padded).abs().square().sum(0)
        found = torch.fft.irfft2(power, s=padded)
        self._alike += found[self._lags[..., 0], self._lags[..., 1]].double()
        self._pairs += (size - self._lags.abs()).clamp(min=0).prod(-1)

    def read(self) -> Read:
        """What has been read so far."""
        mean = self._sum / max(self._count, 1)
        alike = self._alike / self._pairs.clamp(min=1) - mean.square().sum()
        varied = len(alike) > 1 and alike[0, 0] > 0
        taps = alike / alike[0, 0] if varied else torch.eye(len(alike), dtype=torch.float64)
        return Read(mean, self._products / max(self._count, 1), taps)


class Weighed:
    """A layer as its output sees it.

    kept: by ranks [writing, reading], counted from 1, the share of what varies in the output that is kept, float64
    [O, I]; below 0 where the error is larger. `products` keep a little more: one end is fitted to the other.
    """

    def __init__(self, weight: torch.Tensor, read: Read, counts: torch.Tensor | None = None) -> None:
        """weight: [O, I, kh, kw], or [O, I] of a linear layer; counts: how much each output does, [O]; None: alike."""
        counts = torch.ones(len(weight)) if counts is None else counts
        self._shape = weight.shape
        self._counts = counts.double().clamp(min=float(counts.max()) * LEAST)
        self._weight = self._by_place(weight)
        self._root, self._inverse = _roots(read.moment)
        self._spread, _ = _roots(read.taps)
        self._seen = self._as_seen(self._weight)
        self._power = float(self._seen.square().sum())
        constant = self._spread @ (self._weight @ read.mean) * self._counts
        self._varied = max(self._power - float(constant.square().sum()), TINY)
        self._writing, self._reading = _written(self._seen), _directions(self._seen.permute(2, 0, 1))
        core = (self._writing.T @ self._seen @ self._reading).square().sum(0)
        self.kept = 1 - (self._power - core.cumsum(0).cumsum(1)) / self._varied

    def products(self, ranks: Ranks) -> tuple[torch.Tensor, ...]:
        """The weights, float32, of the layers that do nearly the same one after the other.

        What they hand on has the same power in each channel, so that one scale suits all of them: after the first one
        the mean power of what is read, before the last one that of what is written.
        """
        outputs, inputs = self._shape[:2]
        reading = self._reading[:, : ranks.reading]
        made, core = [], self._weight
        if ranks.reading < inputs:
            level = self._root.norm() / inputs**0.5
            made.append((level * reading.T @ self._inverse)[None])
            core = core @ (self._root @ reading) / level
        made.append(core)
        if ranks.writing < outputs:
            seen = self._seen @ reading
            writing = _written(seen)[:, : ranks.writing]
            power = (writing.T @ seen).square().sum((0, 2)).sqrt().clamp(min=TINY)
            level = (self._seen / self._counts[:, None]).norm() / outputs**0.5
            made[-1] = (writing * (level / power)).T @ (core * self._counts[:, None])
            made.append((writing * (power / level) / self._counts[:, None])[None])
        return tuple(self._by_channel(part) for part in made)

    def keeps(self, products: Sequence[torch.Tensor]) -> float:
        """The share of what varies in the output that layers with these weights keep, one after the other."""
        lost = self._as_seen(self._weight - self._by_place(merged(products)))
        return 1 - float(lost.square().sum()) / self._varied

    def _as_seen(self, weight: torch.Tensor) -> torch.Tensor:
        """D W (C (x) T)^(1/2)."""
        return torch.tensordot(self._spread, (weight * self._counts[:, None]) @ self._root, 1)

    def _by_place(self, weight: torch.Tensor) -> torch.Tensor:
        """[O, I, kh, kw] as [k^2, O, I]: a matrix for each place of a patch."""
        return weight.double().flatten(2).permute(2, 0, 1) if weight.ndim > 2 else weight.double()[None]

    def _by_channel(self, weight: torch.Tensor) -> torch.Tensor:
        places = self._shape[2:] if len(weight) > 1 else [1] * len(self._shape[2:])
        return weight.permute(1, 2, 0).reshape(*weight.shape[1:], *places).float()


def merged(products: Sequence[torch.Tensor]) -> torch.Tensor:
    """The weights of the one layer that does what these do one after the other; one of them at most is not 1 x 1."""
    whole = products[0]
    for part in products[1:]:
        whole = torch.einsum("om...,mi...->oi...", part, whole)
    return whole


def _written(weight: torch.Tensor) -> torch.Tensor:
    """The directions of outputs of matrices [k^2, O, I]."""
    return _directions(weight.transpose(0, 1))


def _directions(weight: torch.Tensor) -> torch.Tensor:
    """The directions of the first axis [n, ...], those with the most power first: orthonormal [n, n]."""
    flat = weight.flatten(1)
    return torch.linalg.eigh(flat @ flat.T)[1].flip(1)


def _roots(moment: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The square root of a second moment, and its inverse."""
    power, directions = torch.linalg.eigh(moment)
    power = power.clamp(min=0)
    power = (power + RIDGE * power.mean().clamp(min=TINY)).sqrt()
    return (directions * power) @ directions.T, (directions / power) @ directions.T
