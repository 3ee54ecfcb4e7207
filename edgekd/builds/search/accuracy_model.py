"""Estimate the share of the accuracy that candidates keep, before they are trained. Pure.

Two linear models with non-negative terms, fitted to the candidates tried so far:

noise: The output noise of an untrained network (`evaluation.output_noise`) is a sum over the steps of pruning and of
    formats. Measuring it takes seconds; it is estimated for networks without a measurement.
loss: The negative logarithm of the share of the accuracy kept is a sum over the steps of input side and student, plus
    the noise times a factor, which is smaller if a training follows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import exp, log

import numpy as np

from edgekd.builds.search.space import Candidate, Space

STEP_NOISE = {"ratio": 0.15, "bits": 0.01}
"""Prior of the noise of each step of a choice."""
STEP_LOSS = {"image_size": 0.06, "student": 0.1}
"""Prior of the loss of each step: the negative logarithm of the share of the accuracy that is kept."""
LOSS_BY_NOISE = {"": 1.0, "recovery": 0.2, "quant_aware": 0.5, "recovery, quant_aware": 0.15}
"""Prior of the loss per noise: untrained, and after each combination of trainings."""
PRIOR_WEIGHT = 0.05
"""Weight of the prior relative to one trial."""
MIN_KEPT = 0.02
"""Lower bound of shares in the fit; the logarithms of smaller ones would dominate it."""
MIN_NOISE = 1e-4
"""Lower bound of the noise by which errors are divided."""
MIN_CORRELATED = 4
"""Minimum number of candidates for a rank correlation."""

Step = tuple[str, int]
"""A kind of choice, and a level, 0 for the gentlest. Terms of levels add up to a choice's; students have one each."""


class AccuracyModel:
    """Estimates of noise and of the accuracy kept; `fit` fits their terms again."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self._noise = {step: STEP_NOISE[step[0]] for step in self._steps_of(STEP_NOISE)}
        self._loss = {step: STEP_LOSS[step[0]] for step in self._steps_of(STEP_LOSS)}
        self._loss |= {(training, 0): by_noise for training, by_noise in LOSS_BY_NOISE.items()}
        self._prior = dict(self._noise), dict(self._loss)
        self._measured: dict[Candidate, float] = {}

    def fit(self, noise: Mapping[Candidate, float], tried: Sequence[tuple[Candidate, float]]) -> None:
        """Fit both sums.

        Args:
            noise: Measured noise of networks, by the untrained candidate.
            tried: Candidates that were tried in full, each with the share of the accuracy that it kept.
        """
        self._measured = dict(noise)
        rows = []
        for network, value in noise.items():
            scale = 1 / max(value, MIN_NOISE)
            rows.append((dict.fromkeys(self._steps(network, STEP_NOISE), scale), value * scale))
        noise_prior, loss_prior = self._prior
        # Errors are relative, also those to the prior.
        self._noise = _fitted(rows, noise_prior, {step: 1 / value for step, value in noise_prior.items()})
        losses = [(self._terms(each), -log(min(max(kept, MIN_KEPT), 1.0))) for each, kept in tried]
        self._loss = _fitted(losses, loss_prior, dict.fromkeys(loss_prior, 1.0))

    def noise(self, candidate: Candidate) -> float:
        """Return the output noise of a candidate's network before training: measured, else estimated."""
        estimated = sum(self._noise[step] for step in self._steps(candidate, STEP_NOISE))
        return self._measured.get(candidate.untrained, estimated)

    def kept(self, candidate: Candidate) -> float:
        """Return the estimated share of the accuracy that a candidate keeps, 0 to 1."""
        return exp(-sum(value * self._loss[step] for step, value in self._terms(candidate).items()))

    def _terms(self, candidate: Candidate) -> dict[Step, float]:
        """Return the factor of each step in the sum of a candidate's loss."""
        training = ", ".join(name for name in ("recovery", "quant_aware") if getattr(candidate, name))
        return {**dict.fromkeys(self._steps(candidate, STEP_LOSS), 1.0), (training, 0): self.noise(candidate)}

    def _steps(self, candidate: Candidate, kinds: Mapping[str, float]) -> Iterator[Step]:
        """Yield the steps of a candidate away from the gentlest choices of these kinds."""
        for name in kinds:
            level = self.space.level(candidate, name)
            first = level if name == "student" else 1  # students have no order
            yield from ((name, step) for step in range(max(first, 1), level + 1))

    def _steps_of(self, kinds: Mapping[str, float]) -> Iterator[Step]:
        return ((name, step) for name in kinds for step in range(1, len(getattr(self.space, name))))


def _fitted(
    rows: Sequence[tuple[Mapping[Step, float], float]], prior: Mapping[Step, float], weights: Mapping[Step, float]
) -> dict[Step, float]:
    """Fit non-negative terms to rows of factors and their sum by least squares, regularized towards a prior."""
    from scipy.optimize import nnls  # type: ignore[import-untyped]

    steps = list(prior)
    matrix = np.array([[factors.get(step, 0.0) for step in steps] for factors, _ in rows]).reshape(-1, len(steps))
    values = np.array([value for _, value in rows])
    weight = PRIOR_WEIGHT**0.5 * np.array([weights[step] for step in steps])
    wished = weight * np.array([prior[step] for step in steps])
    terms = nnls(np.vstack([matrix, np.diag(weight)]), np.concatenate([values, wished]))[0]
    return dict(zip(steps, map(float, terms), strict=True))


def rank_correlation(estimates: Sequence[float], measured: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation; None for fewer than MIN_CORRELATED values, or if all are equal."""
    if len(estimates) < MIN_CORRELATED or min(len(set(estimates)), len(set(measured))) < 2:
        return None
    one, other = (np.array(values) for values in (estimates, measured))
    # Equal values share the mean of their ranks.
    ranks = [(values > values[:, None]).sum(0) + (values >= values[:, None]).sum(0) for values in (one, other)]
    return float(np.corrcoef(*ranks)[0, 1])
