"""Install a bundle on a device: upload, verify, unpack, build, test, time, and activate its engine.

An agent on the device performs and reports all steps; nothing is measured on this host. The agent is a program, so that
of a bundle runs only if the bundle's signatures are verified or on request, and never on this machine
(`EngineJob.uses_bundle_agent`).
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from edgekd.agent.cli import COMMANDS, STATE, ErrorReport
from edgekd.agent.engines.records import Form
from edgekd.core.bundle.archive import opened_bundle
from edgekd.core.bundle.manifest import Manifest
from edgekd.core.bundle.network import verify_bundle
from edgekd.core.canonical import file_sha256
from edgekd.core.errors import (
    BundleError,
    DeviceError,
    EdgeKDError,
    EngineMismatchError,
    EngineRefusedError,
    HashError,
    RollbackError,
    SignatureError,
    SpecError,
)
from edgekd.core.progress import SILENT, Progress
from edgekd.core.typed_values import from_plain
from edgekd.deploy import agent_zipapp, tuned_accuracy
from edgekd.deploy.agent_answers import (
    AgentAnswer,
    BuildAnswer,
    BundleAnswer,
    StatusAnswer,
    TuneAnswer,
    UnpackAnswer,
)
from edgekd.deploy.devices import AgentDevice
from edgekd.deploy.devices.answers import error_text, harmless, parsed
from edgekd.deploy.devices.connection import Connection, Stop, Upload
from edgekd.deploy.engine_report import (
    DeviceReport,
    EngineLatency,
    InstallReport,
    SelfTestErrors,
    StepTime,
    UploadReport,
)
from edgekd.deploy.signing.signed import RequiredSignatures
from edgekd.deploy.tuned_accuracy import TunedAccuracy

T = TypeVar("T")
UPLOAD = "upload"
"""Folder for uploads below the state folder."""
REHEARSED = "rehearsed"
"""Basis of results of the null runtime, which computes nothing."""
_NULL = "null"
_HEARTBEAT_S = 0.5
"""Interval of heartbeats while a job waits on the host."""
_KINDS: dict[str, type[EdgeKDError]] = {
    kind.__name__: kind
    for kind in (BundleError, HashError, SignatureError, RollbackError, EngineMismatchError, SpecError)
}
"""Errors of the agent that keep their class; others become EngineRefusedError in _NETWORK_STEPS, else DeviceError."""
_NETWORK_STEPS = ("build", "tune", "selftest")
"""Steps whose errors concern the network rather than the device."""


@dataclass(frozen=True)
class EngineJob:
    """A bundle, a device, and settings of build and timing.

    runtime: None lets the agent choose; state: folder of the slots on the device, None for the default; python: its
    interpreter, None for the default; agent: path of an agent on the device, None to send one; required: signatures
    that the bundle must have; allow_unsigned: send the bundle's agent to a camera without verified signatures;
    iterations, seconds: minimum number and duration of the timed runs; timeout_s: limit of one step; tune: keep layers
    in float that are faster in float; builds: number of engines to try for that; data: data set on which the tuned
    network is scored.
    """

    bundle: Path
    device: AgentDevice
    runtime: str | None = None
    activate: bool = False
    state: str | None = None
    python: str | None = None
    agent: str | None = None
    iterations: int = 200
    seconds: float = 5.0
    timeout_s: float = 3600.0
    tune: bool = False
    builds: int = 4
    data: Path | None = None
    required: RequiredSignatures = field(default_factory=RequiredSignatures)
    allow_unsigned: bool = False

    @property
    def uses_bundle_agent(self) -> bool:
        """Return whether the agent of the bundle may run: on a camera, if the bundle is verified, or by request."""
        return self.agent is None and self.device.remote and (self.required.given or self.allow_unsigned)


def run(job: EngineJob, progress: Progress = SILENT) -> InstallReport:
    """Run the job. Raises BundleError, SignatureError, DeviceError, and errors of the agent."""
    with contents(job.bundle, job.required) as parts:
        return install(job, parts, progress)


@dataclass(frozen=True)
class Contents:
    """A verified, unpacked bundle, and the agent of this edgekd beside it.

    Args:
        identity: SHA-256 of its manifest, 64 hexadecimal digits.
        agent: The agent in the bundle; None where it has none.
        own_agent: The agent of this edgekd.
    """

    manifest: Manifest
    identity: str
    graph: Path
    agent: Path | None
    own_agent: Path


@dataclass(frozen=True)
class SharedLimits:
    """Limits of jobs in several threads. stop: interrupts them; uploads: limits simultaneous uploads."""

    stop: Stop
    uploads: threading.Semaphore


def install(
    job: EngineJob, parts: Contents, progress: Progress = SILENT, shared: SharedLimits | None = None
) -> InstallReport:
    """Run a job with an open bundle. Raises as `run` does, and KeyboardInterrupt after `shared.stop`."""
    agent, stop = _agent(job, parts, progress), shared.stop if shared else None
    with _state(job) as state, job.device.connect(job.python, stop) as connection:
        steps = _Steps(job, connection, state, progress)
        steps.flags["--model"] = parts.manifest.role
        with steps.turn(shared.uploads) if shared else contextlib.nullcontext():
            bundle = steps.upload(agent)
        with _answers_of(job):
            return _install(job, parts, steps, bundle)


def _install(job: EngineJob, parts: Contents, steps: _Steps, bundle: str) -> InstallReport:
    """Run the commands of the agent on an uploaded bundle. Raises _AnswerError."""
    status = steps.run("status", StatusAnswer)
    _require_runtime(job, status)
    device = steps.parse("status", DeviceReport, {**status.device, "name": job.device.name})
    _require_identity(job, parts, "verify", steps.run("verify", BundleAnswer, bundle))
    unpacked = steps.run("unpack", UnpackAnswer, bundle)
    _require_identity(job, parts, "unpack", unpacked)
    steps.flags["--slot"] = unpacked.slot
    built, tuned = steps.run("build", BuildAnswer), None
    if job.tune:
        tuned, accuracy = _tune(job, parts, steps)
        built = steps.parse("tune", BuildAnswer, {**steps.results["build"], **tuned.engine})
    tested = steps.run("selftest", SelfTestErrors)
    timed = steps.run("bench", EngineLatency)
    if job.activate:
        _require_identity(job, parts, "activate", steps.run("activate", BundleAnswer))
    return InstallReport(
        bundle=str(job.bundle),
        identity=parts.identity,
        name=parts.manifest.name,
        target=parts.manifest.target.name,
        fits=unpacked.fits,
        device=device,
        basis="rehearsed" if built.runtime.name == _NULL else "measured",
        runtime=built.runtime,
        engine=built.engine,
        tuning=replace(tuned.tuning, accuracy=accuracy) if tuned else None,
        self_test=tested,
        bench=timed,
        activated=job.activate,
        upload=UploadReport(
            bytes=sum(upload.bytes for upload in steps.uploads),
            sent_bytes=sum(upload.sent_bytes for upload in steps.uploads),
        ),
        steps=tuple(steps.times),
    )


@contextmanager
def _answers_of(job: EngineJob) -> Iterator[None]:
    """Convert errors of unexpected answers to DeviceError."""
    try:
        yield
    except _AnswerError as error:
        what = f"{job.device.name}: unexpected answers from an agent of another version of edgekd"
        fix = "leave --agent out" if job.agent else "build the bundle again" if job.uses_bundle_agent else None
        raise DeviceError(what, expected=error_text(str(error)), fix=fix) from error


def _require_identity(job: EngineJob, parts: Contents, command: str, answer: BundleAnswer) -> None:
    """Require that the device answers for the bundle that was verified here. Raises DeviceError."""
    if answer.identity != parts.identity:
        what = f"{job.device.name}: {command}: an answer for another bundle"
        found = error_text(answer.identity)
        raise DeviceError(what, expected=parts.identity, found=found, fix="check the device and its agent")


def _tune(job: EngineJob, parts: Contents, steps: _Steps) -> tuple[TuneAnswer, TunedAccuracy | None]:
    """Tune, and score the result on the job's data. Raises EngineRefusedError below the bundle's limit."""
    split = tuned_accuracy.scored_split(job.data, parts.manifest, steps.progress) if job.data else None
    choice = steps.run("tune", TuneAnswer)
    if split is None:
        return choice, None
    form = Form(choice.tuning.source, choice.tuning.float_layers)
    accuracy = steps.on_host(
        lambda: tuned_accuracy.accuracy(parts.graph, parts.manifest, form, split, SILENT), "score the tuned network"
    )
    try:
        tuned_accuracy.require_accuracy(accuracy, job.device.name)
    except EngineRefusedError:
        steps.run("tune", TuneAnswer, "--reset")
        raise
    return choice, accuracy


class _AnswerError(SpecError):
    """A result of the agent is not as expected."""


class _Steps:
    """The steps of a job on a connected device.

    flags: flags of the agent, each passed to the commands that have it; results: of each command; times: of each step.
    """

    def __init__(self, job: EngineJob, connection: Connection, state: str, progress: Progress) -> None:
        self.flags = {
            "--state": state,
            "--runtime": job.runtime or job.device.runtime,
            "--iterations": str(job.iterations),
            "--seconds": str(job.seconds),
            "--builds": str(job.builds),
        }
        self.progress = progress
        self.uploads: list[Upload] = []
        self.results: dict[str, dict[str, Any]] = {}
        self.times: list[StepTime] = []
        self._agent = job.agent or ""
        self._job, self._connection, self._state = job, connection, state

    @contextmanager
    def turn(self, uploads: threading.Semaphore) -> Iterator[None]:
        """Wait for a turn to upload."""
        while not uploads.acquire(timeout=_HEARTBEAT_S):
            self._connection.heartbeat()
        try:
            yield
        finally:
            uploads.release()

    def upload(self, agent: Path | None) -> str:
        """Upload bundle and agent, and lock the folder while the connection lasts; return the bundle's path there."""
        began = time.perf_counter()
        folder = str(PurePosixPath(self._state, UPLOAD))
        self._connection.claim(folder)
        files = [self._job.bundle] if agent is None else [agent, self._job.bundle]
        keep = [file_sha256(file) for file in files]
        self.uploads = [self._connection.put(file, folder, keep, self.progress) for file in files]
        if agent is not None:
            self._agent = self.uploads[0].path
        self._took("upload", began)
        return self.uploads[-1].path

    def on_host(self, work: Callable[[], T], what: str) -> T:
        """Run work on this host, with heartbeats to the waiting device."""
        began = time.perf_counter()
        self.progress.note(f"{what} ...")
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(work)
            while not wait((future,), _HEARTBEAT_S).done:
                self._connection.heartbeat()
        self._took("score", began)
        return future.result()

    def run(self, command: str, kind: type[T], *arguments: str) -> T:
        """Run a command of the agent and return its result. Raises the error that it reports, and _AnswerError."""
        name, began = self._job.device.name, time.perf_counter()
        self.progress.note(f"{command} on {name}")
        flags = [(flag, self.flags.get(flag)) for flag in COMMANDS[command][1]]
        words = [*arguments, *(word for flag, value in flags if value is not None for word in (flag, value))]
        program = [self._connection.python, self._agent, command, *words]
        ended = self._connection.run(command, program, self._job.timeout_s)
        try:
            answer = parsed(AgentAnswer, ended.out.encode("utf-8"), command, extra=True)
        except (SpecError, ValueError) as no_answer:
            raise _no_answer(name, command, ended.code, ended.err) from no_answer
        if answer.error is not None:
            raise _reported(name, command, answer.error)
        self._took(command, began)
        self.results[command] = answer.result
        return self.parse(command, kind, answer.result)

    def parse(self, command: str, kind: type[T], result: Any) -> T:
        """Return the dataclass `kind` from a result, which may have further keys. Raises _AnswerError."""
        try:
            return from_plain(kind, harmless(result, command), command, extra=True)
        except SpecError as error:
            raise _AnswerError(error.what, expected=error.expected, found=error.found) from error

    def _took(self, step: str, began: float) -> None:
        self.times.append(StepTime(step, round(time.perf_counter() - began, 3)))


def _reported(device: str, command: str, error: ErrorReport) -> EdgeKDError:
    """Return the error that an agent reports, as an exception."""
    kind = _KINDS.get(error.kind, EngineRefusedError if command in _NETWORK_STEPS else DeviceError)
    return kind(
        f"{device}: {command}: {error_text(error.what)}",
        expected=error_text(error.expected),
        found=error_text(error.found),
        fix=error_text(error.fix),
    )


def _require_runtime(job: EngineJob, status: StatusAnswer) -> None:
    """Require a runtime on the device, before a slot is changed. Raises DeviceError."""
    if status.runtime is None:
        raise DeviceError(
            f"{job.device.name}: no runtime for networks",
            expected="TensorRT or ONNX Runtime for its Python",
            fix="pass the Python that has it with --python, or rehearse with --runtime null",
        )


def _no_answer(device: str, command: str, code: int, stderr: str) -> DeviceError:
    last = [line[:300] for line in stderr.strip().splitlines()[-1:]]
    fix = (
        "pass a Python that has NumPy with --python"
        if "numpy" in stderr
        else "see its requirements in docs/guides/agent.md"
    )
    found = last[0] if last else f"exit code {code}"
    return DeviceError(f"{device}: {command}: the agent gave no answer", found=found, fix=fix)


@contextmanager
def contents(bundle: Path, required: RequiredSignatures | None = None) -> Iterator[Contents]:
    """Verify and unpack a bundle for the duration of the block. Raises BundleError, HashError, SignatureError."""
    judge = required.judge() if required else None
    with tempfile.TemporaryDirectory(prefix="edgekd-") as scratch:
        folder, own_agent = Path(scratch, "bundle"), Path(scratch, agent_zipapp.NAME)
        with opened_bundle(bundle, judge) as reader:
            verify_bundle(reader)
            reader.extract(folder)
            head = reader.head
        own_agent.write_bytes(agent_zipapp.agent_archive())
        agents = (folder / entry.path for entry in head.manifest.files if entry.role == "agent")
        yield Contents(head.manifest, head.identity, folder / head.manifest.graph.path, next(agents, None), own_agent)


def _agent(job: EngineJob, parts: Contents, progress: Progress) -> Path | None:
    """Return the agent to send; None for the one on the device that the job names."""
    if job.agent is not None:
        return None
    if job.uses_bundle_agent and parts.agent:
        return parts.agent
    if job.device.remote:
        progress.note("the agent is that of this edgekd; the bundle's own needs --trust, --key or --allow-unsigned")
    return parts.own_agent


@contextmanager
def _state(job: EngineJob) -> Iterator[str]:
    """Yield the state folder on the device, a temporary one for a rehearsal."""
    if job.state is None and job.device.runtime == _NULL:
        with tempfile.TemporaryDirectory(prefix="edgekd-") as folder:
            yield folder
    else:
        yield job.state or str(STATE)
