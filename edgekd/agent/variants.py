"""Models for different conditions, each installed under its own name: `Variants` uses the one that fits.

All engines were built and tested at their installation, and stay open: a switch takes effect before the next frame.
Needs what `edgekd.agent.serving` needs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekd.agent.serving import Served
from edgekd.agent.state.slots import State
from edgekd.core.drift import WINDOW, distance_of_pictures
from edgekd.core.errors import EdgeKDError, SpecError

if TYPE_CHECKING:
    from edgekd.agent.serving import Model
    from edgekd.core.detection.types import Detections

MAX_DISTANCE_RATIO = 0.5
"""Maximum distance of another model's record, as a share of that of the model in use, for a switch."""


class Variants:
    """The models of a camera for one task. A context manager, which releases all of them.

    state: the agent's state folder; names: of the models by `--model`, None for the one without a name; the first is
    used first. automatic: whether drift selects the model, or `use` alone.
    """

    def __init__(self, state: str | Path, names: Sequence[str | None], automatic: bool = True) -> None:
        if not names or len(set(names)) != len(names):
            raise SpecError("variants", expected="names of models, each once", found=str(list(names)))
        self._served = {name: Served(State.of(Path(state), name).root) for name in names}
        self.name, self.automatic = names[0], automatic
        self._window: deque[np.ndarray] = deque(maxlen=WINDOW)
        self._last: np.ndarray | None = None

    def __enter__(self) -> Variants:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def detect(self, frame: np.ndarray) -> tuple[Model, Detections]:
        """Detect objects in a frame uint8 [h, w, 3] BGR; return the model, too. Raises DeviceError, HashError."""
        model, detections = self._served[self.name].detect(frame)
        latest = model.drift_watch.latest
        if latest is not None and latest is not self._last:
            self._last = latest
            self._window.append(latest)
            self._choose(model)
        return model, detections

    @property
    def model(self) -> Model:
        """The model in use. Raises DeviceError, HashError where it cannot be opened."""
        return self._served[self.name].model

    @property
    def problem(self) -> EdgeKDError | None:
        """Error of a newer model than the one in use, which could not be opened."""
        return self._served[self.name].problem

    def use(self, name: str | None) -> None:
        """Use this model from the next frame on. Raises SpecError where there is none of that name."""
        if name not in self._served:
            known = ", ".join(map(str, self._served))
            raise SpecError(f"no variant {name}", expected=f"one of {known}", fix="install it with --model")
        model = self._served[name].model  # opened first: an error prevents the switch
        if name != self.name:
            self.name, self._last = name, model.drift_watch.latest  # statistics of its earlier use do not count
            self._window.clear()

    def distances(self) -> dict[str | None, float]:
        """Return the distance of recent frames from each model's record, by statistics of the picture alone."""
        distances: dict[str | None, float] = {}
        for name, served in self._served.items():
            try:
                record = served.model.drift_watch.record
            except EdgeKDError:
                continue  # a model that cannot be opened is no candidate
            if record is not None and self._window:
                distances[name] = distance_of_pictures(record, np.array(self._window))
        return distances

    def _choose(self, model: Model) -> None:
        """Switch where the model in use has drifted, and another one's record is much closer."""
        if not self.automatic or len(self._window) < WINDOW or model.drift is None or not model.drift.drifted:
            return
        distances = self.distances()
        best = min(distances, key=lambda name: distances[name])
        if distances[best] <= MAX_DISTANCE_RATIO * distances[self.name]:
            self.use(best)

    def close(self) -> None:
        """Release the models."""
        with ExitStack() as stack:
            for served in self._served.values():
                stack.callback(served.close)
