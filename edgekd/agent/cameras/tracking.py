"""Identities of objects from frame to frame: ByteTrack's association in NumPy.

Zhang et al., "ByteTrack: Multi-Object Tracking by Associating Every Detection Box", 2022 (arXiv:2110.06864): confident
detections continue tracks first, then less confident ones, which are often partly hidden objects. Boxes move by a
Kalman filter with constant velocity (SORT, Bewley et al. 2016, arXiv:1602.00763), here in seconds, so that dropped
frames do not count as stops. Pairs are taken by descending overlap instead of by an optimal assignment.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgekd.core.bundle.manifest import DetectionThresholds
from edgekd.core.detection.types import Detections

NO_TRACK = -1
"""In place of the identity of an object that was seen once."""
MAX_LOST_S = 1.0
"""Seconds without a detection after which a track ends."""
LOW = 0.4
"""Share of a class's confidence threshold from which a detection may continue a track."""
_MIN_IOU = 0.2  # of a confident detection and the predicted box: ByteTrack's
_MIN_IOU_LOW = 0.5  # of one that is less confident
_MIN_IOU_NEW = 0.3  # of the second detection of a new object
_MEASUREMENT = 0.05  # standard deviation of a side's place, relative to the box: SORT's 1/20
_ACCELERATION = 1.0  # noise density, in sizes of the box per second^1.5
_FIRST_SPEED = 2.0  # standard deviation of the velocity of a new object, in sizes of the box per second


def tracking_thresholds(thresholds: DetectionThresholds) -> DetectionThresholds:
    """Return the thresholds to decode with for a tracker: lower by LOW than those that objects are reported by."""
    return replace(thresholds, confidence=tuple(LOW * each for each in thresholds.confidence))


class Tracker:
    """Tracks of one camera. A track has an identity, from 0 on, from its second detection on."""

    def __init__(self) -> None:
        self._identities = np.empty(0, np.int64)
        self._classes = np.empty(0, np.int64)
        self._seen_s = np.empty(0)
        self._place = np.empty((0, 4))  # cx, cy, w, h in pixels
        self._speed = np.empty((0, 4))  # pixels per second
        self._variance = np.empty((0, 3, 4))  # of the place; covariance; of the speed
        self._now_s: float | None = None
        self._next_identity = 0

    def update(self, detections: Detections, confident: np.ndarray, now_s: float) -> tuple[Detections, np.ndarray]:
        """Add a frame; return the objects in it, and their identities int64 [n], NO_TRACK where an object is new.

        detections: decoded with `tracking_thresholds`. confident: bool [n], above the thresholds of their classes; all
        of these are returned, and of the others those that continue a track. now_s: time of the frame.
        """
        last_s, self._now_s = now_s if self._now_s is None else self._now_s, now_s
        self._predict(max(now_s - last_s, 0.0))
        corners = detections.boxes.astype(np.float64)
        measured = np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], axis=1)
        overlaps = _overlaps(_corners(self._place), corners)
        overlaps[self._classes[:, None] != detections.classes[None]] = 0
        known, recent = self._identities != NO_TRACK, self._seen_s >= last_s
        matched = np.full(len(detections), -1)
        for tracks, candidates, least in (
            (known, confident, _MIN_IOU),
            (known & recent, ~confident, _MIN_IOU_LOW),
            (~known, confident, _MIN_IOU_NEW),
        ):
            free = np.ones(len(known), bool)
            free[matched[matched >= 0]] = False
            allowed = (tracks & free)[:, None] & (candidates & (matched < 0))[None]
            _match(np.where(allowed, overlaps, 0), least, matched)
        continued = np.flatnonzero(matched >= 0)
        self._correct(matched[continued], measured[continued])
        identities = np.full(len(detections), NO_TRACK)
        identities[continued] = self._identities[matched[continued]]
        self._keep((self._seen_s >= now_s) | (known & (now_s - self._seen_s <= MAX_LOST_S)))
        new = np.flatnonzero(confident & (matched < 0))
        self._begin(measured[new], detections.classes[new])
        reported = confident | (matched >= 0)
        return detections.only(reported), identities[reported]

    def _predict(self, seconds: float) -> None:
        place, covariance, speed = np.moveaxis(self._variance, 1, 0)  # views
        noise = (_ACCELERATION * _size(self._place)) ** 2
        place += 2 * seconds * covariance + seconds**2 * speed + noise * seconds**3 / 3
        covariance += seconds * speed + noise * seconds**2 / 2
        speed += noise * seconds
        self._place = self._place + seconds * self._speed
        self._place[:, 2:] = np.maximum(self._place[:, 2:], 1.0)

    def _correct(self, tracks: np.ndarray, measured: np.ndarray) -> None:
        """Update tracks with measured places float64 [n, 4]; those seen for the second time get an identity."""
        variance = self._variance[tracks]
        total = variance[:, 0] + (_MEASUREMENT * _size(measured)) ** 2
        gain, speed_gain = variance[:, 0] / total, variance[:, 1] / total
        innovation = measured - self._place[tracks]
        self._place[tracks] += gain * innovation
        self._speed[tracks] += speed_gain * innovation
        covariance = variance[:, 1]
        self._variance[tracks] = np.stack(
            [(1 - gain) * variance[:, 0], (1 - gain) * covariance, variance[:, 2] - speed_gain * covariance], axis=1
        )
        self._seen_s[tracks] = self._now_s
        new = tracks[self._identities[tracks] == NO_TRACK]
        self._identities[new] = np.arange(self._next_identity, self._next_identity + len(new))
        self._next_identity += len(new)

    def _begin(self, measured: np.ndarray, classes: np.ndarray) -> None:
        count, size = len(measured), np.repeat(_size(measured), 4, axis=1)
        variance = np.stack([(_MEASUREMENT * size) ** 2, 0 * size, (_FIRST_SPEED * size) ** 2], axis=1)
        self._identities = np.append(self._identities, np.full(count, NO_TRACK))
        self._classes = np.append(self._classes, classes)
        self._seen_s = np.append(self._seen_s, np.full(count, self._now_s))
        self._place = np.concatenate([self._place, measured])
        self._speed = np.concatenate([self._speed, np.zeros((count, 4))])
        self._variance = np.concatenate([self._variance, variance])

    def _keep(self, kept: np.ndarray) -> None:
        for name in ("_identities", "_classes", "_seen_s", "_place", "_speed", "_variance"):
            setattr(self, name, getattr(self, name)[kept])


def _match(overlaps: np.ndarray, least: float, matched: np.ndarray) -> None:
    """Write the track of each detection into `matched`, by descending overlap [tracks, detections] down to `least`."""
    tracks, detections = np.nonzero(overlaps >= least)
    taken: set[int] = set()
    for index in np.argsort(-overlaps[tracks, detections], kind="stable"):
        track, detection = int(tracks[index]), detections[index]
        if track not in taken and matched[detection] < 0:
            matched[detection] = track
            taken.add(track)


def _corners(places: np.ndarray) -> np.ndarray:
    half = places[:, 2:] / 2
    return np.concatenate([places[:, :2] - half, places[:, :2] + half], axis=1)


def _size(places: np.ndarray) -> np.ndarray:
    """Return the side [n, 1] of a square of the same area, at least a pixel."""
    sides: np.ndarray = np.sqrt(np.maximum(places[:, 2:].prod(axis=1, keepdims=True), 1.0))
    return sides


def _overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the intersection over union [n, m] of boxes [n, 4] and [m, 4], x1, y1, x2, y2."""
    sides = np.minimum(first[:, None, 2:], second[None, :, 2:]) - np.maximum(first[:, None, :2], second[None, :, :2])
    common = np.maximum(sides, 0).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (first, second)]
    shares: np.ndarray = common / np.maximum(areas[0][:, None] + areas[1][None] - common, 1e-9)
    return shares
