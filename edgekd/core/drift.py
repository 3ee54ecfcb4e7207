"""Detection of data drift on a camera, by cheap statistics of frames and their record on the calibration data.

The distance is Hotelling's T squared of the mean of a window of frames, in normal scores by the record. Its limit is
drawn from the record's own frames. Consecutive frames are correlated: use one every few seconds. More:
docs/concepts/drift.md.

Shared with the device: Python 3.8, standard library and NumPy only.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from statistics import NormalDist
from typing import Any

import numpy as np

from edgekd.core.canonical import canonical_json
from edgekd.core.detection.preprocess import Placement, normalised
from edgekd.core.detection.types import Detections, Preprocess

STATISTICS = ("brightness", "contrast", "haze", "colour", "detail", "shape", "grain", "score", "objects")
"""In grey levels: mean; standard deviation; mean of each pixel's darkest channel. Logarithms of one more than: how far
apart channels are; differences of neighbours; of pixels four apart; second differences. The best score in the frame;
the logarithm of one more than its objects."""
PICTURE = 7
"""Number of them, the first ones, that depend on the picture alone."""
WINDOW = 20
"""Frames of a mean."""
STREAM = 200
"""Frames of a stream, for ALARM."""
ALARM = 0.01
"""Probability of a false alarm in a stream."""
MARGIN = 1.5
"""Factor on the limit: pictures of another site differ from the record's, even without drift."""
MIN_FRAMES = 60
"""Minimum frames of a record."""
FORMAT = 1

_KNOTS = 33  # quantiles of a statistic in a record
_RIDGE = 0.05  # added to the variance of normal scores, because statistics are correlated
_EXTRA_LEVELS = 1.0  # of the extrapolation outside the knots
_EXTRA_RANGE = 0.25  # of it, relative to the range of the knots
_ROWS = 24  # sampled from a frame
_COLUMNS = 80
_STREAMS = 1000  # simulated for the limit
_SEED = 0
_NINE_OF_TEN = NormalDist().inv_cdf(0.95)


@dataclass(frozen=True)
class DriftRecord:
    """Distribution of the statistics over calibration frames.

    frames: their number; knots: of each statistic, its value at each of `levels`, which are normal scores, ascending;
    mean, precision: of the normal scores, the latter the inverse of their covariance; limit: of T squared.
    """

    frames: int
    levels: tuple[float, ...]
    knots: tuple[tuple[float, ...], ...]
    mean: tuple[float, ...]
    precision: tuple[tuple[float, ...], ...]
    limit: float

    def normal(self, statistics: np.ndarray) -> np.ndarray:
        """Return statistics float64 [..., k] as normal scores."""
        columns = [np.interp(statistics[..., index], *table) for index, table in enumerate(self._tables)]
        return np.stack(columns, axis=-1)

    @cached_property
    def usual(self) -> tuple[tuple[float, float], ...]:
        """Range of each statistic with 90 % of the frames."""
        low, high = np.searchsorted(self.levels, (-_NINE_OF_TEN, _NINE_OF_TEN))
        return tuple((knots[max(low - 1, 0)], knots[min(high, len(knots) - 1)]) for knots in self.knots)

    @cached_property
    def _tables(self) -> list[tuple[np.ndarray, np.ndarray]]:
        return [_interpolation(knots, self.levels) for knots in self.knots]


@dataclass(frozen=True)
class Drift:
    """Distance of a window of frames from the record, above 1 for drift.

    moved: the statistics, the farthest first, each with its mean, and with the range of 90 % of the record's frames.
    """

    distance: float
    moved: tuple[tuple[str, float, float, float], ...]

    @property
    def drifted(self) -> bool:
        """True if the data has drifted."""
        return self.distance > 1


def statistics_of(
    batch: np.ndarray, placement: Placement, preprocess: Preprocess, detections: Detections
) -> np.ndarray:
    """Return the STATISTICS float64 [9] of a frame, by the network's input and its detections."""
    top, left, down, across = placement.top, placement.left, placement.down, placement.across
    height, width = max(down // _ROWS, 1), max(across // _COLUMNS, 1)
    rows = normalised(batch, preprocess)[0, :, top : top + down : height, left : left + across]
    scale = np.asarray(preprocess.std, np.float32) / preprocess.scale
    mean = np.asarray(preprocess.mean, np.float32) / preprocess.scale
    points = rows[:, :, ::width] * scale[:, None, None] + mean[:, None, None]
    darkest, brightest = points.min(axis=0), points.max(axis=0)
    line = rows[1] * scale[1]
    step = line[:, 1:] - line[:, :-1]
    spread = _size(brightest - darkest), _size(step), _size(line[:, 4:] - line[:, :-4])
    grain = _size(step[:, 1:] - step[:, :-1])
    light = points.mean(axis=0)
    return np.array(
        [
            light.mean(),
            light.std(),
            darkest.mean(),
            *np.log1p([*spread, grain]),
            detections.scores[0] if len(detections) else 0.0,
            np.log1p(len(detections)),
        ],
        np.float64,
    )


def record_of(statistics: np.ndarray) -> DriftRecord:
    """Return the record of frames with STATISTICS float64 [n, k], n at least MIN_FRAMES."""
    count = len(statistics)
    shares = (np.linspace(0, count - 1, _KNOTS) + 0.5) / count
    levels = tuple(round(NormalDist().inv_cdf(float(share)), 4) for share in shares)
    places = np.linspace(0, 1, _KNOTS)
    knots = tuple(tuple(np.quantile(column, places).round(4).tolist()) for column in statistics.T)
    plain = DriftRecord(count, levels, knots, (), (), 1.0)
    scores = plain.normal(statistics)
    covariance = np.cov(scores.T)
    spread = covariance.diagonal()
    covariance += np.diag(np.where(spread < _RIDGE, 1 - spread, _RIDGE))  # a constant statistic gets variance 1
    mean, precision = scores.mean(axis=0).round(4), np.linalg.inv(covariance).round(4)
    return DriftRecord(
        frames=count,
        levels=levels,
        knots=knots,
        mean=tuple(mean.tolist()),
        precision=tuple(map(tuple, precision.tolist())),
        limit=round(_limit(scores, precision), 3),
    )


def _limit(scores: np.ndarray, precision: np.ndarray) -> float:
    """Return the limit of T squared, times MARGIN, that a share ALARM of streams exceeds.

    Each stream is drawn from one half of the frames and compared with the mean of the other half, as a camera's frames
    are not those of the record either.
    """
    rng = np.random.default_rng(_SEED)
    maxima = np.empty(_STREAMS)
    for number in range(_STREAMS):
        order = rng.permutation(len(scores))
        half = len(order) // 2
        stream = scores[rng.choice(order[:half], STREAM)] - scores[order[half:]].mean(axis=0)
        sums = np.concatenate([np.zeros((1, scores.shape[1])), stream.cumsum(axis=0)])
        means = (sums[WINDOW:] - sums[:-WINDOW]) / WINDOW
        maxima[number] = np.einsum("ni,ij,nj->n", means, precision, means).max()
    return MARGIN * float(np.quantile(maxima, 1 - ALARM))


def distance_of_pictures(record: DriftRecord, window: np.ndarray) -> float:
    """Return the distance of frames with STATISTICS float64 [n, k] from a record by the picture alone.

    Detections depend on the model, and cannot be compared with another model's record.
    """
    off = (record.normal(window).mean(axis=0) - np.array(record.mean))[:PICTURE]
    covariance = np.linalg.inv(np.array(record.precision))[:PICTURE, :PICTURE]
    return float(off @ np.linalg.solve(covariance, off) / record.limit)


class Monitor:
    """Measures the drift of a window of frames."""

    def __init__(self, record: DriftRecord) -> None:
        self._record = record
        self._mean, self._precision = np.array(record.mean), np.array(record.precision)
        self._window: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=WINDOW)

    def add(self, statistics: np.ndarray) -> Drift | None:
        """Add a frame with its STATISTICS float64 [k]; return the drift, None until there are WINDOW frames."""
        self._window.append((statistics, self._record.normal(statistics)))
        if len(self._window) < WINDOW:
            return None
        raw, scores = np.mean(np.array(self._window), axis=0)
        off = scores - self._mean
        farthest, usual = np.argsort(-np.abs(off), kind="stable"), self._record.usual
        moved = tuple((STATISTICS[index], round(float(raw[index]), 4), *usual[index]) for index in farthest)
        return Drift(round(float(off @ self._precision @ off) / self._record.limit, 4), moved)


def to_json(record: DriftRecord) -> bytes:
    """Return the canonical JSON of a record."""
    return canonical_json({"format": FORMAT, "statistics": list(STATISTICS), **asdict(record)}) + b"\n"


def from_json(content: bytes) -> DriftRecord:
    """Parse the result of `to_json`. Raises ValueError."""
    try:
        document = json.loads(content)
        if document["format"] != FORMAT or tuple(document["statistics"]) != STATISTICS:
            raise ValueError("a record of another format: update edgekd")
        record = DriftRecord(
            frames=int(document["frames"]),
            levels=_floats(document["levels"], _KNOTS),
            knots=tuple(_floats(row, _KNOTS) for row in document["knots"]),
            mean=_floats(document["mean"], len(STATISTICS)),
            precision=tuple(_floats(row, len(STATISTICS)) for row in document["precision"]),
            limit=float(document["limit"]),
        )
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"no record of statistics: {error}") from error
    if len(record.knots) != len(STATISTICS) or len(record.precision) != len(STATISTICS) or not record.limit > 0:
        raise ValueError("no record of statistics: its tables do not fit each other")
    return record


def as_json(drift: Drift) -> dict[str, Any]:
    """Return the drift as plain JSON types."""
    moved = [{"statistic": name, "mean": mean, "low": low, "high": high} for name, mean, low, high in drift.moved]
    return {"distance": drift.distance, "drifted": drift.drifted, "moved": moved}


def _floats(values: Sequence[Any], count: int) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values)
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise ValueError(f"expected {count} finite numbers")
    return numbers


def _interpolation(knots: Sequence[float], levels: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return distinct knots with their mean levels, extended by one at either end."""
    values, index = np.unique(np.asarray(knots), return_inverse=True)
    means = np.bincount(index, weights=np.asarray(levels)) / np.bincount(index)
    beyond = max(_EXTRA_RANGE * (values[-1] - values[0]), 0.01)
    ends = [levels[0] - _EXTRA_LEVELS], [levels[-1] + _EXTRA_LEVELS]
    return (
        np.concatenate([[values[0] - beyond], values, [values[-1] + beyond]]),
        np.concatenate([ends[0], means, ends[1]]),
    )


def _size(differences: np.ndarray) -> float:
    """Return the mean of absolute values; 0 for none."""
    return float(np.abs(differences).sum()) / max(differences.size, 1)
