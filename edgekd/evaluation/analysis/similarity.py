"""Linear centered kernel alignment (CKA) of the activations of two layers. Pure.

Kornblith, Norouzi, Lee and Hinton, "Similarity of Neural Network Representations Revisited", ICML 2019. 1 means the
same up to rotation and scale, which a later layer could undo; 0 means nothing in common. For activations as channels by
samples, where a sample is one position of one frame, CKA is

    |Sxy|² / (|Sxx| |Syy|)        with covariances S over samples and Frobenius norms.

Covariances are sums over frames, so no frame has to be kept.
"""

from __future__ import annotations

import numpy as np


class LinearCka:
    """CKA of two layers of p and q channels, summed frame by frame in at most (p + q)² float64."""

    def __init__(self) -> None:
        self._count = 0
        self._sums: list[np.ndarray] = []
        self._products: list[np.ndarray] = []

    def add(self, first: np.ndarray, second: np.ndarray) -> None:
        """Add activations float [p, n] and [q, n] at the same n positions of one frame."""
        x, y = first.astype(np.float64), second.astype(np.float64)
        products, sums = [x @ x.T, y @ y.T, x @ y.T], [x.sum(axis=1), y.sum(axis=1)]
        if not self._count:
            self._products, self._sums = products, sums
        else:
            for total, new in zip((*self._products, *self._sums), (*products, *sums), strict=True):
                total += new
        self._count += x.shape[1]

    def value(self) -> float | None:
        """Return the similarity, 0 to 1; None where a layer is constant."""
        if not self._count:
            return None
        mean_x, mean_y = (total / self._count for total in self._sums)
        pairs = ((mean_x, mean_x), (mean_y, mean_y), (mean_x, mean_y))
        own_x, own_y, both = (
            product / self._count - np.outer(*means) for product, means in zip(self._products, pairs, strict=True)
        )
        scale = np.linalg.norm(own_x) * np.linalg.norm(own_y)
        if not np.isfinite(scale) or scale < 1e-20:
            return None
        return float(min(np.square(np.linalg.norm(both)) / scale, 1.0))


def pooled(features: np.ndarray, size: tuple[int, ...]) -> np.ndarray | None:
    """Average-pool maps float [1, c, h, w] to a smaller size (height, width); None if h, w are no multiples of it."""
    channels, height, width = features.shape[1:]
    down, across = height // size[0], width // size[1]
    if (down * size[0], across * size[1]) != (height, width):
        return None
    return np.asarray(features.reshape(1, channels, size[0], down, size[1], across).mean(axis=(3, 5)))


def at_same_positions(
    first: np.ndarray, second: np.ndarray, *, channels_last: bool = False
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return activations of two layers at the same positions: larger maps are averaged to the size of the others.

    None if positions do not correspond: other numbers of rows, or sizes of maps that are no multiples.
    """
    if channels_last:
        return (first, second) if first.shape[:-1] == second.shape[:-1] else None
    size = min(first.shape[2:], second.shape[2:], key=lambda shape: shape[0])
    small = pooled(first, size), pooled(second, size)
    return None if small[0] is None or small[1] is None else (small[0], small[1])


def samples(features: np.ndarray, max_positions: int, *, channels_last: bool) -> np.ndarray:
    """Return activations as [channels, n] at no more than `max_positions`, the same for every frame of one shape.

    features: float [1, c, h, w], or [1, ..., c] with `channels_last`, as matrix products write them.
    """
    rows = features.reshape(-1, features.shape[-1]).T if channels_last else features.reshape(features.shape[1], -1)
    if rows.shape[1] <= max_positions:
        return np.asarray(rows)
    return np.asarray(rows[:, np.random.default_rng(0).choice(rows.shape[1], max_positions, replace=False)])
