"""All that a device can show of a bundle, by one command: every runtime that is here builds, is tested and timed.

A step that fails does not keep the others from running. The result is written after each of them, so that something is
left even where a library takes the whole process with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd import __version__
from edgekd.agent import commands
from edgekd.agent.departures import departures
from edgekd.agent.device import read_device
from edgekd.agent.runtimes.types import UnsuitedError
from edgekd.canonical import canonical_json
from edgekd.errors import DeviceError, EdgeKDError
from edgekd.files import write_file

if TYPE_CHECKING:
    from edgekd.agent.commands import Camera
    from edgekd.agent.runtimes.types import Runtime

PASSED, FAILED, NOT_HERE = "passed", "failed", "not here"


class ValidationError(DeviceError):
    """A step failed. `report`: the result of all of them."""

    def __init__(self, what: str, *, report: dict[str, Any], **parts: str) -> None:
        super().__init__(what, **parts)
        self.report = report


def validate(
    camera: Camera, bundle: Path, out: Path, runtimes: Sequence[Runtime], iterations: int, seconds: float
) -> dict[str, Any]:
    """Unpack a bundle, and build, test and time an engine of it with each runtime; nothing is put into service.

    Writes the result to `out`. Raises ValidationError where a step failed, SpecError where `out` cannot be written.
    """
    # A serial number names a board, and who has it, and no figure depends on it.
    device = {name: value for name, value in read_device(camera.root).as_json().items() if name != "serial"}
    report: dict[str, Any] = {"agent": __version__, "device": device, "runtimes": [], "steps": [], "complete": False}
    notes = _Notes(report, out)
    notes.write()
    if notes.step(None, "verify", lambda: commands.verify(camera, bundle)):
        unpacked = notes.step(None, "unpack", lambda: commands.unpack(camera, bundle))
        for runtime in runtimes if unpacked else ():
            notes.runtime(runtime)
            if runtime.problem() is None:
                _validate_one(replace(camera, runtime=runtime, slot=unpacked["slot"]), notes, iterations, seconds)
    report["complete"] = True
    report["failed"] = [each["name"] for each in report["steps"] if each["outcome"] == FAILED]
    report["tested"] = [each["runtime"] for each in report["steps"] if _is(each, "selftest", PASSED)]
    notes.write()
    if report["failed"] or not report["tested"]:
        raise ValidationError(
            f"{bundle}: not all steps passed",
            report=report,
            expected="at least one engine, and no step that fails",
            found=", ".join(report["failed"]) or "no runtime for a network",
            fix=f"send {out} back",
        )
    return report


def _validate_one(camera: Camera, notes: _Notes, iterations: int, seconds: float) -> None:
    name = camera.required_runtime().name
    if notes.step(name, "build", lambda: commands.build(camera)):
        if not notes.step(name, "selftest", lambda: commands.selftest(camera)):
            notes.step(name, "layers", lambda: {"layers": departures(camera.chosen_slot(), camera.required_runtime())})
        notes.step(name, "bench", lambda: commands.bench(camera, iterations, seconds))


def _is(step: dict[str, Any], what: str, outcome: str) -> bool:
    return bool((step["step"], step["outcome"]) == (what, outcome))


class _Notes:
    """What is known so far, and where it is written."""

    def __init__(self, report: dict[str, Any], out: Path) -> None:
        self._report, self._out = report, out

    def runtime(self, runtime: Runtime) -> None:
        """Note a runtime: its version where it can be used, else why it cannot."""
        why = runtime.problem()
        version = None
        if why is None:
            try:
                version = runtime.version()
            except EdgeKDError as error:
                why = str(error)
        self._report["runtimes"].append({"name": runtime.name, "version": version, "why": why})

    def step(self, runtime: str | None, what: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Do a step, note what came of it, and go on; its figures, empty where it failed."""
        name = f"{runtime} {what}" if runtime else what
        noted: dict[str, Any] = {"name": name, "runtime": runtime, "step": what, "result": None, "error": None}
        began = time.perf_counter()
        try:
            noted.update(outcome=PASSED, result=work())
        except UnsuitedError as error:
            noted.update(outcome=NOT_HERE, error=str(error))
        except EdgeKDError as error:
            noted.update(outcome=FAILED, error=str(error), result=getattr(error, "report", None))
        except Exception as error:  # whatever a library throws, the other runtimes are still to be tried
            noted.update(outcome=FAILED, error=f"{type(error).__name__}: {error}")
        noted["seconds"] = round(time.perf_counter() - began, 3)
        self._report["steps"].append(noted)
        self.write()
        return (noted["result"] or {}) if noted["outcome"] == PASSED else {}

    def write(self) -> None:
        """Write it all. Raises SpecError."""
        write_file(self._out, canonical_json(self._report) + b"\n")
