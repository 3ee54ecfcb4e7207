"""Run a validation from its first process to its verdicts, with nothing but Python's standard library.

`result.json` is written before the first process starts and after each has ended.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable  # noqa: UP035 collections.abc.Callable[...] is Python 3.9

from edgekd.agent.device import read_device
from edgekd.agent.validation import machine
from edgekd.agent.validation.evidence import (
    CALIBRATED,
    FAILED,
    FLOAT,
    FORMAT,
    FP32_WEIGHTS,
    INT8_CONSTANTS,
    Evidence,
    Process,
    from_json,
)
from edgekd.agent.validation.process import UNPACK, Job
from edgekd.agent.validation.verdicts import ALL_CONFIRMED, NOT_TESTED, Verdict, exit_code, verdicts
from edgekd.core.atomic_files import write_file
from edgekd.core.canonical import canonical_json, file_sha256
from edgekd.core.errors import DeviceError, SpecError
from edgekd.core.version import __version__

ON_GPU = (FLOAT, FP32_WEIGHTS, INT8_CONSTANTS)
"""Forms in their order: the control first, then INT8 both ways."""
ON_DLA = (FLOAT, CALIBRATED)
PLAN: Mapping[str, Sequence[str]] = {
    "tensorrt": ON_GPU,
    "trtexec": ON_GPU,
    "tensorrt-dla0": ON_DLA,
    "tensorrt-dla1": ON_DLA,
    "onnxruntime": ON_GPU,
}
"""By runtime, the forms that are built."""
PATIENCE_S = 2700.0
"""For one process: the largest builds of a Xavier take half an hour."""
IMPORTED_FROM = Path(__file__).parents[3]
"""The folder or zipapp that holds this package: other processes import it from there."""
MAX_STDERR = 4000  # characters of the end of what a process printed


@dataclass(frozen=True)
class Effort:
    """Minimum runs and seconds of a benchmark, and the maximum seconds of a process."""

    iterations: int = 200
    seconds: float = 10.0
    patience_s: float = PATIENCE_S


QUICK = Effort(50, 2.0)
Launch = Callable[[Job, Path, float], "tuple[Process, str]"]
"""Runs a job in a folder within so many seconds; how its process ended, and the end of what it printed."""


class ValidationError(DeviceError):
    """Raised where not every claim was confirmed. report: the verdicts; agent_exit_code: by verdict."""

    def __init__(self, what: str, *, report: dict[str, Any], code: int, **parts: str) -> None:
        super().__init__(what, **parts)
        self.report, self.agent_exit_code = report, code


def launch_process(job: Job, folder: Path, patience_s: float) -> tuple[Process, str]:
    """Run a job in a process group of its own, which ends with it."""
    job.write(folder / "job.json")
    with suppress(FileNotFoundError):
        Path(job.out).unlink()
    path = [str(IMPORTED_FROM), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "edgekd.agent.validation.process", str(folder / "job.json")]
    began, timed_out = time.monotonic(), False
    with (folder / "printed").open("w+b") as printed:
        started = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=printed, stderr=printed, env=environment, start_new_session=True
        )
        try:
            started.wait(patience_s)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            with suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)  # programs that it has started, too
            started.wait()
        printed.seek(max(printed.tell() - MAX_STDERR, 0))
        said = printed.read().decode("utf-8", "replace")
    code = started.returncode
    ended_by = None if code >= 0 else _signal_name(-code)
    seconds = round(time.monotonic() - began, 3)
    return Process(code if code >= 0 else None, ended_by, timed_out, seconds), said


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def validate(
    bundle: Path,
    out: Path,
    root: Path = Path("/"),
    *,
    kit: Path | None = None,
    runtimes: Sequence[str] = tuple(PLAN),
    effort: Effort = Effort(),
    launch: Launch = launch_process,
) -> dict[str, Any]:
    """Build, test and time a bundle by each runtime, and judge what that proves; nothing is put into service.

    kit: facts of the validation kit, with predictions. Writes the evidence to `out`; returns the verdicts. Raises
    ValidationError where not all claims that could be tested were confirmed, SpecError.
    """
    report = _Report(out, bundle, kit, root)
    report.write()
    with tempfile.TemporaryDirectory(prefix="edgekd-", dir=str(out.absolute().parent)) as name, _interrupted():
        try:
            _run(report, Path(name), bundle, root, runtimes, effort, launch)
            report.document["complete"] = True
        except KeyboardInterrupt:
            report.document["problem"] = {"kind": "interrupted", "message": "interrupted before its end"}
    found = report.judge()
    summary, code = report.summary(found), exit_code(report.evidence(), found)
    if code == ALL_CONFIRMED:
        return summary
    counted = ", ".join(f"{count} {outcome}" for outcome, count in summary["outcomes"].items())
    raise ValidationError(
        f"{bundle.name}: not every claim is confirmed",
        report=summary,
        code=code,
        expected="no claim that is refuted, and no process that is cut short",
        found=counted,
        fix=f"send {out.name} back: it has the evidence",
    )


def _run(
    report: _Report,
    folder: Path,
    bundle: Path,
    root: Path,
    runtimes: Sequence[str],
    effort: Effort,
    launch: Launch,
) -> None:
    def job(runtime: str, form: str) -> Job:
        places = (str(bundle.absolute()), str(folder / "state"), str(root), str(folder / "attempt.json"))
        return Job(runtime, form, *places, effort.iterations, effort.seconds)

    _say(f"{bundle.name}: verify and unpack")
    unpacked = report.add("preparation", launch(job(UNPACK, ""), folder, effort.patience_s), folder)
    step = unpacked["steps"][0] if unpacked["steps"] else None
    if step is None or step["outcome"] == FAILED:
        message = (step and step["error"]) or unpacked["process"]["signal"] or "the process gave no result"
        report.document["problem"] = {"kind": "bundle", "message": message}
        return
    for runtime in runtimes:
        for form in PLAN.get(runtime, ON_GPU):
            _say(f"{runtime}: {form}")
            ended = launch(job(runtime, form), folder, effort.patience_s)
            attempt = report.add("attempts", ended, folder, runtime=runtime, form=form)
            if attempt["problem"] is not None:
                break  # the other forms would meet the same problem


class _Report:
    """The document that becomes `result.json`."""

    def __init__(self, out: Path, bundle: Path, kit: Path | None, root: Path) -> None:
        self._out = out
        self._folders = (out.absolute().parent, bundle.absolute().parent, IMPORTED_FROM)
        self.document: dict[str, Any] = {
            "format": FORMAT,
            "complete": False,
            "problem": None,
            "kit": {"agent": __version__, "bundle_sha256": file_sha256(bundle), "predictions": _predictions(kit, root)},
            "system": machine.read_system(root),
            "preparation": None,
            "attempts": [],
            "verdicts": [],
        }

    def add(self, place: str, ended: tuple[Process, str], folder: Path, **names: str) -> dict[str, Any]:
        """Add what a process left behind, and write it all. Raises SpecError."""
        process, printed = ended
        noted = _noted(folder / "attempt.json")
        raw = {**names, **noted, "process": asdict(process), "printed": printed}
        attempt: dict[str, Any] = machine.anonymous(raw, (folder, *self._folders))
        if place == "attempts":
            self.document[place].append(attempt)
        else:
            self.document[place] = attempt
        self.write()
        return attempt

    def evidence(self) -> Evidence:
        """Return the document as typed evidence. Raises SpecError."""
        return from_json(self.document)

    def judge(self) -> tuple[Verdict, ...]:
        """Add the verdicts, and write it all. Raises SpecError."""
        found = verdicts(self.evidence())
        self.document["verdicts"] = [each.as_json() for each in found]
        self.write()
        for each in found:
            _say(each.line)
        if not found and self.document["problem"]:
            _say(f"{NOT_TESTED:10}  nothing: {self.document['problem']['message']}")
        return found

    def summary(self, found: Sequence[Verdict]) -> dict[str, Any]:
        """Return the result that the command prints."""
        outcomes: dict[str, int] = {}
        for each in found:
            outcomes[each.outcome] = outcomes.get(each.outcome, 0) + 1
        names = ("claim", "runtime", "form", "outcome", "text", "detail")
        lines = [{name: getattr(each, name) for name in names} for each in found]
        return {"out": str(self._out), "complete": self.document["complete"], "outcomes": outcomes, "verdicts": lines}

    def write(self) -> None:
        """Write it all. Raises SpecError."""
        write_file(self._out, canonical_json(self.document) + b"\n")


def _noted(path: Path) -> dict[str, Any]:
    """Return the notes of a process; empty ones where it wrote none."""
    nothing: dict[str, Any] = {"version": None, "problem": None, "running": None, "steps": []}
    try:
        return {**nothing, **json.loads(path.read_bytes().decode("utf-8"))}
    except (OSError, ValueError):
        return nothing


def _predictions(kit: Path | None, root: Path) -> list[dict[str, Any]]:
    """Return the predictions of a kit, each marked by whether it fits this device. Raises SpecError."""
    if kit is None:
        return []
    device = read_device(root)
    try:
        listed = json.loads(kit.read_bytes().decode("utf-8"))["predictions"]
        return [{**each, "fits": device.fits(each["compatible"])} for each in listed]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise SpecError(f"{kit}: cannot be read", found=str(error), fix="get the kit again") from error


@contextmanager
def _interrupted() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end it as Ctrl-C does, so that no process of it goes on."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = {each: signal.signal(each, stop) for each in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
