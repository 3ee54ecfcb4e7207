"""Run one attempt of a validation: build, inspect, test and time one engine, and note each step.

Run as `python -m edgekd.agent.validation.process JOB`, where JOB is a file by `Job.write`. The notes are
written after each step, so that they survive a crash of the process.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.agent.runtimes.types import FLOAT as FROM_FLOAT
from edgekd.agent.runtimes.types import GRAPH, BuildFailedError, UnsuitedError, Wish
from edgekd.agent.validation.evidence import (
    BENCH,
    BUILD,
    CALIBRATED,
    DEPARTURES,
    FAILED,
    FLOAT,
    FP32_WEIGHTS,
    INSPECT,
    INT8_CONSTANTS,
    NOT_HERE,
    PASSED,
    SELF_TEST,
)
from edgekd.agent.validation.machine import read_moment
from edgekd.core.atomic_files import write_file
from edgekd.core.canonical import canonical_json
from edgekd.core.errors import DeviceError, EdgeKDError

if TYPE_CHECKING:
    from edgekd.agent.commands import Camera
    from edgekd.agent.engines import Engine
    from edgekd.agent.slots import Slot

UNPACK = "unpack"
"""In place of a runtime: the process that verifies and unpacks the bundle, for all that follow."""
WISHES = {
    FLOAT: Wish(FROM_FLOAT),
    FP32_WEIGHTS: Wish(GRAPH, int8_constants=False),
    INT8_CONSTANTS: Wish(GRAPH, int8_constants=True),
    CALIBRATED: Wish(GRAPH),
}
"""Build request for each form of the network."""
MAX_RAW_BYTES = 256 << 10
"""Most bytes kept of an engine's raw layer list, from its beginning."""


@dataclass(frozen=True)
class Job:
    """Task of one process. state: folder of the unpacked bundle; out: the file that it writes."""

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
    from edgekd.agent.commands import Camera
    from edgekd.agent.slots import State

    camera, notes = Camera(State(Path(job.state)), Path(job.root)), _Notes(Path(job.out), Path(job.root))
    if job.runtime == UNPACK:
        notes.step(UNPACK, lambda: _unpack(camera, Path(job.bundle)))
        return
    runtime = _runtime(job.runtime)
    notes.note(problem=runtime.problem())
    if notes.content["problem"] is None:
        try:
            notes.note(version=runtime.version())
        except EdgeKDError as error:
            notes.note(problem=str(error))
            return
        _attempt(Camera(camera.state, camera.root, runtime), job, notes)


def _runtime(name: str) -> Any:
    """Return the runtime of that name, usable or not."""
    from edgekd.agent.runtimes import AUTOMATIC, NAMED

    return next(runtime for runtime in (*AUTOMATIC, *NAMED) if runtime.name == name)


def _unpack(camera: Camera, bundle: Path) -> dict[str, Any]:
    """Verify the bundle and unpack it, whatever it is built for and whoever signed it: it is not put into service."""
    with camera.state.locked():
        slot = camera.state.fill(bundle)
    return {"identity": slot.identity, "name": slot.manifest.name, "target": slot.manifest.target.name}


def _attempt(camera: Camera, job: Job, notes: _Notes) -> None:
    from edgekd.agent.engines import read_engine
    from edgekd.agent.layer_divergence import departures
    from edgekd.agent.selftest import run_self_test

    slot, runtime = camera.chosen_slot(), camera.required_runtime()
    built = notes.step(BUILD, lambda: _build(camera, slot, WISHES[job.form]))
    engine = read_engine(slot.engines / built["key"]) if built else None
    if engine is None:
        return
    notes.step(INSPECT, lambda: _inspect(camera, engine))
    tested = notes.step(SELF_TEST, lambda: _passed(run_self_test(slot, runtime, engine.file)))
    if tested is None and job.form in (FP32_WEIGHTS, INT8_CONSTANTS):
        notes.step(DEPARTURES, lambda: {"tensors": departures(slot, runtime)})
    notes.step(BENCH, lambda: _bench(camera, slot, engine, job))


def _build(camera: Camera, slot: Slot, wish: Wish) -> dict[str, Any]:
    """Build an engine; return its record. Raises DeviceError."""
    from dataclasses import replace

    from edgekd.agent.engines import Order, build_engine

    order = camera.order()
    asked = replace(wish, memory_bytes=order.wish.memory_bytes, cache=order.wish.cache)
    engine = build_engine(slot, camera.required_runtime(), camera.wanted(slot), Order(asked))
    return {**engine.record, "key": engine.folder.name}


def _inspect(camera: Camera, engine: Engine) -> dict[str, Any]:
    """Return the raw layer list, cut at MAX_RAW_BYTES, and the times of the layers."""
    raw = camera.required_runtime().inspect(engine.file)
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
    return {"layers_total": len(listed), "layers": kept, "times_ms": dict(raw.times_ms)}


class _DepartedError(DeviceError):
    """Raised by a self-test that failed. report: its figures."""

    def __init__(self, report: dict[str, Any]) -> None:
        super().__init__("the engine drifted from the golden set")
        self.report = report


def _passed(figures: dict[str, Any]) -> dict[str, Any]:
    if not figures["passed"]:
        raise _DepartedError(figures)
    return figures


def _bench(camera: Camera, slot: Slot, engine: Engine, job: Job) -> dict[str, Any]:
    from edgekd.agent.device import read_device
    from edgekd.agent.engines import latencies
    from edgekd.core.power.find import find_meter

    runtime = camera.required_runtime()
    meter = find_meter(camera.root, gpu=bool(read_device(camera.root).gpus) and runtime.name != "onnxruntime")
    return latencies(slot, runtime, engine, job.iterations, job.seconds, meter)


class _Notes:
    """Notes of an attempt, written to a file after each change."""

    def __init__(self, out: Path, root: Path) -> None:
        self.content: dict[str, Any] = {"version": None, "problem": None, "running": None, "steps": []}
        self._out, self._root = out, root

    def note(self, **facts: Any) -> None:
        """Add facts, and write the file. Raises SpecError."""
        self.content.update(facts)
        write_file(self._out, canonical_json(self.content))

    def step(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """Run a step, and note its outcome and the state of the machine before and after. None where it failed."""
        self.note(running=name)
        noted: dict[str, Any] = {"name": name, "result": None, "error": None, "before": read_moment(self._root)}
        began = time.perf_counter()
        try:
            noted.update(outcome=PASSED, result=work())
        except UnsuitedError as error:
            noted.update(outcome=NOT_HERE, error=str(error))
        except Exception as error:  # whatever a library raises is evidence
            noted.update(outcome=FAILED, error=_said(error), result=_figures(error))
        noted["seconds"] = round(time.perf_counter() - began, 3)
        noted["after"] = read_moment(self._root)
        self.note(running=None, steps=[*self.content["steps"], noted])
        return noted["result"] if noted["outcome"] == PASSED else None


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, EdgeKDError) else f"{type(error).__name__}: {error}"


def _figures(error: Exception) -> dict[str, Any] | None:
    """Return the data of an error: the builder's log, or the figures of a self-test."""
    if isinstance(error, BuildFailedError):
        return {"log": list(error.log)}
    return getattr(error, "report", None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
