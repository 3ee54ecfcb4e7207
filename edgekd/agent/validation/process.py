"""Run one attempt of a validation: build, inspect, test and time one engine, and note each step.

Started as `python -m edgekd.agent.validation.process JOB`, where JOB is a file by `Job.write`. The notes are written
after each step, so that they survive a crash of the process.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from edgekd.agent.runtimes.types import FLOAT as FROM_FLOAT
from edgekd.agent.runtimes.types import BuildFailedError, BuildOptions, UnsuitedError
from edgekd.agent.validation.evidence import (
    BENCH,
    BUILD,
    CALIBRATED,
    DIVERGENCE,
    FAILED,
    FLOAT,
    FP32_WEIGHTS,
    INSPECT,
    INT8_CONSTANTS,
    NOT_HERE,
    PASSED,
    SELF_TEST,
    UNPACK,
    StepName,
    StepOutcome,
)
from edgekd.agent.validation.machine import MachineMoment, read_moment
from edgekd.core.atomic_files import write_file
from edgekd.core.bundle.archive import opened_bundle
from edgekd.core.canonical import canonical_json
from edgekd.core.documents import INLINE, to_plain
from edgekd.core.errors import DeviceError, EdgeKDError

if TYPE_CHECKING:
    from edgekd.agent.engines.camera import Camera
    from edgekd.agent.engines.engine import Engine
    from edgekd.agent.engines.latency import LatencyReport
    from edgekd.agent.engines.records import EngineRecord
    from edgekd.agent.runtimes.types import Runtime
    from edgekd.agent.state.slots import Slot

T = TypeVar("T")
BUILD_OPTIONS: Mapping[str, BuildOptions] = {
    FLOAT: BuildOptions(FROM_FLOAT),
    FP32_WEIGHTS: BuildOptions(int8_constants=False),
    INT8_CONSTANTS: BuildOptions(int8_constants=True),
    CALIBRATED: BuildOptions(),
}
"""Build options for each form of the network."""
MAX_RAW_BYTES = 256 << 10
"""Bytes that are kept of an engine's raw layer list, from its beginning."""


@dataclass(frozen=True)
class Job:
    """Task of one process.

    runtime: UNPACK for the process that verifies and unpacks the bundle, for all that follow; state: folder of the
    unpacked bundle; out: the file that it writes.
    """

    runtime: str
    form: str
    bundle: str
    state: str
    root: str
    out: str
    iterations: int
    seconds: float

    def write(self, path: Path) -> None:
        """Write the job to a file for the process. Raises SpecError."""
        write_file(path, canonical_json(asdict(self)))


def main(arguments: list[str]) -> int:
    """Perform the job in a file; return 0, whatever its steps gave."""
    perform(Job(**json.loads(Path(arguments[0]).read_bytes().decode("utf-8"))))
    return 0


def perform(job: Job) -> None:
    """Perform a job, and write its notes."""
    from edgekd.agent.engines.camera import Camera
    from edgekd.agent.runtimes import AUTOMATIC, NAMED
    from edgekd.agent.state.slots import State

    camera, notes = Camera(State(Path(job.state)), Path(job.root)), _Notes(Path(job.out), Path(job.root))
    if job.runtime == UNPACK:
        notes.step(UNPACK, lambda: _unpack(camera, Path(job.bundle)))
        return
    runtime = next(each for each in (*AUTOMATIC, *NAMED) if each.name == job.runtime)
    notes.note(problem=runtime.problem())
    if notes.content.problem is None:
        try:
            notes.note(version=runtime.version())
        except EdgeKDError as error:
            notes.note(problem=str(error))
            return
        _attempt(replace(camera, runtime=runtime), runtime, job, notes)


@dataclass(frozen=True)
class UnpackedBundle:
    """Result of unpacking."""

    identity: str
    name: str
    target: str


@dataclass(frozen=True)
class BuildStepResult:
    """Result of a build. key: name of the engine's folder."""

    record: EngineRecord = field(metadata=INLINE)
    key: str


@dataclass(frozen=True)
class EngineLayers:
    """Raw layer list, cut at MAX_RAW_BYTES, and milliseconds by layer."""

    layers_total: int
    layers: Sequence[object]
    times_ms: Mapping[str, float]


def _unpack(camera: Camera, bundle: Path) -> UnpackedBundle:
    """Unpack the bundle for any device and by any signer: it is not put into service."""
    with opened_bundle(bundle) as reader, camera.state.locked():
        slot = camera.state.fill(reader)
    return UnpackedBundle(slot.identity, slot.manifest.name, slot.manifest.target.name)


def _attempt(camera: Camera, runtime: Runtime, job: Job, notes: _Notes) -> None:
    from edgekd.agent.engines.engine import read_engine
    from edgekd.agent.engines.layer_divergence import layer_divergence

    slot = camera.chosen_slot()
    built = notes.step(BUILD, lambda: _build(camera, slot, job.form))
    engine = read_engine(slot.engines / built.key) if built else None
    if engine is None:
        return
    notes.step(INSPECT, lambda: _inspect(runtime, engine))
    tested = notes.step(SELF_TEST, lambda: _self_test(slot, runtime, engine))
    if tested is None and job.form in (FP32_WEIGHTS, INT8_CONSTANTS):
        notes.step(DIVERGENCE, lambda: {"tensors": layer_divergence(slot, runtime)})
    notes.step(BENCH, lambda: _bench(camera, slot, engine, job))


def _build(camera: Camera, slot: Slot, form: str) -> BuildStepResult:
    """Build an engine. Raises DeviceError."""
    from edgekd.agent.engines.engine import EngineBuildRequest, build_engine

    defaults = camera.request().options
    options = replace(BUILD_OPTIONS[form], memory_bytes=defaults.memory_bytes, cache=defaults.cache)
    engine = build_engine(slot, camera.required_runtime(), camera.engine_key(slot), EngineBuildRequest(options))
    return BuildStepResult(engine.record, engine.name)


def _inspect(runtime: Runtime, engine: Engine) -> EngineLayers:
    raw = runtime.inspect(engine.file)
    if raw is None:
        raise UnsuitedError("the runtime has no engine inspector")
    try:
        listed = list(json.loads(raw.layers, parse_constant=str)["Layers"])
    except (KeyError, TypeError, ValueError) as error:
        raise DeviceError("not the engine inspector's JSON", found=raw.layers[:200]) from error
    kept, room = [], MAX_RAW_BYTES
    for layer in listed:
        room -= len(json.dumps(layer))
        if room < 0:
            break
        kept.append(layer)
    return EngineLayers(len(listed), kept, raw.times_ms)


def _self_test(slot: Slot, runtime: Runtime, engine: Engine) -> dict[str, Any]:
    """Run the self-test; return its figures. Raises SelfTestError with them where it fails."""
    from edgekd.agent.engines.selftest import SelfTestError, run_self_test

    figures: dict[str, Any] = to_plain(run_self_test(slot, runtime, engine.file))
    del figures["latency"]  # a step of its own here
    if not figures["passed"]:
        raise SelfTestError("the engine drifted from the golden set", report=figures)
    return figures


def _bench(camera: Camera, slot: Slot, engine: Engine, job: Job) -> LatencyReport:
    from edgekd.agent.engines.latency import measure_on

    return measure_on(camera, slot, engine.file, job.iterations, job.seconds)


@dataclass(frozen=True)
class StepNote:
    """A step of an attempt, with the state of the machine before and after it.

    Args:
        name: `inspect`: raw layer list and profile; `departures`: divergence of inner tensors after a failed self-test.
        outcome: `not here`: the device lacks something that the step needs.
        error: Error of the step.
        result: Raw: of `build` the engine's record with the builder's `log`, of `inspect` the `layers` as the engine
            inspector lists them (the first 256 kB; `layers_total` counts all) and `times_ms` by layer, of the others
            the result of the agent's command.
        seconds: Duration of the step.
        before, after: The machine before and after it.
    """

    name: StepName
    outcome: StepOutcome
    error: str | None
    result: Mapping[str, object] | None
    seconds: float
    before: MachineMoment
    after: MachineMoment


@dataclass(frozen=True)
class AttemptNotes:
    """Notes of an attempt.

    Args:
        version: Version of the runtime; null where it cannot be used.
        problem: Why the runtime cannot be used here.
        running: Step in which the process ended; null where it finished all.
        steps: Steps in their order.
    """

    version: str | None = None
    problem: str | None = None
    running: str | None = None
    steps: tuple[StepNote, ...] = ()


class _Notes:
    """The file with the notes of an attempt, written after each change."""

    def __init__(self, out: Path, root: Path) -> None:
        self.content = AttemptNotes()
        self._out, self._root = out, root

    def note(self, **facts: Any) -> None:
        """Change notes, and write the file. Raises SpecError."""
        self.content = replace(self.content, **facts)
        write_file(self._out, canonical_json(to_plain(self.content)))

    def step(self, name: StepName, work: Callable[[], T]) -> T | None:
        """Run a step, and note its outcome. Return None where it failed."""
        result: T | None = None
        self.note(running=name)
        before, began = read_moment(self._root), time.perf_counter()
        figures: Any = None
        message, outcome = None, PASSED
        try:
            result = figures = work()
        except UnsuitedError as error:
            message, outcome = str(error), NOT_HERE
        except Exception as error:  # every exception of a library is evidence
            message, outcome, figures = _message(error), FAILED, _figures(error)
        seconds = round(time.perf_counter() - began, 3)
        step = StepNote(name, outcome, message, to_plain(figures), seconds, before, read_moment(self._root))
        self.note(running=None, steps=(*self.content.steps, step))
        return result


def _message(error: Exception) -> str:
    return str(error) if isinstance(error, EdgeKDError) else f"{type(error).__name__}: {error}"


def _figures(error: Exception) -> Any:
    """Return the data of an error: the builder's log, or the figures of a self-test."""
    return {"log": error.log} if isinstance(error, BuildFailedError) else getattr(error, "report", None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
