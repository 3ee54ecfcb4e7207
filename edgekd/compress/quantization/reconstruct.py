"""Weights that make up for what quantization did before them, and rounding that knows what a layer reads. Pure NumPy.

A layer is a matrix W [O, K] on patches x [K]. Its quantized version reads other patches z, because what is
before it is quantized, too. Two steps, both in closed form and without labels:

- refit: the weights and bias that bring W' z closest to W x (ridge regression, kept near W);
- rounding with feedback: the weights are rounded one column after the other, and the error of each is made up for by
  those still to come, as the covariance of z allows; then single weights are rounded again until none gains.

Sources: E. Frantar et al., "GPTQ: Accurate Post-Training Quantization", 2022 (feedback); M. Nagel et al., "Up or Down?
Adaptive Rounding", 2020 (the objective: a layer's output, not its weights); Y. Li et al., "BRECQ", 2021 (layers in
order, each on the quantized output of those before).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from edgekd.core.errors import CompressError
from edgekd.core.formats import fp4x, nvfp4
from edgekd.core.formats.int8 import LEVELS, channel_scales, dequantize_channels
from edgekd.core.formats.nvfp4 import Nvfp4

Stored = tuple[np.ndarray, np.ndarray] | Nvfp4
"""The weights of a layer as a graph stores them: INT8 codes [O, ...] and their scales float32 [O], or NVFP4."""

DAMPING = 0.003
"""What is added to a covariance's diagonal, as a share of its mean: patches that were never seen stay harmless."""
_BLOCK = fp4x.BLOCK
_Factor = TypeVar("_Factor")


@dataclass(frozen=True)
class Moments:
    """What rounding must know of a layer's patches, for each of its g groups.

    covariance [g, K, K] and mean [g, K] of the patches z that the quantized layer reads; cross [g, o, K]: covariance of
    the error W x - W z that its own weights would make with z; error [g, o]: that error's mean. All float32. For a
    layer without a bias all is about zero and not about the mean: its weights alone must make up for both.
    """

    covariance: np.ndarray
    mean: np.ndarray
    cross: np.ndarray
    error: np.ndarray


def moments_of(weights: np.ndarray, wanted: np.ndarray, read: np.ndarray, biased: bool = True) -> Moments:
    """Moments for weights [g, o, K], patches `wanted` [g, n, K] of the float layer and `read` of the quantized one.

    biased: whether there is a bias, which takes care of the means.
    """
    count = np.float32(read.shape[1])
    mean = read.mean(axis=1) * np.float32(biased)
    errors = (wanted - read) @ weights.transpose(0, 2, 1)
    error = errors.mean(axis=1) * np.float32(biased)
    centred = read - mean[:, None]
    # Group by group: of a matrix with itself BLAS computes one half only.
    covariance = np.stack([each.T @ each for each in centred]) / count
    cross = (errors - error[:, None]).transpose(0, 2, 1) @ centred / count
    return Moments(covariance, mean, cross, error)


def pooled(one: Moments, other: Moments) -> Moments:
    """The moments of two equally large sets of patches together."""
    apart, errors_apart = one.mean - other.mean, one.error - other.error
    between = apart[:, :, None] * apart[:, None] / 4
    across = errors_apart[:, :, None] * apart[:, None] / 4
    return Moments(
        covariance=(one.covariance + other.covariance) / 2 + between,
        mean=(one.mean + other.mean) / 2,
        cross=(one.cross + other.cross) / 2 + across,
        error=(one.error + other.error) / 2,
    )


@dataclass(frozen=True)
class Fit:
    """Weights [g, o, K] and what to add to the bias [g, o], before rounding."""

    weights: np.ndarray
    bias: np.ndarray


def refit(weights: np.ndarray, halves: tuple[Moments, Moments]) -> Fit:
    """The weights and bias whose output on the quantized input is closest to the float layer's.

    How far to go is decided on frames that the direction does not come from: what is found on one half of the frames
    is scaled to what is best on the other half, both ways round. Without that, a few frames teach more noise than
    truth, and every layer passes it on.
    """
    moments = pooled(*halves)
    corrections = [_correction(half) for half in halves]
    share = np.mean([_gain(found, other) for found, other in zip(corrections, halves[::-1], strict=True)], axis=0)
    trust = np.mean([_agreement(one.error, other.error) for one, other in (halves, halves[::-1])], axis=0)
    change = np.clip(share, 0, 1).astype(np.float32)[:, None, None] * np.mean(corrections, axis=0)
    shift = np.clip(trust, 0, 1).astype(np.float32)[:, None] * moments.error
    return Fit(weights + change, shift - _on_average(change, moments))


def _correction(moments: Moments) -> np.ndarray:
    """The change of the weights that explains most of the error."""
    from scipy.linalg import cho_factor, cho_solve  # type: ignore[import-untyped]

    def solved(covariance: np.ndarray, cross: np.ndarray) -> np.ndarray:
        # A covariance is symmetric and positive: its Cholesky factor costs half of what elimination does.
        factor = _of_positive(covariance, lambda each: cho_factor(each, check_finite=False))
        found: np.ndarray = cho_solve(factor, cross.T, check_finite=False)
        return found.T

    damped = _damped(moments.covariance)
    if len(damped) > 1:
        # Of the many small systems of a depthwise layer each takes less time to solve than to ask for.
        with suppress(np.linalg.LinAlgError):
            found: np.ndarray = np.linalg.solve(damped, moments.cross.transpose(0, 2, 1)).transpose(0, 2, 1)
            return found
    return np.stack([solved(*each) for each in zip(damped, moments.cross, strict=True)])


def _gain(correction: np.ndarray, moments: Moments) -> np.ndarray:
    """The factor [g] by which a correction [g, o, K] explains most of the error that `moments` saw."""
    along = (correction * moments.cross).sum(axis=(1, 2))
    power = ((correction @ moments.covariance) * correction).sum(axis=(1, 2))
    found: np.ndarray = along / np.maximum(power, 1e-20)
    return found


def _agreement(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The factor [g] by which mean errors [g, o] explain most of others."""
    found: np.ndarray = (one * other).sum(axis=1) / np.maximum((one * one).sum(axis=1), 1e-20)
    return found


def _on_average(change: np.ndarray, moments: Moments) -> np.ndarray:
    """What a change of the weights [g, o, K] adds to the mean output [g, o]."""
    found: np.ndarray = (change @ moments.mean[:, :, None])[:, :, 0]
    return found


def bias_for(fit: Fit, used: np.ndarray, moments: Moments) -> np.ndarray:
    """What to add to the bias [g, o] where the weights `used` [g, o, K] are not quite those of the fit."""
    found: np.ndarray = fit.bias + _on_average(fit.weights - used, moments)
    return found


def round_with_feedback(weights: np.ndarray, covariance: np.ndarray, form: str) -> tuple[np.ndarray, np.ndarray]:
    """Codes int8 [g, o, K] and INT8 scales float32 [g, o] for weights [g, o, K], in form `int8` or `fp4x`."""
    codes, _, scales = _rounded(weights, covariance, form)
    return codes.astype(np.int8), scales


def nvfp4_with_feedback(weights: np.ndarray, covariance: np.ndarray) -> Nvfp4:
    """Weights [1, o, K] in NVFP4; for each block the better of its two scales, given those before."""
    codes, steps, scales = _rounded(weights, covariance, "nvfp4")
    chosen = np.searchsorted(nvfp4.SCALES[:127], steps[0, :, ::_BLOCK]).astype(np.uint8)
    return Nvfp4(nvfp4.nearest(codes[0] / steps[0] / 2), chosen, 2 * scales[0, 0])


def stored_in(
    form: str, weights: np.ndarray, covariance: np.ndarray, shape: tuple[int, ...]
) -> tuple[Stored, np.ndarray]:
    """Weights [g, o, K] as `form` stores them with feedback, of a layer's `shape`, and their values [g, o, K]."""
    if form == "nvfp4":
        tensor = nvfp4_with_feedback(weights, covariance)
        return tensor, tensor.values.reshape(weights.shape)
    codes, scales = round_with_feedback(weights, covariance, form)
    values = dequantize_channels(codes.reshape(shape), scales.ravel()).reshape(weights.shape)
    return (codes.reshape(shape), scales.ravel()), values


def _rounded(weights: np.ndarray, covariance: np.ndarray, form: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes float32 [g, o, K] in units of `scales` [g, o], and the multiplier of each weight's block."""
    damped = _damped(covariance)
    scales = _SCALES[form](weights, damped)
    wanted = weights / scales[:, :, None]
    codes, multipliers = _feedback(wanted, damped, form)
    for _ in range(_SWEEPS[form]):
        if not _improve(wanted, codes, multipliers, damped, form):
            break
    return codes, multipliers, scales


def _damped(covariance: np.ndarray) -> np.ndarray:
    """A covariance that can be inverted."""
    diagonal = np.diagonal(covariance, axis1=1, axis2=2)
    extra = DAMPING * diagonal.mean(axis=1) + np.float32(1e-10)
    damped: np.ndarray = covariance + extra[:, None, None] * np.eye(covariance.shape[1], dtype=np.float32)
    return damped


def _feedback(wanted: np.ndarray, damped: np.ndarray, form: str) -> tuple[np.ndarray, np.ndarray]:
    """Codes [g, o, K] and the multiplier of each weight's block, for weights in codes.

    Where a block has a choice of multipliers, each is tried with its feedback inside the block, and the best stays.
    """
    nearest, factor = _NEAREST[form], _inverse_factor(damped)
    left, codes, multipliers = wanted.copy(), np.empty_like(wanted), np.empty_like(wanted)
    for start in range(0, wanted.shape[2], _BLOCK):
        block = slice(start, min(start + _BLOCK, wanted.shape[2]))
        within = factor[:, block, block]
        tried = _tried(left[:, :, block], form)
        found, errors = _feedback_in_block(left[:, :, block], within, tried, nearest)
        best = _cheapest(found, (errors**2).sum(axis=3), tried, form)[None, :, :, None]
        codes[:, :, block] = np.take_along_axis(found, best, axis=0)[0]
        multipliers[:, :, block] = np.take_along_axis(tried[..., None], best, axis=0)[0]
        carried = np.take_along_axis(errors, best, axis=0)[0]
        left[:, :, block.stop :] -= carried @ factor[:, block, block.stop :]
    return codes, multipliers


def _tried(block: np.ndarray, form: str) -> np.ndarray:
    """The multipliers [m, g, o] among which each block [g, o, 16] has a choice."""
    if form == "nvfp4":
        found: np.ndarray = nvfp4.SCALES[nvfp4.block_scales(np.abs(block).max(axis=2) / 2)]
        return found
    return np.broadcast_to(_MULTIPLIERS[form][:, None, None], (len(_MULTIPLIERS[form]), *block.shape[:2]))


def _cheapest(codes: np.ndarray, errors: np.ndarray, tried: np.ndarray, form: str) -> np.ndarray:
    """Which multiplier [g, o] each block should have: by the errors [m, g, o], and for fp4x by the bits its codes take
    when packed.

    At the rate where an error falls to a quarter for each further bit, as that of any fine quantizer does, a bit is
    worth 2 ln 2 of the usual error of a weight.
    """
    if form != "fp4x":
        least: np.ndarray = errors.argmin(axis=0)
        return least
    halves = np.abs(np.rint(codes / tried[..., None])).astype(np.intp)
    usual = errors.min(axis=0).mean(axis=1, keepdims=True) / codes.shape[3]
    found: np.ndarray = (errors + 2 * np.log(2) * usual * _BITS[halves].sum(axis=3)).argmin(axis=0)
    return found


def _inverse_factor(damped: np.ndarray) -> np.ndarray:
    """The upper triangular U [g, K, K] with U' U = the inverse of a covariance: how errors are handed on.

    With rows and columns in reverse order a covariance is R R' with R upper triangular, and U is the inverse of R.
    """
    reversed_ = damped[:, ::-1, ::-1].astype(np.float64)
    upper = np.stack([_of_positive(each, np.linalg.cholesky) for each in reversed_])[:, ::-1, ::-1]
    # A factor is as well conditioned as its covariance's square root: single precision inverts it.
    found: np.ndarray = np.linalg.inv(upper.astype(np.float32))
    return found


def _of_positive(covariance: np.ndarray, factor: Callable[[np.ndarray], _Factor]) -> _Factor:
    """The factor of a covariance [K, K], with as much added to its diagonal as that needs."""
    diagonal = np.diagonal(covariance).mean() * np.eye(len(covariance), dtype=covariance.dtype)
    for extra in (0.0, 0.01, 0.1, 1.0):
        # Few patches of many inputs: float32 then leaves directions with less than no variance.
        try:
            return factor(covariance + extra * diagonal if extra else covariance)
        except np.linalg.LinAlgError:
            continue
    raise CompressError("quantize: a layer reads what has no covariance", expected="finite values", found="others")


def _feedback_in_block(
    block: np.ndarray, factor: np.ndarray, tried: np.ndarray, nearest: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scaled errors [m, g, o, 16] of a block [g, o, 16] for each of m multipliers [m, g, o]."""
    left = np.repeat(block[None], len(tried), axis=0)
    codes, errors = np.empty_like(left), np.empty_like(left)
    step = tried
    for column in range(block.shape[2]):
        now = left[..., column]
        codes[..., column] = nearest(now / step) * step
        errors[..., column] = (now - codes[..., column]) / factor[:, None, column, column]
        left[..., column + 1 :] -= errors[..., column, None] * factor[:, None, column, column + 1 :]
    return codes, errors


def _improve(wanted: np.ndarray, codes: np.ndarray, multipliers: np.ndarray, damped: np.ndarray, form: str) -> bool:
    """Round every weight once more, given all the others; change `codes` and return whether any changed."""
    nearest = _NEAREST[form]
    slope = (wanted - codes) @ damped
    changed = False
    for column in range(wanted.shape[2]):
        best = codes[..., column] + slope[..., column] / damped[:, None, column, column]
        step = multipliers[..., column]
        change = nearest(best / step) * step - codes[..., column]
        if change.any():
            changed = True
            slope -= change[..., None] * damped[:, None, column]
            codes[..., column] += change
    return changed


def _nearest_int8(values: np.ndarray) -> np.ndarray:
    rounded: np.ndarray = np.clip(np.rint(values), -LEVELS, LEVELS)
    return rounded


def _nearest_e2m1(values: np.ndarray) -> np.ndarray:
    """The nearest of twice the values of E2M1: 0, 1, 2, 3, 4, 6, 8, 12 and their negatives."""
    size = np.abs(values)
    step = np.where(size < 4, np.float32(1), np.where(size < 8, np.float32(2), np.float32(4)))
    rounded: np.ndarray = np.copysign(np.minimum(np.rint(size / step) * step, np.float32(12)), values)
    return rounded


def _int8_scales(weights: np.ndarray, damped: np.ndarray) -> np.ndarray:
    return channel_scales(weights.reshape(-1, weights.shape[2])).reshape(weights.shape[:2])


def _fp4x_scales(weights: np.ndarray, damped: np.ndarray) -> np.ndarray:
    """The scales of rounding to the nearest, where an error counts by the variance of what it is multiplied with."""
    importance = np.repeat(np.diagonal(damped, axis1=1, axis2=2), weights.shape[1], axis=0)
    _, scales = fp4x.quantize(weights.reshape(-1, weights.shape[2]), importance=importance)
    return scales.reshape(weights.shape[:2])


def _nvfp4_scales(weights: np.ndarray, damped: np.ndarray) -> np.ndarray:
    """Half the scale of the tensor, for every channel: codes are twice the values of E2M1."""
    return np.full(weights.shape[:2], nvfp4.tensor_scale(weights) / 2, np.float32)


_NEAREST = {"int8": _nearest_int8, "fp4x": _nearest_e2m1, "nvfp4": _nearest_e2m1}
_MULTIPLIERS = {"int8": np.ones(1, np.float32), "fp4x": np.arange(1, fp4x.MULTIPLIERS + 1, dtype=np.float32)}
# Bits of 0, 1, 2, 3, 4, 6, 8, 12 and their signs after entropy coding, from their shares in trained detectors.
_BITS = np.array([2.9, 3.2, 3.4, 3.7, 4.1, 0, 4.1, 0, 5.3, 0, 0, 0, 6.6], np.float32)
_SWEEPS = {"int8": 0, "fp4x": 2, "nvfp4": 2}  # INT8's rounding is a hundredth of its noise: there is nothing to gain
_SCALES = {"int8": _int8_scales, "fp4x": _fp4x_scales, "nvfp4": _nvfp4_scales}
