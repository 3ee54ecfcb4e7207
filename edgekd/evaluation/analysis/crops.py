"""Crops of the frames around changed detections: which are shown, and where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from edgekd.data.images import Image, read_image
from edgekd.data.types import Sample
from edgekd.evaluation.analysis.matching import FalseAlarm, Findings, Object
from edgekd.evaluation.analysis.types import ChangeKind, Crop

MAX_CROPS = 160
MAX_BYTES = 900_000
"""Maximum bytes of all JPEGs together; base64 in a page takes a third more."""
SIDE = 168
"""Longer side of a crop in pixels."""
MIN_WINDOW = 72
"""Minimum side of the part of a frame that a crop shows, in pixels of the frame."""
QUALITY = 62
"""JPEG quality."""
AROUND = 2.6
"""Side of a crop relative to the longer side of the boxes in it."""
KINDS: tuple[ChangeKind, ...] = ("lost", "gained", "alarm", "settled")


@dataclass(frozen=True)
class DetectionChange:
    """An object or a false alarm that only one network detects, with the score of that network."""

    kind: ChangeKind
    of: Object | FalseAlarm
    score: float


def changes_in(findings: Findings) -> Iterator[DetectionChange]:
    """Yield all changes."""
    for each in findings.objects:
        if each.outcome == "lost":
            yield DetectionChange("lost", each, each.before.score or 0.0)
        elif each.outcome == "gained":
            yield DetectionChange("gained", each, each.after.score or 0.0)
    for alarm in findings.alarms:
        if alarm.before is None and alarm.after is not None:
            yield DetectionChange("alarm", alarm, alarm.after)
        elif alarm.after is None and alarm.before is not None:
            yield DetectionChange("settled", alarm, alarm.before)


def kinds_of(findings: Findings) -> dict[ChangeKind, int]:
    """Count the changes of each kind."""
    counts = Counter(change.kind for change in changes_in(findings))
    return {kind: counts[kind] for kind in KINDS}


def worth_showing(changes: Sequence[DetectionChange], limit: int = MAX_CROPS) -> list[DetectionChange]:
    """Choose changes: the one of highest score of every kind, class and size first, then the next of each."""
    ranks: Counter[tuple[str, int, str]] = Counter()
    ranked = []
    for change in sorted(changes, key=lambda change: -change.score):
        group = (change.kind, change.of.kind, change.of.size)
        ranked.append(((ranks[group], KINDS.index(change.kind), -change.score), change))
        ranks[group] += 1
    return [change for _, change in sorted(ranked, key=lambda pair: pair[0])[:limit]]


def crops_of(
    findings: Findings, samples: Sequence[Sample], classes: Sequence[str], thresholds: Sequence[float]
) -> tuple[Crop, ...]:
    """Return crops of changes, sorted by kind, as many as fit MAX_BYTES. Each image is read once. Raises DataError."""
    chosen = list(enumerate(worth_showing(list(changes_in(findings)))))
    crops: dict[int, Crop] = {}
    for frame, changes in groupby(sorted(chosen, key=_frame), key=_frame):
        image = read_image(samples[frame].image)
        for rank, change in changes:
            crops[rank] = _crop(change, image, samples[frame].image.name, classes, thresholds)
    shown, room = [], MAX_BYTES
    for rank in range(len(crops)):
        room -= len(crops[rank].jpeg)
        if room >= 0:
            shown.append(crops[rank])
    return tuple(sorted(shown, key=lambda crop: (KINDS.index(crop.kind), -max(s or 0.0 for s in crop.scores))))


def _frame(ranked: tuple[int, DetectionChange]) -> int:
    return ranked[1].of.frame


def _crop(
    change: DetectionChange, image: Image, frame: str, classes: Sequence[str], thresholds: Sequence[float]
) -> Crop:
    import cv2

    of = change.of
    boxes = _boxes(of)
    left, top, side = window(boxes, image.shape[1], image.shape[0])
    part = image[top : top + side, left : left + side]
    scale = SIDE / max(part.shape[:2])
    width, height = (max(round(length * scale), 1) for length in part.shape[1::-1])
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    small = cv2.resize(part, (width, height), interpolation=method)
    corner = (left, top, left, top)
    placed = {
        name: tuple(round((side - start) * scale, 1) for side, start in zip(box, corner, strict=True))
        for name, box in boxes.items()
    }
    return Crop(
        kind=change.kind,
        class_name=classes[of.kind],
        size=of.size,
        frame=frame,
        jpeg=cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes(),
        width=width,
        height=height,
        truth=placed.get("truth"),
        before=placed.get("before"),
        after=placed.get("after"),
        scores=_scores(of),
        threshold=thresholds[of.kind],
        reason=_reason(change, classes),
    )


def _boxes(of: Object | FalseAlarm) -> dict[str, tuple[float, ...]]:
    """Return the labelled box and the boxes of both networks, as far as there are any, by name."""
    boxes: dict[str, tuple[float, ...] | None]
    if isinstance(of, Object):
        boxes = {"truth": of.box, "before": of.before.box, "after": of.after.box}
    else:
        boxes = {name: of.box for name in ("before", "after") if getattr(of, name) is not None}
    return {name: box for name, box in boxes.items() if box is not None}


def window(boxes: Mapping[str, tuple[float, ...]], width: int, height: int) -> tuple[int, int, int]:
    """Return left, top and side, in pixels, of a square of the frame around boxes."""
    corners = np.array(list(boxes.values()))
    low, high = corners[:, :2].min(axis=0), corners[:, 2:].max(axis=0)
    side = round(float(np.clip(AROUND * (high - low).max(), MIN_WINDOW, max(width, height))))
    middle = (low + high) / 2
    left, top = (
        int(np.clip(centre - side / 2, 0, max(length - side, 0)))
        for centre, length in zip(middle, (width, height), strict=True)
    )
    return left, top, side


def _scores(of: Object | FalseAlarm) -> tuple[float | None, float | None]:
    if isinstance(of, Object):
        return of.before.score, of.after.score
    return (of.nearly, of.after) if of.before is None else (of.before, of.nearly if of.after is None else of.after)


def _reason(change: DetectionChange, classes: Sequence[str]) -> str:
    """Return the reason, in a few words, why the other network does not detect it."""
    of = change.of
    if not isinstance(of, Object):
        return "nothing labelled there" if of.over is None else f"labelled as {classes[of.over]}"
    match = of.after if change.kind == "lost" else of.before
    when = "now" if change.kind == "lost" else "before"
    words = {
        "unsure": f"{when} below the threshold",
        "misplaced": f"{when} the box is off",
        "unseen": f"{when} not seen",
    }
    if match.reason == "confused" and match.taken_for is not None:
        return f"{when} taken for {classes[match.taken_for]}"
    return words.get(match.reason, match.reason)
