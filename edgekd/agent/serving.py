"""The model in service, for an application that feeds it frames: `Served` opens it, and follows each switch.

Agent and application never wait for each other: an open model stays valid when its slot is overwritten, and a switch
takes effect before the next frame. Needs NumPy and the runtime of the engine; OpenCV makes it faster.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable  # noqa: UP035 collections.abc.Callable[...] is Python 3.9

from edgekd.agent.engines.engine import ENGINE, engine_of
from edgekd.agent.runtimes import require_runtime
from edgekd.agent.state.slots import State
from edgekd.core.detection.decode import decode_by_class
from edgekd.core.detection.preprocess import letterbox, placement_of
from edgekd.core.detection.types import Detections, DetectorSpec, Preprocess, spec_from_json
from edgekd.core.drift import Drift, DriftRecord, Monitor, from_json, statistics_of
from edgekd.core.errors import BundleError, DeviceError, EdgeKDError, HashError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from edgekd.agent.engines.engine import Engine
    from edgekd.agent.runtimes.types import EngineSession, FrameSession
    from edgekd.agent.state.slots import Slot
    from edgekd.core.bundle.manifest import DetectionThresholds
    from edgekd.core.detection.preprocess import Placement

DRIFT_INTERVAL_S = 3.0
"""Seconds between two frames that are checked for drift."""
MAX_SWITCHES = 5
"""Switches while a model is opened before that is an error."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """Frames that are ready for the engine.

    frames: as `letterbox` takes them; batch: input of the network, with a row for each; None where the GPU makes it.
    """

    frames: Sequence[np.ndarray]
    placements: Sequence[Placement]
    batch: np.ndarray | None


@dataclass(frozen=True)
class Model:
    """An open model.

    identity: of its bundle; key: of its engine; batch: most frames that one run takes; frame_session: the session where
    the GPU prepares frames, else None.
    """

    name: str
    counter: int
    identity: str
    key: str
    spec: DetectorSpec
    thresholds: DetectionThresholds
    session: EngineSession
    drift_watch: DriftWatch
    batch: int = 1
    frame_session: FrameSession | None = None

    @property
    def drift(self) -> Drift | None:
        """Distance of recent frames from the bundle's record; None without a record, or before enough frames."""
        return self.drift_watch.drift

    def prepare(self, frames: Sequence[np.ndarray]) -> Prepared:
        """Prepare frames for one run, or as many as it takes. frames: each BGR, or NV12, as `letterbox` takes them."""
        import numpy as np

        preprocess = self.spec.preprocess
        frames = [_readable(each, preprocess) for each in frames]
        if self.frame_session and all((each.ndim == 2) == (preprocess.input == "nv12") for each in frames):
            return Prepared(frames, [placement_of(each, preprocess) for each in frames], None)
        inputs, placements = zip(*(letterbox(each, preprocess) for each in frames))  # noqa: B905 strict= is Python 3.10
        return Prepared(frames, placements, inputs[0] if len(inputs) == 1 else np.concatenate(inputs))

    def run(self, prepared: Prepared) -> np.ndarray:
        """Return the output for frames, with a row for each. Raises DeviceError."""
        import numpy as np

        batch, outputs = prepared.batch, []
        for at in range(0, len(prepared.frames), self.batch):
            part = slice(at, at + self.batch)
            if batch is None:
                assert self.frame_session is not None
                outputs.append(self.frame_session.run_frames(prepared.frames[part]))
            else:
                outputs.append(self.session.run(batch[part]))
        return outputs[0] if len(outputs) == 1 else np.concatenate(outputs)

    def detect(self, frame: np.ndarray) -> Detections:
        """Detect objects in a frame uint8 [h, w, 3] BGR, by the bundle's thresholds. Raises DeviceError."""
        prepared = self.prepare([frame])
        (frame,), (placement,) = prepared.frames, prepared.placements
        detections = decode_by_class(self.run(prepared), self.spec, placement, self.thresholds)
        self.drift_watch.add(frame, placement, detections)
        return detections


def _readable(frame: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """Return a frame in a format that `letterbox` takes."""
    if frame.ndim == 2 and preprocess.input != "nv12":
        import cv2

        converted: np.ndarray = cv2.cvtColor(frame, cv2.COLOR_YUV2BGR_NV12)
        return converted
    return frame


class DriftWatch:
    """Checks a frame every few seconds for drift, by the bundle's record of statistics.

    Consecutive frames are correlated; the record assumes independent ones.
    """

    def __init__(
        self, record: DriftRecord | None, preprocess: Preprocess, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._monitor = None if record is None else Monitor(record)
        self._preprocess, self._clock, self._next = preprocess, clock, 0.0
        self.record = record
        self.latest: np.ndarray | None = None
        """Statistics of the last frame that was checked."""
        self.drift: Drift | None = None

    def add(self, frame: np.ndarray, placement: Placement, detections: Detections) -> None:
        """Add a frame as `letterbox` takes it, and its detections."""
        now = self._clock()
        if self._monitor is None or now < self._next:
            return
        self._next = now + DRIFT_INTERVAL_S
        batch, _ = letterbox(frame, self._preprocess)
        self.latest = statistics_of(batch, placement, self._preprocess, detections)
        self.drift = self._monitor.add(self.latest)


class Served:
    """The model in service in a state folder of the agent. A context manager, which releases the model."""

    def __init__(self, state: str | Path) -> None:
        self._state = State(Path(state))
        self._opened_stamp: Any = None
        self._model: Model | None = None
        self.problem: EdgeKDError | None = None

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def detect(self, frame: np.ndarray) -> tuple[Model, Detections]:
        """Detect objects in a frame uint8 [h, w, 3] BGR; return the model, too. Raises DeviceError."""
        model = self.model
        return model, model.detect(frame)

    @property
    def model(self) -> Model:
        """The model in service, opened again after each switch of the agent.

        Where the new one cannot be opened the earlier one stays, and `problem` has the reason. Raises DeviceError or
        HashError without any.
        """
        now = _stamp(self._state)
        if now != self._opened_stamp or self._model is None:
            self._opened_stamp = now
            self._follow()
        if self._model is None:
            raise self.problem or DeviceError(f"{self._state.root}: nothing is in service")
        return self._model

    def _follow(self) -> None:
        try:
            model, self._opened_stamp = _opened(self._state)
        except EdgeKDError as error:
            self.problem = error
            return
        self.close()
        self._model, self.problem = model, None

    def close(self) -> None:
        """Release the model."""
        if self._model is not None:
            self._model.session.close()
        self._model = None


def _stamp(state: State) -> Any:
    """Return a value that changes with every switch: the targets of the links, and the engine's inode and time."""
    active = state.root / "active"
    try:
        engine = (active / "engine" / ENGINE).stat()
        return os.readlink(active), os.readlink(active / "engine"), engine.st_ino, engine.st_mtime_ns  # noqa: PTH115
    except OSError:
        return None


def _opened(state: State) -> tuple[Model, Any]:
    """Open the model in service without a switch in between; return its stamp, too. Raises DeviceError, HashError."""
    for _ in range(MAX_SWITCHES):
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
            f"{state.root}: the bundle in service cannot be read", fix="unpack a bundle again, and activate it"
        )
    if not engine.whole:
        raise HashError(f"slot {slot.name}: its engine is damaged", fix=f"build --slot {slot.name}, and activate it")
    return open_slot(slot, engine)


def open_slot(slot: Slot, engine: Engine) -> Model:
    """Open the model in a slot, in service or not. Raises DeviceError, BundleError."""
    spec = spec_from_json(slot.manifest.detector)
    runtime = require_runtime(engine.record.key.runtime.name or "")
    session = runtime.load(engine.file)
    return Model(
        name=slot.manifest.name,
        counter=slot.manifest.counter,
        identity=slot.identity,
        key=engine.folder.name,
        spec=spec,
        drift_watch=DriftWatch(_record(slot), spec.preprocess),
        thresholds=slot.manifest.thresholds,
        session=session,
        batch=spec.batch if runtime.batches else 1,
        frame_session=runtime.frame_session(session, spec.preprocess),
    )


def _record(slot: Slot) -> DriftRecord | None:
    """Read the bundle's record of statistics; None where it has none. Raises BundleError where it is damaged."""
    file = slot.file("drift")
    if file is None:
        return None
    try:
        return from_json(file.read_bytes())
    except ValueError as error:
        raise BundleError(f"{file}: cannot be read", found=str(error), fix="unpack the bundle again") from error
