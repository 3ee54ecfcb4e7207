"""Numbers of a run for other tools: training curves and results of stages, as JSON lines or to MLflow.

The only module that imports MLflow.
"""

from __future__ import annotations

import json
import math
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol, TypeVar

from edgekd.core.atomic_files import writing
from edgekd.core.errors import DeviceError, SpecError
from edgekd.core.progress import Progress
from edgekd.deploy.signing.secrets import without_secrets

T = TypeVar("T")
MLFLOW = "mlflow:"
"""Prefix of the address of an MLflow server; alone it means the address in MLFLOW_TRACKING_URI."""
EXPERIMENT = "edgekd"
_APART = frozenset({"detector", "errors", "float32", "forms", "host", "per_class", "snr_db", "tools"})
"""Keys in results of stages that are not logged: no numbers of a run, or one for each of many layers or classes."""
_BATCH = 500
"""Maximum number of metrics in one request."""


class Sink(Protocol):
    """A destination of numbers. It may raise anything: the run continues without it."""

    def write(self, name: str, step: int, values: Mapping[str, float]) -> None:
        """Store numbers by key, for a stage or training `name`. step: the epoch, or the number of earlier calls."""
        ...

    def close(self, ended: bool) -> None:
        """Close; ended: the run was not interrupted."""
        ...


class JsonLines:
    """JSON lines, appended to a file without buffering, so that a running training can be followed."""

    def __init__(self, path: Path) -> None:
        """Open the file. Raises SpecError if it cannot be written."""
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = path.open("a", encoding="utf-8")
        self._run = datetime.now(timezone.utc).isoformat(timespec="milliseconds")

    def write(self, name: str, step: int, values: Mapping[str, float]) -> None:
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        line = {"run": self._run, "time": now, "name": name, "step": step, "values": values}
        self._stream.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._stream.flush()

    def close(self, ended: bool) -> None:
        self._stream.close()


class Mlflow:
    """A run of the experiment `edgekd` on an MLflow server, with the command line in its tag `command`."""

    def __init__(self, uri: str, name: str) -> None:
        """Start a run. Raises SpecError without MLflow, DeviceError if the server does not accept a run."""
        try:
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            fix = 'pip install "edgekd[mlflow]"'
            raise SpecError(f"--log {MLFLOW}{uri}: needs MLflow", found=str(error), fix=fix) from error
        try:
            self._client = MlflowClient(tracking_uri=uri or None)
            known = self._client.get_experiment_by_name(EXPERIMENT)
            experiment = known.experiment_id if known else self._client.create_experiment(EXPERIMENT)
            tags = {"command": without_secrets(" ".join(["edgekd", *sys.argv[1:]]))[:5000]}
            self._run = self._client.create_run(experiment, run_name=name, tags=tags).info.run_id
        except Exception as error:  # MLflow's stores have no common base class of errors
            found = str(error).strip().splitlines() or [type(error).__name__]
            raise DeviceError(f"--log {MLFLOW}{uri}: takes no run", found=found[0][:300]) from error

    def write(self, name: str, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        named = {re.sub(r"[^\w\-. /:]", "_", f"{name}/{key}"): value for key, value in values.items()}
        metrics = [Metric(key, value, now, step) for key, value in named.items()]
        for at in range(0, len(metrics), _BATCH):
            self._client.log_batch(self._run, metrics=metrics[at : at + _BATCH])

    def close(self, ended: bool) -> None:
        self._client.set_terminated(self._run, "FINISHED" if ended else "FAILED")


class Tracked:
    """A progress that also passes numbers to a sink. A failure is reported once, and the run continues without it."""

    def __init__(self, progress: Progress, sink: Sink) -> None:
        self._progress = progress
        self._sink: Sink | None = sink
        self._live: dict[str, set[int]] = {}
        self._count: Counter[str] = Counter()

    def items(self, iterable: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        """Show progress over items."""
        yield from self._progress.items(iterable, label, total)

    def note(self, text: str) -> None:
        """Show a text."""
        self._progress.note(text)

    def epoch(self, name: str, epoch: int, values: Mapping[str, float]) -> None:
        """Pass on the numbers of one epoch of a running training."""
        self._live.setdefault(name, set()).add(epoch)
        self._write(name, epoch, values)

    def stage(self, name: str, results: Mapping[str, Any], seconds: float) -> None:
        """Pass on the numbers of a stage of this run or an earlier one, and its epochs that were not passed on yet."""
        known = self._live.pop(name, set())
        for epoch, values in enumerate(results.get("losses") or ()):
            if epoch not in known:
                self._write(name, epoch, values)
        self._write(name, self._count[name], {"seconds": seconds, **dict(numbers(results))})
        self._count[name] += 1

    def close(self, ended: bool) -> None:
        """Close the sink."""
        if self._sink is not None:
            self._safely(lambda sink: sink.close(ended))

    def _write(self, name: str, step: int, values: Mapping[str, float]) -> None:
        finite = {key: float(value) for key, value in values.items() if math.isfinite(value)}
        self._safely(lambda sink: sink.write(name, step, finite))

    def _safely(self, work: Any) -> None:
        if self._sink is None:
            return
        try:
            work(self._sink)
        except Exception as error:  # a failing server must not stop a training
            self._sink = None
            self._progress.note(f"--log: no more numbers are kept: {error}")


def numbers(results: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers in a stage's results with dotted names. before: prefix of the names."""
    for key, value in results.items():
        if key in _APART:
            continue
        if isinstance(value, Mapping):
            yield from numbers(value, f"{before}{key}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{before}{key}", float(value)


@contextmanager
def tracked(log: str | None, progress: Progress, name: str) -> Iterator[Progress]:
    """Yield the progress; with a log, one that also writes numbers to a file or an MLflow server.

    name: of the run on the server. Raises SpecError or DeviceError before the block runs.
    """
    if log is None:
        yield progress
        return
    sink: Sink = Mlflow(log.removeprefix(MLFLOW), name) if log.startswith(MLFLOW) else JsonLines(Path(log))
    listener = Tracked(progress, sink)
    try:
        yield listener
    except BaseException:
        listener.close(False)
        raise
    listener.close(True)
