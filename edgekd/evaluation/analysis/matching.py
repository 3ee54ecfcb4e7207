"""Match the detections of two networks with labelled objects, with the thresholds of service. Pure.

In order of score, each detection is matched with the free object of its class with the highest IoU, if that is at least
IOU. For an object without a match, overlapping detections give the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from edgekd.core.detection.decode import above
from edgekd.core.detection.types import Detections
from edgekd.data.boxes import areas, overlaps
from edgekd.data.labels import Truth
from edgekd.evaluation.coco import SIZES

IOU = 0.5
MISPLACED_IOU = 0.1
"""Minimum IoU of an object and a detection of its class that counts as misplaced."""
AREAS = (32.0**2, 96.0**2)
"""Limits of small and medium objects in square pixels of a frame, as in COCO."""
UNMATCHED = -1
IN_CROWD = -2

ObjectOutcome = Literal["kept", "lost", "gained", "missed"]
Reason = Literal["found", "unsure", "confused", "misplaced", "unseen"]


@dataclass(frozen=True, eq=False)
class Frame:
    """The labels of one frame, with boxes in pixels, and the detections of both networks at any score."""

    truth: Truth
    before: Detections
    after: Detections


@dataclass(frozen=True)
class ObjectMatch:
    """The detection of one object by a network, or the reason that there is none.

    reason: `found`; `unsure`, a matching box is below the threshold; `confused`, one is of class `taken_for`;
    `misplaced`, the box does not match; `unseen`. score, box: of that detection, None if the object is unseen.
    """

    reason: Reason
    score: float | None = None
    box: tuple[float, ...] | None = None
    taken_for: int | None = None

    @property
    def found(self) -> bool:
        """Return whether the object counts as detected."""
        return self.reason == "found"


@dataclass(frozen=True)
class Object:
    """A labelled object (box in pixels of frame `frame`, class `kind`), and its detection by both networks."""

    frame: int
    box: tuple[float, ...]
    kind: int
    size: str
    before: ObjectMatch
    after: ObjectMatch

    @property
    def outcome(self) -> ObjectOutcome:
        """Return whether both networks, one or none detect it."""
        if self.before.found:
            return "kept" if self.after.found else "lost"
        return "gained" if self.after.found else "missed"


@dataclass(frozen=True)
class FalseAlarm:
    """A detection that matches no object of its class.

    before, after: score of each network, None if it has no such false alarm; nearly: best score of the other network's
    detections that match it, at any score; over: class of the object of another class that it overlaps.
    """

    frame: int
    box: tuple[float, ...]
    kind: int
    size: str
    before: float | None
    after: float | None
    over: int | None = None
    nearly: float | None = None


@dataclass(frozen=True)
class Findings:
    """The objects and false alarms of all frames.

    confusion: For each network, int64 [classes + 1, classes + 1]: labelled class by detected class; the last column
    counts missed objects, the last row detections without an object.
    """

    objects: tuple[Object, ...]
    alarms: tuple[FalseAlarm, ...]
    confusion: tuple[np.ndarray, np.ndarray]


def compare(frames: Sequence[Frame], thresholds: Sequence[float]) -> Findings:
    """Match the detections of both networks in every frame. thresholds: minimum score of each class, for both."""
    objects: list[Object] = []
    alarms: list[FalseAlarm] = []
    tables = tuple(np.zeros((len(thresholds) + 1,) * 2, np.int64) for _ in range(2))
    for index, frame in enumerate(frames):
        matches = tuple(
            _FrameMatches(frame.truth, detections, thresholds) for detections in (frame.before, frame.after)
        )
        for table, network in zip(tables, matches, strict=True):
            network.count(table)
        objects.extend(_objects(index, frame.truth, *matches))
        alarms.extend(_alarms(index, *matches))
    return Findings(tuple(objects), tuple(alarms), (tables[0], tables[1]))


def _objects(frame: int, truth: Truth, before: _FrameMatches, after: _FrameMatches) -> Iterator[Object]:
    for index in np.flatnonzero(~truth.crowd).tolist():
        box, kind = truth.boxes[index], int(truth.classes[index])
        yield Object(frame, _box(box), kind, size_of(box), before.match(index), after.match(index))


def _alarms(frame: int, before: _FrameMatches, after: _FrameMatches) -> Iterator[FalseAlarm]:
    """Yield the false alarms of both networks; two that match are one."""
    pairs = pair(before.alarms, after.alarms)
    for index, partner in enumerate(pairs.tolist()):
        alarm = before.alarm(frame, index)
        if partner < 0:
            yield replace(alarm, nearly=after.score_of(alarm))
        else:
            yield replace(alarm, after=float(after.alarms.scores[partner]))
    for index in np.setdiff1d(np.arange(len(after.alarms)), pairs).tolist():
        alarm = after.alarm(frame, index)
        yield replace(alarm, before=None, after=alarm.before, nearly=before.score_of(alarm))


class _FrameMatches:
    """The detections of one network in one frame, matched with its labels."""

    def __init__(self, truth: Truth, detections: Detections, thresholds: Sequence[float]) -> None:
        self._truth = truth
        self._all = single_label(detections)
        self._sure = above(self._all, thresholds)
        overlap, covered = _overlaps(self._sure.boxes, truth.boxes)
        objects = _matched_objects(self._sure, truth, overlap, covered)
        self._matched = {each: detection for detection, each in enumerate(objects.tolist()) if each >= 0}
        self._confused = _confused(self._sure, truth, overlap, objects)
        self._false = np.flatnonzero(objects == UNMATCHED)

    @property
    def alarms(self) -> Detections:
        """The detections that match no object."""
        return self._sure.only(self._false)

    def alarm(self, frame: int, index: int) -> FalseAlarm:
        """Return the false alarm `index` of `alarms`, with this network's score as `before`."""
        detection = int(self._false[index])
        box, score = self._sure.boxes[detection], float(self._sure.scores[detection])
        over = next((int(self._truth.classes[each]) for each, by in self._confused.items() if by == detection), None)
        return FalseAlarm(frame, _box(box), int(self._sure.classes[detection]), size_of(box), score, None, over)

    def score_of(self, alarm: FalseAlarm) -> float | None:
        """Return the best score of a detection that matches a false alarm of the other network; None without one."""
        overlap = _overlaps(self._all.boxes, np.array([alarm.box]))[0][:, 0]
        near = self._all.scores[(self._all.classes == alarm.kind) & (overlap >= IOU)]
        return float(near.max()) if near.size else None

    def count(self, table: np.ndarray) -> None:
        """Add this frame to a confusion table."""
        last = len(table) - 1
        for index in np.flatnonzero(~self._truth.crowd).tolist():
            detection = self._matched.get(index, self._confused.get(index))
            table[self._truth.classes[index], last if detection is None else self._sure.classes[detection]] += 1
        for detection in set(self._false.tolist()).difference(self._confused.values()):
            table[last, self._sure.classes[detection]] += 1

    def match(self, index: int) -> ObjectMatch:
        """Return the detection of an object, or the reason that there is none."""
        sure, everything = self._sure, self._all
        if (at := self._matched.get(index)) is not None:
            return ObjectMatch("found", float(sure.scores[at]), _box(sure.boxes[at]))
        if (at := self._confused.get(index)) is not None:
            return ObjectMatch("confused", float(sure.scores[at]), _box(sure.boxes[at]), int(sure.classes[at]))
        overlap = _overlaps(everything.boxes, self._truth.boxes[index][None])[0][:, 0]
        same_class = everything.classes == self._truth.classes[index]
        limits: tuple[tuple[Reason, float], ...] = (("unsure", IOU), ("misplaced", MISPLACED_IOU))
        for reason, limit in limits:
            if (near := np.flatnonzero(same_class & (overlap >= limit))).size:
                best = int(near[0])  # they are sorted by score
                return ObjectMatch(reason, float(everything.scores[best]), _box(everything.boxes[best]))
        return ObjectMatch("unseen")


def _matched_objects(detections: Detections, truth: Truth, overlap: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """Return the index of each detection's object, int64 [n]; UNMATCHED, or IN_CROWD if in a crowd of its class."""
    objects = np.full(len(detections), UNMATCHED, np.int64)
    free = ~truth.crowd
    for index in range(len(detections)):  # in order of score
        same = truth.classes == detections.classes[index]
        possible = np.where(free & same, overlap[index], 0.0)
        if possible.size and possible.max() >= IOU:
            objects[index] = int(possible.argmax())
            free[objects[index]] = False
        elif (truth.crowd & same & (covered[index] >= IOU)).any():
            objects[index] = IN_CROWD
    return objects


def _confused(detections: Detections, truth: Truth, overlap: np.ndarray, objects: np.ndarray) -> dict[int, int]:
    """Return the index of the overlapping detection of another class, by the index of each object without a match."""
    confused: dict[int, int] = {}
    missed = ~truth.crowd
    missed[objects[objects >= 0]] = False
    for index in np.flatnonzero(objects == UNMATCHED):
        possible = np.where(missed & (truth.classes != detections.classes[index]), overlap[index], 0.0)
        if possible.size and possible.max() >= IOU:
            confused[int(possible.argmax())] = int(index)
            missed[possible.argmax()] = False
    return confused


def single_label(detections: Detections) -> Detections:
    """Return the detections as in service, where a box has only its best class; in scoring it may have several."""
    _, first = np.unique(detections.boxes, axis=0, return_index=True)
    return detections.only(np.sort(first))


def pair(first: Detections, second: Detections) -> np.ndarray:
    """Return the index of the second detection that matches each of the first, int64 [n]; UNMATCHED for none."""
    pairs = np.full(len(first), UNMATCHED, np.int64)
    overlap, _ = _overlaps(first.boxes, second.boxes)
    free = np.ones(len(second), bool)
    for index in range(len(first)):
        possible = np.where(free & (second.classes == first.classes[index]), overlap[index], 0.0)
        if possible.size and possible.max() >= IOU:
            pairs[index] = int(possible.argmax())
            free[pairs[index]] = False
    return pairs


def _overlaps(boxes: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the IoU of boxes, and the share of each that another covers, float64 [n, m]."""
    return overlaps(boxes.astype(np.float64), others.astype(np.float64))


def size_of(box: np.ndarray) -> str:
    """Return the size of a box x1, y1, x2, y2 in pixels of its frame, by its area, as COCO names it."""
    return SIZES[int(np.searchsorted(AREAS, float(areas(box.astype(np.float64))), side="right"))]


def _box(box: np.ndarray) -> tuple[float, ...]:
    return tuple(float(side) for side in box)
