"""A bundle on a device: sent, verified, unpacked, its engine built, tested, timed and activated.

The agent in the bundle does all of it, and reports it: nothing is measured here.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from edgekd.agent.cli import COMMANDS, STATE
from edgekd.agent.engines.records import RuntimeVersion
from edgekd.core.bundle.archive import extract
from edgekd.core.bundle.manifest import Manifest
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
from edgekd.deploy import tuned_accuracy
from edgekd.deploy.devices import Device
from edgekd.deploy.devices.session import Placed, Site, Stop
from edgekd.deploy.engine_result import (
    Basis,
    DeviceEngine,
    DeviceReport,
    EngineResult,
    EngineTimes,
    SelfTestSummary,
    StepTime,
    TunedAccuracy,
    Tuning,
    Upload,
)

T = TypeVar("T")
UPLOAD = "upload"
"""The folder for uploads in the state folder."""
REHEARSED: Basis = "rehearsed"
MEASURED: Basis = "measured"
"""The basis of results by the null runtime: nothing was computed."""
_STEPS = ("build", "selftest", "bench")
_NULL = "null"
_TURN_S = 0.5
"""Seconds between signs of life of a job that waits for its turn to upload."""
_KINDS: dict[str, type[EdgeKDError]] = {
    kind.__name__: kind
    for kind in (BundleError, HashError, SignatureError, RollbackError, EngineMismatchError, SpecError)
}
"""Errors of the agent that are raised as they are; any other is a DeviceError."""
_JUDGING = ("build", "tune", "selftest")
"""Steps whose error is about the network rather than the device."""


@dataclass(frozen=True)
class EngineJob:
    """A bundle, a device, and how the engine is built and timed there.

    state: the folder of the slots on the device, None for the default; python: its interpreter, None for the default;
    agent: path there of an agent in the firmware, None for the bundle's; runtime: None leaves the choice to the agent;
    iterations, seconds: minimum of timed runs and of their time; timeout_s: limit of one step; tune: leave the layers
    in float that are faster so; builds: engines that may take; data: the bundle's data set, to score the tuned engine.
    """

    bundle: Path
    device: Device
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


def run(job: EngineJob, progress: Progress = SILENT) -> EngineResult:
    """Run the job; return the documented result. Raises BundleError, DeviceError, and errors of the agent."""
    with contents(job.bundle) as parts:
        return install(job, parts, progress)


@dataclass(frozen=True)
class Contents:
    """A verified bundle, unpacked: its manifest, its graph, and its agent, None where it has none."""

    manifest: Manifest
    graph: Path
    agent: Path | None


@dataclass(frozen=True)
class SharedLimits:
    """Limits of jobs in several threads. stop: ends them; uploads: jobs that may send at a time."""

    stop: Stop
    uploads: threading.Semaphore


def install(
    job: EngineJob, parts: Contents, progress: Progress = SILENT, shared: SharedLimits | None = None
) -> EngineResult:
    """Run a job with an open bundle. Raises as `run` does, and KeyboardInterrupt where it was stopped."""
    agent, stop = _agent(job, parts), shared.stop if shared else None
    with _state(job) as state, job.device.site(job.python, stop) as site:
        work = _Work(job, site, state, progress)
        with work.turn(shared.uploads) if shared else contextlib.nullcontext():
            bundle = work.upload(agent)
        _require_runtime(job, work.step("status"))
        work.step("verify", bundle)
        work.given["--slot"] = work.step("unpack", bundle)["slot"]
        work.step("build")
        scored = _tuned(job, parts, work) if job.tune else None
        for command in (*_STEPS[1:], "activate") if job.activate else _STEPS[1:]:
            work.step(command)
    try:
        return _result(job, parts.manifest, work, scored)
    except (KeyError, TypeError, SpecError) as error:
        what = f"{job.device.name}: the agent there is of another edgekd, and says other things"
        raise DeviceError(what, expected=str(error), fix="build the bundle again, or leave --agent out") from error


def _tuned(job: EngineJob, parts: Contents, work: _Work) -> TunedAccuracy | None:
    """Tune, and score the result where there is data. Raises EngineRefusedError below the bundle's limit."""
    split = tuned_accuracy.scored_split(job.data, parts.manifest, work.progress) if job.data else None
    chosen = work.step("tune")
    if split is None:
        return None
    scored = work.beside(
        lambda: tuned_accuracy.accuracy(parts.graph, parts.manifest, chosen, split, SILENT), "score the tuned network"
    )
    try:
        tuned_accuracy.require_accuracy(scored, job.device.name)
    except EngineRefusedError:
        work.step("tune", "--reset")
        raise
    return scored


def _result(job: EngineJob, manifest: Manifest, work: _Work, scored: TunedAccuracy | None) -> EngineResult:
    """Return the answers of the agent as the documented result. Raises SpecError, KeyError, TypeError for others."""
    status, unpacked, built, tested, timed = (work.results[name] for name in ("status", "unpack", *_STEPS))
    tuned = work.results.get("tune")
    if tuned:
        built = {**built, **tuned["engine"]}

    def part(kind: type[T], answer: Mapping[str, Any]) -> T:
        return from_plain(kind, answer, kind.__name__, extra=True)

    return EngineResult(
        bundle=job.bundle,
        identity=unpacked["identity"],
        name=manifest.name,
        target=manifest.target.name,
        fits=unpacked["fits"],
        device=part(DeviceReport, {**status["device"], "name": job.device.name}),
        basis=REHEARSED if built["runtime"]["name"] == _NULL else MEASURED,
        runtime=part(RuntimeVersion, built["runtime"]),
        engine=part(DeviceEngine, built),
        tuning=replace(part(Tuning, tuned), accuracy=scored) if tuned else None,
        self_test=part(SelfTestSummary, tested),
        bench=part(EngineTimes, timed),
        activated="activate" in work.results,
        upload=Upload(sum(each.bytes for each in work.placed), sum(each.sent_bytes for each in work.placed)),
        steps=tuple(work.steps),
    )


class _Work:
    """The steps of a job on an open device.

    given: flags of the agent, of which each command gets its own; results: of each command.
    """

    def __init__(self, job: EngineJob, site: Site, state: str, progress: Progress) -> None:
        self.given = {
            "--state": state,
            "--runtime": job.runtime or job.device.runtime,
            "--iterations": str(job.iterations),
            "--seconds": str(job.seconds),
            "--builds": str(job.builds),
        }
        self.placed: list[Placed] = []
        self.results: dict[str, dict[str, Any]] = {}
        self.steps: list[StepTime] = []
        self._agent = job.agent or ""
        self._job, self._site, self._state, self.progress = job, site, state, progress

    @contextmanager
    def turn(self, uploads: threading.Semaphore) -> Iterator[None]:
        """Wait for a turn to upload."""
        while not uploads.acquire(timeout=_TURN_S):
            self._site.alive()
        try:
            yield
        finally:
            uploads.release()

    def upload(self, agent: Path | None) -> str:
        """Send bundle and agent, and lock the folder as long as the device is open. Return the bundle's path there."""
        began = time.perf_counter()
        folder = str(PurePosixPath(self._state, UPLOAD))
        self._site.claim(folder)
        files = [self._job.bundle] if agent is None else [agent, self._job.bundle]
        keep = [file_sha256(file) for file in files]
        self.placed = [self._site.put(file, folder, keep, self.progress) for file in files]
        if agent is not None:
            self._agent = self.placed[0].path
        self._took("upload", began)
        return self.placed[-1].path

    def beside(self, work: Callable[[], T], what: str) -> T:
        """Run work on this host, with signs of life to the waiting device."""
        began = time.perf_counter()
        self.progress.note(f"{what} ...")
        with ThreadPoolExecutor(1) as pool:
            doing = pool.submit(work)
            while not wait((doing,), _TURN_S).done:
                self._site.alive()
        self._took("score", began)
        return doing.result()

    def step(self, command: str, *arguments: str) -> dict[str, Any]:
        """Run a command of the agent and return its result. Raises the error that it reports."""
        name, began = self._job.device.name, time.perf_counter()
        self.progress.note(f"{command} on {name}")
        flags = [(flag, self.given.get(flag)) for flag in COMMANDS[command][1]]
        words = [*arguments, *(word for flag, value in flags if value is not None for word in (flag, value))]
        ended = self._site.run(command, [self._site.python, self._agent, command, *words], self._job.timeout_s)
        try:
            answer = json.loads(ended.out)
            error = answer["error"]
        except (KeyError, TypeError, ValueError) as no_answer:
            raise _no_answer(name, command, ended.code, ended.err) from no_answer
        if error is not None:
            kind = _KINDS.get(error["kind"], EngineRefusedError if command in _JUDGING else DeviceError)
            parts = {part: error[part] for part in ("expected", "found", "fix")}
            raise kind(f"{name}: {command}: {error['what']}", **parts)
        self._took(command, began)
        self.results[command] = answer["result"]
        return self.results[command]

    def _took(self, step: str, began: float) -> None:
        self.steps.append(StepTime(step, round(time.perf_counter() - began, 3)))


def _require_runtime(job: EngineJob, status: dict[str, Any]) -> None:
    """Require a runtime on the device, before anything is put into a slot. Raises DeviceError."""
    if status["runtime"] is None:
        raise DeviceError(
            f"{job.device.name}: nothing there can run a network",
            expected="TensorRT or ONNX Runtime for its Python",
            fix="name the Python that has it with --python, or rehearse with --runtime null",
        )


def _no_answer(device: str, command: str, code: int, said: str) -> DeviceError:
    last = [line[:300] for line in said.strip().splitlines()[-1:]]
    fix = "name a Python that has NumPy with --python" if "numpy" in said else "see docs/agent.md for what it needs"
    found = last[0] if last else f"exit code {code}"
    return DeviceError(f"{device}: {command}: the agent gave no answer", found=found, fix=fix)


@contextmanager
def contents(bundle: Path) -> Iterator[Contents]:
    """Verify a bundle, and open it for as long as the block lasts. Raises BundleError, HashError."""
    with tempfile.TemporaryDirectory(prefix="edgekd-") as scratch:
        folder = Path(scratch, "bundle")
        manifest = extract(bundle, folder)
        agents = (folder / entry.path for entry in manifest.files if entry.role == "agent")
        yield Contents(manifest, folder / manifest.graph.path, next(agents, None))


def _agent(job: EngineJob, parts: Contents) -> Path | None:
    """Return the agent to send; None where the device's own is used. Raises BundleError where there is none."""
    if job.agent is None and parts.agent is None:
        what, fix = f"{job.bundle}: no agent in it", "build it again, or name one on the device with --agent"
        raise BundleError(what, expected="a file with role agent", fix=fix)
    return None if job.agent else parts.agent


@contextmanager
def _state(job: EngineJob) -> Iterator[str]:
    """Yield the state folder on the device; that of a rehearsal is temporary."""
    if job.state is None and job.device.runtime == _NULL:
        with tempfile.TemporaryDirectory(prefix="edgekd-") as folder:
            yield folder
    else:
        yield job.state or str(STATE)
