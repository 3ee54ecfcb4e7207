"""The request, the record and the result of a build: settings, stages, and files written."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from edgekd.builds import gate
from edgekd.builds.recipe import Recipe
from edgekd.builds.stage_store import AnyStage, Stage, StageSummary
from edgekd.builds.stages.base import GraphStage
from edgekd.builds.stages.benchmark import TimingResult
from edgekd.builds.stages.calibrate import Calibrated
from edgekd.builds.stages.check import CheckResult
from edgekd.builds.stages.compile import CompileResult
from edgekd.builds.stages.drift_reference import DriftResult
from edgekd.builds.stages.encode import EncodeResult
from edgekd.builds.stages.quantize import CacheResult, QuantizedResult
from edgekd.builds.stages.score import ScoreResult
from edgekd.core.bundle.manifest import DetectionThresholds
from edgekd.core.detection.decode import Thresholds
from edgekd.core.documents import INTERNAL, Result
from edgekd.data.types import Split
from edgekd.detectors import Detector
from edgekd.detectors.interface import Interface
from edgekd.evaluation.search_result import SearchResult
from edgekd.hardware.budget import Budget, LimitResult
from edgekd.hardware.target import Target

SEARCH = "search.json"
"""Name of the file with the result of a search."""


@dataclass(frozen=True)
class BuildRequest:
    """A build to run: the detector, the data, the target, the recipe and the limits.

    Args:
        out: Folder for the results.
        device: Device to time on, `local` or `local:ENGINE`.
        head: Description of an ONNX file's output, a name or a `.toml` file.
        calibration: Number of images, or the `.toml` file of a set; None for the shipped rule.
        trust_checkpoint: Allow code that is pickled in a checkpoint to run.
        fresh: Do not reuse stages of earlier builds.
        counter: Version of the bundle for rollback protection: devices refuse a lower one than they have.
        licence: Licence of the model, as an SPDX expression.
        bundle_report: Also put the report into the bundle.
        search: The search that found the recipe; None if it was given.
        train_on: GPUs to train students on, such as `0,1`; None for one GPU, if available.
        interface: Input and output of the graph that ships.
    """

    model: Path
    data: Path
    target: Target
    recipe: Recipe
    out: Path
    budget: Budget = field(default_factory=Budget)
    device: str = "local"
    head: str | None = None
    calibration: str | None = None
    trust_checkpoint: bool = False
    fresh: bool = False
    counter: int = 0
    licence: str | None = None
    bundle_report: bool = False
    search: SearchResult | None = None
    train_on: str | None = None
    interface: Interface = field(default_factory=Interface)


@dataclass(frozen=True, kw_only=True)
class BuildGraphs:
    """The graphs of a running or finished build, and the stages that checked and scored them.

    Args:
        before: The given detector's float graph.
        floating: The float graph from which `after` was made: of the given detector, a student, or a pruned detector.
        after: The graph after the steps of the recipe.
        shipped: `after` with the requested interface, in float16 where the target's builder needs that.
        encoded: `shipped` as packed in the bundle.
        scores: Scores of `before` and of `shipped`.
        checked: Check of `shipped` for the target.
        scored: The split that was scored; None without the data.
        steps: The stages that the steps of the recipe ran.
    """

    before: GraphStage
    floating: GraphStage
    after: GraphStage
    shipped: GraphStage
    encoded: Stage[EncodeResult]
    scores: tuple[Stage[ScoreResult], Stage[ScoreResult]]
    checked: Stage[CheckResult]
    scored: Split | None
    steps: tuple[AnyStage, ...] = ()

    @property
    def thresholds(self) -> DetectionThresholds:
        """For each class the confidence with the best F1 on the scored images, else the default."""
        default, scored = Thresholds(), self.scores[1].result.per_class
        rows = [scored.get(name) for name in self.after.result.spec.classes]
        best = [row.confidence if row else None for row in rows]
        confidence = tuple(default.confidence if value is None else value for value in best)
        return DetectionThresholds(confidence, default.iou, default.max_detections)


@dataclass(frozen=True, kw_only=True)
class BuildRecord(BuildGraphs):
    """The part of a build that is the same on every machine.

    Args:
        model_sha256: SHA-256 of the model's file.
        data_sha256: Fingerprint of the scored split.
        detector: The detector whose graph is `floating`.
        timed: `after` with the interface of `shipped`, for timing: CPUs are slow in float16.
        reference: `floating` with the interface of `shipped`.
        calibrated: Calibration images; None without quantization.
        drift: The reference for drift detection; None without a training split.
        weakened: True if `floating` has lost channels or rank, and was not trained since.
    """

    request: BuildRequest
    model_sha256: str
    data_sha256: str
    scored: Split
    detector: Detector
    timed: GraphStage
    reference: GraphStage
    calibrated: Calibrated | None = None
    drift: Stage[DriftResult] | None = None
    weakened: bool = False

    @property
    def reproducible(self) -> list[AnyStage]:
        """The stages that determine the content of the bundle, each once."""
        stages = [self.before, self.scores[0], *self.steps, self.shipped, self.scores[1], self.encoded]
        stages += [self.drift] if self.drift else []
        return list({stage.key: stage for stage in stages}.values())


@dataclass(frozen=True)
class MachineRecord:
    """The stages that depend on this machine: compilation and times."""

    compiled: Stage[CompileResult]
    timing: Stage[TimingResult]


@dataclass(frozen=True)
class BuildResult(Result):
    """A finished build. Pairs: the given detector's float graph, and the graph that ships.

    Args:
        bundle: Path of the bundle.
        report: Path of the HTML report.
        ledger: Path of `ledger.json`.
        target: Name of the target.
        stages: The stages, in the order in which they ran.
        met: Verdict on the budget: false if a limit is missed, else null if one cannot be decided here, else true.
        budget: An entry for each limit.
        calibration_cache: Null where nothing on the target reads one, or nothing was quantized.
        search: Path of `search.json`; null where the recipe was given.
    """

    bundle: Path
    report: Path
    ledger: Path
    target: str
    stages: tuple[StageSummary, ...]
    met: bool | None
    budget: tuple[LimitResult, ...]
    calibration_cache: CacheResult | None
    search: Path | None
    record: BuildRecord = field(metadata=INTERNAL)
    machine: MachineRecord = field(metadata=INTERNAL)
    done: tuple[AnyStage, ...] = field(metadata=INTERNAL)

    @property
    def map50_95(self) -> tuple[float, float]:
        """COCO's mAP at IoU 0.50 to 0.95 on the split `val`, 0 to 1."""
        before, after = (float(score.result.map50_95) for score in self.record.scores)
        return before, after

    @property
    def kept(self) -> float | None:
        """Share of the mAP50-95 that the graph keeps; None if it was 0 before."""
        before, after = self.map50_95
        return after / before if before else None

    @property
    def graph_bytes(self) -> tuple[int, int]:
        """Length in bytes of the float ONNX file, and of the packed graph in the bundle."""
        return self.record.before.result.bytes, self.record.encoded.result.bytes

    def require_met(self) -> None:
        """Raise BudgetError if a limit is missed, with values and limits, costliest layers, and what to try next."""
        request = self.record.request
        searched = "or --search, which looks for a recipe that keeps all limits" if request.search is None else None
        gate.require_met(self.budget, request.recipe, self.done, self, searched)


def calibration_cache(graph: GraphStage) -> CacheResult | None:
    """Return the counts of a graph's calibration cache; None without one."""
    return graph.result.calibration_cache if isinstance(graph.result, QuantizedResult) else None
