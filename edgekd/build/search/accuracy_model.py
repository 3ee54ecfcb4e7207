"""How much accuracy each choice costs, learnt from the candidates that were tried. Pure.

The model is as simple as it can be: every step away from the gentlest choice of a kind keeps a share of the accuracy,
shares multiply, and none is above 1. So a dozen trials tell something of hundreds of candidates, and no trial is needed
to know that 5 bits keep no more than 8. What training changes is counted apart: pruning costs another share with
recovery than without.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import exp, log

import numpy as np

from edgekd.build.search.space import FIELDS, Candidate, Space

EXPECTED = {
    "ratio": 0.7,
    "ratio, trained": 0.03,
    "image_size": 0.06,
    "image_size, trained": 0.04,
    "bits": 0.01,
    "bits, trained": 0.005,
    "student": 0.1,
    "teaching": 0.005,
}
"""What a step is thought to cost, as a logarithm, before anything was tried."""
TRUST = 0.05
"""How much that counts beside one trial."""
LEAST = 0.02
"""Shares below are all the same loss."""


class Losses:
    """Accuracy that each choice costs; `fit` estimates it again."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self._steps = {step: at for at, step in enumerate(_all_steps(space))}
        self._usual = np.array([EXPECTED[kind] for kind, _ in self._steps])
        self._costs = self._usual

    def fit(self, tried: Sequence[tuple[Candidate, float]]) -> None:
        """Learn from candidates and the shares of the accuracy that they kept."""
        from scipy.optimize import nnls  # type: ignore[import-untyped]

        weight = TRUST**0.5
        rows = [self._row(candidate) for candidate, _ in tried]
        losses = [-log(min(max(kept, LEAST), 1.0)) for _, kept in tried]
        matrix = np.vstack([*rows, weight * np.eye(len(self._usual))])
        self._costs = nnls(matrix, np.concatenate([losses, weight * self._usual]))[0]

    def kept(self, candidate: Candidate) -> float:
        """The share of the accuracy that a candidate is thought to keep."""
        return exp(-float(self._row(candidate) @ self._costs))

    def parts(self, candidate: Candidate) -> dict[str, float]:
        """The share that each kind of choice is thought to keep, by the name of its field."""
        found = dict.fromkeys(FIELDS, 0.0)
        for kind, level in _steps(self.space, candidate):
            found[kind.partition(",")[0]] += float(self._costs[self._steps[kind, level]])
        return {name: exp(-loss) for name, loss in found.items()}

    def _row(self, candidate: Candidate) -> np.ndarray:
        row = np.zeros(len(self._steps))
        row[[self._steps[step] for step in _steps(self.space, candidate)]] = 1
        return row


def _steps(space: Space, candidate: Candidate) -> Iterator[tuple[str, int]]:
    """The steps away from the gentlest choices: the kind, with whether training follows, and the level reached."""
    trained = {"ratio": candidate.recovery, "image_size": candidate.recovery, "bits": candidate.quant_aware}
    for name in ("ratio", "image_size", "bits", "teaching"):
        kind = f"{name}, trained" if trained.get(name) else name
        yield from ((kind, level) for level in range(1, space.level(candidate, name) + 1))
    if at := space.level(candidate, "student"):
        yield "student", at  # students are in no order


def _all_steps(space: Space) -> list[tuple[str, int]]:
    found = [step for each in space.candidates() for step in _steps(space, each)]
    return sorted(set(found))
