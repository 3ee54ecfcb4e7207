"""How alike two networks see: linear centered kernel alignment (CKA) of what their layers write. Pure.

Kornblith, Norouzi, Lee and Hinton, "Similarity of Neural Network Representations Revisited", ICML 2019. 1 means the
same up to rotation and scale, which a network behind could undo; 0 means nothing in common. Of features as channels by
samples, where a sample is one position of one frame, CKA is

    |Sxy|² / (|Sxx| |Syy|)        with covariances S over samples and Frobenius norms.

Covariances are sums over frames, so no frame has to be kept.
"""

from __future__ import annotations

import numpy as np


class LinearCka:
    """CKA of two layers, of p and q channels, frame by frame. Takes (p + q)² numbers of 8 bytes, at most."""

    def __init__(self) -> None:
        self._count = 0
        self._sums: list[np.ndarray] = []
        self._products: list[np.ndarray] = []

    def add(self, first: np.ndarray, second: np.ndarray) -> None:
        """Features float [p, n] and [q, n] at the same n positions of one frame."""
        x, y = first.astype(np.float64), second.astype(np.float64)
        found = [x @ x.T, y @ y.T, x @ y.T], [x.sum(axis=1), y.sum(axis=1)]
        if not self._count:
            self._products, self._sums = found
        else:
            for kept, new in zip((*self._products, *self._sums), (*found[0], *found[1]), strict=True):
                kept += new
        self._count += x.shape[1]

    def value(self) -> float | None:
        """0 to 1; None where a layer writes the same everywhere, and so says nothing."""
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


def samples(features: np.ndarray, channels_last: bool, most: int) -> np.ndarray:
    """Features of a layer as [channels, n] at no more than `most` positions, the same for every frame of one shape.

    features: float [1, c, h, w], or [1, ..., c] with `channels_last`, as matrix products write them.
    """
    rows = features.reshape(-1, features.shape[-1]).T if channels_last else features.reshape(features.shape[1], -1)
    if rows.shape[1] <= most:
        return np.asarray(rows)
    return np.asarray(rows[:, np.random.default_rng(0).choice(rows.shape[1], most, replace=False)])
