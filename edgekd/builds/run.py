"""The record of a build: what was asked for, what the stages made of it, and what was left behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgekd.builds import gate
from edgekd.builds.budget import Line
from edgekd.builds.recipe import Budget, Recipe
from edgekd.builds.stage_store import Stage
from edgekd.builds.stages.base import Calibrated, spec_of, stage_json
from edgekd.core.bundle.manifest import Thresholds
from edgekd.core.detection.decode import Thresholds as Usual
from edgekd.data.types import Split
from edgekd.detectors import Detector
from edgekd.evaluation.analysis.matching import Findings
from edgekd.hardware.target import Target


@dataclass(frozen=True)
class Job:
    """What to build, from what, for what, and how good it must be.

    counter: no device goes back to a bundle with a lower one. licence: of the model, in SPDX's words. search: how the
    recipe was found, as search.json has it; None where it was given. train_on: the GPUs that students are trained on,
    such as `0,1`; None for one if there is any.
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


@dataclass(frozen=True)
class Run:
    """What a build compressed and scored: the same on every machine.

    `before` and `after` are the graphs; `steps` led to the latter. `shipped` is `after`, or what the target's builder
    needs in its place; it and `before` are scored in `scores`, and `encoded` is how it travels.
    `floating` is the float graph that `after` was made from, and `detector` that of the graph: the given ones, or the
    student's, or what pruning has left, which is `weakened` until it was trained.
    """

    job: Job
    model_sha256: str
    scored: Split
    data_sha256: str
    detector: Detector
    before: Stage
    floating: Stage
    after: Stage
    shipped: Stage
    encoded: Stage
    scores: tuple[Stage, Stage]
    calibrated: Calibrated | None
    checked: Stage
    watched: Stage | None = None
    steps: tuple[Stage, ...] = ()
    weakened: bool = False

    @property
    def reproducible(self) -> list[Stage]:
        """Its stages that lead to what ships, without repetition."""
        own = [self.before, self.scores[0], *self.steps, self.shipped, self.scores[1], self.encoded]
        own += [self.watched] if self.watched else []
        return list({stage.key: stage for stage in own}.values())

    @property
    def thresholds(self) -> Thresholds:
        """For each class the confidence that was best on the scored images; the usual one where they cannot tell."""
        usual, scored = Usual(), self.scores[1].results["per_class"]
        found = (scored.get(name, {}).get("confidence") for name in spec_of(self.after).classes)
        confidence = tuple(usual.confidence if value is None else value for value in found)
        return Thresholds(confidence, usual.iou, usual.max_detections)


@dataclass(frozen=True)
class TimedRun(Run):
    """A run with what this machine made of it.

    findings: what both graphs make of every labelled object; analysed: what was seen inside the networks, None where
    that failed.
    """

    compiled: Stage = field(kw_only=True)
    timing: Stage = field(kw_only=True)
    findings: Findings = field(kw_only=True)
    analysed: Stage | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class Outcome:
    """What a build left behind. `met`: the budget; None where a limit could not be judged here.

    Pairs are of the given detector's float graph, and of the graph that ships.
    """

    run: TimedRun
    bundle: Path
    report: Path
    ledger: Path
    stages: tuple[Stage, ...]
    budget: tuple[Line, ...]
    met: bool | None

    @property
    def map50_95(self) -> tuple[float, float]:
        """COCO's mAP at IoU 0.50 to 0.95 on the split `val`, 0 to 1."""
        before, after = (float(score.results["map50_95"]) for score in self.run.scores)
        return before, after

    @property
    def kept(self) -> float | None:
        """The share of the mAP50-95 that is left; None where there was none before."""
        before, after = self.map50_95
        return after / before if before else None

    @property
    def graph_bytes(self) -> tuple[int, int]:
        """Of the float ONNX file, and of the packed graph in the bundle."""
        return self.run.before.results["bytes"], self.run.encoded.results["bytes"]

    @property
    def document(self) -> dict[str, Any]:
        """The documented result of `edgekd build --json`: docs/json.md."""
        job = self.run.job
        return {
            "bundle": str(self.bundle),
            "report": str(self.report),
            "ledger": str(self.ledger),
            "target": job.target.name,
            "stages": [stage_json(stage) for stage in self.stages],
            "met": self.met,
            "budget": [asdict(line) for line in self.budget],
            "calibration_cache": self.run.after.results.get("calibration_cache"),
            "search": None if job.search is None else str(job.out / "search.json"),
        }

    def require_met(self) -> None:
        """Raise BudgetError, naming each number, its limit, the layers and the next lever, where a limit is missed."""
        job = self.run.job
        searched = "or --search, which looks for a recipe that keeps all limits" if job.search is None else None
        gate.require_met(self.budget, job.recipe, self.stages, self, searched)
