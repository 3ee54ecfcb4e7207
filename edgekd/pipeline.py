"""The main job: from a trained detector to a bundle for the camera, on one screen."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from edgekd.budget import LEVERS, Line, judge, verdict
from edgekd.data.dataset import Split, load_dataset
from edgekd.detectors import load
from edgekd.errors import BudgetError, SpecError
from edgekd.evaluate import require_classes
from edgekd.progress import SILENT, Progress
from edgekd.publish import pack_bundle, write_build_ledger, write_report
from edgekd.spec import Budget, Recipe
from edgekd.stages import EXPORT_OPSET, Calibrated, Stages, calibration_source, local_device, spec_of
from edgekd.store import FileHashes, Stage, Store
from edgekd.target import Target

SCORED = "val"
"""The split that is scored; nothing is chosen or calibrated on it."""


@dataclass(frozen=True)
class Job:
    """What to build, from what, for what, and how good it must be."""

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


@dataclass(frozen=True)
class Run:
    """A build's stages, before they are summed up. `before` and `after` are the graphs, scored in `scores`."""

    job: Job
    model_sha256: str
    scored: Split
    data_sha256: str
    before: Stage
    after: Stage
    scores: tuple[Stage, Stage]
    calibrated: Calibrated | None
    compiled: Stage
    timing: Stage
    checked: Stage

    @property
    def reproducible(self) -> list[Stage]:
        """The stages that give the same on every machine: all but compiling, timing and what follows from them."""
        chosen = self.calibrated.stage if self.calibrated else None
        own = [self.before, self.scores[0], chosen, self.after, self.scores[1]]
        return list({stage.key: stage for stage in own if stage is not None}.values())


@dataclass(frozen=True)
class Outcome:
    """What a build left behind. `met`: the budget; None where a limit could not be judged here."""

    run: Run
    bundle: Path
    report: Path
    ledger: Path
    stages: tuple[Stage, ...]
    budget: tuple[Line, ...]
    met: bool | None


def build(job: Job, progress: Progress = SILENT) -> Outcome:
    """Run every stage of a job that is not in its store yet, and leave bundle, report and ledger in `job.out`.

    Raises SpecError, DataError, CompressError or DeviceError and leaves nothing half-written. A missed budget does
    not raise: `require_met` does.
    """
    refuse_impossible(job)
    dataset = load_dataset(job.data)
    scored = dataset.split(SCORED)
    if job.recipe.steps:
        calibration_source(job.calibration, dataset)  # a mistake in it should not cost an export first
    device = local_device(job.device)
    basis = "measured" if job.target.kind == "cpu" else "stand-in"
    store = Store(job.out / "stages", job.fresh, progress)
    stages = Stages(store, FileHashes(store.root / "hashes.json"), progress)

    detector = load(job.model, job.head, dataset.classes, job.trust_checkpoint)
    before = stages.export(detector, job.head, dataset.classes, opset_for(job.target))
    require_classes(spec_of(before), dataset)
    checked = stages.check(before, job.target, "fp32")
    data = stages.fingerprint(scored)
    score_before = stages.score(before, scored, data, "fp32")

    after, calibrated = before, None
    for step in job.recipe.steps:
        source = calibration_source(job.calibration, dataset)
        calibrated = stages.calibrate(source, dataset, scored, data, spec_of(before))
        after = stages.quantize(step, after, calibrated, tensorrt_of(job.target))
    score_after = score_before
    if job.recipe.steps:
        checked = stages.check(after, job.target, job.recipe.precision)
        score_after = stages.score(after, scored, data, job.recipe.precision)

    compiled = stages.compile(after, job.target)
    timing = stages.benchmark(before, after, scored, data, device, basis)
    run = Run(
        job=job,
        model_sha256=stages.sha256(job.model),
        scored=scored,
        data_sha256=data,
        before=before,
        after=after,
        scores=(score_before, score_after),
        calibrated=calibrated,
        compiled=compiled,
        timing=timing,
        checked=checked,
    )
    return publish(run, stages)


def publish(run: Run, stages: Stages) -> Outcome:
    """Pack the bundle, judge the budget, and write what the user reads."""
    bundle = pack_bundle(run, stages)
    before, after = (score.results["map50_95"] for score in run.scores)
    timed = run.timing.results["after"]
    lines = judge(
        run.job.budget,
        bundle_bytes=bundle.stat().st_size,
        retention=after / before if before else None,
        fps=timed["fps"],
        basis=timed["basis"],
    )
    return Outcome(
        run=run,
        bundle=bundle,
        report=write_report(run, lines, bundle, stages.done),
        ledger=write_build_ledger(run, lines, bundle, stages.done),
        stages=tuple(stages.done),
        budget=tuple(lines),
        met=verdict(lines),
    )


def refuse_impossible(job: Job) -> None:
    """Refuse what the target cannot run, before anything is computed. Raises SpecError."""
    from edgekd.check import check_request

    for finding in check_request(job.target, precision=job.recipe.precision):
        if finding.level == "impossible":
            raise SpecError(f"recipe {job.recipe.name} for {job.target.name}: {finding.what}", fix=finding.change)


def require_met(outcome: Outcome) -> None:
    """Raise BudgetError, naming each number, its limit and the next lever, where the budget is missed."""
    missed = [line for line in outcome.budget if line.met is False]
    if missed:
        what = "; ".join(f"{line.label} is {line.text(line.value)}, limit {line.text(line.limit)}" for line in missed)
        raise BudgetError(f"budget missed: {what}", report=outcome, fix="; ".join(LEVERS[line.name] for line in missed))


def opset_for(target: Target) -> int:
    """The opset to export with: as new as is useful, as old as the target's parser needs."""
    return min(EXPORT_OPSET, target.max_opset.value) if target.max_opset else EXPORT_OPSET


def tensorrt_of(target: Target) -> str | None:
    """The oldest TensorRT version on the target, which its calibration cache must name; None without TensorRT."""
    return target.software.tensorrt.value[0] if target.software.tensorrt else None
