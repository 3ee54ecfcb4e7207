"""Log-linear model of the accuracy that each choice costs, fitted to the candidates that were tried. Pure.

The model is as simple as it can be: every step away from the gentlest choice of a kind keeps a share of the accuracy,
shares multiply, and none is above 1. So a dozen trials tell something of hundreds of candidates, and no trial is needed
to know that 5 bits keep no more than 8. What training changes is counted apart: pruning costs another share with
recovery than without.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import exp, log

import numpy as np

from edgekd.builds.search.space import FIELDS, Candidate, Space

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
"""Prior of each step's cost, as a logarithm of the share kept."""
PRIOR_WEIGHT = 0.05
"""Weight of the prior beside one trial."""
MIN_KEPT = 0.02
"""Shares below count as this one: their logarithm would dominate the fit."""


class AccuracyModel:
    """Accuracy that each choice costs; `fit` estimates it again."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self._steps = {step: at for at, step in enumerate(_all_steps(space))}
        self._usual = np.array([EXPECTED[kind] for kind, _ in self._steps])
        self._costs = self._usual

    def fit(self, tried: Sequence[tuple[Candidate, float]]) -> None:
        """Fit the costs to candidates and the shares of the accuracy that they kept, by non-negative least squares."""
        from scipy.optimize import nnls  # type: ignore[import-untyped]

        weight = PRIOR_WEIGHT**0.5
        rows = [self._row(candidate) for candidate, _ in tried]
        losses = [-log(min(max(kept, MIN_KEPT), 1.0)) for _, kept in tried]
        matrix = np.vstack([*rows, weight * np.eye(len(self._usual))])
        self._costs = nnls(matrix, np.concatenate([losses, weight * self._usual]))[0]

    def kept(self, candidate: Candidate) -> float:
        """Return the estimated share of the accuracy that a candidate keeps, 0 to 1."""
        return exp(-float(self._row(candidate) @ self._costs))

    def parts(self, candidate: Candidate) -> dict[str, float]:
        """Return the estimated share that each kind of choice keeps, by field name."""
        found = dict.fromkeys(FIELDS, 0.0)
        for kind, level in _steps(self.space, candidate):
            found[kind.partition(",")[0]] += float(self._costs[self._steps[kind, level]])
        return {name: exp(-loss) for name, loss in found.items()}

    def _row(self, candidate: Candidate) -> np.ndarray:
        row = np.zeros(len(self._steps))
        row[[self._steps[step] for step in _steps(self.space, candidate)]] = 1
        return row


def _steps(space: Space, candidate: Candidate) -> Iterator[tuple[str, int]]:
    """Yield the steps away from the gentlest choices: the kind, with whether training follows, and the level."""
    trained = {"ratio": candidate.recovery, "image_size": candidate.recovery, "bits": candidate.quant_aware}
    for name in ("ratio", "image_size", "bits", "teaching"):
        kind = f"{name}, trained" if trained.get(name) else name
        yield from ((kind, level) for level in range(1, space.level(candidate, name) + 1))
    if at := space.level(candidate, "student"):
        yield "student", at  # students are in no order


def _all_steps(space: Space) -> list[tuple[str, int]]:
    found = [step for each in space.candidates() for step in _steps(space, each)]
    return sorted(set(found))
