"""Labelled objects paired with detections, as they would count in service: what two networks make of each object. Pure.

A detection finds an object of its class that it overlaps by at least IOU; the surest detection chooses first, and
takes the object that it overlaps most. Where nothing finds an object, what came nearest says why.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from edgekd.core.detection.decode import above
from edgekd.core.detection.types import Detections
from edgekd.data.labels import Truth
from edgekd.evaluation.coco import SIZES

IOU = 0.5
NEAR = 0.1
"""Overlap from which a detection of the right class is thought to mean an object, although its box is off."""
AREAS = (32.0**2, 96.0**2)
"""Square pixels of a frame that part small from medium and medium from large objects, as COCO does."""
NOBODY, CROWD = -1, -2

Fate = Literal["kept", "lost", "gained", "missed"]
FATES: tuple[Fate, ...] = ("kept", "lost", "gained", "missed")
Reason = Literal["found", "unsure", "confused", "misplaced", "unseen"]


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame: its labels with boxes in pixels, and what each network finds at any score that was kept."""

    truth: Truth
    before: Detections
    after: Detections


@dataclass(frozen=True)
class Sight:
    """What a network makes of one object.

    reason: `found`; `unsure`, a box that fits scores too little; `confused`, one that fits is of class `taken_for`;
    `misplaced`, the box does not fit; `unseen`. score, box: of that detection, None where it is unseen.
    """

    reason: Reason
    score: float | None = None
    box: tuple[float, ...] | None = None
    taken_for: int | None = None

    @property
    def found(self) -> bool:
        """Whether it counts in service."""
        return self.reason == "found"


@dataclass(frozen=True)
class Object:
    """A labelled object (box in pixels of frame `frame`), and what both networks make of it."""

    frame: int
    box: tuple[float, ...]
    kind: int
    size: str
    before: Sight
    after: Sight

    @property
    def fate(self) -> Fate:
        """What became of it."""
        if self.before.found:
            return "kept" if self.after.found else "lost"
        return "gained" if self.after.found else "missed"


@dataclass(frozen=True)
class FalseAlarm:
    """A detection of nothing that is labelled as its class.

    before, after: its score by each network, None where it does not count; nearly: the score, too small, that it has
    there; over: the class of an object that it fits.
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
    """What two networks make of all labelled objects and of nothing, over all frames.

    confusion: for each network, int64 [classes + 1, classes + 1]: objects of a class (rows) that were taken for one
    (columns); the last column counts what was missed, the last row detections of nothing.
    """

    objects: tuple[Object, ...]
    alarms: tuple[FalseAlarm, ...]
    confusion: tuple[np.ndarray, np.ndarray]


def compare(frames: Sequence[Frame], confidence: Sequence[float]) -> Findings:
    """What both networks make of every frame, at the least score of each class, for both the same."""
    objects: list[Object] = []
    alarms: list[FalseAlarm] = []
    tables = tuple(np.zeros((len(confidence) + 1,) * 2, np.int64) for _ in range(2))
    for at, frame in enumerate(frames):
        looks = tuple(_Look(frame.truth, found, confidence) for found in (frame.before, frame.after))
        for table, look in zip(tables, looks, strict=True):
            look.count(table)
        objects.extend(_objects(at, frame.truth, *looks))
        alarms.extend(_alarms(at, *looks))
    return Findings(tuple(objects), tuple(alarms), (tables[0], tables[1]))


def _objects(at: int, truth: Truth, before: _Look, after: _Look) -> Iterator[Object]:
    for index in np.flatnonzero(~truth.crowd).tolist():
        box = truth.boxes[index]
        yield Object(at, _box(box), int(truth.classes[index]), size_of(box), before.sight(index), after.sight(index))


def _alarms(at: int, before: _Look, after: _Look) -> Iterator[FalseAlarm]:
    """False alarms of both, those at one place together."""
    pairs = pair(before.alarms, after.alarms)
    for index, partner in enumerate(pairs.tolist()):
        alarm = before.alarm(at, index)
        if partner < 0:
            yield replace(alarm, nearly=after.score_of(alarm))
        else:
            yield replace(alarm, after=float(after.alarms.scores[partner]))
    for index in np.setdiff1d(np.arange(len(after.alarms)), pairs).tolist():
        alarm = after.alarm(at, index)
        yield replace(alarm, before=None, after=alarm.before, nearly=before.score_of(alarm))


class _Look:
    """One network's detections in one frame, held against the labels."""

    def __init__(self, truth: Truth, found: Detections, confidence: Sequence[float]) -> None:
        self._truth = truth
        self._all = single_label(found)
        self._sure = above(self._all, confidence)
        self._overlaps = overlaps(self._sure.boxes, truth.boxes)
        self._finds = _found(self._sure, truth, self._overlaps)
        self._finder = {int(object_): at for at, object_ in enumerate(self._finds) if object_ >= 0}
        self._taken = _taken_for(self._sure, truth, self._overlaps, self._finds)
        self._stray = np.flatnonzero(self._finds == NOBODY)

    @property
    def alarms(self) -> Detections:
        """The detections that find nothing labelled."""
        return self._sure.only(self._stray)

    def alarm(self, frame: int, index: int) -> FalseAlarm:
        """One of them, as if this network were the one before."""
        at = int(self._stray[index])
        box, score = self._sure.boxes[at], float(self._sure.scores[at])
        over = next((int(self._truth.classes[each]) for each, by in self._taken.items() if by == at), None)
        return FalseAlarm(frame, _box(box), int(self._sure.classes[at]), size_of(box), score, None, over)

    def score_of(self, alarm: FalseAlarm) -> float | None:
        """The best score of a detection like a false alarm of the other network; None without one."""
        overlap = overlaps(self._all.boxes, np.array([alarm.box]))[:, 0]
        near = self._all.scores[(self._all.classes == alarm.kind) & (overlap >= IOU)]
        return float(near.max()) if near.size else None

    def count(self, table: np.ndarray) -> None:
        """Add this frame to a confusion table."""
        last = len(table) - 1
        for index in np.flatnonzero(~self._truth.crowd).tolist():
            at = self._finder.get(index, self._taken.get(index))
            table[self._truth.classes[index], last if at is None else self._sure.classes[at]] += 1
        used = {*self._taken.values()}
        for stray in self._stray.tolist():
            if stray not in used:
                table[last, self._sure.classes[stray]] += 1

    def sight(self, index: int) -> Sight:
        """What the network makes of an object."""
        if (at := self._finder.get(index)) is not None:
            return Sight("found", float(self._sure.scores[at]), _box(self._sure.boxes[at]))
        box, kind = self._truth.boxes[index], int(self._truth.classes[index])
        overlap = overlaps(self._all.boxes, box[None])[:, 0] if len(self._all) else np.zeros(0)
        ours = self._all.classes == kind
        if (at := self._taken.get(index)) is not None:
            sure = self._sure
            return Sight("confused", float(sure.scores[at]), _box(sure.boxes[at]), int(sure.classes[at]))
        for reason, fits in (("unsure", overlap >= IOU), ("misplaced", overlap >= NEAR)):
            if (near := np.flatnonzero(ours & fits)).size:
                best = int(near[0])  # they are sorted by score
                return Sight(reason, float(self._all.scores[best]), _box(self._all.boxes[best]))  # type: ignore[arg-type]
        return Sight("unseen")


def _found(found: Detections, truth: Truth, overlap: np.ndarray) -> np.ndarray:
    """int64 [n]: the object that each detection finds; NOBODY, or CROWD for one inside a crowd of its class."""
    finds = np.full(len(found), NOBODY, np.int64)
    left = ~truth.crowd
    for at in range(len(found)):  # the surest first
        same = truth.classes == found.classes[at]
        possible = np.where(left & same, overlap[at], 0.0)
        if possible.size and possible.max() >= IOU:
            finds[at] = int(possible.argmax())
            left[finds[at]] = False
        elif (truth.crowd & same & (inside(found.boxes[at], truth.boxes) >= IOU)).any():
            finds[at] = CROWD
    return finds


def _taken_for(found: Detections, truth: Truth, overlap: np.ndarray, finds: np.ndarray) -> dict[int, int]:
    """Objects that nothing finds and a detection of another class fits: the object, and the detection."""
    taken: dict[int, int] = {}
    missed = ~truth.crowd
    missed[finds[finds >= 0]] = False
    for at in np.flatnonzero(finds == NOBODY):
        possible = np.where(missed & (truth.classes != found.classes[at]), overlap[at], 0.0)
        if possible.size and possible.max() >= IOU:
            taken[int(possible.argmax())] = int(at)
            missed[possible.argmax()] = False
    return taken


def single_label(found: Detections) -> Detections:
    """The detections as in service, where a box has only its best class: scoring lets it have several."""
    _, first = np.unique(found.boxes, axis=0, return_index=True)
    return found.only(np.sort(first))


def pair(first: Detections, second: Detections) -> np.ndarray:
    """int64 [n]: for each of the first the one of the second, of its class, that it overlaps by IOU; or NOBODY."""
    pairs = np.full(len(first), NOBODY, np.int64)
    overlap = overlaps(first.boxes, second.boxes)
    left = np.ones(len(second), bool)
    for at in range(len(first)):
        possible = np.where(left & (second.classes == first.classes[at]), overlap[at], 0.0)
        if possible.size and possible.max() >= IOU:
            pairs[at] = int(possible.argmax())
            left[pairs[at]] = False
    return pairs


def overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union, float64 [n, m], of boxes [n, 4] and [m, 4] x1, y1, x2, y2."""
    a, b = first[:, None].astype(np.float64), second[None].astype(np.float64)
    shared = _shared(a, b)
    union = _area(a) + _area(b) - shared
    return np.asarray(shared / np.maximum(union, 1e-9))


def inside(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """What share of a box [4] lies in each of others [m, 4], float64 [m]: how COCO judges crowds."""
    box = box.astype(np.float64)
    return np.asarray(_shared(box, others.astype(np.float64)) / np.maximum(_area(box), 1e-9))


def _shared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    return np.asarray(np.maximum(sides, 0).prod(axis=-1))


def _area(boxes: np.ndarray) -> np.ndarray:
    return np.asarray(np.maximum(boxes[..., 2:] - boxes[..., :2], 0).prod(axis=-1))


def size_of(box: np.ndarray) -> str:
    """The size of a box x1, y1, x2, y2 in pixels of its frame, by its area, as COCO names it."""
    return SIZES[int(np.searchsorted(AREAS, float(_area(box.astype(np.float64))), side="right"))]


def _box(box: np.ndarray) -> tuple[float, ...]:
    return tuple(float(side) for side in box)
