"""Models for different conditions, each installed under a name of its own: `Variants` asks the one that fits.

    from edgekd.agent.variants import Variants

    with Variants("/var/lib/edgekd", [None, "night", "fog"]) as served:
        for frame in frames:                     # uint8 [h, w, 3] BGR
            model, found = served.detect(frame)

The engines were built and tested when the variants were installed, and all of them stay open: a switch builds nothing,
reads nothing, and comes before the next frame. Needs what `edgekd.agent.serving` needs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from edgekd.agent.serving import Served
from edgekd.agent.slots import State
from edgekd.core.drift import WINDOW, distance_of_pictures
from edgekd.core.errors import EdgeKDError, SpecError

if TYPE_CHECKING:
    from edgekd.agent.serving import Model
    from edgekd.core.detection.types import Detections

NEARER = 0.5
"""Another model takes over whose record is at most this share as far from what is seen as that of the one in use."""


class Variants:
    """The models of a camera for one task. A context manager: leaving it frees them all.

    state: the agent's state folder; names: of the models, as they were installed with `--model`, None for the one
    without a name; the first is used first. automatic: whether drift decides which is used, or `use` alone.
    """

    def __init__(self, state: str | Path, names: Sequence[str | None], automatic: bool = True) -> None:
        if not names or len(set(names)) != len(names):
            raise SpecError("variants", expected="names of models, each once", found=str(list(names)))
        self._served = {name: Served(State.of(Path(state), name).root) for name in names}
        self.name, self.automatic = names[0], automatic
        self._window: deque[np.ndarray] = deque(maxlen=WINDOW)
        self._looked: np.ndarray | None = None

    def __enter__(self) -> Variants:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def detect(self, frame: np.ndarray) -> tuple[Model, Detections]:
        """What is in a frame uint8 [h, w, 3] BGR, and which model says so. Raises DeviceError, HashError."""
        model, found = self._served[self.name].detect(frame)
        latest = model.watch.latest
        if latest is not None and latest is not self._looked:
            self._looked = latest
            self._window.append(latest)
            self._choose(model)
        return model, found

    @property
    def model(self) -> Model:
        """The model in use. Raises DeviceError, HashError where it cannot be opened."""
        return self._served[self.name].model

    @property
    def problem(self) -> EdgeKDError | None:
        """Why a newer model than the one in use could not be opened."""
        return self._served[self.name].problem

    def use(self, name: str | None) -> None:
        """Ask this model from the next frame on. Raises SpecError where there is none of that name."""
        if name not in self._served:
            known = ", ".join(map(str, self._served))
            raise SpecError(f"no variant {name}", expected=f"one of {known}", fix="install it with --model")
        model = self._served[name].model  # opened now, so that one that cannot be is not switched to
        if name != self.name:
            self.name, self._looked = name, model.watch.latest  # what it saw when it was used before is over
            self._window.clear()

    def distances(self) -> dict[str | None, float]:
        """How far what was seen is from the record of each model that has one, by the pictures alone."""
        found: dict[str | None, float] = {}
        for name, served in self._served.items():
            try:
                record = served.model.watch.record
            except EdgeKDError:
                continue  # one that is not there, or cannot be opened, is not a choice
            if record is not None and self._window:
                found[name] = distance_of_pictures(record, np.array(self._window))
        return found

    def _choose(self, model: Model) -> None:
        """Switch where the model in use has drifted, and another knows what is seen clearly better."""
        if not self.automatic or len(self._window) < WINDOW or model.drift is None or not model.drift.drifted:
            return
        far = self.distances()
        best = min(far, key=lambda name: far[name])
        if far[best] <= NEARER * far[self.name]:
            self.use(best)

    def close(self) -> None:
        """Free the models."""
        with ExitStack() as stack:
            for served in self._served.values():
                stack.callback(served.close)
