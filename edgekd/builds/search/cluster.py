"""Trials on the machines of a Ray cluster. The only module that imports Ray.

All machines share the folder of the search, the model and the data, at the same paths. Trials read and write the stage
store there; Ray transfers only the description and the result of a trial, a few kilobytes. If a worker or a machine is
lost, its trial restarts elsewhere, reuses finished stages, and resumes a training.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgekd.builds.search.leases import on_cores
from edgekd.builds.search.loop import TrialRequest
from edgekd.builds.search.pareto import Point
from edgekd.builds.search.trials import Task, make_trial, time_trial
from edgekd.builds.search.workers import EVERY_S, RunTrials
from edgekd.builds.stage_kinds import code_versions
from edgekd.builds.stages.base import tool_versions
from edgekd.builds.stages.trial import TRIAL
from edgekd.core.atomic_files import write_file
from edgekd.core.cores import usable_cores
from edgekd.core.errors import DeviceError, EdgeKDError, SpecError
from edgekd.core.progress import Progress
from edgekd.core.version import __version__

BOARD = "board"
"""Ray resource of a machine: one for each board that it reaches."""
LOCAL = "local"
"""Address for a cluster that is started on this machine and ends with the search."""
RETRIES = 5
"""Retries of a trial whose worker was lost."""
PROBE = "cluster.probe"
_OTHER_MACHINES = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's switch for clusters of several machines: with 0, its default on Windows and macOS, it listens on loopback."""
_CONNECT_S = 10.0
Make = Callable[[Task, Path], Point]
Time = Callable[[Task, Point, Path], Point]


@dataclass(frozen=True)
class Cluster:
    """Resources of a cluster that this process has joined.

    cpus, gpus: cores and GPUs of a trial; slots: trials that fit at the same time; boards: number offered.
    """

    cpus: int
    gpus: int
    slots: int
    boards: int = 0


@contextmanager
def joined_cluster(
    address: str, gpus: int | None, at_once: int, boards: int = 0, cores: int | None = None
) -> Iterator[Cluster]:
    """Join the cluster at an address for the duration of the block.

    gpus: GPUs of a trial, None for one if there are any; at_once: trials to run at the same time; boards: number of
    boards to time on, of which machines must offer at least one; cores: number that a local cluster declares, None for
    all usable ones. Raises SpecError without Ray or if no machine has the resources of a trial, DeviceError if there is
    no cluster.
    """
    ray = _library()
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == LOCAL:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options |= {"include_dashboard": False, "num_cpus": cores or usable_cores()}
        options |= {"resources": {BOARD: boards}} if boards else {}
    else:
        _require_listener(address)
    try:
        with _on_loopback(ray) if address == LOCAL else nullcontext():
            ray.init(address=address, **options)
    except Exception as error:  # Ray's errors have no common base class
        fix = f"run the search on a machine of the cluster: there `ray start --address={address}`"
        found = str(error).strip().splitlines()
        raise DeviceError(f"--cluster {address}: cannot join", found=found[0] if found else None, fix=fix) from error
    try:
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        yield _room(alive, gpus, at_once, boards)
    finally:
        ray.shutdown()


@contextmanager
def _on_loopback(ray: Any) -> Iterator[None]:
    """Make a cluster that starts in the block listen on loopback only, because Ray runs any code that it receives."""
    constants = ray._private.ray_constants
    before = os.environ.get(_OTHER_MACHINES), constants.ENABLE_RAY_CLUSTER
    os.environ[_OTHER_MACHINES], constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        os.environ.pop(_OTHER_MACHINES)
        if before[0] is not None:
            os.environ[_OTHER_MACHINES] = before[0]
        constants.ENABLE_RAY_CLUSTER = before[1]


def _library() -> Any:
    """Import Ray. Raises SpecError if it is not installed."""
    try:
        import ray
    except ImportError as error:
        fix = 'pip install "edgekd[cluster]"'
        raise SpecError("--cluster needs Ray", found=str(error), fix=fix) from error
    return ray


def _require_listener(address: str) -> None:
    """Raise DeviceError if nothing listens at an address, SpecError if it is malformed; Ray itself takes minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto":
        return
    if not host or not port.isdecimal():
        raise SpecError(f"--cluster {address}", expected="HOST:PORT of its head, auto, or local")
    try:
        socket.create_connection((host, int(port)), _CONNECT_S).close()
    except (OSError, OverflowError) as error:
        fix = "start one: `ray start --head --port=6379`, and `ray start --address=HOST:6379` on the others"
        raise DeviceError(f"--cluster {address}: nobody answers", found=str(error), fix=fix) from error


def _room(nodes: Sequence[dict[str, float]], gpus: int | None, at_once: int, boards: int) -> Cluster:
    """Return the resources of a trial on these machines, and how many trials fit. Raises SpecError."""
    most = int(max((node.get("GPU", 0) for node in nodes), default=0))
    each = min(most, 1) if gpus is None else gpus
    offered = int(sum(node.get(BOARD, 0) for node in nodes))
    if each > most:
        raise SpecError(f"--gpus {each}", expected=f"at most what one machine has: {most}")
    if boards and not offered:
        fix = f"on the machine that reaches them: `ray start --address=... --resources='{{\"{BOARD}\": {boards}}}'`"
        raise SpecError("--fleet: no machine of the cluster offers boards", fix=fix)
    able = [node for node in nodes if node.get("CPU", 0) >= 1 and node.get("GPU", 0) >= each]
    if not able:
        raise SpecError(
            "--cluster: no machine has room for a trial", expected=f"one core and {each} GPUs", found="none"
        )
    if each:
        cpus = min(int(node["CPU"] // (node["GPU"] // each)) for node in able)
    else:
        cpus = int(min(sum(node["CPU"] for node in able) // at_once, max(node["CPU"] for node in able)))
    cpus = max(cpus, 1)
    slots = sum(int(min(node["CPU"] // cpus, node["GPU"] // each if each else node["CPU"])) for node in able)
    return Cluster(cpus, each, max(slots, 1), offered)


@dataclass(frozen=True)
class SharedEnvironment:
    """Files and software that every machine of a cluster must share with the one that runs the search."""

    probe: Path
    token: str
    software: dict[str, Any]

    @classmethod
    def here(cls, folder: Path) -> SharedEnvironment:
        """Describe this machine, and write a probe file into the shared folder. Raises SpecError."""
        token = secrets.token_hex(8)
        write_file(folder / PROBE, token.encode("ascii"))
        return cls(folder / PROBE, token, _software())

    def require(self) -> None:
        """Raise DeviceError if this machine has other software, or does not see the same folder."""
        seen = None
        with suppress(OSError):
            seen = self.probe.read_text("ascii")
        if seen != self.token:
            what, expected = "does not see the folder of the search", f"{self.probe.parent}, shared by all machines"
            raise DeviceError(what, expected=expected, found="another one there" if seen else "nothing there")
        found = _software()
        for name, version in self.software.items():
            if found.get(name) != version:
                expected = f"{name} {version}, as where the search runs"
                raise DeviceError("has other software", expected=expected, found=str(found.get(name)))


def _software() -> dict[str, Any]:
    """Return the versions that stage keys depend on."""
    return {"edgekd": __version__, "stages": code_versions(), **tool_versions(*TRIAL.tools)}


@contextmanager
def cluster_trials(
    cluster: Cluster,
    task: Callable[[TrialRequest], Task],
    out: Path,
    progress: Progress,
    halves: tuple[Make, Time] = (make_trial, time_trial),
) -> Iterator[RunTrials]:
    """Yield a function that runs trials on machines of the cluster.

    out: result folder with the store, shared by all machines; halves: functions that make a candidate, on a machine
    with GPUs, and time it, on a machine with boards.
    """
    make, measure = halves
    ray = _library()
    usual = {"max_retries": RETRIES, "num_gpus": 0}
    making = ray.remote(_make_here).options(**usual | {"num_cpus": cluster.cpus, "num_gpus": cluster.gpus})
    timing = ray.remote(_time_here).options(**usual | {"num_cpus": 0, "resources": {BOARD: 1}})
    same = SharedEnvironment.here(out / "search")

    def submitted(request: Task) -> Any:
        made = making.remote(make, request, out, same, cluster.cpus, cluster.gpus)
        return timing.remote(measure, request, made, out, same) if request.boards else made

    yield lambda wanted: gathered([submitted(task(each)) for each in wanted], progress)


def gathered(tries: list[Any], progress: Progress) -> list[Any]:
    """Return all results in order. Raises the error of a trial, or DeviceError if one is lost, and cancels the others.

    tries: Ray's references to the results.
    """
    ray = _library()
    left = list(tries)
    try:
        while left:
            done, left = ray.wait(left, timeout=EVERY_S)
            for each in done:
                ray.get(each)  # raises a failure at once, not when the last task is done
            if not done:
                progress.note(f"search: {len(tries) - len(left)} of {len(tries)} trials done on the cluster")
        return list(ray.get(tries))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, EdgeKDError):
            raise error.cause from error
        raise
    except ray.exceptions.RayError as error:
        found = str(error).strip().splitlines()
        fix = "see what became of it with `ray status`; the same command goes on"
        raise DeviceError(f"the cluster lost a trial {RETRIES + 1} times", found=(found or [""])[0], fix=fix) from error
    finally:
        for each in left:
            ray.cancel(each, force=True)


def _make_here(make: Make, task: Task, out: Path, same: SharedEnvironment, cpus: int, gpus: int) -> Point:
    """Make and score a candidate on this machine of the cluster."""
    with _host_in_errors(), on_cores(cpus):
        same.require()
        # Ultralytics counts the GPUs that Ray shows this process.
        several = ",".join(map(str, range(gpus))) if gpus > 1 else None
        return make(replace(task, job=replace(task.job, train_on=several)), out)


def _time_here(measure: Time, task: Task, point: Point, out: Path, same: SharedEnvironment) -> Point:
    """Time a candidate on a board that this machine of the cluster reaches."""
    with _host_in_errors():
        same.require()
        return measure(task, point, out)


@contextmanager
def _host_in_errors() -> Iterator[None]:
    """Add the host name to an error of the block."""
    try:
        yield
    except EdgeKDError as error:
        problem = f"{socket.gethostname()}: {error.what}"
        raise type(error)(problem, expected=error.expected, found=error.found, fix=error.fix) from error
