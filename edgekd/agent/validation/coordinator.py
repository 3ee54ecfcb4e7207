"""Run a validation from its first process to its verdicts, with Python's standard library alone.

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
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable  # noqa: UP035 collections.abc.Callable[...] is Python 3.9

from edgekd.agent.state.device import read_device
from edgekd.agent.state.documents import read_object
from edgekd.agent.validation.evidence import (
    CALIBRATED,
    FAILED,
    FLOAT,
    FORMAT,
    FP32_WEIGHTS,
    INT8_CONSTANTS,
    UNPACK,
    Mode,
    NetworkForm,
    Prediction,
    Problem,
    Process,
    ValidationEvidence,
    from_json,
)
from edgekd.agent.validation.machine import SystemFacts, anonymous, read_system
from edgekd.agent.validation.process import AttemptNotes, Job, StepNote
from edgekd.agent.validation.verdicts import ALL_CONFIRMED, NOT_TESTED, Verdict, VerdictSummary, exit_code, verdicts
from edgekd.core.atomic_files import write_file
from edgekd.core.canonical import canonical_json, file_sha256
from edgekd.core.documents import INLINE, to_plain
from edgekd.core.errors import DeviceError, SpecError
from edgekd.core.version import __version__

ON_GPU = (FLOAT, FP32_WEIGHTS, INT8_CONSTANTS)
"""Forms in their order: the control first, then INT8 both ways."""
ON_DLA = (FLOAT, CALIBRATED)
PLAN: Mapping[str, Sequence[NetworkForm]] = {
    "tensorrt": ON_GPU,
    "trtexec": ON_GPU,
    "tensorrt-dla0": ON_DLA,
    "tensorrt-dla1": ON_DLA,
    "onnxruntime": ON_GPU,
}
"""By runtime, the forms that are built."""
PATIENCE_S = 2700.0
"""Maximum seconds of one process: the largest builds of a Xavier take half an hour."""
SOURCE = Path(__file__).parents[__name__.count(".")]
"""Folder or zipapp of this package, from which other processes import it."""
MAX_STDERR = 4000  # characters of the end of what a process printed


@dataclass(frozen=True)
class ValidationEffort:
    """Minimum runs and seconds of a benchmark, and the maximum seconds of a process."""

    iterations: int = 200
    seconds: float = 10.0
    patience_s: float = PATIENCE_S


QUICK = ValidationEffort(50, 2.0)
Launch = Callable[[Job, Path, float], "tuple[Process, str]"]
"""Runs a job in a folder within so many seconds; returns the end of its process, and the end of its output."""


@dataclass(frozen=True)
class ValidationSummary:
    """Result of `validate`; the evidence is in the file that it writes.

    Args:
        out: Path of that file.
        complete: True where the validation came to its end.
        outcomes: Number of claims that are `confirmed`, `refuted`, `not tested`.
        verdicts: One for each claim; docs/guides/hardware-validation.md explains them.
    """

    out: Path
    complete: bool
    outcomes: Mapping[str, int]
    verdicts: Sequence[VerdictSummary]


class ValidationError(DeviceError):
    """Not every claim was confirmed. report: the verdicts; agent_exit_code: by verdict."""

    def __init__(self, what: str, *, report: ValidationSummary, code: int, **parts: str) -> None:
        super().__init__(what, **parts)
        self.report, self.agent_exit_code = report, code


def launch_process(job: Job, folder: Path, patience_s: float) -> tuple[Process, str]:
    """Run a job in a process group of its own, which ends with it."""
    job.write(folder / "job.json")
    with suppress(FileNotFoundError):
        Path(job.out).unlink()
    path = [str(SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])]
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
        text = printed.read().decode("utf-8", "replace")
    code = started.returncode
    ended_by = None if code >= 0 else _signal_name(-code)
    seconds = round(time.monotonic() - began, 3)
    return Process(code if code >= 0 else None, ended_by, timed_out, seconds), text


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
    effort: ValidationEffort = ValidationEffort(),
    launch: Launch = launch_process,
) -> ValidationSummary:
    """Build, test and time a bundle by each runtime, and judge the evidence; nothing is put into service.

    kit: facts of the validation kit, with predictions. Writes the evidence to `out`. Raises ValidationError where not
    all claims that could be tested were confirmed, SpecError.
    """
    recorder = _Recorder(out, bundle, kit, root)
    recorder.write()
    with tempfile.TemporaryDirectory(prefix="edgekd-", dir=str(out.absolute().parent)) as folder, _interrupted():

        def start(runtime: str, form: str = "") -> ProcessReport:
            places = (str(bundle.absolute()), f"{folder}/state", str(root), f"{folder}/attempt.json")
            job = Job(runtime, form, *places, effort.iterations, effort.seconds)
            return recorder.read(launch(job, Path(folder), effort.patience_s), Path(folder))

        try:
            _say(f"{bundle.name}: verify and unpack")
            _run(recorder, start, runtimes)
            recorder.document.complete = True
        except KeyboardInterrupt:
            recorder.document.problem = Problem("interrupted", "interrupted before its end")
    found = recorder.judge()
    summary, code = recorder.summary(), exit_code(recorder.evidence(), found)
    if code == ALL_CONFIRMED:
        return summary
    outcomes, problem = summary.outcomes.items(), recorder.document.problem
    raise ValidationError(
        f"{bundle.name}: not every claim is confirmed",
        report=summary,
        code=code,
        expected="no claim that is refuted, and no process that is cut short",
        found=", ".join(f"{count} {outcome}" for outcome, count in outcomes) or str(problem and problem.message),
        fix=f"send {out.name} back: it has the evidence",
    )


def _run(recorder: _Recorder, start: Callable[..., ProcessReport], runtimes: Sequence[str]) -> None:
    unpacked = start(UNPACK)
    recorder.document.preparation = unpacked
    recorder.write()
    step = unpacked.notes.steps[0] if unpacked.notes.steps else None
    if step is None or step.outcome == FAILED:
        message = (step and step.error) or unpacked.process.signal or "the process gave no result"
        recorder.document.problem = Problem("bundle", message)
        return
    for runtime in runtimes:
        for form in PLAN.get(runtime, ON_GPU):
            _say(f"{runtime}: {form}")
            report = start(runtime, form)
            recorder.document.attempts.append(AttemptReport(runtime, form, report))
            recorder.write()
            if report.notes.problem is not None:
                break  # the other forms would have the same problem


@dataclass(frozen=True)
class KitFacts:
    """The tested agent and bundle, and the predictions of the kit.

    Args:
        agent: Version of the agent.
        bundle_sha256: SHA-256 of the bundle's file.
        predictions: For each target with figures; empty without a kit.
    """

    agent: str
    bundle_sha256: str
    predictions: Sequence[Prediction]


@dataclass(frozen=True)
class ProcessReport:
    """A process: its notes, its end, and what it printed.

    Args:
        printed: End of what the process printed.
    """

    notes: AttemptNotes = field(metadata=INLINE)
    process: Process
    printed: str


@dataclass(frozen=True)
class AttemptReport:
    """One engine, in a process of its own.

    Args:
        runtime: `tensorrt`, `trtexec`, `tensorrt-dla0`, `tensorrt-dla1` or `onnxruntime`.
        form: Form of the network: without Q/DQ; Q/DQ with FP32 weights; DQ on INT8 constants; without Q/DQ, scales in a
            calibration cache.
    """

    runtime: str
    form: NetworkForm
    report: ProcessReport = field(metadata=INLINE)


@dataclass
class ResultDocument:
    """Evidence, and the verdicts on it.

    Args:
        kit: Null where only a shell ran.
        format: Format of the file: 1.
        complete: True where the validation came to its end.
        problem: Null where all attempts were made.
        preparation: The process that verifies and unpacks the bundle; null where none was started.
        attempts: Attempts in their order.
        verdicts: For whoever has the device; `edgekd validate-report` judges again.
    """

    kit: KitFacts | None
    system: SystemFacts
    format: int = FORMAT
    complete: bool = False
    problem: Problem | None = None
    preparation: ProcessReport | None = None
    attempts: list[AttemptReport] = field(default_factory=list)
    verdicts: Sequence[Verdict] = ()


class _Recorder:
    """The document of a validation, and its file."""

    def __init__(self, out: Path, bundle: Path, kit: Path | None, root: Path) -> None:
        self._out = out
        self._folders = (out.absolute().parent, bundle.absolute().parent, SOURCE)
        facts = KitFacts(__version__, file_sha256(bundle), _predictions(kit, root))
        self.document = ResultDocument(facts, read_system(root))

    def read(self, ended: tuple[Process, str], folder: Path) -> ProcessReport:
        """Return the notes of a process with its end, without private names; empty notes where it wrote none."""
        (process, printed), folders = ended, (folder, *self._folders)
        raw = anonymous(read_object(folder / "attempt.json") or {}, folders)
        # Parts of a step stay plain JSON: they are written again as they are.
        notes = AttemptNotes(**{**raw, "steps": tuple(StepNote(**each) for each in raw.get("steps", ()))})
        return ProcessReport(notes, process, anonymous(printed, folders))

    def evidence(self) -> ValidationEvidence:
        """Return the document as typed evidence. Raises SpecError."""
        return from_json(to_plain(self.document))

    def judge(self) -> tuple[Verdict, ...]:
        """Add the verdicts, and write the file. Raises SpecError."""
        found = verdicts(self.evidence())
        self.document.verdicts = found
        self.write()
        for each in found:
            _say(each.line)
        if not found and self.document.problem:
            _say(f"{NOT_TESTED:10}  nothing: {self.document.problem.message}")
        return found

    def summary(self) -> ValidationSummary:
        """Return the result of the command."""
        judged = self.document.verdicts
        outcomes: Counter[str] = Counter(each.outcome for each in judged)
        return ValidationSummary(self._out, self.document.complete, outcomes, [each.summary for each in judged])

    def write(self) -> None:
        """Write the file. Raises SpecError."""
        write_file(self._out, canonical_json(to_plain(self.document)) + b"\n")


def _predictions(kit: Path | None, root: Path) -> list[Prediction]:
    """Return the predictions of a kit, each with whether it fits this device. Raises SpecError."""
    if kit is None:
        return []
    device = read_device(root)
    try:
        listed = json.loads(kit.read_bytes().decode("utf-8"))["predictions"]
        modes = [each["power_mode"] and Mode(**each["power_mode"]) for each in listed]
        return [
            Prediction(**{**each, "power_mode": mode, "fits": device.fits(each["compatible"])})
            for each, mode in zip(listed, modes)  # noqa: B905
        ]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise SpecError(f"{kit}: cannot be read", found=str(error), fix="get the kit again") from error


@contextmanager
def _interrupted() -> Iterator[None]:
    """Handle SIGTERM and SIGHUP like Ctrl-C, so that no child process stays."""

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
