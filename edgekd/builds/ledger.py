"""The file `ledger.json` of a build: times, results and hashes of its stages, the machine, and the inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgekd.builds.stage_store import AnyStage, number_of, readable_json
from edgekd.builds.stages.quantize import CacheResult
from edgekd.builds.stages.train import Epochs
from edgekd.core.atomic_files import write_file
from edgekd.core.benchmark import Basis, TimingSummary
from edgekd.core.bundle.manifest import Origin
from edgekd.core.documents import to_plain
from edgekd.core.errors import SpecError
from edgekd.core.host_facts import HostFacts
from edgekd.core.input_files import is_file
from edgekd.core.json_files import read_document
from edgekd.evaluation.search_result import SearchCounts
from edgekd.hardware.budget import LimitResult

LEDGER = "ledger.json"


@dataclass(frozen=True)
class LedgerStage:
    """A stage of a build.

    Args:
        name: Name, such as `score-int8`.
        version: Version of the stage's code.
        key: SHA-256 of name, version and inputs.
        seconds: Wall time when the stage ran, now or in an earlier build.
        bytes: Total length of its files.
        map50_95, map50: COCO's mAP; null where the stage scores nothing.
        sha256: SHA-256 of its files and results.
        files: SHA-256 by file name.
        cached: True if it was found in the store.
        updates: Weight updates of a training; null where the stage trains nothing.
        cpu_seconds: CPU time when the stage ran, of all threads and processes; null where it was not measured.
    """

    name: str
    version: int
    key: str
    seconds: float
    bytes: int
    map50_95: float | None
    map50: float | None
    sha256: str
    files: Mapping[str, str]
    cached: bool
    updates: int | None = None
    cpu_seconds: float | None = None


@dataclass(frozen=True)
class LedgerTiming:
    """Times of a graph from frame to detections.

    Args:
        basis: `measured`, or `stand-in` for another machine than the target.
        fps: Frames per second, one after the other; null where the run was too short or too noisy.
        p50_ms, p99_ms: Percentile of the milliseconds of a frame.
    """

    basis: Basis
    fps: float | None
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class LedgerTimings:
    """The times of both graphs on this machine, interleaved.

    Args:
        before: The graph of the given detector.
        after: The graph that ships.
    """

    before: LedgerTiming
    after: LedgerTiming


@dataclass(frozen=True)
class LedgerPrediction:
    """Predicted latency of a frame on the target.

    Args:
        ms: Milliseconds.
        low_ms, high_ms: Range of the milliseconds that contains nine of ten measurements.
    """

    ms: float
    low_ms: float
    high_ms: float


@dataclass(frozen=True)
class TrainingRecord:
    """The training of a student.

    Args:
        losses: Mean of each loss in each epoch, by name, before weighting.
        weights: Mean weight of each loss in each epoch, by name, and mean of the values that weights are computed from.
    """

    losses: Epochs
    weights: Epochs


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """A finished build. Fields with a default are missing in ledgers of older versions.

    Args:
        edgekd: Version of edgekd.
        model: File name of the model.
        data: Path of the data set, as given.
        target: Name of the target.
        bundle: File name of the bundle.
        budget: An entry for each limit.
        losses: Mean of each loss in each epoch of quantization-aware training; empty without it.
        calibration_cache: Null where nothing on the target reads one, or nothing was quantized.
        distillation: Null without a student.
        predicted: Null where the target cannot be predicted.
        search: The search that found the recipe; null where it was given.
        stages: The stages, in the order in which they ran.
    """

    edgekd: str = ""
    model: str
    data: str | None = None
    target: str
    bundle: str
    budget: tuple[LimitResult, ...]
    losses: Epochs = ()
    calibration_cache: CacheResult | None = None
    distillation: TrainingRecord | None = None
    lineage: Origin | None = None
    host: HostFacts
    timing: LedgerTimings | None = None
    predicted: LedgerPrediction | None = None
    search: SearchCounts | None = None
    stages: tuple[LedgerStage, ...]


def ledger_row(stage: AnyStage) -> LedgerStage:
    """Return the ledger's entry for a stage."""
    return LedgerStage(
        name=stage.name,
        version=stage.version,
        key=stage.key,
        seconds=round(stage.seconds, 3),
        bytes=stage.bytes,
        map50_95=number_of(stage, "map50_95"),
        map50=number_of(stage, "map50"),
        sha256=stage.sha256,
        files={name: file.sha256 for name, file in stage.files.items()},
        cached=stage.cached,
        updates=number_of(stage, "updates"),
        cpu_seconds=None if stage.cpu_seconds is None else round(stage.cpu_seconds, 2),
    )


def timing_of(summary: TimingSummary) -> LedgerTiming:
    """Return the ledger's entry for the times of a graph."""
    return LedgerTiming(summary.basis, summary.fps, summary.total_ms.p50, summary.total_ms.p99)


def write_ledger(folder: Path, ledger: Ledger) -> Path:
    """Write the ledger into a result folder and return its path. Raises SpecError if it cannot be written."""
    write_file(folder / LEDGER, readable_json(to_plain(ledger)))
    return folder / LEDGER


def read_ledger(folder: Path) -> Ledger:
    """Read the ledger in a result folder. Raises SpecError if no build has finished there, or it is damaged."""
    path = folder / LEDGER
    if not is_file(path):
        fix = "pass the folders that `edgekd build --out` wrote"
        raise SpecError(f"{folder}: no finished build", expected=f"a folder with a {LEDGER}", fix=fix)
    return read_document(Ledger, path)
