"""The end of a frame's way, with what each camera keeps from frame to frame: its tracks, and its drift."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekd.agent.cameras.tracking import Tracker, tracking_thresholds
from edgekd.agent.serving import DriftWatch
from edgekd.core.detection.decode import decode_by_class, exceeds

if TYPE_CHECKING:
    from edgekd.agent.serving import Model
    from edgekd.core.detection.preprocess import Placement
    from edgekd.core.detection.types import Detections


class Postprocessor:
    """Postprocesses the frames of one camera, in their order. track: whether objects get identities."""

    def __init__(self, *, track: bool) -> None:
        self._is_tracking = track
        self._identity: str | None = None
        self._tracker: Tracker | None = None
        self._watch: DriftWatch | None = None

    @property
    def drift(self) -> float | None:
        """Distance of recent frames from the model's record; None where that is not known."""
        drift = self._watch.drift if self._watch else None
        return drift.distance if drift else None

    def detections(
        self, model: Model, frame: np.ndarray, placement: Placement, output: np.ndarray, taken_s: float
    ) -> tuple[Detections, np.ndarray | None]:
        """Return the detections in a frame, and the identities int64 [n] of tracked objects, None without tracking.

        Identities begin anew with another model. taken_s: time of the frame.
        """
        if self._watch is None or model.identity != self._identity:
            self._identity = model.identity
            self._watch = DriftWatch(model.drift_watch.record, model.spec.preprocess)
            self._tracker = Tracker() if self._is_tracking else None
        if self._tracker is None:
            detections = decode_by_class(output, model.spec, placement, model.thresholds)
            self._watch.add(frame, placement, detections)
            return detections, None
        candidates = decode_by_class(output, model.spec, placement, tracking_thresholds(model.thresholds))
        confident = exceeds(candidates, model.thresholds.confidence)
        self._watch.add(frame, placement, candidates.only(confident))
        return self._tracker.update(candidates, confident, taken_s)
