"""Findings counted: by class, by size, what was confused, and how sure the networks are. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from edgekd.evaluation.analysis.matching import FalseAlarm, Findings, Object
from edgekd.evaluation.coco import SIZES

SHIFT_BINS = np.round(np.arange(-0.525, 0.55, 0.05), 3)
"""Edges of the histogram of shifts; what lies beyond is in the first and last bin."""


@dataclass(frozen=True)
class Tally:
    """What became of some objects and false alarms. shift: the mean change of score where both networks are sure."""

    name: str
    kept: int
    lost: int
    gained: int
    missed: int
    false_before: int
    false_after: int
    shift: float | None

    @property
    def objects(self) -> int:
        """How many there are to be found."""
        return self.kept + self.lost + self.gained + self.missed

    @property
    def recall(self) -> tuple[float | None, float | None]:
        """The share of objects that is found, before and after."""
        return tuple(_share(count, self.objects) for count in (self.kept + self.lost, self.kept + self.gained))  # type: ignore[return-value]

    @property
    def precision(self) -> tuple[float | None, float | None]:
        """The share of detections that is right, before and after."""
        right = (self.kept + self.lost, self.kept + self.gained)
        wrong = (self.false_before, self.false_after)
        return tuple(_share(good, good + bad) for good, bad in zip(right, wrong, strict=True))  # type: ignore[return-value]


@dataclass(frozen=True)
class Confusion:
    """So many objects of the class `truth` were taken for `taken_for`, before and after; None stands for nothing."""

    truth: int | None
    taken_for: int | None
    before: int
    after: int


@dataclass(frozen=True)
class Shift:
    """How the score of objects changed that both networks find: over `count` objects, quantiles and a histogram."""

    count: int
    mean: float
    p10: float
    p50: float
    p90: float
    bins: tuple[int, ...]


def total(findings: Findings) -> Tally:
    """All objects and false alarms together."""
    return _tally("all", findings.objects, findings.alarms)


def by_class(findings: Findings, classes: Sequence[str]) -> tuple[Tally, ...]:
    """A tally for every class, in their order."""
    return tuple(
        _tally(name, (o for o in findings.objects if o.kind == at), (a for a in findings.alarms if a.kind == at))
        for at, name in enumerate(classes)
    )


def by_size(findings: Findings) -> tuple[Tally, ...]:
    """A tally for small, medium and large objects; false alarms by the size of their box."""
    return tuple(
        _tally(name, (o for o in findings.objects if o.size == name), (a for a in findings.alarms if a.size == name))
        for name in SIZES
    )


def reasons(findings: Findings) -> dict[str, int]:
    """Why the objects were lost, by what the network that ships makes of them."""
    return dict(Counter(each.after.reason for each in findings.objects if each.fate == "lost").most_common())


def shift_of(objects: Iterable[Object]) -> Shift | None:
    """How scores moved of the objects that both networks find; None where there is none."""
    moved = _moved(objects)
    if not len(moved):
        return None
    inside = np.clip(moved, SHIFT_BINS[0] + 1e-6, SHIFT_BINS[-1] - 1e-6)
    p10, p50, p90 = (float(value) for value in np.percentile(moved, (10, 50, 90)))
    bins = tuple(int(count) for count in np.histogram(inside, SHIFT_BINS)[0])
    return Shift(len(moved), float(moved.mean()), p10, p50, p90, bins)


def confusions(findings: Findings) -> list[Confusion]:
    """What is taken for something else or for nothing, or is nothing, by either network; what changed most first."""
    before, after = findings.confusion
    last = len(before) - 1
    named = [*range(last), None]
    rows = [
        Confusion(named[truth], named[taken], int(before[truth, taken]), int(after[truth, taken]))
        for truth, taken in np.argwhere(before + after > 0).tolist()
        if truth != taken
    ]
    return sorted(rows, key=lambda row: (-abs(row.after - row.before), -row.after, str(row.truth), str(row.taken_for)))


def _tally(name: str, objects: Iterable[Object], alarms: Iterable[FalseAlarm]) -> Tally:
    objects, alarms = list(objects), list(alarms)
    fates = Counter(each.fate for each in objects)
    moved = _moved(objects)
    return Tally(
        name=name,
        kept=fates["kept"],
        lost=fates["lost"],
        gained=fates["gained"],
        missed=fates["missed"],
        false_before=sum(alarm.before is not None for alarm in alarms),
        false_after=sum(alarm.after is not None for alarm in alarms),
        shift=float(moved.mean()) if len(moved) else None,
    )


def _moved(objects: Iterable[Object]) -> np.ndarray:
    """Score after less score before of what both find, float64 [n]."""
    pairs = ((each.before, each.after) for each in objects if each.fate == "kept")
    return np.array([after.score - before.score for before, after in pairs])  # type: ignore[operator]


def _share(part: int, of: int) -> float | None:
    return part / of if of else None
