"""The model in service, for a program of the firmware that feeds it frames: `Served` finds it, and follows each switch.

    import sys
    sys.path.insert(0, "/usr/lib/edgekd/agent.pyz")
    from edgekd.agent.serving import Served

    with Served("/var/lib/edgekd") as served:
        for frame in frames:                     # uint8 [h, w, 3] BGR
            model, found = served.detect(frame)

The agent never waits for such a program, nor does the program for the agent: what was opened goes on working when its
slot is written anew, and a switch is seen before the next frame. Needs NumPy, OpenCV, and the runtime of the engine.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Callable  # noqa: UP035 collections.abc.Callable[...] is Python 3.9

from edgekd.agent.engines import ENGINE, engine_of
from edgekd.agent.runtimes import required
from edgekd.agent.slots import State
from edgekd.core.detection.decode import decode_by_class
from edgekd.core.detection.preprocess import letterbox
from edgekd.core.detection.types import Detections, DetectorSpec, Preprocess, spec_from_json
from edgekd.core.drift import Drift, Monitor, Record, from_json, statistics_of
from edgekd.core.errors import BundleError, DeviceError, EdgeKDError, HashError

if TYPE_CHECKING:
    import numpy as np

    from edgekd.agent.runtimes.types import Session
    from edgekd.agent.slots import Slot
    from edgekd.core.bundle.manifest import Thresholds
    from edgekd.core.detection.preprocess import Placement

EVERY_S = 3.0
"""Between two frames that are looked at for drift."""
SWITCHES = 5
"""How often a switch may come while a model is opened, before that is an error."""


@dataclass(frozen=True)
class Model:
    """A model that was opened. identity: what names its bundle; key: what names its engine."""

    name: str
    counter: int
    identity: str
    key: str
    spec: DetectorSpec
    thresholds: Thresholds
    session: Session
    watch: Watch

    @property
    def drift(self) -> Drift | None:
        """How far what the camera sees is from what the model knows; None where that is not known, or not yet."""
        return self.watch.drift

    def detect(self, frame: np.ndarray) -> Detections:
        """What is in a frame uint8 [h, w, 3] BGR, by the bundle's own thresholds. Raises DeviceError."""
        batch, at = letterbox(frame, self.spec.preprocess)
        found = decode_by_class(self.session.run(batch), self.spec, at, self.thresholds)
        self.watch.look(batch, at, found)
        return found


class Watch:
    """Looks at a frame every few seconds, by the bundle's record of what its model knows.

    Frames that follow one another are alike, and a record knows nothing of that.
    """

    def __init__(self, record: Record | None, how: Preprocess, clock: Callable[[], float] = time.monotonic) -> None:
        self._monitor = None if record is None else Monitor(record)
        self._how, self._clock, self._next = how, clock, 0.0
        self.record = record
        self.latest: np.ndarray | None = None
        """The statistics of the frame that was looked at last."""
        self.drift: Drift | None = None

    def look(self, batch: np.ndarray, at: Placement, found: Detections) -> None:
        """A frame as it went into the network, and what was found in it."""
        now = self._clock()
        if self._monitor is None or now < self._next:
            return
        self._next = now + EVERY_S
        self.latest = statistics_of(batch, at, self._how, found)
        self.drift = self._monitor.see(self.latest)


class Served:
    """What is in service in a state folder of the agent. A context manager: leaving it frees the model."""

    def __init__(self, state: str | Path) -> None:
        self._state = State(Path(state))
        self._seen: Any = None
        self._model: Model | None = None
        self.problem: EdgeKDError | None = None

    def __enter__(self) -> Served:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def detect(self, frame: np.ndarray) -> tuple[Model, Detections]:
        """What is in a frame uint8 [h, w, 3] BGR, and which model says so. Raises DeviceError."""
        model = self.model
        return model, model.detect(frame)

    @property
    def model(self) -> Model:
        """The model in service, opened where the agent has switched since it was asked for last.

        Where the new one cannot be opened the one before stays, and `problem` says why. Raises DeviceError or HashError
        where there is none at all.
        """
        now = _stamp(self._state)
        if now != self._seen or self._model is None:
            self._seen = now
            self._follow()
        if self._model is None:
            raise self.problem or DeviceError(f"{self._state.root}: nothing is in service")
        return self._model

    def _follow(self) -> None:
        try:
            model, self._seen = _opened(self._state)
        except EdgeKDError as error:
            self.problem = error
            return
        self.close()
        self._model, self.problem = model, None

    def close(self) -> None:
        """Free the model."""
        if self._model is not None:
            self._model.session.close()
        self._model = None


def _stamp(state: State) -> Any:
    """What differs after every switch: where the links lead to, and which file the engine is."""
    active = state.root / "active"
    try:
        engine = (active / "engine" / ENGINE).stat()
        return os.readlink(active), os.readlink(active / "engine"), engine.st_ino, engine.st_mtime_ns  # noqa: PTH115
    except OSError:
        return None


def _opened(state: State) -> tuple[Model, Any]:
    """The model in service, and its stamp: of a moment in which nothing was switched. Raises DeviceError, HashError."""
    for _ in range(SWITCHES):
        before = _stamp(state)
        if before is None:
            raise DeviceError(
                f"{state.root}: nothing is in service",
                expected="a bundle that was put into service",
                fix="activate one",
            )
        try:
            model = _open(state)
        except EdgeKDError:
            if before == _stamp(state):
                raise
            continue
        except OSError as error:
            if before == _stamp(state):
                raise DeviceError(f"{state.root}: cannot be read", found=str(error)) from error
            continue
        if before == _stamp(state):
            return model, before
        model.session.close()
    raise DeviceError(f"{state.root}: switched again and again", fix="see what calls the agent")


def _open(state: State) -> Model:
    slot = state.active
    engine = engine_of(slot)
    if slot is None or engine is None:
        raise DeviceError(
            f"{state.root}: what is in service cannot be read", fix="unpack a bundle again, and activate it"
        )
    if not engine.whole:
        raise HashError(f"slot {slot.name}: its engine is damaged", fix=f"build --slot {slot.name}, and activate it")
    spec = spec_from_json(slot.manifest.detector)
    return Model(
        name=slot.manifest.name,
        counter=slot.manifest.counter,
        identity=slot.identity,
        key=engine.folder.name,
        spec=spec,
        watch=Watch(_record(slot), spec.preprocess),
        thresholds=slot.manifest.thresholds,
        session=required(engine.record["runtime"]["name"]).load(engine.file),
    )


def _record(slot: Slot) -> Record | None:
    """The bundle's record of statistics; None where it has none. Raises BundleError where it is damaged."""
    file = slot.file("drift")
    if file is None:
        return None
    try:
        return from_json(file.read_bytes())
    except ValueError as error:
        raise BundleError(f"{file}: cannot be read", found=str(error), fix="unpack the bundle again") from error
