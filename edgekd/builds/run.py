"""The request and the record of a build: what is wanted, the stages that ran, and the files that were written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgekd.builds import gate
from edgekd.builds.recipe import Recipe
from edgekd.builds.stage_store import AnyStage, Stage, stage_json
from edgekd.builds.stages.base import GraphStage
from edgekd.builds.stages.benchmark import TimingResult
from edgekd.builds.stages.calibrate import Calibrated
from edgekd.builds.stages.check import CheckResult
from edgekd.builds.stages.compile import CompileResult
from edgekd.builds.stages.drift_reference import DriftResult
from edgekd.builds.stages.encode import EncodeResult
from edgekd.builds.stages.quantize import QuantizedResult
from edgekd.builds.stages.score import ScoreResult
from edgekd.core.bundle.manifest import Thresholds
from edgekd.core.detection.decode import Thresholds as DefaultThresholds
from edgekd.data.types import Split
from edgekd.detectors import Detector
from edgekd.hardware.budget import Budget, Line
from edgekd.hardware.target import Target


@dataclass(frozen=True)
class BuildRequest:
    """A build to run: the detector, the data, the target, the recipe and the limits.

    Args:
        out: Folder for the results.
        device: To time on, `local` or `local:ENGINE`.
        head: Description of an ONNX file's output, a name or a `.toml` file.
        calibration: Number of images, or the `.toml` file of a set.
        fresh: Reuse no stage from before.
        counter: Version of the bundle: no device goes back to a lower one.
        licence: Of the model, as an SPDX expression.
        search: Record of the search that found the recipe, as in search.json; None where it was given.
        train_on: GPUs to train students on, such as `0,1`; None for one if there is any.
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
    search: Mapping[str, Any] | None = None
    train_on: str | None = None


@dataclass(frozen=True, kw_only=True)
class BuildGraphs:
    """The graphs of a running or finished build, and the stages that judged them.

    Args:
        before: The given detector's float graph.
        floating: The float graph that `after` was made from: the given one, a student's, or a pruned one.
        after: The graph that the steps of the recipe led to.
        shipped: `after`, or in float16 where the target's builder needs that.
        encoded: `shipped` as it is packed.
        scores: Of `before` and of `shipped`.
        checked: The target's check of `shipped`.
        scored: The split that was scored; None where the data is not at hand.
        steps: The stages of the recipe.
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
    def thresholds(self) -> Thresholds:
        """For each class the confidence with the best F1 on the scored images; the default where none is known."""
        default, scored = DefaultThresholds(), self.scores[1].result.per_class
        rows = [scored.get(name) for name in self.after.result.spec.classes]
        best = [row.confidence if row else None for row in rows]
        confidence = tuple(default.confidence if value is None else value for value in best)
        return Thresholds(confidence, default.iou, default.max_detections)


@dataclass(frozen=True, kw_only=True)
class BuildRecord(BuildGraphs):
    """A build as far as it is the same on every machine.

    Args:
        detector: That of `floating`.
        calibrated: None without quantization.
        drift: The reference for drift detection; None without a training split.
        weakened: `floating` has lost channels or rank, and was not trained since.
    """

    request: BuildRequest
    model_sha256: str
    data_sha256: str
    scored: Split
    detector: Detector
    calibrated: Calibrated | None = None
    drift: Stage[DriftResult] | None = None
    weakened: bool = False

    @property
    def reproducible(self) -> list[AnyStage]:
        """The stages that the bundle follows from, without repetition."""
        stages = [self.before, self.scores[0], *self.steps, self.shipped, self.scores[1], self.encoded]
        stages += [self.drift] if self.drift else []
        return list({stage.key: stage for stage in stages}.values())


@dataclass(frozen=True)
class MachineRecord:
    """The stages that depend on this machine: what it compiled, and its times."""

    compiled: Stage[CompileResult]
    timing: Stage[TimingResult]


@dataclass(frozen=True)
class BuildResult:
    """A finished build.

    Pairs are of the given detector's float graph, and of the graph that ships.

    Args:
        met: Verdict on the budget; None where a limit could not be judged here.
    """

    record: BuildRecord
    machine: MachineRecord
    bundle: Path
    report: Path
    ledger: Path
    stages: tuple[AnyStage, ...]
    budget: tuple[Line, ...]
    met: bool | None

    @property
    def map50_95(self) -> tuple[float, float]:
        """COCO's mAP at IoU 0.50 to 0.95 on the split `val`, 0 to 1."""
        before, after = (float(score.result.map50_95) for score in self.record.scores)
        return before, after

    @property
    def kept(self) -> float | None:
        """Share of the mAP50-95 that is left; None where there was none before."""
        before, after = self.map50_95
        return after / before if before else None

    @property
    def graph_bytes(self) -> tuple[int, int]:
        """Length of the float ONNX file, and of the packed graph in the bundle."""
        return self.record.before.result.bytes, self.record.encoded.result.bytes

    @property
    def document(self) -> dict[str, Any]:
        """The documented result of `edgekd build --json`: docs/json.md."""
        request = self.record.request
        return {
            "bundle": str(self.bundle),
            "report": str(self.report),
            "ledger": str(self.ledger),
            "target": request.target.name,
            "stages": [stage_json(stage) for stage in self.stages],
            "met": self.met,
            "budget": [asdict(line) for line in self.budget],
            "calibration_cache": cache_json(self.record.after),
            "search": None if request.search is None else str(request.out / "search.json"),
        }

    def require_met(self) -> None:
        """Raise BudgetError, naming each number, its limit, the layers and the next lever, where a limit is missed."""
        request = self.record.request
        searched = "or --search, which looks for a recipe that keeps all limits" if request.search is None else None
        gate.require_met(self.budget, request.recipe, self.stages, self, searched)


def cache_json(graph: GraphStage) -> dict[str, int] | None:
    """Return the counts of a graph's calibration cache; None without one."""
    result = graph.result
    cache = result.calibration_cache if isinstance(result, QuantizedResult) else None
    return None if cache is None else asdict(cache)
