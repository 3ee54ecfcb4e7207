"""`edgekd engine`: a bundle sent to a device, and there verified, unpacked, built, tested, timed and put into service.

All of it is done by the agent out of the bundle. What it says of itself is what is reported: nothing is measured here.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from edgekd.agent.cli import STATE
from edgekd.agent.slots import identity
from edgekd.benchmark import MEASURED
from edgekd.bundle.archive import extract
from edgekd.bundle.manifest import Manifest
from edgekd.canonical import file_sha256
from edgekd.errors import (
    BundleError,
    DeviceError,
    EdgeKDError,
    EngineMismatchError,
    HashError,
    RollbackError,
    SignatureError,
    SpecError,
)
from edgekd.progress import SILENT, Progress

if TYPE_CHECKING:
    from edgekd.devices import Device
    from edgekd.devices.session import Placed, Site

UPLOAD = "upload"
"""Where in the state folder files are sent to."""
REHEARSED = "rehearsed"
"""The basis of what the null runtime says: nothing was computed."""
_NULL = "null"
_DEVICE = "firmware compatible model serial cpu gpus driver l4t os kernel memory_bytes power_mode".split()
_KINDS: dict[str, type[EdgeKDError]] = {
    kind.__name__: kind
    for kind in (BundleError, HashError, SignatureError, RollbackError, EngineMismatchError, SpecError)
}
"""What of the agent's errors is raised as it is; any other is a DeviceError."""


@dataclass(frozen=True)
class EngineJob:
    """What `edgekd engine` is asked for.

    state: the folder of the slots on the device, None for the usual one; python: its interpreter, None for the usual
    one; runtime: None leaves the choice to the agent; iterations, seconds: at least so many runs and so long are timed;
    timeout_s: what one step may take.
    """

    bundle: Path
    device: Device
    runtime: str | None = None
    activate: bool = False
    state: str | None = None
    python: str | None = None
    iterations: int = 200
    seconds: float = 5.0
    timeout_s: float = 3600.0


def run(job: EngineJob, progress: Progress = SILENT) -> dict[str, Any]:
    """Do it; the documented result. Raises BundleError, HashError, DeviceError, and what the agent raises."""
    with _unpacked(job.bundle) as (manifest, agent), _state(job) as state, job.device.site(job.python) as site:
        work = _Work(job, site, state, progress)
        placed = work.upload([agent, job.bundle])
        work.agent, bundle = placed[0].path, placed[1].path
        status = work.step("status", "--state", state, *work.runtime)
        _require_runtime(job, status)
        work.step("verify", bundle)
        unpacked = work.step("unpack", bundle, "--state", state)
        slot = ("--state", state, *work.runtime, "--slot", unpacked["slot"])
        built = work.step("build", *slot)
        tested = work.step("selftest", *slot)
        timed = work.step("bench", *slot, "--iterations", str(job.iterations), "--seconds", str(job.seconds))
        active = work.step("activate", *slot) if job.activate else None
    device = {name: status["device"].get(name) for name in _DEVICE}
    return {
        "bundle": str(job.bundle),
        "identity": identity(manifest),
        "name": manifest.name,
        "target": manifest.target.name,
        "fits": unpacked["fits"],
        "device": {"name": job.device.name, **device},
        "basis": REHEARSED if built["runtime"]["name"] == _NULL else MEASURED,
        "runtime": built["runtime"],
        "engine": {name: built[name] for name in ("slot", "key", "file", "bytes", "seconds", "changed", "layers")},
        "self_test": {name: tested[name] for name in ("passed", "precision", "frames", "error", "tolerance")},
        "bench": {name: timed[name] for name in ("iterations", "fps", "inference_ms")},
        "activated": active is not None,
        "upload": {
            "bytes": sum(each.bytes for each in placed),
            "sent_bytes": sum(each.sent_bytes for each in placed),
        },
        "steps": work.steps,
    }


class _Work:
    """The steps of a job on an open device."""

    def __init__(self, job: EngineJob, site: Site, state: str, progress: Progress) -> None:
        self.agent = ""
        self.steps: list[dict[str, Any]] = []
        chosen = job.runtime or job.device.runtime
        self.runtime = ("--runtime", chosen) if chosen else ()
        self._job, self._site, self._state, self._progress = job, site, state, progress

    def upload(self, files: Sequence[Path]) -> list[Placed]:
        """Put files there, and keep other uploads to that state away for as long as the device is open."""
        began = time.perf_counter()
        folder = str(PurePosixPath(self._state, UPLOAD))
        self._site.claim(folder)
        keep = [file_sha256(file) for file in files]
        placed = [self._site.put(file, folder, keep, self._progress) for file in files]
        self._took("upload", began)
        return placed

    def step(self, command: str, *arguments: str) -> dict[str, Any]:
        """What the agent gives for a command. Raises what it says went wrong."""
        name, began = self._job.device.name, time.perf_counter()
        self._progress.note(f"{command} on {name}")
        ended = self._site.run(command, [self._site.python, self.agent, command, *arguments], self._job.timeout_s)
        try:
            answer = json.loads(ended.out)
            error = answer["error"]
        except (KeyError, TypeError, ValueError) as no_answer:
            raise _no_answer(name, command, ended.code, ended.err) from no_answer
        if error is not None:
            kind = _KINDS.get(error["kind"], DeviceError)
            told = {part: error[part] for part in ("expected", "found", "fix")}
            raise kind(f"{name}: {command}: {error['what']}", **told)
        self._took(command, began)
        result: dict[str, Any] = answer["result"]
        return result

    def _took(self, step: str, began: float) -> None:
        self.steps.append({"name": step, "seconds": round(time.perf_counter() - began, 3)})


def _require_runtime(job: EngineJob, status: dict[str, Any]) -> None:
    """Raises DeviceError where nothing there can run a network, before anything is put into a slot."""
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
def _unpacked(bundle: Path) -> Iterator[tuple[Manifest, Path]]:
    """The manifest of a bundle, verified, and the agent out of it. Raises BundleError, HashError."""
    with tempfile.TemporaryDirectory(prefix="edgekd-") as scratch:
        folder = Path(scratch, "bundle")
        manifest = extract(bundle, folder)
        agent = next((folder / entry.path for entry in manifest.files if entry.role == "agent"), None)
        if agent is None:
            raise BundleError(f"{bundle}: no agent in it", expected="a file with role agent", fix="build it again")
        yield manifest, agent


@contextmanager
def _state(job: EngineJob) -> Iterator[str]:
    """The state folder on the device: a rehearsal without one leaves nothing behind."""
    if job.state is None and job.device.runtime == _NULL:
        with tempfile.TemporaryDirectory(prefix="edgekd-") as folder:
            yield folder
    else:
        yield job.state or str(STATE)
