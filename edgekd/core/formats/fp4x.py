"""fp4x: 4-bit weights on disk that are INT8 codes in the engine, bit for bit. Pure NumPy, shared with the device.

Weights [O, ...] are viewed as [O, K] and cut into blocks of 16 along K. A weight is `s * (m * e)`: one scale `s` per
channel, one integer `m` from 1 to 10 per block, and `e` one of the values of E2M1 (OCP Microscaling Formats, version
1.0, 5.3.3). `2 * m * e` is an integer from -120 to 120: an INT8 code, whose scale is `s / 2`. The bytes:
docs/reference/formats/fp4x.md.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgekd.core.formats.fp4x_size import BLOCK as BLOCK
from edgekd.core.formats.fp4x_size import block_count, matrix_shape, packed_bytes

MULTIPLIERS = 10
MAGNITUDES = (0, 0.5, 1, 1.5, 2, 3, 4, 6)
LEVELS = 120
"""The largest code."""
SMALLEST_SCALE = np.finfo(np.float32).tiny
LARGEST_SCALE = np.float32(float.fromhex("0x1.11111p+121"))
"""INT8 scales are normal float32 numbers whose product with every code is finite."""

# Candidates of the search, as factors on the scale at which a channel's peak is the largest code: a little clipping,
# and peaks on the coarser steps of a smaller multiplier, which help most where a channel has few blocks.
_FACTORS = tuple(step / 20 for step in range(18, 31))
_CHUNK = 1 << 15  # weights at a time, so that their data fit the cache of a core
_MIN_IMPORTANCE = 1e-6  # relative, so that a block without importance is stored well, too
_NEGATIVE = 8
_HALVES = (2 * np.array(MAGNITUDES)).astype(np.int16)  # 2 * e: integers


def _nearest_codes() -> np.ndarray:
    """Return by [multiplier - 1, y] the code nearest to a magnitude x in codes, y = min(floor(2 * x), 255); ties go up.

    In units of 2 * x the midpoints between neighbouring codes are integers, so the floor loses nothing.
    """
    middles = _HALVES[1:] + _HALVES[:-1]
    rows = [m * _HALVES[np.searchsorted(m * middles, np.arange(256), "right")] for m in range(1, MULTIPLIERS + 1)]
    return np.array(rows)


def _indices() -> np.ndarray:
    """Return by [multiplier - 1, code as uint8] the nibble of the code, 255 where it has none."""
    table = np.full((MULTIPLIERS, 256), 255, np.uint8)
    for index, half in enumerate(_HALVES):
        for row in range(MULTIPLIERS):
            code = int(half) * (row + 1)
            table[row, -code % 256] = index | _NEGATIVE
            table[row, code] = index
    return table


def _nibble_pairs() -> np.ndarray:
    """Return by byte the values `2 * e` of its two nibbles, the lower first: two int8 in a uint16."""
    values = np.concatenate((_HALVES, -_HALVES)).astype(np.int8)
    pairs = np.stack((np.tile(values, 16), np.repeat(values, 16)), axis=1)
    return pairs.view(np.uint16).ravel()


_NEAREST = _nearest_codes()
_INDEX = _indices()
_FITS = ((_INDEX != 255) << np.arange(MULTIPLIERS)[:, None]).sum(axis=0).astype(np.uint16)
"""By code as uint8, bit `m - 1` is set where multiplier m has the code."""
_PAIRS = _nibble_pairs()
_NEGATIVE_ZERO = bytes(byte for byte in range(256) if byte & 15 == _NEGATIVE or byte >> 4 == _NEGATIVE)


def quantize(
    weights: np.ndarray, scales: np.ndarray | None = None, importance: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return codes int8 of the weights' shape, and INT8 scales float32 [O], for float weights [O, ...].

    scales: INT8 scales float32 [O] to use instead of searching for them; weights that are such codes times such scales
    come back as they are. importance: how much the squared error of each weight counts, not negative, [K] or [O, K].
    A channel whose largest weight is below 120 times the least normal float32 (1.4e-36) gets that as its scale, and
    loses precision as it gets smaller; below half of it (5.9e-39) it becomes zero.
    Raises ValueError where a weight is not finite in float32, or an argument does not have the shape or range above.
    """
    rows = _matrix(_float32(weights, "weights"))
    weighed = None if importance is None else _relative(importance, rows.shape)
    if scales is None:
        peaks = np.abs(rows).max(axis=1, initial=0).astype(np.float64)
        candidates = rounded_scales(np.outer(_FACTORS, peaks / LEVELS))
    else:
        candidates = _checked_scales(scales, len(rows))[None]
    codes, best = np.empty(rows.shape, np.int8), np.empty(len(rows), np.float32)
    for part in _chunks(rows.shape):
        counts = None if weighed is None else weighed[part]
        codes[part], best[part] = _quantize_rows(rows[part], candidates[:, part], counts)
    return codes.reshape(weights.shape), best


def representable(codes: np.ndarray) -> bool:
    """Return whether codes int8 [O, ...] can be packed: each block of 16 has a common multiplier."""
    rows = _matrix(_int8(codes))
    return all(_fitting(rows[part]).all() for part in _chunks(rows.shape))


def pack(codes: np.ndarray) -> bytes:
    """Return the bytes of codes int8 [O, ...]. Raises ValueError where they are not representable.

    A nibble for each weight in row-major order, then a nibble for each block, row by row; the lower nibble first.
    """
    rows = _matrix(_int8(codes))
    nibbles = np.empty(rows.shape, np.uint8)
    multipliers = np.empty((len(rows), block_count(rows.shape[1])), np.uint8)
    for part in _chunks(rows.shape):
        fitting = _fitting(rows[part])
        if not fitting.all():
            raise ValueError("expected codes 2 * m * e with one m per block of 16, found another block")
        smallest = np.log2(fitting & -fitting.astype(np.int16)).astype(np.uint8)
        multipliers[part] = smallest
        spread = np.repeat(smallest, BLOCK, axis=1)[:, : rows.shape[1]]
        nibbles[part] = _INDEX[spread, rows[part].view(np.uint8)]
    return pack_nibbles(nibbles) + pack_nibbles(multipliers)


def unpack(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """Return codes int8 of a shape from the result of `pack`. Raises ValueError for other bytes.

    Whether a block's multiplier is the smallest that fits is not checked.
    """
    (channels, depth), (weight_bytes, block_bytes) = matrix_shape(shape), packed_bytes(shape)
    if len(data) != weight_bytes + block_bytes:
        raise ValueError(f"expected {weight_bytes + block_bytes} bytes for shape {shape}, found {len(data)}")
    if len(data[:weight_bytes].translate(None, _NEGATIVE_ZERO)) != weight_bytes:
        raise ValueError("expected no negative zero, found one")
    blocks = block_count(depth)
    multipliers = unpack_nibbles(data[weight_bytes:], channels * blocks).reshape(channels, blocks)
    if multipliers.max(initial=0) >= MULTIPLIERS:
        raise ValueError(f"expected multipliers of 1 to {MULTIPLIERS}, found {multipliers.max() + 1}")
    ends = (channels * depth, data[:weight_bytes]), (channels * blocks, data[weight_bytes:])
    if any(count % 2 and stored[-1] >> 4 for count, stored in ends):
        raise ValueError("expected zero in the unused half of a last byte")
    pairs = np.empty(weight_bytes, np.uint16)
    for first in range(0, weight_bytes, _CHUNK):
        part = slice(first, min(first + _CHUNK, weight_bytes))
        np.take(_PAIRS, np.frombuffer(data, np.uint8, part.stop - first, first), out=pairs[part], mode="clip")
    codes = pairs.view(np.int8)[: channels * depth].reshape(channels, depth)
    spread = np.repeat((multipliers + 1).view(np.int8), BLOCK, axis=1)[:, :depth]
    codes *= spread
    return codes.reshape(shape)


def _quantize_rows(
    rows: np.ndarray, candidates: np.ndarray, importance: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return codes and the best scales for rows float32 [o, K], candidates [n, o] and importance [o, K]."""
    magnitudes = _blocks(np.abs(rows))
    counts = None if importance is None else _blocks(importance)
    least = np.full(len(rows), np.inf)
    scales, multipliers = candidates[0].copy(), np.zeros(magnitudes.shape[1:], np.intp)
    for scale in candidates:
        errors, found = _best_multipliers(*_in_codes(magnitudes, scale), counts)
        total = errors.sum(axis=1, dtype=np.float64) * scale.astype(np.float64) ** 2
        better = total < least
        least[better], scales[better], multipliers[better] = total[better], scale[better], found[better]
    _, places = _in_codes(magnitudes, scales)
    codes = _NEAREST.astype(np.int8)[multipliers, places]
    unblocked = codes.transpose(1, 2, 0).reshape(len(rows), -1)[:, : rows.shape[1]]
    return np.where(rows < 0, -unblocked, unblocked), scales


def rounded_scales(scales: np.ndarray) -> np.ndarray:
    """Return scales in range, cut to the 8 significant bits of bfloat16, whose zero bytes compress well."""
    bits = np.clip(scales, SMALLEST_SCALE, LARGEST_SCALE).astype(np.float32).view(np.uint32)
    cut: np.ndarray = (bits & np.uint32(0xFFFF0000)).view(np.float32)
    return cut


def _in_codes(magnitudes: np.ndarray, scales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return magnitudes [16, o, b] in codes, and their columns in _NEAREST."""
    # The limit is far above the largest code, and its square fits float32.
    codes = np.minimum(magnitudes / scales[:, None], np.float32(1 << 20))
    return codes, np.minimum(2 * codes, 255).astype(np.intp)


def _best_multipliers(
    magnitudes: np.ndarray, places: np.ndarray, importance: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the minimum squared error of each block, in codes, and its row of _NEAREST: both [o, b]."""
    least = np.full(magnitudes.shape[1:], np.inf, np.float32)
    best = np.zeros(magnitudes.shape[1:], np.intp)
    error = np.empty_like(magnitudes)
    for row, nearest in enumerate(_NEAREST.astype(np.float32)):
        np.take(nearest, places, out=error, mode="clip")
        error -= magnitudes
        error *= error
        if importance is not None:
            error *= importance
        total = error.sum(axis=0)
        better = total < least
        np.copyto(least, total, where=better)
        best[better] = row
    return least, best


def _fitting(rows: np.ndarray) -> np.ndarray:
    """Return uint16 [o, blocks]: the multipliers that fit every code of each block, as in _FITS."""
    masks = np.full((len(rows), block_count(rows.shape[1]) * BLOCK), _FITS[0], np.uint16)
    masks[:, : rows.shape[1]] = _FITS[rows.view(np.uint8)]
    fitting: np.ndarray = np.bitwise_and.reduce(masks.reshape(len(rows), -1, BLOCK), axis=2)
    return fitting


def _blocks(rows: np.ndarray) -> np.ndarray:
    """Return [o, K] as [16, o, blocks], padded with zeros, so that sums over a block are fast."""
    channels, depth = rows.shape
    padded = np.zeros((channels, block_count(depth) * BLOCK), np.float32)
    padded[:, :depth] = rows
    return np.ascontiguousarray(padded.reshape(channels, block_count(depth), BLOCK).transpose(2, 0, 1))


def _matrix(tensor: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(tensor).reshape(matrix_shape(tensor.shape))


def _chunks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Return slices of rows with about _CHUNK weights, and at least one row."""
    step = max(1, _CHUNK // max(1, shape[1]))
    return (slice(first, first + step) for first in range(0, shape[0], step))


def _float32(values: np.ndarray, what: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        found = np.asarray(values).astype(np.float32, copy=False)
    if not np.isfinite(found).all():
        raise ValueError(f"{what} are not finite in float32")
    return found


def _int8(codes: np.ndarray) -> np.ndarray:
    if codes.dtype != np.int8:
        raise ValueError(f"expected codes int8, found {codes.dtype}")
    return codes


def _checked_scales(scales: np.ndarray, channels: int) -> np.ndarray:
    found = _float32(scales, "scales")
    if found.shape != (channels,) or not ((found >= SMALLEST_SCALE) & (found <= LARGEST_SCALE)).all():
        raise ValueError(f"expected {channels} scales of {SMALLEST_SCALE:g} to {LARGEST_SCALE:g}")
    return found


def _relative(importance: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return importance [O, K] relative to the maximum of its channel, and above zero."""
    found = _float32(importance, "importances")
    if found.shape not in (shape, shape[1:]) or (found < 0).any():
        raise ValueError(f"expected importances from zero on of shape {shape} or {shape[1:]}, found {found.shape}")
    found = np.broadcast_to(found, shape)
    peaks = found.max(axis=1, initial=0)[:, None]
    relative: np.ndarray = np.maximum(found / np.where(peaks > 0, peaks, 1), np.float32(_MIN_IMPORTANCE))
    return relative


def pack_nibbles(nibbles: np.ndarray) -> bytes:
    """Pack two nibbles into a byte, in row-major order, the lower half first, as ONNX and TensorRT store them."""
    flat = np.concatenate((nibbles.ravel(), np.zeros(nibbles.size % 2, np.uint8)))
    packed: np.ndarray = flat[::2] | flat[1::2] << 4
    return packed.tobytes()


def unpack_nibbles(data: bytes, count: int) -> np.ndarray:
    """Return `count` nibbles uint8 in the order of `pack_nibbles`."""
    octets = np.frombuffer(data, np.uint8)
    return np.stack((octets & 15, octets >> 4), axis=1).ravel()[:count]
