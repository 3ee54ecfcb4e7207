"""Whether a camera still sees what its model was calibrated on: cheap statistics of frames, against a record of them.

The record keeps of every statistic how it was spread over frames that the model knows. A frame's statistics become
normal scores by it, and Hotelling's T squared says how far the mean of a window of frames is from the record's
(Hotelling, The generalization of Student's ratio, 1931). Where that becomes drift is drawn from the record's own
frames, so that of streams of STREAM frames like those at most the share ALARM is once called drifted. Frames that
follow one another are alike: feed it one every few seconds.

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
from edgekd.core.detection.preprocess import Placement
from edgekd.core.detection.types import Detections, Preprocess

STATISTICS = ("brightness", "contrast", "haze", "colour", "detail", "shape", "grain", "score", "objects")
"""In grey levels: mean; standard deviation; mean of each pixel's darkest channel. Logarithms of one more than: how far
apart channels are; differences of neighbours; of pixels four apart; second differences. The best score in the frame;
the logarithm of one more than its objects."""
PICTURE = 7
"""So many of them, the first, are of the picture alone."""
WINDOW = 20
"""Frames whose mean is compared."""
STREAM, ALARM = 200, 0.01
"""Of so many frames like the record's, the chance that they are once called drifted."""
MARGIN = 1.5
"""By how much the limit is raised: pictures of the same kind from elsewhere are never quite like the record's."""
LEAST_FRAMES = 60
"""A record of fewer would know too little."""
FORMAT = 1

_KNOTS = 33
_RIDGE = 0.05  # added to a normal score's variance, because statistics hang together
_BEYOND, _OUTSIDE = 1.0, 0.25  # levels that a value gains outside the knots, over this share of what they span
_ROWS, _COLUMNS = 24, 80
_STREAMS = 1000
_SEED = 0
_NINE_OF_TEN = NormalDist().inv_cdf(0.95)


@dataclass(frozen=True)
class Record:
    """How statistics are spread over frames on which a model works as it should.

    frames: how many; knots: of each statistic, its value at each of `levels`, which are normal scores, ascending;
    mean, precision: of the normal scores, the latter the inverse of their covariance; limit: of T squared.
    """

    frames: int
    levels: tuple[float, ...]
    knots: tuple[tuple[float, ...], ...]
    mean: tuple[float, ...]
    precision: tuple[tuple[float, ...], ...]
    limit: float

    def normal(self, statistics: np.ndarray) -> np.ndarray:
        """Statistics float64 [..., k] as normal scores."""
        return np.stack([np.interp(statistics[..., at], *table) for at, table in enumerate(self._tables)], axis=-1)

    @cached_property
    def usual(self) -> tuple[tuple[float, float], ...]:
        """The range of each statistic that nine of ten frames lie in."""
        low, high = np.searchsorted(self.levels, (-_NINE_OF_TEN, _NINE_OF_TEN))
        return tuple((knots[max(low - 1, 0)], knots[min(high, len(knots) - 1)]) for knots in self.knots)

    @cached_property
    def _tables(self) -> list[tuple[np.ndarray, np.ndarray]]:
        return [_climbing(knots, self.levels) for knots in self.knots]


@dataclass(frozen=True)
class Drift:
    """How far a window of frames is from the record: above 1 it has drifted.

    moved: the statistics, the farthest first, each with its mean, and with the range that nine of ten frames of the
    record lie in.
    """

    distance: float
    moved: tuple[tuple[str, float, float, float], ...]

    @property
    def drifted(self) -> bool:
        """Whether the camera sees something else."""
        return self.distance > 1


def statistics_of(batch: np.ndarray, at: Placement, how: Preprocess, found: Detections) -> np.ndarray:
    """The STATISTICS float64 [9] of a frame, from the network's input float32 [1, 3, h, w] and what was found in it."""
    height, width = max(at.down // _ROWS, 1), max(at.across // _COLUMNS, 1)
    rows = batch[0, :, at.top : at.top + at.down : height, at.left : at.left + at.across]
    scale, mean = np.asarray(how.std, np.float32) / how.scale, np.asarray(how.mean, np.float32) / how.scale
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
            found.scores[0] if len(found) else 0.0,
            np.log1p(len(found)),
        ],
        np.float64,
    )


def record_of(statistics: np.ndarray) -> Record:
    """The record of frames with STATISTICS float64 [n, k], n at least LEAST_FRAMES."""
    count = len(statistics)
    shares = (np.linspace(0, count - 1, _KNOTS) + 0.5) / count
    levels = tuple(round(NormalDist().inv_cdf(float(share)), 4) for share in shares)
    places = np.linspace(0, 1, _KNOTS)
    knots = tuple(tuple(np.quantile(column, places).round(4).tolist()) for column in statistics.T)
    plain = Record(count, levels, knots, (), (), 1.0)
    scores = plain.normal(statistics)
    covariance = np.cov(scores.T)
    spread = covariance.diagonal()
    covariance += np.diag(
        np.where(spread < _RIDGE, 1 - spread, _RIDGE)
    )  # what never differed is taken as like the others
    mean, precision = scores.mean(axis=0).round(4), np.linalg.inv(covariance).round(4)
    return Record(
        frames=count,
        levels=levels,
        knots=knots,
        mean=tuple(mean.tolist()),
        precision=tuple(map(tuple, precision.tolist())),
        limit=round(_limit(scores, precision), 3),
    )


def _limit(scores: np.ndarray, precision: np.ndarray) -> float:
    """What T squared of STREAM frames like the record's does not once exceed but in ALARM of such streams; raised.

    Each stream is drawn from one half of the frames and compared with the mean of the other half: a camera's frames are
    not those of the record either.
    """
    rng = np.random.default_rng(_SEED)
    most = np.empty(_STREAMS)
    for number in range(_STREAMS):
        order = rng.permutation(len(scores))
        half = len(order) // 2
        stream = scores[rng.choice(order[:half], STREAM)] - scores[order[half:]].mean(axis=0)
        sums = np.concatenate([np.zeros((1, scores.shape[1])), stream.cumsum(axis=0)])
        means = (sums[WINDOW:] - sums[:-WINDOW]) / WINDOW
        most[number] = np.einsum("ni,ij,nj->n", means, precision, means).max()
    return MARGIN * float(np.quantile(most, 1 - ALARM))


def distance_of_pictures(record: Record, window: np.ndarray) -> float:
    """How far the mean of frames with STATISTICS float64 [n, k] is from a record by their pictures alone.

    What was found in a frame depends on the model that looked, so it says nothing of another model's record.
    """
    off = (record.normal(window).mean(axis=0) - np.array(record.mean))[:PICTURE]
    covariance = np.linalg.inv(np.array(record.precision))[:PICTURE, :PICTURE]
    return float(off @ np.linalg.solve(covariance, off) / record.limit)


class Monitor:
    """Watches frames by a record."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._mean, self._precision = np.array(record.mean), np.array(record.precision)
        self._seen: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=WINDOW)

    def see(self, statistics: np.ndarray) -> Drift | None:
        """One more frame, with its STATISTICS float64 [k]; None until there are WINDOW."""
        self._seen.append((statistics, self._record.normal(statistics)))
        if len(self._seen) < WINDOW:
            return None
        raw, scores = np.mean(np.array(self._seen), axis=0)
        off = scores - self._mean
        farthest, usual = np.argsort(-np.abs(off), kind="stable"), self._record.usual
        moved = tuple((STATISTICS[at], round(float(raw[at]), 4), *usual[at]) for at in farthest)
        return Drift(round(float(off @ self._precision @ off) / self._record.limit, 4), moved)


def to_json(record: Record) -> bytes:
    """The one byte form of a record."""
    return canonical_json({"format": FORMAT, "statistics": list(STATISTICS), **asdict(record)}) + b"\n"


def from_json(content: bytes) -> Record:
    """What `to_json` gave. Raises ValueError for anything else."""
    try:
        told = json.loads(content)
        if told["format"] != FORMAT or tuple(told["statistics"]) != STATISTICS:
            raise ValueError("a record of another format: update edgekd")
        record = Record(
            frames=int(told["frames"]),
            levels=_floats(told["levels"], _KNOTS),
            knots=tuple(_floats(row, _KNOTS) for row in told["knots"]),
            mean=_floats(told["mean"], len(STATISTICS)),
            precision=tuple(_floats(row, len(STATISTICS)) for row in told["precision"]),
            limit=float(told["limit"]),
        )
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"no record of statistics: {error}") from error
    if len(record.knots) != len(STATISTICS) or len(record.precision) != len(STATISTICS) or not record.limit > 0:
        raise ValueError("no record of statistics: its tables do not fit each other")
    return record


def as_json(drift: Drift) -> dict[str, Any]:
    """The same, as plain types for JSON."""
    moved = [{"statistic": name, "mean": mean, "low": low, "high": high} for name, mean, low, high in drift.moved]
    return {"distance": drift.distance, "drifted": drift.drifted, "moved": moved}


def _floats(values: Sequence[Any], count: int) -> tuple[float, ...]:
    found = tuple(float(value) for value in values)
    if len(found) != count or not np.isfinite(found).all():
        raise ValueError(f"expected {count} finite numbers")
    return found


def _climbing(knots: Sequence[float], levels: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Knots that differ, with the mean of the levels of those that do not, and one beyond at either end."""
    values, at = np.unique(np.asarray(knots), return_inverse=True)
    means = np.bincount(at, weights=np.asarray(levels)) / np.bincount(at)
    beyond = max(_OUTSIDE * (values[-1] - values[0]), 0.01)
    ends = [levels[0] - _BEYOND], [levels[-1] + _BEYOND]
    return (
        np.concatenate([[values[0] - beyond], values, [values[-1] + beyond]]),
        np.concatenate([ends[0], means, ends[1]]),
    )


def _size(differences: np.ndarray) -> float:
    """The mean of absolute values; 0 of none."""
    return float(np.abs(differences).sum()) / max(differences.size, 1)
