"""NVFP4: weights of 4.5 bits for matrix products, which Blackwell computes with. Pure NumPy, shared with the device.

A weight [o, k] is `e * (s * t)`: `e` one of the values of E2M1, `s` a positive number in FP8 E4M3 for each block of 16
along k, and `t` one float32 for the tensor (E2M1 and E4M3: OCP Microscaling Formats, version 1.0, 5.3). No hardware
runs convolutions in it. docs/reference/formats/nvfp4.md has the bytes, and says how they stand in ONNX.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgekd.core.formats.fp4x import unpack_nibbles

BLOCK = 16
ELEMENTS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""Value of each nibble."""
PEAKS = (6, 4)
"""Candidates for the largest magnitude of a block: for some blocks 4 is better than 6, two steps above.
Source: J. Cook et al., "Four Over Six", arXiv 2512.02010."""
_LARGEST_SCALE = 256  # a block scaled to 4 needs half as much more, 384, which E4M3 has


def _e4m3() -> np.ndarray:
    """Return the value of each byte: sign, 4 bits of exponent, 3 of mantissa; NaN where all seven are set."""
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    size = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))
    size[code & 127 == 127] = np.nan
    return np.where(code < 128, size, -size).astype(np.float32)


SCALES = _e4m3()
"""Value of each byte of a block scale; a scale has one of the bytes 1 to 126."""
_SCALE_MIDDLES = (SCALES[:126] + SCALES[1:127]) / 2
_ELEMENT_MIDDLES = (ELEMENTS[:7] + ELEMENTS[1:8]) / 2


@dataclass(frozen=True, eq=False)
class Nvfp4:
    """A matrix [O, K] in NVFP4: nibbles uint8 [O, K], scales uint8 [O, K / 16] in E4M3, and the scale of the tensor."""

    nibbles: np.ndarray
    scales: np.ndarray
    scale: np.float32

    @property
    def values(self) -> np.ndarray:
        """Weights float32 [O, K], with the rounding of two DequantizeLinear nodes of ONNX."""
        steps = np.repeat(SCALES[self.scales] * self.scale, BLOCK, axis=1)
        weights: np.ndarray = ELEMENTS[self.nibbles] * steps
        return weights


def fits(shape: tuple[int, ...]) -> bool:
    """Return whether a tensor can have the format: a matrix [O, K] with K a multiple of 16."""
    return len(shape) == 2 and shape[0] > 0 and shape[1] > 0 and shape[1] % BLOCK == 0


def quantize(weights: np.ndarray, importance: np.ndarray | None = None) -> Nvfp4:
    """Quantize weights [O, K]; of two scales for a block, the one with the smaller squared error is used.

    importance: weight of each squared error, not negative, [K] or [O, K].
    Raises ValueError where a weight is not finite in float32, or K is no multiple of 16.
    """
    with np.errstate(over="ignore"):
        rows = np.asarray(weights).astype(np.float32, copy=False)
    if not fits(rows.shape):
        raise ValueError(f"expected a matrix with a multiple of {BLOCK} columns, found shape {rows.shape}")
    if not np.isfinite(rows).all():
        raise ValueError("weights are not finite in float32")
    scale = tensor_scale(rows)
    blocks = rows.reshape(len(rows), -1, BLOCK)
    counts = 1.0 if importance is None else np.broadcast_to(importance, rows.shape).reshape(blocks.shape)
    tried = block_scales(np.abs(blocks).max(axis=2) / scale)
    nibbles = np.stack([nearest(blocks / (SCALES[each] * scale)[..., None]) for each in tried])
    values = ELEMENTS[nibbles] * (SCALES[tried] * scale)[..., None]
    best = (counts * (values.astype(np.float64) - blocks) ** 2).sum(axis=3).argmin(axis=0)[None]
    chosen = np.take_along_axis(nibbles, best[..., None], axis=0)[0].reshape(rows.shape)
    return Nvfp4(chosen, np.take_along_axis(tried, best, axis=0)[0], scale)


def tensor_scale(weights: np.ndarray) -> np.float32:
    """Return the scale of a tensor, at which its largest magnitude is 6 times a block scale of 256."""
    peak = np.abs(weights).max(initial=0) / np.float32(PEAKS[0] * _LARGEST_SCALE)
    return np.float32(max(peak, np.finfo(np.float32).tiny))


def block_scales(peaks: np.ndarray) -> np.ndarray:
    """Return candidate scales of blocks with these peaks, in units of the tensor's scale: uint8 [2, ...]."""
    units = np.stack([peaks / np.float32(peak) for peak in PEAKS])
    scales: np.ndarray = np.maximum(_place(units, _SCALE_MIDDLES), 1).astype(np.uint8)
    return scales


def nearest(units: np.ndarray) -> np.ndarray:
    """Return the nibbles uint8 nearest to weights in units of their scales; ties to even."""
    index = _place(np.abs(units), _ELEMENT_MIDDLES)
    nibbles: np.ndarray = (index | 8 * ((units < 0) & (index > 0))).astype(np.uint8)
    return nibbles


def unpack(nibbles: bytes, scales: bytes, scale: float, shape: tuple[int, int]) -> Nvfp4:
    """Return the matrix of a shape from its packed nibbles, the bytes of its block scales and its scale.

    Raises ValueError where lengths do not fit the shape, or a scale is not positive and finite.
    """
    if not fits(shape):
        raise ValueError(f"expected a matrix with a multiple of {BLOCK} columns, found shape {shape}")
    for what, found, expected in (
        ("nibbles", len(nibbles), shape[0] * shape[1] // 2),
        ("block scales", len(scales), shape[0] * shape[1] // BLOCK),
    ):
        if found != expected:
            raise ValueError(f"expected {expected} bytes of {what} for shape {shape}, found {found}")
    blocks = np.frombuffer(scales, np.uint8).reshape(shape[0], -1)
    if not ((blocks >= 1) & (blocks <= 126)).all() or not 0 < scale < np.inf:
        raise ValueError("expected positive, finite scales, found others")
    return Nvfp4(unpack_nibbles(nibbles, shape[0] * shape[1]).reshape(shape), blocks, np.float32(scale))


def _place(values: np.ndarray, middles: np.ndarray) -> np.ndarray:
    """Return the index of the interval between middles of each value; ties to even."""
    below = np.searchsorted(middles, values, "left")
    above: np.ndarray = np.searchsorted(middles, values, "right")
    return np.where(above % 2 == 0, above, below)
